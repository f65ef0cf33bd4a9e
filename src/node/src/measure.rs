//! How full a volume is, and growing it: CSI 1.12, "NodeGetVolumeStats" and "NodeExpandVolume".

use std::path::Path;

use csi::parse::{NodeExpand, NodePath, NodeStats};
use state_machine::{FsType, VolumeId};

use crate::fabric::{Device, Observed};
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

/// How a volume shows at a path.
enum Shown {
    Mounted(MountEntry),
    Block,
}

impl NodeVolumes {
    /// How full the volume at the path is.
    pub(crate) async fn stats(&self, request: NodeStats) -> Result<VolumeUsage, NodeError> {
        let (device, shown) = self.shown_at(&request.volume, &request.volume_path).await?;
        match shown {
            Shown::Mounted(entry) => Ok(VolumeUsage::FileSystem(self.mounts.usage(&entry.path).await?)),
            Shown::Block => Ok(VolumeUsage::Block { size_bytes: device.size_bytes }),
        }
    }

    /// Lets the node see the volume's new size, and its file system fill it; answers the size in bytes.
    pub(crate) async fn expand(&self, request: NodeExpand) -> Result<u64, NodeError> {
        let volume = &request.volume;
        let (device, shown) = self.shown_at(volume, &request.volume_path).await?;
        let required_bytes = request.size.map_or(0, |size| size.required.bytes());
        let device = self.fabric.rescan(&device, required_bytes).await?;
        let size_bytes = device.size_bytes;
        if size_bytes < required_bytes {
            return Err(NodeError::NotGrownYet { volume: volume.clone(), size_bytes, required_bytes });
        }
        if let Some(limit_bytes) = request.size.and_then(|size| size.limit_bytes)
            && size_bytes > limit_bytes
        {
            return Err(NodeError::TooLarge { volume: volume.clone(), size_bytes, limit_bytes });
        }
        if let Shown::Mounted(entry) = shown {
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

    /// The volume's device, and how it shows at the path; neither is an error's business to guess.
    async fn shown_at(&self, volume: &VolumeId, path: &NodePath) -> Result<(Device, Shown), NodeError> {
        let not_there =
            |path: &Path| NodeError::NotThere { volume: volume.clone(), path: path.to_path_buf() };
        let path = resolve(path).await?;
        let Observed::Known(device) = self.fabric.find(volume).await? else {
            return Err(not_there(&path));
        };
        match self.mount_at(&path).await? {
            Some(entry) if entry.device == device.id => return Ok((device, Shown::Mounted(entry))),
            Some(_) => return Err(not_there(&path)),
            None => {}
        }
        match self.mounts.block_target(&path).await {
            Ok(Some(target)) if target.device == device.id => Ok((device, Shown::Block)),
            Ok(_) | Err(MountError::Foreign { .. }) => Err(not_there(&path)),
            Err(error) => Err(error.into()),
        }
    }
}
