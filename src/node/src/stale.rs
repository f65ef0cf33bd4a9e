//! Mounts and block targets that have outlived their device, and how they are told from the others.
//!
//! A connection that is lost for good takes its device away under whatever is mounted from it; connected again, the
//! volume is another device, of another number. A mount keeps the number of the device that it was made of, and that
//! number alone is what the mount table says. What can be proven by it:
//!
//! | The mount's number | Proof | It is |
//! |---|---|---|
//! | is no device's | sysfs has none of it | stale |
//! | is the volume's device's | somebody has that device exclusively, as a mount of it must | the volume's |
//! | is the volume's device's | nobody has it exclusively | stale: of an earlier device of this number |
//! | is another volume's device's | nobody has it exclusively | stale as well |
//! | anything else | none | somebody else's: left alone |
//!
//! The kernel frees the number of a lost NVMe device only when its last mount is gone (Linux 5.15 and newer), so the
//! third and fourth row should not happen; if they do, one more mount of that device hides them, and the mount counts
//! as what its number says. A device node, on the other hand, holds no number: that of a block target may well be
//! another volume's by now, and a leftover it is then.
//!
//! A stale mount takes nothing with it when it goes: nothing written through it can reach the appliance any more. It
//! is taken away without force, so whoever still has files open in it is named instead.
//!
//! A file system may stop although its device is there again: after I/O errors the kernel lets nothing be written any
//! more. That ends only when all its mounts are gone, so it counts as stale where it has just the one.

use std::path::Path;

use state_machine::VolumeId;

use crate::fabric::{Device, DeviceId, Observed};
use crate::mounts::MountEntry;
use crate::outcome::NodeError;
use crate::volumes::{MAX_STACKED_MOUNTS, NodeVolumes};

/// Whose a mount is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The volume's device is mounted there.
    Ours,
    /// The device that is mounted there is gone, for this reason.
    Stale(String),
    /// Something else, as far as is known.
    Others,
}

impl NodeVolumes {
    /// Whose the mount is, of the volume with this device or without one. [`Standing`] has the rules.
    pub(crate) async fn standing(
        &self,
        entry: &MountEntry,
        device: Option<&Device>,
    ) -> Result<Standing, NodeError> {
        let reused = || Standing::Stale(format!("{} has come to be another device's number", entry.device));
        if let Some(device) = device.filter(|device| device.id == entry.device) {
            let claimed = self.mounts.is_claimed(device).await?;
            return Ok(if claimed { Standing::Ours } else { reused() });
        }
        if !self.fabric.exists(&entry.device).await? {
            return Ok(Standing::Stale(format!("its device, {}, is gone", entry.device)));
        }
        match self.connected_as(&entry.device).await? {
            Some(other) if !self.mounts.is_claimed(&other).await? => Ok(reused()),
            Some(_) | None => Ok(Standing::Others),
        }
    }

    /// The mount in force at `path`, after what is left there of lost devices was taken away.
    pub(crate) async fn mount_in_force(
        &self,
        path: &Path,
        device: &Device,
    ) -> Result<Option<MountEntry>, NodeError> {
        for _ in 0..MAX_STACKED_MOUNTS {
            let Some(entry) = self.mount_at(path).await? else { return Ok(None) };
            match self.lost(&entry, device).await? {
                None => return Ok(Some(entry)),
                Some(why) => self.take_away_stale(&device.volume, &entry, &why).await?,
            }
        }
        let reason = format!("{} has more than {MAX_STACKED_MOUNTS} mounts", path.display());
        Err(NodeError::NotNow { volume: device.volume.clone(), reason })
    }

    /// Why the mount is of no use to the volume with this device any more, if so.
    pub(crate) async fn lost(
        &self,
        entry: &MountEntry,
        device: &Device,
    ) -> Result<Option<String>, NodeError> {
        match self.standing(entry, Some(device)).await? {
            Standing::Others => return Ok(None),
            Standing::Stale(why) => return Ok(Some(why)),
            Standing::Ours => {}
        }
        let Some(why) = self.mounts.stopped(entry).await? else { return Ok(None) };
        let table = self.mounts.table().await?;
        let others = table.iter().filter(|other| other.device == entry.device && other.path != entry.path);
        let others: Vec<_> = others.map(|other| other.path.display().to_string()).collect();
        if others.is_empty() {
            return Ok(Some(format!("its file system has stopped: {why}")));
        }
        let reason = format!(
            "its file system has stopped ({why}), and it is still mounted at {}; end the pods that use it on this \
             node, then it is checked and mounted anew",
            others.join(", ")
        );
        Err(NodeError::NotNow { volume: device.volume.clone(), reason })
    }

    /// Takes a stale mount away, if nobody has files open in it.
    pub(crate) async fn take_away_stale(
        &self,
        volume: &VolumeId,
        entry: &MountEntry,
        why: &str,
    ) -> Result<(), NodeError> {
        let (node, path) = (&self.identity.node, entry.path.display());
        tracing::warn!(%volume, %node, %path, why, "stale mount");
        self.metrics.stale_mount();
        let taken_away = self.counted("unmount", self.mounts.unmount(&entry.path)).await;
        self.metrics.stale_recovery(taken_away.is_ok());
        taken_away.map_err(|error| NodeError::NotNow {
            volume: volume.clone(),
            reason: format!("{path} has a stale mount ({why}) that stays: {error}; end who uses it"),
        })
    }

    /// The volume's device. What is not staged here, or not any more, is staged by `restage`: kubelet publishes only
    /// what it takes for staged, and would do so in vain for as long as any pod wants it. An earlier restaging that
    /// was cut short is resumed by that as well.
    pub(crate) async fn device_of_staged(
        &self,
        volume: &VolumeId,
        staging: &Path,
        is_file_system: bool,
        restage: impl Future<Output = Result<(), NodeError>>,
    ) -> Result<Device, NodeError> {
        let why = match self.fabric.find(volume).await? {
            Observed::Absent => Some("it is not connected".to_owned()),
            Observed::WithoutDevice(state) => Some(format!("its connection is {state} and has no device")),
            Observed::Known(device) => match self.mount_at(staging).await? {
                Some(entry) => self.lost(&entry, &device).await?,
                None => is_file_system.then(|| "it is not mounted".to_owned()),
            },
        };
        if let Some(why) = why {
            tracing::warn!(%volume, node = %self.identity.node, why, "published, but not staged: staged first");
            restage.await?;
        }
        self.device(volume, "its connection has just been lost; try again").await
    }

    /// Whether a block target of `device`'s volume with this other number is a leftover: of a device that is gone, or
    /// of one whose number another volume's device has now.
    pub(crate) async fn is_left_over(&self, target: &DeviceId, device: &Device) -> Result<bool, NodeError> {
        if !self.fabric.exists(target).await? {
            return Ok(true);
        }
        Ok(self.connected_as(target).await?.is_some_and(|other| other.volume != device.volume))
    }

    /// The device of a connected volume that has this number.
    async fn connected_as(&self, id: &DeviceId) -> Result<Option<Device>, NodeError> {
        let connections = self.fabric.connections().await?;
        let mut devices = connections.volumes.into_iter().filter_map(|connection| connection.device);
        Ok(devices.find(|device| device.id == *id))
    }
}
