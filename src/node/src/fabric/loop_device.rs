//! The loop fabric: real block devices on one machine, over the backing files of the simulated appliance.
//!
//! A connection is a loop device, found in sysfs by its backing file `<backing directory><volume path>/<id>.img`,
//! never by its number. Attaching is left to `losetup`, which deals with racing processes. One machine is one
//! node here: two nodes over one backing file would take each other's device for their own.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use state_machine::VolumeId;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use super::{Connect, Connection, Connections, Device, DeviceId, Fabric, FabricError, Observed};
use crate::in_use::{held_by_kernel, open_in_processes};
use crate::tool;

/// How long `losetup` may take, in ms.
const LOSETUP_LIMIT_MS: u64 = 20_000;
/// How long a detached device may take to go, or a grown one to show its size, in ms.
const SETTLE_LIMIT_MS: u64 = 5_000;
/// How often it is looked at meanwhile, in ms.
const SETTLE_POLL_MS: u64 = 20;
/// How long a look at all processes may take, in ms.
const HOLDERS_LIMIT_MS: u64 = 20_000;
/// How long a device must be held to count as in use, in ms: every `losetup` opens all of them for a moment, and
/// udev probes new ones.
const PASSING_HOLDER_MS: u64 = 1_000;
/// Unit of `/sys/block/*/size`, in bytes.
const SYSFS_SECTOR_BYTES: u64 = 512;
/// The major number of file systems without a block device, such as tmpfs: nothing of ours, and never gone.
const UNNAMED_MAJOR: u32 = 0;
/// What the kernel appends to the name of a backing file that was deleted.
const DELETED_MARK: &str = " (deleted)";

/// Connections that are loop devices.
#[derive(Debug, Clone)]
pub(crate) struct LoopFabric {
    /// The root of the simulated appliance's paths, without symbolic links, as sysfs prints it.
    backing_directory: PathBuf,
    sys_block: PathBuf,
    proc: PathBuf,
}

impl LoopFabric {
    /// The fabric over the appliance whose `/` is `backing_directory`.
    pub(crate) fn new(backing_directory: &Path) -> io::Result<Self> {
        Ok(Self {
            backing_directory: backing_directory.canonicalize()?,
            sys_block: PathBuf::from("/sys/block"),
            proc: PathBuf::from("/proc"),
        })
    }

    /// All volumes that are connected, by the backing files of all loop devices.
    fn scan(&self) -> io::Result<Vec<Device>> {
        let mut devices = Vec::new();
        for entry in fs::read_dir(&self.sys_block)? {
            let directory = entry?.path();
            let Some(name) = directory.file_name().and_then(OsStr::to_str) else { continue };
            let Some(backing) = read_if_there(&directory.join("loop/backing_file"))? else { continue };
            let Some(volume) = self.volume_of(backing.trim_end_matches('\n')) else { continue };
            let number = fs::read_to_string(directory.join("dev"))?;
            let sectors = fs::read_to_string(directory.join("size"))?;
            let (major, minor) = parse_number(&number).ok_or_else(|| unreadable("dev", &number))?;
            let sectors: u64 = sectors.trim().parse().map_err(|_| unreadable("size", &sectors))?;
            devices.push(Device {
                volume,
                id: DeviceId::Number { major, minor },
                path: Path::new("/dev").join(name),
                size_bytes: sectors * SYSFS_SECTOR_BYTES,
            });
        }
        Ok(devices)
    }

    /// Which volume a backing file belongs to, if it is one of ours.
    fn volume_of(&self, backing_file: &str) -> Option<VolumeId> {
        let path = Path::new(backing_file.strip_suffix(DELETED_MARK).unwrap_or(backing_file));
        let relative = path.strip_prefix(&self.backing_directory).ok()?;
        VolumeId::parse(relative.file_name()?.to_str()?.strip_suffix(".img")?).ok()
    }

    /// The volume's backing file; there is none without a volume path.
    fn backing_file(&self, connect: &Connect) -> Option<PathBuf> {
        let directory = connect.volume_path.as_ref()?.as_str().trim_start_matches('/');
        Some(self.backing_directory.join(directory).join(format!("{}.img", connect.volume)))
    }

    /// Looks at the volume until `done`, or until its time is up, and answers what was seen last.
    async fn settle(
        &self,
        volume: &VolumeId,
        done: impl Fn(&Observed) -> bool,
    ) -> Result<Observed, FabricError> {
        let until = Instant::now() + Duration::from_millis(SETTLE_LIMIT_MS);
        loop {
            let seen = self.find(volume).await?;
            if done(&seen) || Instant::now() >= until {
                return Ok(seen);
            }
            sleep(Duration::from_millis(SETTLE_POLL_MS)).await;
        }
    }
}

