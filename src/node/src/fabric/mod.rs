//! How a volume becomes a device on this node.
//!
//! [`Fabric`] is cut for NVMe/TCP: one connection per volume, found by what it is connected to and never by its
//! number, and three answers to "is it connected?": known, absent, and (as an error) unknown. [`NvmeFabric`] is the real
//! one. Two fabrics need no appliance: [`FakeFabric`] has plain files and is for trying things out; [`LoopFabric`] has
//! real block devices over the simulator's backing files.

mod fake;
mod loop_device;
mod nvme;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;
use state_machine::{AppliancePath, HostAddress, Nqn, VolumeId};
use thiserror::Error;

pub(crate) use fake::FakeFabric;
pub(crate) use loop_device::LoopFabric;
pub(crate) use nvme::{DEFAULT_NR_IO_QUEUES, NqnPrefix, NvmeFabric, NvmeSettings};

use crate::in_use::{Claimed, InUse, Incomplete};
use crate::tool::ToolError;

/// What tells one device from another while it exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DeviceId {
    /// A block device's number, as in `st_rdev` and in `/proc/self/mountinfo`.
    Number {
        /// The driver.
        major: u32,
        /// The device among the driver's.
        minor: u32,
    },
    /// A fake device.
    Fake(VolumeId),
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number { major, minor } => write!(f, "{major}:{minor}"),
            Self::Fake(volume) => write!(f, "fake:{volume}"),
        }
    }
}

/// A connected volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    /// The volume.
    pub(crate) volume: VolumeId,
    /// The device's identity until it is disconnected.
    pub(crate) id: DeviceId,
    /// Where it is opened.
    pub(crate) path: PathBuf,
    /// Its size in bytes.
    pub(crate) size_bytes: u64,
}

/// What was seen of a volume. That nothing could be seen is an error, and never reads as absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Observed {
    /// It is positively not connected.
    Absent,
    /// It is connected, or goes on trying to be, and has no device; the state of the connection, for people.
    WithoutDevice(String),
    /// It is connected, as this device.
    Known(Device),
}

/// A connection, as the system has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connection {
    /// The volume, by what it is connected to.
    pub(crate) volume: VolumeId,
    /// Its device, if it has one.
    pub(crate) device: Option<Device>,
    /// Whether I/O goes through at this moment.
    pub(crate) live: bool,
    /// The state of the connection, for people.
    pub(crate) state: String,
}

/// All connections of the fabric on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Connections {
    /// To what is called like a volume. Whether it is one, the ledger knows.
    pub(crate) volumes: Vec<Connection>,
    /// To what has the driver's prefix and is called like no volume, by name: reported, never touched.
    pub(crate) foreign: Vec<String>,
    /// Volumes that may be connected beside those, and why that cannot be told: [`Fabric::find`] says unknown of them.
    pub(crate) unclear: BTreeMap<VolumeId, String>,
    /// Connections that may be to any volume, for people: while there are some, no volume is absent.
    pub(crate) nameless: Vec<String>,
}

/// Where and how to connect a volume: from its publish context and its volume context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connect {
    /// The volume.
    pub(crate) volume: VolumeId,
    /// Its subsystem on the appliance.
    pub(crate) nqn: Nqn,
    /// The appliance's storage address.
    pub(crate) address: HostAddress,
    /// Its NVMe/TCP port.
    pub(crate) port: u16,
    /// Directory of the backing file on the appliance, where the volume context names it.
    pub(crate) volume_path: Option<AppliancePath>,
    /// Seconds until a lost NVMe controller is given up; -1 is never. Absent: the fabric's default.
    pub(crate) ctrl_loss_tmo_seconds: Option<i32>,
    /// Seconds between reconnects. Absent: the fabric's default.
    pub(crate) reconnect_delay_seconds: Option<u32>,
    /// Seconds of the NVMe keep-alive timer. Absent: the fabric's default.
    pub(crate) keep_alive_tmo_seconds: Option<u32>,
    /// Seconds until I/O to a lost NVMe controller fails; -1 is never. Absent: the fabric's default.
    pub(crate) fast_io_fail_tmo_seconds: Option<i32>,
    /// How many I/O queues are asked for. Absent: the fabric's default.
    pub(crate) nr_io_queues: Option<u32>,
}

