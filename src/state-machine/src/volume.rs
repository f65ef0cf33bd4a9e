//! Volumes and their attachments, as the ledger holds them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::access::{AttachmentMode, FsType};
use crate::history::Record;
use crate::ids::{AppliancePath, BootId, ByteSize, HostAddress, NodeId, VolumeId, VolumeName};
use crate::migration::{DEFAULT_MIGRATION_TIMEOUT_SECONDS, Migration};
use crate::mkfs::MkfsOptions;

/// `ctrlLossTmo` when a class does not say, in seconds: never. An appliance that restarts must not turn into
/// I/O errors in every guest; a node that has to let go disconnects.
const DEFAULT_CTRL_LOSS_TMO_SECONDS: i32 = -1;
/// `fastIoFailTmo` when a class does not say, in seconds: never, for the same reason.
const DEFAULT_FAST_IO_FAIL_TMO_SECONDS: i32 = -1;
/// `reconnectDelay` when a class does not say, in seconds.
const DEFAULT_RECONNECT_DELAY_SECONDS: u32 = 5;
/// `keepAliveTmo` when a class does not say, in seconds.
const DEFAULT_KEEP_ALIVE_TMO_SECONDS: u32 = 5;

/// A time on the ledger's own clock, in milliseconds since the ledger began. Only entries advance it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LedgerTime(pub u64);

impl LedgerTime {
    /// This time, `seconds` later.
    pub fn plus_seconds(self, seconds: u32) -> Self {
        Self(self.0.saturating_add(u64::from(seconds) * 1000))
    }

    /// Milliseconds from `earlier` to this time; 0 if it is not earlier.
    pub fn millis_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A number that only grows: each intent on a volume and each attachment takes the next one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What kind of trouble an operation met outside; decides the code that the caller gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProblemKind {
    /// The appliance has no room.
    Full,
    /// The appliance could not be reached, or did not answer in time: the outcome is unknown, tried again.
    Unavailable,
    /// Something that is not ours, or not as recorded, stands in the way on the appliance.
    Conflict,
    /// The appliance said no.
    Rejected,
    /// A later request overtook the operation.
    Superseded,
    /// The volume is being restored from a backup: nothing of it counts yet.
    Restoring,
}

/// Trouble, for the caller and for the person on call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Its kind.
    pub kind: ProblemKind,
    /// One sentence; no secrets.
    pub message: String,
}

/// A class's parameters, checked and with defaults filled in. They never change after creation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeParameters {
    /// Directory of the backing file on the appliance (`volumePath`).
    pub volume_path: AppliancePath,
    /// The appliance's storage address (`nvmeAddress`).
    pub nvme_address: HostAddress,
    /// Its NVMe/TCP port (`nvmePort`).
    pub nvme_port: u16,
    /// File system for filesystem volumes (`fsType`).
    pub fs_type: FsType,
    /// Options of `mkfs` beside the driver's own (`mkfsOptions`).
    pub mkfs_options: Option<MkfsOptions>,
    /// Seconds until a lost NVMe controller is given up; -1 is never (`ctrlLossTmo`).
    pub ctrl_loss_tmo_seconds: i32,
    /// Seconds until I/O to a lost NVMe controller fails instead of waiting; -1 is never (`fastIoFailTmo`).
    pub fast_io_fail_tmo_seconds: i32,
    /// Seconds between reconnects (`reconnectDelay`).
    pub reconnect_delay_seconds: u32,
    /// Seconds of the NVMe keep-alive timer (`keepAliveTmo`).
    pub keep_alive_tmo_seconds: u32,
    /// I/O queues of a connection (`nrIoQueues`); `None` leaves it to the node.
    pub nr_io_queues: Option<u32>,
    /// Seconds until a migration is overdue (`migrationTimeoutSeconds`).
    pub migration_timeout_seconds: u32,
    /// Whether a second node is refused where pods of more than one VM use the volume (`sameVmCheck`).
    pub same_vm_check: bool,
}