#[async_trait]
impl Fabric for LoopFabric {
    fn name(&self) -> &'static str {
        "loop"
    }

    async fn find(&self, volume: &VolumeId) -> Result<Observed, FabricError> {
        let unknown = |reason: String| FabricError::Unknown { volume: volume.clone(), reason };
        let devices = self.scan().map_err(|error| unknown(error.to_string()))?;
        let mut ours = devices.into_iter().filter(|device| device.volume == *volume);
        match (ours.next(), ours.next()) {
            (None, _) => Ok(Observed::Absent),
            (Some(device), None) => Ok(Observed::Known(device)),
            (Some(one), Some(other)) => Err(unknown(format!(
                "{} and {} both have its backing file; detach one of them",
                one.path.display(),
                other.path.display()
            ))),
        }
    }

    async fn connect(&self, connect: &Connect) -> Result<Device, FabricError> {
        let volume = &connect.volume;
        if let Observed::Known(device) = self.find(volume).await? {
            return Ok(device);
        }
        let unreachable = |reason: String| FabricError::Unreachable { volume: volume.clone(), reason };
        let no_path = || unreachable("volume_context[volumePath] is required by the loop fabric".to_owned());
        let file = self.backing_file(connect).ok_or_else(no_path)?;
        let is_file = tokio::fs::metadata(&file).await.map(|metadata| metadata.is_file());
        if !is_file.map_err(|error| unreachable(format!("backing file {}: {error}", file.display())))? {
            return Err(unreachable(format!("{} is not a file", file.display())));
        }
        let limit = Duration::from_millis(LOSETUP_LIMIT_MS);
        let arguments = [OsStr::new("--find"), "--nooverlap".as_ref(), file.as_os_str()];
        tool::succeed("losetup", &arguments, limit).await?;
        match self.settle(volume, |seen| *seen != Observed::Absent).await? {
            Observed::Known(device) => Ok(device),
            Observed::Absent | Observed::WithoutDevice(_) => {
                Err(unreachable("losetup succeeded, but no loop device has the file".to_owned()))
            }
        }
    }

    async fn rescan(&self, device: &Device, at_least_bytes: u64) -> Result<Device, FabricError> {
        let limit = Duration::from_millis(LOSETUP_LIMIT_MS);
        tool::succeed("losetup", &["--set-capacity".as_ref(), device.path.as_os_str()], limit).await?;
        let grown = |seen: &Observed| match seen {
            Observed::Absent | Observed::WithoutDevice(_) => true,
            Observed::Known(device) => device.size_bytes >= at_least_bytes,
        };
        match self.settle(&device.volume, grown).await? {
            Observed::Known(device) => Ok(device),
            Observed::Absent | Observed::WithoutDevice(_) => Err(FabricError::Unreachable {
                volume: device.volume.clone(),
                reason: "its device is gone".to_owned(),
            }),
        }
    }

    async fn holders(&self, device: &Device) -> Result<Vec<String>, FabricError> {
        let unknown = |reason: String| FabricError::Unknown {
            volume: device.volume.clone(),
            reason: format!("who holds {}: {reason}", device.path.display()),
        };
        let DeviceId::Number { major, minor } = device.id else {
            return Err(unknown("it has no device number".to_owned()));
        };
        let until = Instant::now() + Duration::from_millis(PASSING_HOLDER_MS);
        loop {
            let (path, proc) = (device.path.clone(), self.proc.clone());
            let look = spawn_blocking(move || holders_of(&proc, &path, (major, minor)));
            let holders = match timeout(Duration::from_millis(HOLDERS_LIMIT_MS), look).await {
                Err(_) => return Err(unknown("the look took too long".to_owned())),
                Ok(Err(_)) => return Err(unknown("the look was broken off".to_owned())),
                Ok(Ok(found)) => found.map_err(|error| unknown(error.to_string()))?,
            };
            if holders.is_empty() || Instant::now() >= until {
                return Ok(holders);
            }
            sleep(Duration::from_millis(SETTLE_POLL_MS)).await;
        }
    }

    async fn disconnect(&self, volume: &VolumeId) -> Result<(), FabricError> {
        let Observed::Known(device) = self.find(volume).await? else { return Ok(()) };
        let limit = Duration::from_millis(LOSETUP_LIMIT_MS);
        let detached = tool::succeed("losetup", &["--detach".as_ref(), device.path.as_os_str()], limit).await;
        // While somebody holds the device, the kernel agrees and detaches it later: only a look tells.
        if self.settle(volume, |seen| *seen == Observed::Absent).await? == Observed::Absent {
            return Ok(());
        }
        let cause = detached.map_or_else(|error| error.to_string(), |_| "somebody holds it".to_owned());
        let reason = format!("as {}: {cause}", device.path.display());
        Err(FabricError::StillThere { volume: volume.clone(), reason })
    }

    async fn exists(&self, id: &DeviceId) -> Result<bool, FabricError> {
        let DeviceId::Number { major, minor } = id else { return Ok(false) };
        if *major == UNNAMED_MAJOR {
            return Ok(true);
        }
        let devices = Path::new("/sys/dev/block");
        // Without sysfs everything would look stale.
        fs::metadata(devices).map_err(FabricError::Unseen)?;
        Ok(devices.join(format!("{major}:{minor}")).exists())
    }

    async fn connections(&self) -> Result<Connections, FabricError> {
        let connection = |device: Device| Connection {
            volume: device.volume.clone(),
            device: Some(device),
            state: "attached".to_owned(),
        };
        let devices = self.scan().map_err(FabricError::Unseen)?;
        Ok(Connections { volumes: devices.into_iter().map(connection).collect(), foreign: Vec::new() })
    }
}

fn holders_of(proc: &Path, device: &Path, number: (u32, u32)) -> io::Result<Vec<String>> {
    let processes = open_in_processes(proc, number)?;
    // The others need no refusal: whoever they are, the kernel detaches no loop device that is open.
    if !processes.unseen.is_empty() {
        tracing::debug!(unseen = ?processes.unseen, "not all processes can be looked into");
    }
    let mut holders = processes.holders;
    if held_by_kernel(device)? {
        holders.push("the kernel (a mount in another namespace, device mapper, md or swap)".to_owned());
    }
    Ok(holders)
}

fn read_if_there(file: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        // The attribute went away while it was read: the device has just been detached.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn unreadable(attribute: &str, text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{attribute} of a loop device reads {text:?}"))
}
