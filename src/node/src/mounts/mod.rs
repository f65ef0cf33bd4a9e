//! What is mounted where on this node, and what is on a device.
//!
//! The kernel's own table is the only record: there is no state file. [`KernelMounts`] is the real thing,
//! [`FakeMounts`] keeps a table of files on a fake machine.

mod blank;
mod bounded;
mod content;
mod fake;
mod kernel;
mod making;
mod mountinfo;
mod signatures;
mod vitals;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use state_machine::FsType;
use thiserror::Error;

pub(crate) use bounded::within;
pub(crate) use fake::FakeMounts;
pub(crate) use kernel::KernelMounts;

use crate::fabric::{Device, DeviceId};
use crate::tool::ToolError;

/// One mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountEntry {
    /// The device that it is on.
    pub(crate) device: DeviceId,
    /// Which directory of the file system is seen; `/` is all of it.
    pub(crate) root: String,
    /// Where it is mounted.
    pub(crate) path: PathBuf,
    /// The file system.
    pub(crate) fs_type: String,
    /// Options of the mount and of the file system, as the kernel prints them.
    pub(crate) options: Vec<String>,
    /// Whether the mount cannot be written through.
    pub(crate) read_only: bool,
}

/// What is on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// Proven: no known signature anywhere, and zeros wherever a file system would have written.
    Empty,
    /// One file system that we mount.
    FileSystem(FsType),
    /// Anything else, damage and doubt included, in words for people. Never formatted.
    Unclear(String),
}

/// How a file system is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// The file system.
    pub(crate) fs_type: FsType,
    /// Mount flags from the request.
    pub(crate) flags: Vec<String>,
    /// Whether it is only read.
    pub(crate) read_only: bool,
}

impl MountEntry {
    /// Whether the mount has all of these flags.
    pub(crate) fn has_flags(&self, flags: &[String]) -> bool {
        flags.iter().all(|flag| self.options.contains(flag))
    }
}

/// How a bind mount differs from what it shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BindOptions {
    /// Whether nothing can be written through it.
    pub(crate) read_only: bool,
    /// Flags of the mount itself, as mount(8) spells them.
    pub(crate) flags: Vec<String>,
}

/// A block volume at the path where a pod looks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlockTarget {
    /// The device that opening the path would open.
    pub(crate) device: DeviceId,
    /// Whether the path was published to be only read.
    pub(crate) read_only: bool,
}

/// A device that stays the one that it was: what is done by its path, or by its number, is done to it.
#[derive(Debug)]
pub(crate) struct Hold {
    _open: Option<File>,
}

/// How full a file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// In bytes.
    pub(crate) bytes: Filled,
    /// In inodes.
    pub(crate) inodes: Filled,
}

/// How much there is of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Filled {
    /// Altogether.
    pub(crate) total: u64,
    /// Taken.
    pub(crate) used: u64,
    /// What an ordinary user can still take.
    pub(crate) available: u64,
}

/// Why something could not be mounted, unmounted or seen.
#[derive(Debug, Error)]
pub(crate) enum MountError {
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The system said no.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Something that is not ours is in the way.
    #[error("{} is {what}; it is left alone", path.display())]
    Foreign {
        /// Where.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Somebody holds the device exclusively, so what is on it means nothing yet.
    #[error(
        "{} is held exclusively by somebody, perhaps a formatting or checking tool that outlived its caller; it is \
         not looked at until that ends",
        path.display()
    )]
    Held {
        /// The device.
        path: PathBuf,
    },
    /// A file system that must not be mounted as it is.
    #[error(
        "the {} on {} cannot be mounted as it is: {complaint}; repair it by hand with {}, or look at the mount \
         options; it is not formatted and nothing of it is thrown away",
        fs_type.as_str(), path.display(), repair_tool(fs_type)
    )]
    Damaged {
        /// The device.
        path: PathBuf,
        /// The file system.
        fs_type: FsType,
        /// What its tool or the kernel said.
        complaint: String,
    },
    /// A look at a file system did not end, as happens when its device has gone away.
    #[error("{} did not answer within {limit_ms} ms", path.display())]
    OutOfTime {
        /// Where.
        path: PathBuf,
        /// The time limit in ms.
        limit_ms: u64,
    },
}

impl MountError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_path_buf(), source }
    }
}

fn repair_tool(fs_type: &FsType) -> &'static str {
    match fs_type {
        FsType::Ext4 => "e2fsck",
        FsType::Xfs => "xfs_repair",
    }
}

/// Mounts, unmounts and looks. Callers hold the operation lock of the volume concerned.
#[async_trait]
pub(crate) trait Mounts: Send + Sync + 'static {
    /// All mounts in the order in which they were made: of several at one path, the last is the one in force.
    async fn table(&self) -> Result<Vec<MountEntry>, MountError>;

    /// Keeps the device, as long as the answer lives, from giving its path and its number to another one, should its
    /// connection be lost meanwhile. Not exclusive. An error if the path does not open this device.
    async fn hold(&self, device: &Device) -> Result<Hold, MountError>;

    /// What is on the device. [`MountError::Held`] while somebody else has it exclusively.
    async fn content(&self, device: &Device) -> Result<Content, MountError>;

    /// Makes a file system, with options of its tool. Only for a device whose content is [`Content::Empty`].
    async fn format(&self, device: &Device, fs_type: FsType, options: &[String]) -> Result<(), MountError>;

    /// Has an unmounted file system checked before it is mounted writable, and mended where that is safe;
    /// [`MountError::Damaged`] where it is not.
    async fn check(&self, device: &Device, fs_type: FsType) -> Result<(), MountError>;

    /// Whether anybody holds the device exclusively, as every mount of it does.
    async fn is_claimed(&self, device: &Device) -> Result<bool, MountError>;

    /// Mounts the device at an existing directory.
    async fn mount(&self, device: &Device, path: &Path, options: &MountOptions) -> Result<(), MountError>;

    /// Shows what is mounted at `from` at the existing directory `to` as well.
    async fn bind(&self, from: &Path, to: &Path, options: &BindOptions) -> Result<(), MountError>;

    /// Gives the bind mount at `path` these options instead of what it has of them.
    async fn rebind(&self, path: &Path, options: &BindOptions) -> Result<(), MountError>;

    /// Takes away the mount in force at `path`.
    async fn unmount(&self, path: &Path) -> Result<(), MountError>;

    /// The block volume at `path`, if there is anything; something else there is [`MountError::Foreign`].
    async fn block_target(&self, path: &Path) -> Result<Option<BlockTarget>, MountError>;

    /// Makes `path` a way to open the device. Nothing must be there yet.
    async fn make_block_target(
        &self,
        device: &Device,
        path: &Path,
        read_only: bool,
    ) -> Result<(), MountError>;

    /// How full the file system mounted at `path` is.
    async fn usage(&self, path: &Path) -> Result<Usage, MountError>;

    /// Why the file system that is mounted there has stopped, if it has: in words for people.
    async fn stopped(&self, entry: &MountEntry) -> Result<Option<String>, MountError>;

    /// How many errors the mounted file system has logged since it was last checked, as far as it counts them.
    async fn logged_errors(&self, device: &Device, fs_type: FsType) -> Result<u64, MountError>;

    /// Lets the file system mounted at `mounted_at` fill its device.
    async fn grow(&self, device: &Device, mounted_at: &Path, fs_type: FsType) -> Result<(), MountError>;
}
