//! What the reaper is told by others: node sessions and Kubernetes watches.

use std::collections::BTreeSet;
use std::time::Duration;

use state_machine::{Migration, NodeId, State, VolumeId};
use tokio::sync::watch;

use super::decide::{KubeVirt, Sight};

/// What is known of a volume on a node from the node's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// No session, or not heard for so long that its word is void.
    Nothing { why: String },
    /// The newest look.
    Looked {
        /// The look began after this asking ([`Evidence::ask_again`]) had reached the node.
        answers: u64,
        /// What was found; unknown if the node could not tell.
        sight: Sight,
    },
}

/// What Kubernetes says of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// No Kubernetes, or its nodes have not all been read, or the watch is lost.
    Unknown,
    /// The node is there and not tainted out-of-service.
    Present,
    /// The node is tainted out-of-service.
    OutOfService,
    /// All nodes have been read, and it is not among them: deleted, or never there.
    Missing,
}

/// Where evidence comes from. Every question is answered at once from memory, while the ledger's state is held; what is
/// old or was lost is unknown, never absent. Answers are those of this leader: what an earlier one heard is not among them.
pub trait Evidence: Send + Sync + 'static {
    /// What the node's session says of the volume, which the ledger has in this state.
    fn seen(&self, state: &State, volume: &VolumeId, node: &NodeId) -> Seen;

    /// How long nothing was heard from the node's session; `None` if nothing ever was.
    fn silent_for(&self, node: &NodeId) -> Option<Duration>;

    /// For how long sessions have been taken here without a break; `None` while they are not.
    fn listening(&self) -> Option<Duration>;

    /// What KubeVirt says of this migration. Unknown while a watch is lost; that it ended is final at any age.
    fn kubevirt(&self, volume: &VolumeId, migration: &Migration) -> KubeVirt;

    /// What Kubernetes says of the node.
    fn standing(&self, node: &NodeId) -> Standing;

    /// Has the sessions of these nodes look again, of more if that is simpler. Returns the asking's number, greater
    /// than all before in this process.
    fn ask_again(&self, nodes: &BTreeSet<NodeId>) -> u64;

    /// Wakes when an answer may have become another soon. Its sender lives as long as the evidence.
    fn watch(&self) -> watch::Receiver<u64>;
}
