//! Mounts of the Linux kernel, through util-linux, e2fsprogs and xfsprogs. Needs root.
//!
//! Block targets are made with mknod: a bind mount of a device node would add a mount of devtmpfs for each pod.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::{CWD, FileType, Mode, major, makedev, minor, mknodat};
use state_machine::FsType;

use super::bounded::{Pending, within};
use super::vitals::{self, usage_of};
use super::{
    BindOptions, BlockTarget, Content, Hold, MountEntry, MountError, MountOptions, Mounts, Usage, content,
    making, mountinfo,
};
use crate::fabric::{Device, DeviceId};
use crate::in_use::Roots;
use crate::tool::{self, ToolError};

/// How long mounting may take, in ms: replaying a large journal does take a while.
const MOUNT_LIMIT_MS: u64 = 110_000;
/// How long growing a file system may take, in ms.
const GROW_LIMIT_MS: u64 = 600_000;
/// How long a file system may take to say how it is, in ms; one whose device has gone never answers.
const LOOK_LIMIT_MS: u64 = 5_000;
/// What mount(8) says when the kernel finds a file system damaged, or does not know its options: it cannot tell these
/// two apart either. Tried again, neither changes.
const DAMAGE_WORDS: [&str; 3] = ["Structure needs cleaning", "Bad message", "bad superblock"];
/// Permissions of a block target. What is in a pod goes by the container runtime's device rules, not by these.
const BLOCK_TARGET_MODE: u32 = 0o600;
/// Permissions of a block target that is only read.
const READ_ONLY_BLOCK_TARGET_MODE: u32 = 0o400;
/// The write permission bits of everybody.
const WRITABLE_BITS: u32 = 0o222;

/// The kernel's mounts.
#[derive(Debug, Clone, Default)]
pub(crate) struct KernelMounts {
    roots: Roots,
    pending: Pending,
}

impl KernelMounts {
    /// The mounts of the machine that shows itself there.
    pub(crate) fn new(roots: Roots) -> Self {
        Self { roots, pending: Pending::default() }
    }
}

#[async_trait]
impl Mounts for KernelMounts {
    async fn table(&self) -> Result<Vec<MountEntry>, MountError> {
        let file = self.roots.proc.join("self/mountinfo");
        let text = fs::read(&file).map_err(MountError::io("read", &file))?;
        let unreadable = |reason| io::Error::new(io::ErrorKind::InvalidData, reason);
        // A path that is no UTF-8 is none of ours; it must not hide the others.
        mountinfo::parse(&String::from_utf8_lossy(&text))
            .map_err(|reason| MountError::io("parse", &file)(unreadable(reason)))
    }

    async fn hold(&self, device: &Device) -> Result<Hold, MountError> {
        let path = device.path.clone();
        let open = move || {
            let file = File::open(&path)?;
            let rdev = file.metadata()?.rdev();
            Ok((DeviceId::Number { major: major(rdev), minor: minor(rdev) }, file))
        };
        let (id, file) = within(LOOK_LIMIT_MS, "open", &device.path, open).await?;
        if id != device.id {
            return Err(MountError::Foreign { path: device.path.clone(), what: "another device by now" });
        }
        Ok(Hold { _open: Some(file) })
    }

    async fn content(&self, device: &Device) -> Result<Content, MountError> {
        content::content(device, &self.pending).await
    }

    async fn format(&self, device: &Device, fs_type: FsType, options: &[String]) -> Result<(), MountError> {
        making::format(device, fs_type, options).await
    }

    async fn check(&self, device: &Device, fs_type: FsType) -> Result<(), MountError> {
        making::check(device, fs_type).await
    }

    async fn is_claimed(&self, device: &Device) -> Result<bool, MountError> {
        content::is_claimed(&device.path).await
    }

    async fn mount(&self, device: &Device, path: &Path, options: &MountOptions) -> Result<(), MountError> {
        let mut flags = vec![if options.read_only { "ro" } else { "rw" }];
        flags.extend(options.flags.iter().map(String::as_str));
        let flags = flags.join(",");
        let arguments = ["-t", options.fs_type.as_str(), "-o", &flags].map(OsStr::new);
        let arguments = [arguments.as_slice(), &[device.path.as_os_str(), path.as_os_str()]].concat();
        mount(&arguments).await.map_err(|error| match &error {
            ToolError::Failed { complaint, .. } if is_damage(complaint) => {
                let (path, complaint) = (device.path.clone(), complaint.clone());
                MountError::Damaged { path, fs_type: options.fs_type, complaint }
            }
            ToolError::Start { .. }
            | ToolError::OutOfTime { .. }
            | ToolError::StillRuns { .. }
            | ToolError::Failed { .. } => error.into(),
        })
    }

