//! Publishing: a staged volume shows at the path where one pod looks for it.
//!
//! CSI 1.12, "NodePublishVolume" and "NodeUnpublishVolume". A file system is bind-mounted; a block volume gets a
//! device node of its own.

use std::io;
use std::path::Path;

use csi::parse::{NodePublish, NodeUnpublish};
use state_machine::{AccessMode, AccessType, VolumeId};
use tokio::fs;

use crate::fabric::{Device, Observed};
use crate::mounts::{MountEntry, MountError};
use crate::outcome::NodeError;
use crate::volumes::{NodeVolumes, resolve};

/// Where the system keeps its own device nodes: never to be removed.
const SYSTEM_DEVICES: &str = "/dev";

impl NodeVolumes {
    /// Shows the volume at its target path. Done already is success.
    pub(crate) async fn publish(&self, request: NodePublish) -> Result<(), NodeError> {
        let device = self.device(&request.volume, "it is not staged on this node; stage it first").await?;
        let staging = resolve(&request.staging_path).await?;
        let target = resolve(&request.target_path).await?;
        let staged = self.mount_at(&staging).await?.filter(|entry| entry.device == device.id);
        match request.access_type() {
            AccessType::Block => {
                if let Some(staged) = staged {
                    let existing = format!("as {}", staged.fs_type);
                    return Err(differs(&device.volume, &staging, existing, "a block device"));
                }
                self.publish_block(&request, &device, &staging, &target).await
            }
            AccessType::Mount { fs_type } => {
                let Some(staged) = staged else {
                    let reason =
                        format!("no file system of it is staged at {}; stage it first", staging.display());
                    return Err(NodeError::NotNow { volume: device.volume, reason });
                };
                if staged.fs_type != fs_type.as_str() {
                    let existing = format!("as {}", staged.fs_type);
                    return Err(differs(&device.volume, &staging, existing, fs_type.as_str()));
                }
                self.publish_file_system(&request, &device, &staged, &target).await
            }
        }
    }

    async fn publish_file_system(
        &self,
        request: &NodePublish,
        device: &Device,
        staged: &MountEntry,
        target: &Path,
    ) -> Result<(), NodeError> {
        let read_only = is_read_only(request) || staged.read_only;
        let table = self.mounts.table().await?;
        match table.iter().rfind(|entry| entry.path == target) {
            Some(entry) if entry.device != device.id => {
                let reason = format!("{} has another device, {}, mounted", target.display(), entry.device);
                return Err(NodeError::NotNow { volume: device.volume.clone(), reason });
            }
            Some(entry) if entry.read_only == read_only => return Ok(()),
            // A read-only bind mount takes two steps: this is one that was interrupted between them.
            Some(_) if read_only => {
                return Ok(self.counted("bind", self.mounts.make_read_only(target)).await?);
            }
            Some(_) => return Err(differs(&device.volume, target, "read-only".to_owned(), "writable")),
            None => {}
        }
        // Only mounts of the whole file system are targets; kubelet itself bind-mounts parts of it for subPath.
        let other = table
            .iter()
            .find(|entry| entry.device == device.id && entry.root == "/" && entry.path != staged.path)
            .map(|entry| entry.path.as_path());
        refuse_second_target(request, other)?;
        match fs::create_dir(target).await {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(MountError::io("make directory", target)(error).into());
            }
            Ok(()) | Err(_) => {}
        }
        Ok(self.counted("bind", self.mounts.bind(&staged.path, target, read_only)).await?)
    }

    async fn publish_block(
        &self,
        request: &NodePublish,
        device: &Device,
        staging: &Path,
        target: &Path,
    ) -> Result<(), NodeError> {
        let read_only = is_read_only(request);
        match self.mounts.block_target(target).await? {
            Some(existing) if existing.device == device.id && existing.read_only == read_only => {
                return Ok(());
            }
            Some(existing) if existing.device == device.id => {
                let (existing, wanted) =
                    if read_only { ("writable", "read-only") } else { ("read-only", "writable") };
                return Err(differs(&device.volume, target, existing.to_owned(), wanted));
            }
            // Left over from an earlier connection.
            Some(existing) if !self.fabric.exists(&existing.device).await? => {
                fs::remove_file(target).await.map_err(MountError::io("remove", target))?;
            }
            Some(existing) => {
                let reason = format!("{} is another device, {}", target.display(), existing.device);
                return Err(NodeError::NotNow { volume: device.volume.clone(), reason });
            }
            None => {}
        }
        let targets = self.block_targets(staging, device).await?;
        refuse_second_target(request, targets.live.iter().find(|other| *other != target).map(AsRef::as_ref))?;
        self.remember_block_target(staging, target, &targets).await?;
        Ok(self.counted("mknod", self.mounts.make_block_target(device, target, read_only)).await?)
    }

    /// Takes the volume away from its target path. Nothing there is success.
    pub(crate) async fn unpublish(&self, request: NodeUnpublish) -> Result<(), NodeError> {
        let volume = &request.volume;
        let target = resolve(&request.target_path).await?;
        let device = match self.fabric.find(volume).await? {
            Observed::Known(device) => Some(device.id),
            Observed::Absent | Observed::WithoutDevice(_) => None,
        };
        self.unmount(volume, &target, device.as_ref()).await?;
        let metadata = match fs::symlink_metadata(&target).await {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(MountError::io("look at", &target)(error).into()),
        };
        if metadata.is_dir() {
            // Only an empty one: what is in it was written by somebody past the volume.
            return fs::remove_dir(&target).await.map_err(|error| NodeError::NotNow {
                volume: volume.clone(),
                reason: format!("{} cannot be removed: {error}", target.display()),
            });
        }
        if target.starts_with(SYSTEM_DEVICES) {
            return Err(MountError::Foreign { path: target, what: "the system's own device" }.into());
        }
        // The node's number may be an earlier connection's, so only its kind is looked at.
        if self.mounts.block_target(&target).await?.is_some() {
            fs::remove_file(&target).await.map_err(MountError::io("remove", &target))?;
        }
        Ok(())
    }
}

fn is_read_only(request: &NodePublish) -> bool {
    request.read_only || request.capability.access_mode == AccessMode::SingleNodeReaderOnly
}

/// Several targets at once are for the modes that say so.
fn refuse_second_target(request: &NodePublish, other: Option<&Path>) -> Result<(), NodeError> {
    let mode = request.capability.access_mode;
    let Some(other) = other else { return Ok(()) };
    match mode {
        AccessMode::SingleNodeMultiWriter | AccessMode::MultiNodeMultiWriter => Ok(()),
        AccessMode::SingleNodeWriter
        | AccessMode::SingleNodeSingleWriter
        | AccessMode::SingleNodeReaderOnly => {
            let (mode, other) = (mode.csi_name(), other.display());
            let reason = format!("{mode} allows one target path, and it is published at {other}");
            Err(NodeError::NotNow { volume: request.volume.clone(), reason })
        }
    }
}

fn differs(volume: &VolumeId, path: &Path, existing: String, wanted: &str) -> NodeError {
    NodeError::Differs {
        volume: volume.clone(),
        path: path.to_path_buf(),
        existing,
        wanted: wanted.to_owned(),
    }
}