impl VolumeParameters {
    /// The parameters of a class that says nothing, on this appliance.
    pub fn with_defaults(volume_path: AppliancePath, nvme_address: HostAddress, nvme_port: u16) -> Self {
        Self {
            volume_path,
            nvme_address,
            nvme_port,
            fs_type: FsType::default(),
            mkfs_options: None,
            ctrl_loss_tmo_seconds: DEFAULT_CTRL_LOSS_TMO_SECONDS,
            fast_io_fail_tmo_seconds: DEFAULT_FAST_IO_FAIL_TMO_SECONDS,
            reconnect_delay_seconds: DEFAULT_RECONNECT_DELAY_SECONDS,
            keep_alive_tmo_seconds: DEFAULT_KEEP_ALIVE_TMO_SECONDS,
            nr_io_queues: None,
            migration_timeout_seconds: DEFAULT_MIGRATION_TIMEOUT_SECONDS,
            same_vm_check: true,
        }
    }
}

/// Where a volume is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumePhase {
    /// The intent is recorded; the appliance is to be changed.
    Creating {
        /// The slot was seen empty after the intent was recorded, so what is there from now on is ours.
        slot_was_free: bool,
    },
    /// On the appliance as recorded.
    Ready,
    /// The appliance is to grow the volume.
    Expanding {
        /// The size to reach.
        to: ByteSize,
    },
    /// The appliance is to forget the volume.
    Deleting,
}

impl VolumePhase {
    /// The phase's name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating { .. } => "Creating",
            Self::Ready => "Ready",
            Self::Expanding { .. } => "Expanding",
            Self::Deleting => "Deleting",
        }
    }
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// The name that its creator gave.
    pub name: VolumeName,
    /// Its size as the appliance has it (while `Creating`: as it will be).
    pub size: ByteSize,
    /// Its class's parameters.
    pub parameters: VolumeParameters,
    /// Where it is in its life.
    pub phase: VolumePhase,
    /// The generation of the latest intent: creation, expansion or deletion.
    pub generation: Generation,
    /// The trouble that the running operation last met.
    pub problem: Option<Problem>,
    /// Who has it, at most one for single-node modes and two for RWX block.
    pub attachments: BTreeMap<NodeId, Attachment>,
    /// Why it is on two nodes, if it is.
    pub migration: Option<Migration>,
    /// Nodes that lost the volume without being asked (the reaper, or a proof that the node is off), or are losing
    /// it, and that have not been unpublished since.
    pub cut_off: BTreeSet<NodeId>,
    /// When the intent to create it was recorded.
    pub created_at: LedgerTime,
    /// The last things that happened to it, oldest first.
    pub history: VecDeque<Record>,
}

/// Where an attachment is in its life; when it is proven gone it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttachmentPhase {
    /// Counted, but the appliance's export is not confirmed yet.
    Granting,
    /// The node may connect.
    Granted,
    /// To be cut: counts as attached until it is proven gone.
    Revoking,
}

impl AttachmentPhase {
    /// The phase's name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Granting => "Granting",
            Self::Granted => "Granted",
            Self::Revoking => "Revoking",
        }
    }
}

/// What the ledger knows of an attachment's connection.
///
/// A node asks before each new connect and the permission is an entry in the log, so `Disconnected` is a proof:
/// whoever wants to connect after it must ask, and is refused once the attachment is revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Connection {
    /// The node never asked to connect, or reported since that it is neither connected nor connecting.
    Disconnected,
    /// The node was told that it may connect; it may be connected now.
    Permitted,
}

/// A moment on a node: which boot, and the nanoseconds since it by the node's monotonic boot-time clock.
///
/// It orders what a node says of one volume, so that a word delivered late changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeMoment {
    /// The boot.
    pub boot: BootId,
    /// Nanoseconds since that boot.
    pub since_boot_ns: u64,
}

/// One volume on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// How it is used.
    pub mode: AttachmentMode,
    /// The number that goes out in the publish context.
    pub generation: Generation,
    /// Where it is in its life.
    pub phase: AttachmentPhase,
    /// Whether the node may be connected.
    pub connection: Connection,
    /// When the node last spoke of this attachment, in its present boot.
    pub heard: Option<NodeMoment>,
    /// Why granting it did not succeed yet.
    pub problem: Option<Problem>,
    /// When it was recorded.
    pub since: LedgerTime,
    /// The VM that it was published for, where that is known.
    pub vm: Option<String>,
}
