//! The loop fabric: real block devices on one machine, over the backing files of the simulated appliance.
//!
//! A connection is a loop device, found in sysfs by its backing file `<backing directory><volume path>/<id>.img`,
//! never by its number. Attaching is left to `losetup`, which deals with racing processes. One machine is one
//! node here: two nodes over one backing file would take each other's device for their own.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use state_machine::VolumeId;
use tokio::time::{Instant, sleep};

use super::{
    Connect, Connection, Connections, Device, DeviceId, Fabric, FabricError, Observed, claim_by_number,
    holders_by_number,
};
use crate::in_use::{Claimed, InUse, Incomplete, LinuxBlockDevices, Roots, Thoroughness};
use crate::sysfs::{has_device, parse_number, read_if_there};
use crate::tool;

/// How long `losetup` may take, in ms.
const LOSETUP_LIMIT_MS: u64 = 20_000;
/// How long a detached device may take to go, or a grown one to show its size, in ms.
const SETTLE_LIMIT_MS: u64 = 5_000;
/// How often it is looked at meanwhile, in ms.
const SETTLE_POLL_MS: u64 = 20;
/// Unit of `/sys/block/*/size`, in bytes.
const SYSFS_SECTOR_BYTES: u64 = 512;
/// What the kernel appends to the name of a backing file that was deleted.
const DELETED_MARK: &str = " (deleted)";

/// Connections that are loop devices.
#[derive(Clone)]
pub(crate) struct LoopFabric {
    /// The root of the simulated appliance's paths, without symbolic links, as sysfs prints it.
    backing_directory: PathBuf,
    sysfs: PathBuf,
    in_use: InUse,
}

impl LoopFabric {
    /// The fabric over the appliance whose `/` is `backing_directory`.
    pub(crate) fn new(backing_directory: &Path) -> io::Result<Self> {
        let roots = Roots::default();
        Ok(Self {
            backing_directory: backing_directory.canonicalize()?,
            sysfs: roots.sysfs.clone(),
            // Whoever is overlooked: the kernel detaches no loop device that is open.
            in_use: InUse::new(roots, Thoroughness::Lenient, Arc::new(LinuxBlockDevices)),
        })
    }

    /// All volumes that are connected, by the backing files of all loop devices.
    fn scan(&self) -> io::Result<Vec<Device>> {
        let mut devices = Vec::new();
        for entry in fs::read_dir(self.sysfs.join("block"))? {
            let directory = entry?.path();
            let Some(name) = directory.file_name().and_then(OsStr::to_str) else { continue };
            let Some(backing) = read_if_there(&directory.join("loop/backing_file"))? else { continue };
            let Some(volume) = self.volume_of(&backing) else { continue };
            let number = fs::read_to_string(directory.join("dev"))?;
            let sectors = fs::read_to_string(directory.join("size"))?;
            let (major, minor) = parse_number(number.trim()).ok_or_else(|| unreadable("dev", &number))?;
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

    async fn disconnect_unheld(&self, device: &Device) -> Result<Vec<String>, FabricError> {
        let volume = &device.volume;
        match claim_by_number(&self.in_use, device).await? {
            Claimed::Held(holders) => Ok(holders),
            Claimed::Free(claim) => {
                // The kernel would wait for it before it detaches the device.
                drop(claim);
                self.disconnect(volume).await?;
                Ok(Vec::new())
            }
        }
    }

    async fn holders(&self, devices: &[Device]) -> Result<BTreeMap<VolumeId, Vec<String>>, Incomplete> {
        holders_by_number(&self.in_use, devices).await
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
        has_device(&self.sysfs, (*major, *minor)).map_err(FabricError::Unseen)
    }

    async fn connections(&self) -> Result<Connections, FabricError> {
        let connection = |device: Device| Connection {
            volume: device.volume.clone(),
            device: Some(device),
            live: true,
            state: "attached".to_owned(),
        };
        let devices = self.scan().map_err(FabricError::Unseen)?;
        let volumes = devices.into_iter().map(connection).collect();
        Ok(Connections { volumes, ..Connections::default() })
    }
}

fn unreadable(attribute: &str, text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{attribute} of a loop device reads {text:?}"))
}