/// Why a connection could not be made, seen or ended.
#[derive(Debug, Error)]
pub(crate) enum FabricError {
    /// The other side does not offer the volume, or cannot be reached. Tried again.
    #[error("cannot connect volume {volume}: {reason}")]
    Unreachable {
        /// The volume.
        volume: VolumeId,
        /// What happened.
        reason: String,
    },
    /// The node has something, or is told something, that keeps it from connecting the volume; trying again alone
    /// does not help.
    #[error("volume {volume} is not connected: {reason}")]
    Refused {
        /// The volume.
        volume: VolumeId,
        /// What it is, and what to do.
        reason: String,
    },
    /// What there is could not be seen.
    #[error("cannot see whether volume {volume} is connected: {reason}")]
    Unknown {
        /// The volume.
        volume: VolumeId,
        /// What happened.
        reason: String,
    },
    /// Who holds the device could not be seen, so somebody may.
    #[error("volume {volume} stays connected, as it cannot be seen who holds it: {reason}")]
    HoldersUnseen {
        /// The volume.
        volume: VolumeId,
        /// What could not be seen, and what to do.
        reason: String,
    },
    /// The device is still there after it was told to go.
    #[error("volume {volume} is still connected: {reason}")]
    StillThere {
        /// The volume.
        volume: VolumeId,
        /// What is known of the cause.
        reason: String,
    },
    /// What the node has could not be seen.
    #[error("cannot see what is connected: {0}")]
    Unseen(std::io::Error),
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// Makes and ends connections. Callers hold the volume's operation lock, so no two calls concern one volume.
#[async_trait]
pub(crate) trait Fabric: Send + Sync + 'static {
    /// The fabric's name in logs.
    fn name(&self) -> &'static str;

    /// The volume's device, read from the system at each call.
    async fn find(&self, volume: &VolumeId) -> Result<Observed, FabricError>;

    /// Connects the volume and waits, for a bounded time, until its device is there. Connected already is success;
    /// a connection without a device is ended and made anew.
    /// After an error nothing goes on connecting in the background: [`Fabric::find`] tells what is left of it.
    async fn connect(&self, connect: &Connect) -> Result<Device, FabricError>;

    /// Has the system look at the device's size again, and waits, for a bounded time, until it has at least
    /// `at_least_bytes`. The answer has whatever size it then is.
    async fn rescan(&self, device: &Device, at_least_bytes: u64) -> Result<Device, FabricError>;

    /// Disconnects the device unless somebody has it open, or holds it inside the kernel: then the answer is who, in
    /// words for people, and it stays connected. No holders means that it is disconnected, as by [`Fabric::disconnect`].
    /// A look that could not be completed is [`FabricError::HoldersUnseen`], and nothing is disconnected.
    async fn disconnect_unheld(&self, device: &Device) -> Result<Vec<String>, FabricError>;

    /// Who holds each of these devices, by volume and in words for people, as far as a look shows that disturbs nobody:
    /// for reports. Whoever is about to disconnect asks [`Fabric::disconnect_unheld`].
    async fn holders(&self, devices: &[Device]) -> Result<BTreeMap<VolumeId, Vec<String>>, Incomplete>;

    /// Ends the volume's connection, with or without a device; none is success. Success means that
    /// [`Fabric::find`] answers [`Observed::Absent`]. Whether anybody holds the device is the caller's question.
    async fn disconnect(&self, volume: &VolumeId) -> Result<(), FabricError>;

    /// Whether a device of this identity exists, of whatever volume: the leftovers of one that does not are stale.
    async fn exists(&self, id: &DeviceId) -> Result<bool, FabricError>;

    /// Everything that is connected.
    async fn connections(&self) -> Result<Connections, FabricError>;
}

/// Claims a device that the kernel has by number, as [`Fabric::disconnect_unheld`] needs it.
async fn claim_by_number(in_use: &InUse, device: &Device) -> Result<Claimed, FabricError> {
    let unseen = |reason| FabricError::HoldersUnseen { volume: device.volume.clone(), reason };
    let DeviceId::Number { major, minor } = device.id else {
        return Err(unseen("it has no device number".to_owned()));
    };
    in_use.claim(&device.path, (major, minor)).await.map_err(|error| unseen(error.to_string()))
}

/// [`Fabric::holders`] of devices that the kernel has by number.
async fn holders_by_number(
    in_use: &InUse,
    devices: &[Device],
) -> Result<BTreeMap<VolumeId, Vec<String>>, Incomplete> {
    let number = |device: &Device| match device.id {
        DeviceId::Number { major, minor } => Some((major, minor)),
        DeviceId::Fake(_) => None,
    };
    let mut held = in_use.survey(devices.iter().filter_map(number).collect()).await?;
    let holders = devices.iter().filter_map(|device| {
        let holders = held.remove(&number(device)?)?;
        Some((device.volume.clone(), holders))
    });
    Ok(holders.collect())
}
