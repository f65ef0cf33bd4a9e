//! A fake of everything around the reaper: a real ledger without Raft, and evidence as a test sets it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use state_machine::{
    AccessMode, AccessType, AppliancePath, AttachmentMode, BootId, ByteSize, Command, Entry, HostAddress,
    LedgerTime, Migration, MigrationPhase, NodeId, NodeMoment, Nqn, Observed, Response, State, VolumeId,
    VolumeName, VolumeParameters,
};
use tokio::sync::watch;

use super::decide::{KubeVirt, Sight};
use super::evidence::{Evidence, Seen, Standing};

/// How long a side has to be stale before it is taken.
pub(super) const REAP_AFTER: Duration = Duration::from_secs(10);
/// `migrationTimeoutSeconds` of the volumes here.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

const BLOCK_RWX: AttachmentMode = AttachmentMode {
    access_mode: AccessMode::MultiNodeMultiWriter,
    access_type: AccessType::Block,
    read_only: false,
};

pub(super) fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

pub(super) fn volume(number: usize) -> VolumeId {
    VolumeId::parse(&format!("pvc-00000000-0000-4000-8000-{number:012}")).unwrap()
}

pub(super) fn in_use() -> Sight {
    Sight::InUse { by: "qemu".to_owned() }
}

/// The ledger, without Raft: what is committed is applied at once.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) state: State,
    pub(super) now: Duration,
    since_boot_ns: u64,
}

impl Ledger {
    pub(super) fn commit(&mut self, command: Command) -> Response {
        let at = LedgerTime(u64::try_from(self.now.as_millis()).unwrap());
        let response = self.state.apply(Entry { at, command });
        assert_eq!(self.state.violations(), Vec::<String>::new());
        response
    }

    /// Ready volumes and registered nodes, and as many more that nothing ever happens to: of a cluster that has none of
    /// the ledger's nodes nothing is believed.
    pub(super) fn with(volumes: usize, nodes: &[&str]) -> Self {
        let mut ledger = Self::default();
        for name in nodes {
            assert_eq!(ledger.register(name, None, 1), Response::Done);
            assert_eq!(ledger.register(&format!("bystander-{name}"), None, 1), Response::Done);
        }
        for number in 0..volumes {
            let mut parameters = VolumeParameters::with_defaults(
                AppliancePath::parse("/pool/csi").unwrap(),
                HostAddress::parse("127.0.0.1").unwrap(),
                4420,
            );
            parameters.migration_timeout_seconds = u32::try_from(TIMEOUT.as_secs()).unwrap();
            let id = volume(number);
            let name = VolumeName::parse(id.as_str()).unwrap();
            let required = ByteSize::exactly(1 << 30).unwrap();
            let create =
                Command::CreateVolume { id: id.clone(), name, required, limit_bytes: None, parameters };
            let Response::Pending { generation } = ledger.commit(create) else { panic!("no intent") };
            ledger.commit(Command::SlotWasFree { volume: id.clone(), generation });
            ledger.commit(Command::VolumeCreated { volume: id, generation });
        }
        ledger
    }

    pub(super) fn register(&mut self, name: &str, replaces: Option<u64>, boot: u64) -> Response {
        let boot_id = |number: u64| BootId::parse(&format!("boot-{number}")).unwrap();
        self.commit(Command::RegisterNode {
            node: node(name),
            boot: boot_id(boot),
            replaces: replaces.map(boot_id),
            host_nqn: Nqn::parse(&format!("nqn.2014-08.org.nvmexpress:{name}")).unwrap(),
            max_volumes: 0,
        })
    }

    /// Publishes, confirms the export, and lets the node ask to connect; says whether it may.
    pub(super) fn attach(&mut self, number: usize, name: &str) -> bool {
        let (volume, node, observed) = (volume(number), node(name), Observed::default());
        let publish =
            Command::Publish { volume: volume.clone(), node: node.clone(), mode: BLOCK_RWX, observed };
        let Response::Attached { generation } = self.commit(publish) else { return false };
        let (volume_id, node_id) = (volume.clone(), node.clone());
        self.commit(Command::ExportConfirmed { volume: volume_id, node: node_id, generation });
        let moment = self.moment(&node);
        self.commit(Command::PermitConnect { volume, node, generation, moment }) == Response::Done
    }

