//! Staging: the volume becomes a device of this node, and its file system is mounted once.
//!
//! CSI 1.12, "NodeStageVolume" and "NodeUnstageVolume". Nothing is staged, be it connected already, without
//! the controllers' word that the attachment stands. A device is formatted only on a proof that it is empty;
//! nothing is disconnected while anybody uses it; and an unstaged volume is one of which the controllers know
//! that it is not connected here. What a failed stage leaves is `undo`'s.

use std::path::Path;

use csi::parse::{Access, MountFlag, NodeStage, NodeUnstage};
use state_machine::{AccessMode, AccessType, FsType, MkfsOptions, VolumeId};
use tokio::time::Instant;

use crate::fabric::{Connect, Device, Observed};
use crate::mounts::{Content, MountEntry, MountOptions};
use crate::outcome::NodeError;
use crate::steps::Step;
use crate::volumes::{NodeVolumes, resolve};

/// Mount flags that the kernel prints if and only if they were given: by these a mount is told from another.
const VISIBLE_FLAGS: &[&str] = &["noatime", "nodiratime", "nodev", "noexec", "nosuid", "sync", "dirsync"];

impl NodeVolumes {
    /// Connects the volume, and mounts it if it is used as a file system. Done already is success, if the
    /// controllers agree.
    pub(crate) async fn stage(&self, request: NodeStage, until: Instant) -> Result<(), NodeError> {
        match self.try_to_stage(&request, until).await {
            Ok(()) => Ok(()),
            Err(failure) => Err(self.undo_stage(&request, failure, until).await),
        }
    }

    async fn try_to_stage(&self, request: &NodeStage, until: Instant) -> Result<(), NodeError> {
        let (volume, generation) = (&request.volume, request.publish.generation);
        let staging = resolve(&request.staging_path).await?;
        let seen = self.fabric.find(volume).await?;
        // Also of what is connected: the controllers may have another picture, and are to have this one.
        let asked = self.ask_permission(volume, generation, until);
        self.steps.take(Step::Permitted, volume, asked).await?;
        let connect = connect_of(request);
        let device = match seen {
            // The fabric looks whether it is connected to where it should be, and lives.
            Observed::Known(_) => self.fabric.connect(&connect).await?,
            Observed::Absent | Observed::WithoutDevice(_) => {
                self.steps.take(Step::Connected, volume, self.connect(&connect, generation)).await?
            }
        };
        let mounted = self.mount_in_force(&staging, &device).await?;
        match request.access_type() {
            AccessType::Block => match mounted {
                Some(entry) if entry.device == device.id => {
                    Err(differs(volume, &staging, &describe(&entry), "a block device"))
                }
                // It would hide where the volume is published.
                Some(entry) => Err(other_device(volume, &entry)),
                None => Ok(()),
            },
            AccessType::Mount { fs_type } => {
                if let Some(target) = self.block_targets(&staging, &device).await?.live.first() {
                    let existing = format!("a block device, published at {}", target.display());
                    return Err(differs(volume, &staging, &existing, "a file system"));
                }
                let options = options_of(request, fs_type);
                match mounted {
                    Some(entry) if entry.device == device.id => same_mount(volume, &entry, &options),
                    Some(entry) => Err(other_device(volume, &entry)),
                    None => self.mount_file_system(request, &device, &staging, &options).await,
                }
            }
        }
    }

    async fn mount_file_system(
        &self,
        request: &NodeStage,
        device: &Device,
        staging: &Path,
        options: &MountOptions,
    ) -> Result<(), NodeError> {
        let (volume, wanted) = (&device.volume, options.fs_type);
        let refuse = |reason: String| Err(NodeError::NotNow { volume: volume.clone(), reason });
        // Were the connection lost now, another volume could have the path of the device before it is formatted.
        let _until_it_is_mounted = self.mounts.hold(device).await?;
        match self.steps.take(Step::Probed, volume, self.mounts.content(device)).await? {
            Content::FileSystem(found) if found == wanted => {}
            Content::FileSystem(found) => {
                return refuse(format!("it has {}, {} is asked for", found.as_str(), wanted.as_str()));
            }
            Content::Empty if options.read_only => {
                return refuse("it is empty, and a reader does not format it".to_owned());
            }
            Content::Empty => {
                let mkfs_options = mkfs_options_of(request);
                tracing::info!(%volume, fs_type = wanted.as_str(), ?mkfs_options, "empty, formatting");
                let format = self.counted("format", self.mounts.format(device, wanted, &mkfs_options));
                self.steps.take(Step::Formatted, volume, format).await?;
            }
            Content::Unclear(what) => {
                return refuse(format!(
                    "it is neither empty nor a sound {} ({what}); it is not formatted: repair it, or erase it if \
                     nothing on it is needed, as after a formatting that was broken off",
                    wanted.as_str()
                ));
            }
        }
        if !options.read_only {
            let check = self.counted("check", self.mounts.check(device, wanted));
            self.steps.take(Step::Checked, volume, check).await?;
        }
        let mount = self.counted("mount", self.mounts.mount(device, staging, options));
        Ok(self.steps.take(Step::Mounted, volume, mount).await?)
    }