    async fn bind(&self, from: &Path, to: &Path, options: &BindOptions) -> Result<(), MountError> {
        let options = bind_flags("bind", options);
        Ok(mount(&["-o".as_ref(), options.as_ref(), from.as_os_str(), to.as_os_str()]).await?)
    }

    async fn rebind(&self, path: &Path, options: &BindOptions) -> Result<(), MountError> {
        let options = bind_flags("remount,bind", options);
        Ok(mount(&["-o".as_ref(), options.as_ref(), path.as_os_str()]).await?)
    }

    async fn unmount(&self, path: &Path) -> Result<(), MountError> {
        tool::succeed("umount", &[path.as_os_str()], Duration::from_millis(MOUNT_LIMIT_MS)).await?;
        Ok(())
    }

    async fn block_target(&self, path: &Path) -> Result<Option<BlockTarget>, MountError> {
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(MountError::io("look at", path)(error)),
        };
        if !metadata.file_type().is_block_device() {
            return Err(MountError::Foreign { path: path.to_path_buf(), what: "no block device" });
        }
        let rdev = metadata.rdev();
        Ok(Some(BlockTarget {
            device: DeviceId::Number { major: major(rdev), minor: minor(rdev) },
            read_only: metadata.permissions().mode() & WRITABLE_BITS == 0,
        }))
    }

    async fn make_block_target(
        &self,
        device: &Device,
        path: &Path,
        read_only: bool,
    ) -> Result<(), MountError> {
        let DeviceId::Number { major, minor } = device.id else {
            return Err(MountError::Foreign { path: device.path.clone(), what: "a fake device" });
        };
        let mode = if read_only { READ_ONLY_BLOCK_TARGET_MODE } else { BLOCK_TARGET_MODE };
        let (kind, mode) = (FileType::BlockDevice, Mode::from_raw_mode(mode));
        mknodat(CWD, path, kind, mode, makedev(major, minor))
            .map_err(|errno| MountError::io("make a device node at", path)(errno.into()))
    }

    async fn usage(&self, path: &Path) -> Result<Usage, MountError> {
        let mounted_at = path.to_path_buf();
        self.pending.within(LOOK_LIMIT_MS, "measure", path, move || usage_of(&mounted_at)).await
    }

    async fn stopped(&self, entry: &MountEntry) -> Result<Option<String>, MountError> {
        if let Some(why) = vitals::stopped_by_options(entry) {
            return Ok(Some(why));
        }
        let mounted_at = entry.path.clone();
        let open = move || vitals::stopped_by_opening(&mounted_at);
        self.pending.within(LOOK_LIMIT_MS, "open", &entry.path, open).await
    }

    async fn logged_errors(&self, device: &Device, fs_type: FsType) -> Result<u64, MountError> {
        vitals::logged_errors(&self.roots.sysfs, device, fs_type)
            .map_err(MountError::io("read the errors of", &device.path))
    }

    async fn grow(&self, device: &Device, mounted_at: &Path, fs_type: FsType) -> Result<(), MountError> {
        let limit = Duration::from_millis(GROW_LIMIT_MS);
        match fs_type {
            FsType::Ext4 => tool::succeed("resize2fs", &[device.path.as_os_str()], limit).await?,
            FsType::Xfs => {
                tool::succeed("xfs_growfs", &["-d".as_ref(), mounted_at.as_os_str()], limit).await?
            }
        };
        Ok(())
    }
}

/// All that the bind mount is to have: what is left out here would be taken away from it.
fn bind_flags(action: &str, options: &BindOptions) -> String {
    let mut flags = vec![action];
    flags.extend(options.read_only.then_some("ro"));
    flags.extend(options.flags.iter().map(String::as_str));
    flags.join(",")
}

fn is_damage(complaint: &str) -> bool {
    DAMAGE_WORDS.iter().any(|words| complaint.contains(words))
}

async fn mount(arguments: &[&OsStr]) -> Result<(), ToolError> {
    tool::succeed("mount", arguments, Duration::from_millis(MOUNT_LIMIT_MS)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use state_machine::VolumeId;

    #[tokio::test]
    async fn only_the_device_itself_is_held() {
        // Any device node will do; this one is everywhere.
        let device = |minor| Device {
            volume: VolumeId::parse("pvc-1").unwrap(),
            id: DeviceId::Number { major: 1, minor },
            path: "/dev/null".into(),
            size_bytes: 0,
        };
        let mounts = KernelMounts::default();
        assert!(mounts.hold(&device(3)).await.is_ok());
        let other = mounts.hold(&device(4)).await.unwrap_err().to_string();
        assert!(other.contains("another device by now"), "{other}");
    }
}
