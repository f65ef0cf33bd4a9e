//! Publishing: a staged volume shows at the path where one pod looks for it.
//!
//! CSI 1.12, "NodePublishVolume" and "NodeUnpublishVolume". A file system is bind-mounted; a block volume gets a
//! device node of its own. The target is made here, its parent directory is kubelet's. What is left at a target of a
//! device that was lost is replaced; anything else that is in the way is left alone.

use std::io;
use std::path::Path;

use csi::parse::{Access, MountFlag, NodePublish, NodeStage, NodeUnpublish};
use state_machine::{AccessMode, AccessType};
use tokio::fs;
use tokio::time::Instant;

use crate::fabric::{Device, Observed};
use crate::mounts::{BindOptions, MountEntry, MountError};
use crate::outcome::NodeError;
use crate::stage::differs;
use crate::volumes::{NodeVolumes, resolve};

/// Where the system keeps its own device nodes: never to be removed.
const SYSTEM_DEVICES: &str = "/dev";
/// The file system of those. A device node that was bind-mounted at a target shows as a mount of it.
const DEVICE_FILE_SYSTEM: &str = "devtmpfs";
/// Flags of the capability that each mount has for itself, besides `ro`. The others are the file system's.
const MOUNT_OWN_FLAGS: &[&str] = &["nosuid", "nodev", "noexec", "noatime", "nodiratime"];

