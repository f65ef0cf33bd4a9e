//! A disk for one controller: an ext4 on a loop device over a file, which can lose its power or be full.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;
use rustix::ioctl;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

use super::lab::tool;

/// The file system's size in bytes; the image is sparse.
const IMAGE_BYTES: u64 = 256 << 20;
/// What is taken at a time when the disk is filled, largest first, in bytes.
const FILLER_BYTES: [u64; 4] = [16 << 20, 1 << 20, 64 << 10, 4 << 10];
/// How long a file system may be in use after its process was killed, and how often that is looked at.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(5);
const UNMOUNT_POLL: Duration = Duration::from_millis(2);

/// A mounted file system, all of which goes when it is dropped.
#[derive(Debug)]
pub(super) struct Disk {
    image: PathBuf,
    device: PathBuf,
    mounted_at: PathBuf,
    is_mounted: Mutex<bool>,
}

impl Disk {
    /// Makes it and mounts it at the state directory of the controller `name`, below `root`.
    pub(super) fn create(root: &Path, name: &str) -> Result<Self> {
        let image = root.join(format!("{name}.image"));
        File::create(&image)?.set_len(IMAGE_BYTES)?;
        let shown = image.display().to_string();
        // No space is kept for root: a full disk is full.
        tool("mkfs.ext4", &["-q", "-m", "0", &shown])?;
        let device = PathBuf::from(tool("losetup", &["--find", "--show", &shown])?.trim());
        let mounted_at = root.join(name);
        let disk = Self { image, device, mounted_at, is_mounted: Mutex::new(false) };
        fs::create_dir_all(&disk.mounted_at)?;
        disk.mount()?;
        // A data directory has nothing that is not the replica's.
        fs::remove_dir(disk.mounted_at.join("lost+found")).context("cannot remove lost+found")?;
        Ok(disk)
    }

    fn set_mounted(&self, is_mounted: bool) {
        *self.is_mounted.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = is_mounted;
    }

    fn mount(&self) -> Result<()> {
        mount(&self.device, &self.mounted_at, c"ext4", MountFlags::empty(), None)
            .context("cannot mount a disk")?;
        self.set_mounted(true);
        // Another run's namespaces get copies of it, which are to go when it goes here.
        mount_change(&self.mounted_at, MountPropagationFlags::SHARED).context("cannot share a mount")?;
        Ok(())
    }

    /// Nothing gets to the device any more, not even the journal. Its process is to be killed next.
    #[allow(unsafe_code)] // This ioctl has no safe form.
    pub(super) fn cut_power(&self) -> Result<()> {
        /// `EXT4_IOC_SHUTDOWN`, `_IOR('X', 125, __u32)`.
        const SHUTDOWN: ioctl::Opcode = ioctl::opcode::read::<u32>(b'X', 125);
        /// `EXT4_GOING_FLAGS_NOLOGFLUSH`.
        const NO_LOG_FLUSH: u32 = 2;
        let root = File::open(&self.mounted_at)?;
        // SAFETY: the ioctl reads one u32 through the pointer that the setter gives it, and changes no memory.
        unsafe { ioctl::ioctl(&root, ioctl::Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }
            .context("cannot shut the file system down")?;
        drop(root);
        let written = File::create(self.mounted_at.join("after-the-cut"));
        ensure!(written.is_err(), "{} takes files after its power was cut", self.mounted_at.display());
        Ok(())
    }

    /// The power is back; the process must be gone.
    pub(super) fn remount(&self) -> Result<()> {
        let deadline = Instant::now() + UNMOUNT_TIMEOUT;
        loop {
            self.unmount(deadline)?;
            self.mount()?;
            // Where another mount namespace has a copy of the mount, this is still the one that was shut down.
            match File::open(&self.mounted_at).and_then(|root| root.sync_all()) {
                Ok(()) => return self.empty(),
                Err(error) if Instant::now() >= deadline => {
                    return Err(error).context("a disk cannot be mounted again");
                }
                Err(_) => thread::sleep(UNMOUNT_POLL),
            }
        }
    }

    fn unmount(&self, deadline: Instant) -> Result<()> {
        while let Err(error) = unmount(&self.mounted_at, UnmountFlags::empty()) {
            ensure!(error == Errno::BUSY && Instant::now() < deadline, "cannot unmount: {error}");
            thread::sleep(UNMOUNT_POLL);
        }
        self.set_mounted(false);
        Ok(())
    }

    /// Takes all free space.
    pub(super) fn fill(&self) -> Result<()> {
        let filler = OpenOptions::new().create(true).append(true).open(self.filler())?;
        let mut end = filler.metadata()?.len();
        for piece in FILLER_BYTES {
            while fallocate(&filler, FallocateFlags::empty(), end, piece).is_ok() {
                end += piece;
            }
        }
        let free = statvfs(&self.mounted_at)?.f_bavail;
        ensure!(free == 0, "{free} blocks are free on a disk that was filled");
        Ok(())
    }

    /// Gives back what was taken, for good: a power cut would bring it back.
    pub(super) fn empty(&self) -> Result<()> {
        match fs::remove_file(self.filler()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => {
                removed.and_then(|()| File::open(&self.mounted_at)?.sync_all()).context("cannot empty a disk")
            }
        }
    }

    fn filler(&self) -> PathBuf {
        self.mounted_at.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let is_mounted = *self.is_mounted.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if is_mounted && let Err(error) = unmount(&self.mounted_at, UnmountFlags::DETACH) {
            eprintln!("cannot unmount {}: {error}", self.mounted_at.display());
        }
        if let Err(error) = tool("losetup", &["--detach", &self.device.display().to_string()]) {
            eprintln!("{error:#}");
        }
        // The directory may be kept for its logs.
        let _ = fs::remove_file(&self.image);
    }
}
