//! Mounts of the Linux kernel, through util-linux, e2fsprogs and xfsprogs. Needs root.
//!
//! Block targets are made with mknod: a bind mount of a device node would add a mount of devtmpfs for each pod.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::{CWD, FileType, Mode, major, makedev, minor, mknodat};
use state_machine::FsType;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::blank::find_data;
use super::signatures::{self, Signature};
use super::{BlockTarget, Content, Filled, MountEntry, MountError, MountOptions, Mounts, Usage, mountinfo};
use crate::fabric::{Device, DeviceId};
use crate::tool;

/// How long mounting may take, in ms: replaying a large journal does take a while.
const MOUNT_LIMIT_MS: u64 = 110_000;
/// How long probing a device may take, in ms.
const PROBE_LIMIT_MS: u64 = 60_000;
/// How long making or growing a file system may take, in ms.
const FORMAT_LIMIT_MS: u64 = 600_000;
/// How long a file system may take to say how full it is, in ms; one whose device has gone never answers.
const USAGE_LIMIT_MS: u64 = 5_000;
/// Permissions of a block target. What is in a pod goes by the container runtime's device rules, not by these.
const BLOCK_TARGET_MODE: u32 = 0o600;
/// Permissions of a block target that is only read.
const READ_ONLY_BLOCK_TARGET_MODE: u32 = 0o400;
/// The write permission bits of everybody.
const WRITABLE_BITS: u32 = 0o222;

/// The kernel's mounts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct KernelMounts;

#[async_trait]
impl Mounts for KernelMounts {
    async fn table(&self) -> Result<Vec<MountEntry>, MountError> {
        let file = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(file).map_err(MountError::io("read", file))?;
        let unreadable = |reason| io::Error::new(io::ErrorKind::InvalidData, reason);
        mountinfo::parse(&text).map_err(|reason| MountError::io("parse", file)(unreadable(reason)))
    }

    async fn content(&self, device: &Device) -> Result<Content, MountError> {
        let arguments = ["--probe", "--output", "export"].map(OsStr::new);
        let arguments = [arguments.as_slice(), &[device.path.as_os_str()]].concat();
        let probe = tool::run("blkid", &arguments, Duration::from_millis(PROBE_LIMIT_MS)).await?;
        if let Signature::Found(content) = signatures::parse(probe.code, &probe.stdout, &probe.stderr) {
            return Ok(content);
        }
        if device.size_bytes == 0 {
            return Ok(Content::Unclear("a device without size".to_owned()));
        }
        let (path, size_bytes) = (device.path.clone(), device.size_bytes);
        let data_at =
            within(PROBE_LIMIT_MS, "read", &device.path, move || find_data(&File::open(path)?, size_bytes));
        Ok(match data_at.await? {
            None => Content::Empty,
            Some(offset) => Content::Unclear(format!("no known signature, but data at byte {offset}")),
        })
    }

    async fn format(&self, device: &Device, fs_type: FsType) -> Result<(), MountError> {
        let tool = match fs_type {
            FsType::Ext4 => "mkfs.ext4",
            FsType::Xfs => "mkfs.xfs",
        };
        // Never forced: the tools' own checks for signatures and for other users of the device stay on.
        let arguments = [OsStr::new("-q"), device.path.as_os_str()];
        tool::succeed(tool, &arguments, Duration::from_millis(FORMAT_LIMIT_MS)).await?;
        Ok(())
    }

    async fn mount(&self, device: &Device, path: &Path, options: &MountOptions) -> Result<(), MountError> {
        let mut flags = vec![if options.read_only { "ro" } else { "rw" }];
        flags.extend(options.flags.iter().map(String::as_str));
        let flags = flags.join(",");
        let arguments = ["-t", options.fs_type.as_str(), "-o", &flags].map(OsStr::new);
        mount(&[arguments.as_slice(), &[device.path.as_os_str(), path.as_os_str()]].concat()).await
    }

    async fn bind(&self, from: &Path, to: &Path, read_only: bool) -> Result<(), MountError> {
        let options = if read_only { "bind,ro" } else { "bind" };
        mount(&["-o".as_ref(), options.as_ref(), from.as_os_str(), to.as_os_str()]).await
    }

    async fn make_read_only(&self, path: &Path) -> Result<(), MountError> {
        mount(&["-o".as_ref(), "remount,bind,ro".as_ref(), path.as_os_str()]).await
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
        within(USAGE_LIMIT_MS, "measure", path, move || usage_of(&mounted_at)).await
    }

    async fn grow(&self, device: &Device, mounted_at: &Path, fs_type: FsType) -> Result<(), MountError> {
        let limit = Duration::from_millis(FORMAT_LIMIT_MS);
        match fs_type {
            FsType::Ext4 => tool::succeed("resize2fs", &[device.path.as_os_str()], limit).await?,
            FsType::Xfs => {
                tool::succeed("xfs_growfs", &["-d".as_ref(), mounted_at.as_os_str()], limit).await?
            }
        };
        Ok(())
    }
}

/// How full the file system at `path` is: statvfs(3).
pub(super) fn usage_of(path: &Path) -> io::Result<Usage> {
    let seen = rustix::fs::statvfs(path)?;
    let block = seen.f_frsize;
    let filled = |total: u64, free: u64, available: u64, unit: u64| Filled {
        total: total.saturating_mul(unit),
        used: total.saturating_sub(free).saturating_mul(unit),
        available: available.saturating_mul(unit),
    };
    Ok(Usage {
        bytes: filled(seen.f_blocks, seen.f_bfree, seen.f_bavail, block),
        inodes: filled(seen.f_files, seen.f_ffree, seen.f_favail, 1),
    })
}

async fn mount(arguments: &[&OsStr]) -> Result<(), MountError> {
    tool::succeed("mount", arguments, Duration::from_millis(MOUNT_LIMIT_MS)).await?;
    Ok(())
}

/// Runs what may hang in the kernel on a thread of its own, and stops waiting for it after `limit_ms`.
async fn within<T: Send + 'static>(
    limit_ms: u64,
    action: &'static str,
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, MountError> {
    let path: PathBuf = path.to_path_buf();
    match timeout(Duration::from_millis(limit_ms), spawn_blocking(work)).await {
        Err(_) => Err(MountError::OutOfTime { path, limit_ms }),
        Ok(Err(broken_off)) => Err(MountError::io(action, &path)(io::Error::other(broken_off))),
        Ok(Ok(result)) => result.map_err(MountError::io(action, &path)),
    }
}