impl NodeVolumes {
    /// Shows the volume at its target path. Done already is success.
    pub(crate) async fn publish(&self, request: NodePublish, until: Instant) -> Result<(), NodeError> {
        let staging = resolve(&request.staging_path).await?;
        let target = resolve(&request.target_path).await?;
        let restage = self.stage(stage_of(&request), until);
        let is_file_system = matches!(request.access_type(), AccessType::Mount { .. });
        let device = self.device_of_staged(&request.volume, &staging, is_file_system, restage).await?;
        let staged = self.mount_at(&staging).await?.filter(|entry| entry.device == device.id);
        match request.access_type() {
            AccessType::Block => {
                if let Some(staged) = staged {
                    let existing = format!("as {}", staged.fs_type);
                    return Err(differs(&device.volume, &staging, &existing, "a block device"));
                }
                self.publish_block(&request, &device, &staging, &target).await
            }
            AccessType::Mount { fs_type } => {
                let Some(staged) = staged else {
                    let reason = format!("its file system at {} has just gone; try again", staging.display());
                    return Err(NodeError::NotNow { volume: device.volume, reason });
                };
                if staged.fs_type != fs_type.as_str() {
                    let existing = format!("as {}", staged.fs_type);
                    return Err(differs(&device.volume, &staging, &existing, fs_type.as_str()));
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
        let options = bind_options(request, staged);
        match self.mount_in_force(target, device).await? {
            Some(entry) if entry.device != device.id => {
                let reason = format!("{} has another device, {}, mounted", target.display(), entry.device);
                return Err(NodeError::NotNow { volume: device.volume.clone(), reason });
            }
            Some(entry) if entry.read_only && !options.read_only => {
                return Err(differs(&device.volume, target, "read-only", "writable"));
            }
            Some(entry) if entry.read_only == options.read_only && entry.has_flags(&options.flags) => {
                return Ok(());
            }
            // A bind mount gets its options in a second step: this is one that was interrupted between them.
            Some(_) => {
                let rebound = self.counted("bind", self.mounts.rebind(target, &options)).await;
                return self.or_undone(device, target, rebound).await;
            }
            None => {}
        }
        let table = self.mounts.table().await?;
        // Only mounts of the whole file system are targets; kubelet itself bind-mounts parts of it for subPath.
        let other = table
            .iter()
            .find(|entry| entry.device == device.id && entry.root == "/" && entry.path != staged.path)
            .map(|entry| entry.path.as_path());
        refuse_second_target(request, other)?;
        make_target_directory(target).await?;
        let bound = self.counted("bind", self.mounts.bind(&staged.path, target, &options)).await;
        self.or_undone(device, target, bound).await
    }

    /// Takes away what a bind mount that failed may have left: kubelet takes most codes for "not published", and would
    /// never unpublish it. Where that fails too, the code has kubelet come back.
    async fn or_undone(
        &self,
        device: &Device,
        target: &Path,
        bound: Result<(), MountError>,
    ) -> Result<(), NodeError> {
        let Err(failure) = bound else { return Ok(()) };
        let undo = async {
            self.unmount(&device.volume, target, Some(device)).await?;
            fs::remove_dir(target).await.map_err(MountError::io("remove", target))?;
            Ok::<_, NodeError>(())
        };
        match undo.await {
            Ok(()) => Err(failure.into()),
            Err(undo) => {
                Err(NodeError::NotUndone { failure: Box::new(failure.into()), undo: Box::new(undo) })
            }
        }
    }

    async fn publish_block(
        &self,
        request: &NodePublish,
        device: &Device,
        staging: &Path,
        target: &Path,
    ) -> Result<(), NodeError> {
        let read_only = is_read_only(request);
        // Were the connection lost now, another volume could have the number of the device before the pod has it.
        let _until_it_is_published = self.mounts.hold(device).await?;
        match self.mounts.block_target(target).await? {
            Some(existing) if existing.device == device.id && existing.read_only == read_only => {
                return Ok(());
            }
            Some(existing) if existing.device == device.id => {
                let (existing, wanted) =
                    if read_only { ("writable", "read-only") } else { ("read-only", "writable") };
                return Err(differs(&device.volume, target, existing, wanted));
            }
            Some(existing) if self.is_left_over(&existing.device, device).await? => {
                let (volume, number) = (&device.volume, &existing.device);
                tracing::warn!(%volume, target = %target.display(), %number, "stale block target, replaced");
                self.remove_block_target(target).await?;
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
            Observed::Known(device) => Some(device),
            Observed::Absent | Observed::WithoutDevice(_) => None,
        };
        if self.has_bound_device_node(&target).await? {
            return Ok(self.remove_block_target(&target).await?);
        }
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
            self.remove_block_target(&target).await?;
        }
        Ok(())
    }

    /// Removes a block target: a device node, or what another driver publishes with, a file over which one is mounted.
    async fn remove_block_target(&self, target: &Path) -> Result<(), MountError> {
        if self.has_bound_device_node(target).await? {
            self.counted("unmount", self.mounts.unmount(target)).await?;
        }
        fs::remove_file(target).await.map_err(MountError::io("remove", target))
    }

    /// Whether a device node of the system is bind-mounted there.
    async fn has_bound_device_node(&self, target: &Path) -> Result<bool, MountError> {
        if target.starts_with(SYSTEM_DEVICES) {
            return Ok(false);
        }
        let entry = self.mount_at(target).await?;
        let is_node = entry.is_some_and(|entry| entry.fs_type == DEVICE_FILE_SYSTEM && entry.root != "/");
        Ok(is_node && self.mounts.block_target(target).await?.is_some())
    }
}

/// What publishing knows of how the volume was staged: all of it.
fn stage_of(request: &NodePublish) -> NodeStage {
    NodeStage {
        volume: request.volume.clone(),
        staging_path: request.staging_path.clone(),
        capability: request.capability.clone(),
        publish: request.publish.clone(),
        context: request.context.clone(),
    }
}

/// How the bind mount is to be: with all that was asked for, and all that the staged mount has. The kernel takes away
/// what is not said when it makes a bind mount read-only.
fn bind_options(request: &NodePublish, staged: &MountEntry) -> BindOptions {
    let asked: &[MountFlag] = match &request.capability.access {
        Access::Block => &[],
        Access::Mount { flags, .. } => flags,
    };
    let is_asked = |flag: &str| asked.iter().any(|asked| asked.as_str() == flag);
    let is_staged = |flag: &str| staged.options.iter().any(|option| option == flag);
    let flags = MOUNT_OWN_FLAGS.iter().filter(|flag| is_asked(flag) || is_staged(flag));
    BindOptions {
        read_only: is_read_only(request) || is_asked("ro") || staged.read_only,
        flags: flags.map(|flag| (*flag).to_owned()).collect(),
    }
}

async fn make_target_directory(target: &Path) -> Result<(), MountError> {
    match fs::create_dir(target).await {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(MountError::io("make directory", target)(error)),
    }
    let metadata = fs::symlink_metadata(target).await.map_err(MountError::io("look at", target))?;
    if metadata.is_dir() {
        return Ok(());
    }
    Err(MountError::Foreign { path: target.to_path_buf(), what: "no directory" })
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
