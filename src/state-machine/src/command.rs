//! The log's entries.

use serde::{Deserialize, Serialize};

use crate::access::AttachmentMode;
use crate::ids::{BootId, ByteSize, NodeId, Nqn, VolumeId, VolumeName};
use crate::migration::{MigrationId, ReapDecision};
use crate::observed::{Observed, OffProof};
use crate::state::State;
use crate::volume::{Generation, LedgerTime, NodeMoment, Problem, Volume, VolumeParameters};

/// The newest cluster version that this program knows. A fresh ledger begins with version 1.
pub const CLUSTER_VERSION: u32 = 2;

/// A log entry: a command and the ledger time at which the leader stamped it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The ledger's clock becomes this, unless it is already later.
    pub at: LedgerTime,
    /// What to do.
    pub command: Command,
}

/// A change to the ledger. Variants are only ever appended: their order is the encoding on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Time passes.
    Tick,
    /// From now on, commands up to this version may be proposed.
    SetClusterVersion {
        /// The new version; never lower than the present one.
        version: u32,
    },
    /// Records the intent to create a volume, or finds that it exists already.
    CreateVolume {
        /// The id made from `name`.
        id: VolumeId,
        /// The creator's name for it.
        name: VolumeName,
        /// The least size.
        required: ByteSize,
        /// The largest size, in bytes.
        limit_bytes: Option<u64>,
        /// Its class's parameters.
        parameters: VolumeParameters,
    },
    /// The slot on the appliance was seen empty: what is created there is ours.
    SlotWasFree {
        /// The volume.
        volume: VolumeId,
        /// The creation's generation.
        generation: Generation,
    },
    /// The appliance has the volume.
    VolumeCreated {
        /// The volume.
        volume: VolumeId,
        /// The creation's generation.
        generation: Generation,
    },
    /// Records the intent to grow a volume.
    ExpandVolume {
        /// The volume.
        volume: VolumeId,
        /// The least size.
        required: ByteSize,
        /// The largest size, in bytes.
        limit_bytes: Option<u64>,
    },
    /// The appliance has grown the volume.
    VolumeExpanded {
        /// The volume.
        volume: VolumeId,
        /// The expansion's generation.
        generation: Generation,
    },
    /// Records the intent to delete a volume.
    DeleteVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// The appliance has neither the disk nor its file.
    VolumeDeleted {
        /// The volume.
        volume: VolumeId,
        /// The deletion's generation.
        generation: Generation,
    },
    /// An operation met trouble and will be tried again.
    OperationFailed {
        /// The volume.
        volume: VolumeId,
        /// The operation's generation.
        generation: Generation,
        /// The trouble.
        problem: Problem,
    },
    /// A creation or an expansion is given up, and the appliance is as it was before.
    OperationAbandoned {
        /// The volume.
        volume: VolumeId,
        /// The operation's generation.
        generation: Generation,
        /// Why.
        problem: Problem,
    },
    /// Asks for an attachment.
    Publish {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// How it will be used.
        mode: AttachmentMode,
        /// What the proposer saw.
        observed: Observed,
    },
    /// The appliance exports the volume: the attachment stands.
    ExportConfirmed {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// The attachment's generation.
        generation: Generation,
    },
    /// The appliance's export could not be confirmed; tried again.
    GrantFailed {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// The attachment's generation.
        generation: Generation,
        /// The trouble.
        problem: Problem,
    },
    /// Revokes one attachment, or all; frees each that is proven off.
    Unpublish {
        /// The volume.
        volume: VolumeId,
        /// The node; none means all.
        node: Option<NodeId>,
        /// Whether a proof is needed that the node is off (`requireDetachProof`).
        require_proof: bool,
    },
    /// A node plugin started.
    RegisterNode {
        /// The node.
        node: NodeId,
        /// Its boot; another one than before proves old connections gone.
        boot: BootId,
        /// The boot that it knows to be recorded, if any: only that one may be replaced.
        replaces: Option<BootId>,
        /// Its host NQN.
        host_nqn: Nqn,
        /// How many volumes it can take; 0 is no limit.
        max_volumes: u32,
    },
    /// A node is about to connect and asks whether its attachment stands.
    PermitConnect {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// The generation in its publish context.
        generation: Generation,
        /// When it asked.
        moment: NodeMoment,
    },
    /// A node is neither connected nor connecting.
    ReportDisconnected {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// When it looked.
        moment: NodeMoment,
    },
    /// An overdue migration loses one side.
    Reap {
        /// The volume.
        volume: VolumeId,
        /// The migration.
        migration: MigrationId,
        /// Which side, who says so and why.
        decision: ReapDecision,
    },
    /// A node is off for good, or for long enough: it is connected to nothing.
    NodeIsOff {
        /// The node.
        node: NodeId,
        /// The volume; none means all.
        volume: Option<VolumeId>,
        /// The newest generation when that was seen: what was attached since is not meant.
        up_to: Generation,
        /// How often it had been heard when that was seen: a node that spoke since is not off.
        words: u64,
        /// How that is known.
        proof: OffProof,
    },
    /// A piece of another ledger, into an empty one; no piece counts before the end.
    Restore {
        /// The backup's name: pieces of two are never mixed.
        backup: String,
        /// The piece, see [`State::pieces`].
        piece: Box<State>,
        /// The end: there have to be so many volumes, and they count from now on.
        volumes: Option<u64>,
    },
    /// Generations are of this epoch from now on, unless they are of a later one.
    RaiseEpoch {
        /// The epoch.
        epoch: u32,
    },
    /// Takes in a volume that is on the appliance, with those who have it. Generations that are 0 are given out anew.
    AdoptVolume {
        /// The volume.
        volume: Box<Volume>,
        /// How it is known, for the record.
        from: String,
    },
}

impl Command {
    /// The first cluster version whose members all know the command.
    pub fn since_version(&self) -> u32 {
        match self {
            Self::Tick
            | Self::SetClusterVersion { .. }
            | Self::CreateVolume { .. }
            | Self::SlotWasFree { .. }
            | Self::VolumeCreated { .. }
            | Self::ExpandVolume { .. }
            | Self::VolumeExpanded { .. }
            | Self::DeleteVolume { .. }
            | Self::VolumeDeleted { .. }
            | Self::OperationFailed { .. }
            | Self::OperationAbandoned { .. }
            | Self::Publish { .. }
            | Self::ExportConfirmed { .. }
            | Self::GrantFailed { .. }
            | Self::Unpublish { .. }
            | Self::RegisterNode { .. }
            | Self::PermitConnect { .. }
            | Self::ReportDisconnected { .. }
            | Self::Reap { .. }
            | Self::NodeIsOff { .. } => 1,
            Self::Restore { .. } | Self::RaiseEpoch { .. } | Self::AdoptVolume { .. } => 2,
        }
    }
}
