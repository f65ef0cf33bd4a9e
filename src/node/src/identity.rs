//! Who this node is: what it registers as and signs its words with.

use rustix::time::{ClockId, clock_gettime};
use state_machine::{BootId, IdError, NodeId, NodeMoment, Nqn};
use uuid::Uuid;

/// Namespace of the version 5 UUIDs that host NQNs are made of.
const HOST_NAMESPACE: Uuid = Uuid::from_u128(0x2c0f_8a41_7c1e_5d0b_8f46_0d7a_93be_1e55);
/// What the NVMe base specification has every UUID-based NQN begin with.
const UUID_NQN_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid";

/// The node, in its present boot.
#[derive(Debug, Clone)]
pub(crate) struct NodeIdentity {
    /// The Kubernetes node's name.
    pub(crate) node: NodeId,
    /// The boot.
    pub(crate) boot: BootId,
    /// What the node calls itself to NVMe subsystems.
    pub(crate) host_nqn: Nqn,
    /// How many volumes it can take; 0 is no limit.
    pub(crate) max_volumes: u32,
}

impl NodeIdentity {
    /// The present moment. To be taken before the look that it stands for: what is seen is at least as new.
    pub(crate) fn moment(&self) -> NodeMoment {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or_default();
        NodeMoment {
            boot: self.boot.clone(),
            since_boot_ns: seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds),
        }
    }
}

/// The host NQN of `node` on the machine of this id: the same at every start. The node's name is part of it, as
/// machines cloned from one image often share their id.
pub(crate) fn host_nqn(machine_id: &str, node: &NodeId) -> Result<Nqn, IdError> {
    let uuid = Uuid::new_v5(&HOST_NAMESPACE, format!("{machine_id}/{node}").as_bytes());
    Nqn::parse(&format!("{UUID_NQN_PREFIX}:{uuid}"))
}

/// The host ID that goes with a host NQN: the UUID in it, if it is made of one, else one made of it.
pub(crate) fn host_id(host_nqn: &Nqn) -> Uuid {
    let text = host_nqn.as_str();
    let uuid =
        text.strip_prefix(UUID_NQN_PREFIX).and_then(|rest| Uuid::parse_str(rest.strip_prefix(':')?).ok());
    uuid.unwrap_or_else(|| Uuid::new_v5(&HOST_NAMESPACE, text.as_bytes()))
}
