//! How full a volume is and how well, and growing it: CSI 1.12, "NodeGetVolumeStats" and "NodeExpandVolume".
//!
//! Statistics answer within some seconds whatever has become of the device: what cannot be measured is left out, and
//! the condition says why.

use std::path::Path;

use csi::parse::{NodeExpand, NodePath, NodeStats};
use state_machine::{FsType, VolumeId};

use crate::condition::{Condition, Vitals};
use crate::fabric::{Device, DeviceId, Observed};
use crate::mounts::{MountEntry, MountError, Usage};
use crate::outcome::NodeError;
use crate::volumes::{NodeVolumes, resolve};

/// How full a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VolumeUsage {
    /// A file system knows.
    FileSystem(Usage),
    /// Of a block device only the size is known.
    Block {
        /// Its size.
        size_bytes: u64,
    },
}

/// What is known of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeReport {
    /// How full it is, if that can be said.
    pub(crate) usage: Option<VolumeUsage>,
    /// How it is.
    pub(crate) condition: Condition,
}

/// How a volume shows at a path.
enum Shown {
    /// As this mount of its device.
    Mounted(Device, MountEntry),
    /// As its device.
    Block(Device),
    /// As what is left of a device that it had.
    Lost,
}

impl NodeVolumes {
    /// How full the volume at the path is, and how it is.
    pub(crate) async fn stats(&self, request: NodeStats) -> Result<VolumeReport, NodeError> {
        let mut vitals = Vitals::default();
        let usage = match self.shown_at(&request.volume, &request.volume_path).await? {
            Shown::Lost => {
                vitals.device_gone = true;
                None
            }
            Shown::Block(device) => {
                vitals.connection_lost = self.lost_connection(&device).await?;
                Some(VolumeUsage::Block { size_bytes: device.size_bytes })
            }
            Shown::Mounted(device, entry) => {
                vitals.connection_lost = self.lost_connection(&device).await?;
                self.usage_and_vitals(&device, &entry, &mut vitals).await?
            }
        };
        let condition = vitals.condition();
        if condition.abnormal {
            tracing::warn!(volume = %request.volume, node = %self.identity.node, condition.message, "abnormal");
        }
        Ok(VolumeReport { usage, condition })
    }

    async fn usage_and_vitals(
        &self,
        device: &Device,
        entry: &MountEntry,
        vitals: &mut Vitals,
    ) -> Result<Option<VolumeUsage>, NodeError> {
        if let Some(fs_type) = FsType::parse(&entry.fs_type) {
            vitals.logged_errors = self.mounts.logged_errors(device, fs_type).await?;
        }
        let looks = async {
            vitals.stopped = self.mounts.stopped(entry).await?;
            self.mounts.usage(&entry.path).await
        };
        match looks.await {
            Ok(usage) => Ok(Some(VolumeUsage::FileSystem(usage))),
            Err(error @ MountError::OutOfTime { .. }) => {
                vitals.no_answer = Some(error.to_string());
                Ok(None)
            }
            // A file system that has stopped may not even say how full it is.
            Err(_) if vitals.stopped.is_some() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The state of the volume's connection, if I/O does not go through.
    async fn lost_connection(&self, device: &Device) -> Result<Option<String>, NodeError> {
        let connections = self.fabric.connections().await?.volumes;
        let connection = connections.into_iter().find(|connection| connection.volume == device.volume);
        Ok(match connection {
            Some(connection) if connection.live => None,
            Some(connection) => Some(connection.state),
            None => Some("gone".to_owned()),
        })
    }

    /// Lets the node see the volume's new size, and its file system fill it; answers the size in bytes.
    pub(crate) async fn expand(&self, request: NodeExpand) -> Result<u64, NodeError> {
        let volume = &request.volume;
        let (device, entry) = match self.shown_at(volume, &request.volume_path).await? {
            Shown::Mounted(device, entry) => (device, Some(entry)),
            Shown::Block(device) => (device, None),
            Shown::Lost => {
                let reason =
                    "the device at this path is gone; delete the pods that use it on this node".to_owned();
                return Err(NodeError::NotNow { volume: volume.clone(), reason });
            }
        };
        let required_bytes = request.size.map_or(0, |size| size.required.bytes());
        let size_before_bytes = device.size_bytes;
        let device = self.fabric.rescan(&device, required_bytes).await?;
        let size_bytes = device.size_bytes;
        if size_bytes < size_before_bytes {
            let reason = format!(
                "its device has shrunk from {size_before_bytes} to {size_bytes} bytes, and what was behind that is \
                 lost: make a backup, and look at the appliance; its file system is not touched"
            );
            return Err(NodeError::NotNow { volume: volume.clone(), reason });
        }
        if size_bytes < required_bytes {
            return Err(NodeError::NotGrownYet { volume: volume.clone(), size_bytes, required_bytes });
        }
        if let Some(limit_bytes) = request.size.and_then(|size| size.limit_bytes)
            && size_bytes > limit_bytes
        {
            return Err(NodeError::TooLarge { volume: volume.clone(), size_bytes, limit_bytes });
        }
        if let Some(entry) = entry {
            self.grow_file_system(&device, &entry).await?;
        }
        Ok(size_bytes)
    }

    async fn grow_file_system(&self, device: &Device, entry: &MountEntry) -> Result<(), NodeError> {
        let Some(fs_type) = FsType::parse(&entry.fs_type) else {
            let reason = format!("it has {}, which is none of ours to grow", entry.fs_type);
            return Err(NodeError::NotNow { volume: device.volume.clone(), reason });
        };
        Ok(self.counted("grow", self.mounts.grow(device, &entry.path, fs_type)).await?)
    }

    /// How the volume shows at the path; what is not the volume there is no volume's.
    async fn shown_at(&self, volume: &VolumeId, path: &NodePath) -> Result<Shown, NodeError> {
        let not_there =
            |path: &Path| NodeError::NotThere { volume: volume.clone(), path: path.to_path_buf() };
        let path = resolve(path).await?;
        let device = match self.fabric.find(volume).await? {
            Observed::Known(device) => Some(device),
            Observed::Absent | Observed::WithoutDevice(_) => None,
        };
        let is_ours = |device: &Device, id: &DeviceId| device.id == *id;
        if let Some(entry) = self.mount_at(&path).await? {
            return match device {
                Some(device) if is_ours(&device, &entry.device) => Ok(Shown::Mounted(device, entry)),
                _ if !self.fabric.exists(&entry.device).await? => Ok(Shown::Lost),
                _ => Err(not_there(&path)),
            };
        }
        let target = match self.mounts.block_target(&path).await {
            Ok(Some(target)) => target,
            Ok(None) | Err(MountError::Foreign { .. }) => return Err(not_there(&path)),
            Err(error) => return Err(error.into()),
        };
        match device {
            Some(device) if is_ours(&device, &target.device) => Ok(Shown::Block(device)),
            _ if !self.fabric.exists(&target.device).await? => Ok(Shown::Lost),
            _ => Err(not_there(&path)),
        }
    }
}