    /// Unmounts and disconnects the volume, if nobody uses it, and has the controllers know. Success whenever it
    /// is then proven not to be connected, also if it never was; and of a connection that is not ours, which stays:
    /// what kubelet staged is gone then, nothing that it can ask again would change that, and `reconcile` reports it.
    pub(crate) async fn unstage(&self, request: NodeUnstage, until: Instant) -> Result<(), NodeError> {
        let volume = &request.volume;
        let staging = resolve(&request.staging_path).await?;
        let seen = self.fabric.find(volume).await?;
        let ours = seen == Observed::Absent || self.is_ours(volume, until).await?;
        let device = match &seen {
            Observed::Known(device) => Some(device),
            Observed::Absent | Observed::WithoutDevice(_) => None,
        };
        if let Some(device) = device {
            let published = self.published(&staging, device).await?;
            if !published.is_empty() {
                return Err(NodeError::InUse { volume: volume.clone(), holders: published });
            }
        }
        self.steps.take(Step::Unmounted, volume, self.unmount(volume, &staging, device)).await?;
        if ours {
            self.get_disconnected(volume, &seen).await?;
        }
        self.steps.take(Step::Forgotten, volume, self.forget_block_targets(&staging)).await?;
        if !ours {
            return Ok(());
        }
        self.steps.take(Step::Reported, volume, self.report_disconnected(volume, until)).await
    }

    /// Ends the connection that was seen, unless somebody holds its device.
    pub(crate) async fn get_disconnected(&self, volume: &VolumeId, seen: &Observed) -> Result<(), NodeError> {
        match seen {
            Observed::Absent => Ok(()),
            Observed::WithoutDevice(_) => {
                Ok(self.steps.take(Step::Disconnected, volume, self.fabric.disconnect(volume)).await?)
            }
            Observed::Known(device) => self.disconnect_unheld(device).await,
        }
    }

    /// Disconnects the device, unless somebody holds it.
    pub(crate) async fn disconnect_unheld(&self, device: &Device) -> Result<(), NodeError> {
        let volume = &device.volume;
        let disconnect = async {
            let holders = self.fabric.disconnect_unheld(device).await?;
            if holders.is_empty() {
                Ok(())
            } else {
                Err(NodeError::InUse { volume: volume.clone(), holders })
            }
        };
        self.steps.take(Step::Disconnected, volume, disconnect).await?;
        let (device, node) = (device.path.display(), &self.identity.node);
        tracing::info!(%volume, %node, fabric = self.fabric.name(), %device, "disconnected");
        Ok(())
    }

    /// Where the volume is on this node besides its staging path, in words.
    pub(crate) async fn published(&self, staging: &Path, device: &Device) -> Result<Vec<String>, NodeError> {
        let table = self.mounts.table().await?;
        let mounts = table.iter().filter(|entry| entry.device == device.id && entry.path != staging);
        let mut published: Vec<_> =
            mounts.map(|entry| format!("mounted at {}", entry.path.display())).collect();
        let targets = self.block_targets(staging, device).await?.live;
        published.extend(targets.iter().map(|target| format!("published at {}", target.display())));
        Ok(published)
    }
}

fn connect_of(request: &NodeStage) -> Connect {
    let parameters = &request.context.parameters;
    Connect {
        volume: request.volume.clone(),
        nqn: request.publish.nvme_nqn.clone(),
        address: request.publish.nvme_address.clone(),
        port: request.publish.nvme_port,
        volume_path: parameters.volume_path.clone(),
        ctrl_loss_tmo_seconds: parameters.ctrl_loss_tmo_seconds,
        reconnect_delay_seconds: parameters.reconnect_delay_seconds,
        keep_alive_tmo_seconds: parameters.keep_alive_tmo_seconds,
        fast_io_fail_tmo_seconds: parameters.fast_io_fail_tmo_seconds,
        nr_io_queues: parameters.nr_io_queues,
    }
}