    pub(super) fn unpublish(&mut self, number: usize, name: &str) -> Response {
        let (volume, node) = (volume(number), Some(node(name)));
        self.commit(Command::Unpublish { volume, node, require_proof: true })
    }

    pub(super) fn report_off(&mut self, number: usize, name: &str) -> Response {
        let moment = self.moment(&node(name));
        self.commit(Command::ReportDisconnected { volume: volume(number), node: node(name), moment })
    }

    fn moment(&mut self, node: &NodeId) -> NodeMoment {
        self.since_boot_ns += 1;
        NodeMoment { boot: self.state.nodes()[node].boot.clone(), since_boot_ns: self.since_boot_ns }
    }

    pub(super) fn migration(&self, number: usize) -> Option<&Migration> {
        self.state.volume(&volume(number)).unwrap().migration.as_ref()
    }

    pub(super) fn phase(&self, number: usize) -> &'static str {
        self.migration(number).map_or("none", |migration| migration.phase.name())
    }

    pub(super) fn is_overdue(&self, number: usize) -> bool {
        self.migration(number).is_some_and(|migration| migration.phase == MigrationPhase::Overdue)
    }

    pub(super) fn holders(&self, number: usize) -> Vec<String> {
        let attachments = &self.state.volume(&volume(number)).unwrap().attachments;
        attachments.keys().map(|node| node.as_str().to_owned()).collect()
    }
}

/// Evidence as the test sets it.
#[derive(Debug, Default)]
pub(super) struct FakeEvidence {
    pub(super) now: Duration,
    /// Since when sessions are taken.
    pub(super) listening_since: Duration,
    pub(super) seen: BTreeMap<(VolumeId, NodeId), Seen>,
    pub(super) heard_at: BTreeMap<NodeId, Duration>,
    pub(super) kubevirt: BTreeMap<VolumeId, KubeVirt>,
    pub(super) standing: BTreeMap<NodeId, Standing>,
    /// The number of the last asking.
    pub(super) asked: AtomicU64,
}

impl FakeEvidence {
    /// The node looked, now, having heard of the last asking.
    pub(super) fn look(&mut self, number: usize, name: &str, sight: Sight) {
        let answers = self.asked.load(Ordering::SeqCst);
        self.seen.insert((volume(number), node(name)), Seen::Looked { answers, sight });
        self.heard_at.insert(node(name), self.now);
    }

    /// What sessions forget when another leader takes office, or this one was without a quorum.
    pub(super) fn forget_sessions(&mut self) {
        self.listening_since = self.now;
        self.seen.clear();
        self.heard_at.clear();
    }
}

impl Evidence for FakeEvidence {
    fn seen(&self, _state: &State, volume: &VolumeId, node: &NodeId) -> Seen {
        let lost = self.silent_for(node).is_none_or(|silence| silence >= Duration::from_secs(30));
        match self.seen.get(&(volume.clone(), node.clone())) {
            Some(seen) if !lost => seen.clone(),
            _ => Seen::Nothing { why: "no session".to_owned() },
        }
    }

    fn silent_for(&self, node: &NodeId) -> Option<Duration> {
        self.heard_at.get(node).map(|at| self.now.saturating_sub(*at))
    }

    fn listening(&self) -> Option<Duration> {
        Some(self.now.saturating_sub(self.listening_since))
    }

    fn kubevirt(&self, volume: &VolumeId, _migration: &Migration) -> KubeVirt {
        let unknown = || KubeVirt::Unknown { why: "no Kubernetes".to_owned() };
        self.kubevirt.get(volume).cloned().unwrap_or_else(unknown)
    }

    fn standing(&self, node: &NodeId) -> Standing {
        self.standing.get(node).copied().unwrap_or(Standing::Present)
    }

    fn ask_again(&self, _nodes: &BTreeSet<NodeId>) -> u64 {
        self.asked.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn watch(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}
