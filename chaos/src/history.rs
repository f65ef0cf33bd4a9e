//! What a run records: what clients asked and were answered, what the appliance and the nodes did, what the ledger
//! said. Written by the simulator and by the harness of real processes; read by the invariants.
//!
//! All times are microseconds of one outside observer, since the run began: simulated time in the simulator, the
//! harness's monotonic clock with real processes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Microseconds since the run began.
pub type Micros = u64;

/// Everything of one run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// What clients asked, by the time that they asked.
    pub operations: Vec<Operation>,
    /// What the appliance's own log says, in its order.
    pub appliance: Vec<Mutation>,
    /// What nodes really did, in the order of time.
    pub connections: Vec<ConnectionChange>,
    /// What the ledger said of attachments and migrations, in the order of its entries; each fact once.
    pub ledger: Vec<Transition>,
    /// Entries that were decided, at least one in each half second in which there were any; empty if nobody recorded
    /// them.
    #[serde(default)]
    pub decided: Vec<Decided>,
    /// Hashes of the applied state.
    pub hashes: Vec<StateHash>,
    /// Votes that were granted.
    pub votes: Vec<VoteGranted>,
    /// Faults that were tried.
    pub faults: Vec<FaultRecord>,
    /// What was found after everything was healed.
    pub end: Option<FinalRead>,
}

/// One call of one client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Who asked; a client asks one thing at a time.
    pub client: u32,
    /// When it asked.
    pub started: Micros,
    /// When it was answered; none if it never was.
    pub ended: Option<Micros>,
    /// What it asked.
    pub request: Request,
    /// What it was told.
    pub answer: Answer,
}

/// What a client asks. Volumes and nodes are named by their ids.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Request {
    /// CreateVolume.
    Create {
        /// Its id.
        volume: String,
        /// In bytes.
        size_bytes: u64,
        /// RWX block: two nodes may have it; otherwise one.
        shared: bool,
    },
    /// DeleteVolume.
    Delete {
        /// Its id.
        volume: String,
    },
    /// ControllerPublishVolume.
    Publish {
        /// Its id.
        volume: String,
        /// To which node.
        node: String,
    },
    /// ControllerUnpublishVolume.
    Unpublish {
        /// Its id.
        volume: String,
        /// From which node.
        node: String,
    },
    /// ControllerExpandVolume.
    Expand {
        /// Its id.
        volume: String,
        /// In bytes.
        size_bytes: u64,
    },
    /// A linearizable read of the volume.
    Read {
        /// Its id.
        volume: String,
    },
}

/// What a client is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Done.
    Ok,
    /// Published, with this publish context.
    Published(BTreeMap<String, String>),
    /// What a read found; none if there is no such volume.
    Read(Option<VolumeRead>),
    /// Refused for good, by the name of the gRPC code: it did not happen.
    Refused(String),
    /// A deadline, a lost connection, UNAVAILABLE, ABORTED: it may have happened, or happen later.
    Unknown(String),
}

/// A volume, as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRead {
    /// In bytes.
    pub size_bytes: u64,
    /// Nodes that have it, those that are being revoked too.
    pub nodes: BTreeSet<String>,
}

/// A change of the appliance, as its own log says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mutation {
    /// When it took effect.
    pub at: Micros,
    /// The term in the fence of the command that did it; none if it bore no fence.
    pub term: Option<u64>,
    /// Its number in that term.
    pub sequence: Option<u64>,
    /// The volume.
    pub volume: String,
    /// What was done.
    pub change: ApplianceChange,
}

/// What can happen to a volume on the appliance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApplianceChange {
    /// Its disk was made.
    Created,
    /// Its disk was removed.
    Removed,
    /// Its disk grew.
    Grown,
    /// It was exported.
    Exported,
    /// Its export ended.
    Unexported,
}

/// A node connected or disconnected a volume, really.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionChange {
    /// When.
    pub at: Micros,
    /// The node.
    pub node: String,
    /// The volume.
    pub volume: String,
    /// What happened.
    pub change: Connection,
}

/// How a node's connection changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Connection {
    /// Connected.
    Connected,
    /// Opened by somebody on the node: it is in use from here on.
    Opened,
    /// Not in use any more.
    Closed,
    /// Disconnected, by the plugin or since the node went down.
    Disconnected,
}

/// What the ledger said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// When an observer saw it: at the earliest moment that any replica had applied it.
    pub at: Micros,
    /// The ledger's own clock, in ms.
    pub ledger_ms: u64,
    /// The volume.
    pub volume: String,
    /// What it said.
    pub fact: LedgerFact,
}

/// A fact of the ledger. Migrations are named by their number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LedgerFact {
    /// A node has it from here on (Granting).
    Attached {
        /// The node.
        node: String,
        /// The attachment's generation.
        generation: u64,
    },
    /// It is being taken away.
    Revoking {
        /// The node.
        node: String,
        /// The attachment's generation.
        generation: u64,
    },
    /// The node does not have it any more.
    Detached {
        /// The node.
        node: String,
        /// The attachment's generation.
        generation: u64,
    },
    /// A migration began.
    MigrationStarted {
        /// Its number.
        migration: u64,
        /// From this node.
        source: String,
        /// To this node.
        target: String,
        /// How long it may take, in ms.
        timeout_ms: u64,
    },
    /// It is past its time.
    MigrationOverdue {
        /// Its number.
        migration: u64,
    },
    /// A side was chosen to be cut.
    Reaping {
        /// The migration's number.
        migration: u64,
        /// The side that goes.
        node: String,
    },
    /// It ended.
    MigrationEnded {
        /// Its number.
        migration: u64,
        /// `success`, `failed` or `timeout`.
        outcome: String,
    },
}

/// An entry that was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// When first a replica had applied it.
    pub at: Micros,
    /// The term of the leader that proposed it.
    pub term: u64,
}

/// The hash of a replica's state after it applied an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHash {
    /// The replica's id.
    pub replica: u64,
    /// The entry's index.
    pub index: u64,
    /// The hash.
    pub hash: String,
}

/// A vote for a candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteGranted {
    /// When.
    pub at: Micros,
    /// Who voted; a replica whose data was wiped is another one.
    pub replica: u64,
    /// Its place: the same for the replica that comes back wiped.
    pub place: String,
    /// The cluster, by its id.
    pub cluster: String,
    /// In which term.
    pub term: u64,
    /// For whom.
    pub candidate: u64,
}

/// A fault that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultRecord {
    /// When it was tried.
    pub at: Micros,
    /// When it was healed; none if it needs no healing.
    pub healed: Option<Micros>,
    /// Its kind, as the table of faults names it.
    pub kind: String,
    /// What it hit.
    pub target: String,
    /// Whether it was really there.
    pub installed: Installed,
    /// Whether a migration was under way at that time.
    pub in_migration: bool,
    /// Whether it hit the leader.
    pub hit_leader: bool,
}

/// Whether a fault was really there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Installed {
    /// It was.
    Yes,
    /// It was not tried, since it could not be at that moment.
    Skipped,
    /// Nobody knows.
    Indeterminate,
}

/// What was found at the end, when everything was healed and quiet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalRead {
    /// When.
    pub at: Micros,
    /// The ledger's volumes.
    pub ledger: BTreeMap<String, VolumeRead>,
    /// The appliance's volumes, with their sizes in bytes and whether they are exported.
    pub appliance: BTreeMap<String, (u64, bool)>,
    /// What is really connected: (node, volume).
    pub connected: BTreeSet<(String, String)>,
    /// The cluster ids that the replicas name.
    pub clusters: BTreeSet<String>,
}