fn mkfs_options_of(request: &NodeStage) -> Vec<String> {
    let options = request.context.parameters.mkfs_options.iter().flat_map(MkfsOptions::options);
    options.map(str::to_owned).collect()
}

fn options_of(request: &NodeStage, fs_type: FsType) -> MountOptions {
    let flags: Vec<String> = match &request.capability.access {
        Access::Block => Vec::new(),
        Access::Mount { flags, .. } => flags.iter().map(MountFlag::as_str).map(str::to_owned).collect(),
    };
    let reader = request.capability.access_mode == AccessMode::SingleNodeReaderOnly;
    MountOptions { fs_type, read_only: reader || flags.iter().any(|flag| flag == "ro"), flags }
}

/// Whether a mount is the one that would be made.
fn same_mount(volume: &VolumeId, entry: &MountEntry, wanted: &MountOptions) -> Result<(), NodeError> {
    let has = |options: &[String], flag: &str| options.iter().any(|option| option == flag);
    let same = entry.fs_type == wanted.fs_type.as_str()
        && entry.read_only == wanted.read_only
        && VISIBLE_FLAGS.iter().all(|flag| has(&entry.options, flag) == has(&wanted.flags, flag));
    if same {
        return Ok(());
    }
    let access = if wanted.read_only { "read-only" } else { "writable" };
    let wanted = format!("{} {access} with [{}]", wanted.fs_type.as_str(), wanted.flags.join(","));
    Err(differs(volume, &entry.path, &describe(entry), &wanted))
}

fn describe(entry: &MountEntry) -> String {
    format!("as {} with [{}]", entry.fs_type, entry.options.join(","))
}

fn other_device(volume: &VolumeId, entry: &MountEntry) -> NodeError {
    let reason = format!("{} has another device, {}, mounted", entry.path.display(), entry.device);
    NodeError::NotNow { volume: volume.clone(), reason }
}

/// The path has the volume, in another way than asked for.
pub(crate) fn differs(volume: &VolumeId, path: &Path, existing: &str, wanted: &str) -> NodeError {
    NodeError::Differs {
        volume: volume.clone(),
        path: path.to_path_buf(),
        existing: existing.to_owned(),
        wanted: wanted.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::DeviceId;

    fn entry(fs_type: &str, options: &str) -> MountEntry {
        let options: Vec<_> = options.split(',').map(str::to_owned).collect();
        MountEntry {
            device: DeviceId::Number { major: 7, minor: 1 },
            root: "/".to_owned(),
            path: "/staging".into(),
            fs_type: fs_type.to_owned(),
            read_only: options.iter().any(|option| option == "ro"),
            options,
        }
    }

    #[test]
    fn a_second_stage_is_the_same_or_it_is_refused() {
        let wanted = |fs_type, flags: &[&str], read_only| MountOptions {
            fs_type,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            read_only,
        };
        let volume = VolumeId::parse("pvc-1").unwrap();
        let rows = [
            ("ext4", "rw,relatime", wanted(FsType::Ext4, &[], false), true),
            ("ext4", "rw,noatime,discard", wanted(FsType::Ext4, &["noatime"], false), true),
            ("xfs", "rw,relatime,attr2,noquota", wanted(FsType::Xfs, &["discard"], false), true),
            ("ext4", "ro,relatime", wanted(FsType::Ext4, &["ro"], true), true),
            ("ext4", "rw,relatime", wanted(FsType::Xfs, &[], false), false),
            ("ext4", "rw,relatime", wanted(FsType::Ext4, &["noatime"], false), false),
            ("ext4", "rw,noatime", wanted(FsType::Ext4, &[], false), false),
            ("ext4", "rw,relatime", wanted(FsType::Ext4, &["ro"], true), false),
            ("ext4", "ro,relatime", wanted(FsType::Ext4, &[], false), false),
        ];
        for (fs_type, options, wanted, same) in rows {
            let result = same_mount(&volume, &entry(fs_type, options), &wanted);
            assert_eq!(result.is_ok(), same, "{fs_type} {options} {wanted:?}");
        }
    }
}
