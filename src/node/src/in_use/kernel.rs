//! What the kernel itself says of block devices.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, major, minor};
use rustix::io::Errno;
use rustix::ioctl::{Getter, NoArg, Opcode, ioctl};

use crate::sysfs::Number;

/// `BLKFLSBUF` of `linux/fs.h`: write out what the kernel holds of a block device, and forget it.
const BLKFLSBUF: Opcode = 0x1261;
/// `LOOP_GET_STATUS64` of `linux/loop.h`.
const LOOP_GET_STATUS64: Opcode = 0x4C05;

/// The questions. Each may hang while the device's path is lost.
pub(crate) trait BlockDevices: Send + Sync + 'static {
    /// The number of the block device that `path` leads to; `None` if it leads to something else.
    fn number_of(&self, path: &Path) -> io::Result<Option<Number>>;

    /// Opens the device so that nobody else can mount it, or hold it in another exclusive way; `EBUSY` if
    /// somebody does. Whoever merely has it open does not matter here.
    fn claim(&self, device: &Path) -> io::Result<OwnedFd>;

    /// Writes out what the kernel holds of the device. It does so when the last user closes it, but a claim is a
    /// user too: without this, what the last real one wrote would be left to the end of the claim.
    fn flush(&self, claim: &OwnedFd) -> io::Result<()>;

    /// The block device that a loop device lies over; `None` if that is a file, or nothing.
    fn backing_of(&self, loop_device: &Path) -> io::Result<Option<Number>>;
}

/// The kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinuxBlockDevices;

impl BlockDevices for LinuxBlockDevices {
    fn number_of(&self, path: &Path) -> io::Result<Option<Number>> {
        // What the kernel has of it is enough: no file server is to be asked. Nothing is asked for by name, as a user's
        // FUSE mount refuses that even to root; the kernel's own file systems tell the type all the same.
        let seen = rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
        let kind = FileType::from_raw_mode(seen.stx_mode.into());
        Ok((kind == FileType::BlockDevice).then_some((seen.stx_rdev_major, seen.stx_rdev_minor)))
    }

    fn claim(&self, device: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        Ok(rustix::fs::open(device, flags, Mode::empty())?)
    }

    fn flush(&self, claim: &OwnedFd) -> io::Result<()> {
        #[expect(
            unsafe_code,
            reason = "ioctl(2); BLKFLSBUF takes no argument and touches none of our memory"
        )]
        Ok(unsafe { ioctl(claim, NoArg::<BLKFLSBUF>::new()) }?)
    }

    fn backing_of(&self, loop_device: &Path) -> io::Result<Option<Number>> {
        match loop_status(File::open(loop_device)?.as_fd()) {
            Ok(status) if status.rdevice == 0 => Ok(None),
            Ok(status) => Ok(Some((major(status.rdevice), minor(status.rdevice)))),
            // It has just been detached.
            Err(Errno::NXIO) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// `struct loop_info64` of `linux/loop.h`: what is of interest, and room for the rest.
#[repr(C)]
struct LoopStatus {
    device: u64,
    inode: u64,
    /// The backing file's own number, if it is a device.
    rdevice: u64,
    rest: [u64; 26],
}

fn loop_status(loop_device: BorrowedFd<'_>) -> rustix::io::Result<LoopStatus> {
    #[expect(unsafe_code, reason = "ioctl(2); LoopStatus has the size and layout of what the kernel writes")]
    unsafe {
        ioctl(loop_device, Getter::<LOOP_GET_STATUS64, LoopStatus>::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::process::Command;

    #[test]
    fn a_loop_status_has_the_kernels_size() {
        assert_eq!(size_of::<LoopStatus>(), 232);
    }

    #[test]
    fn only_block_devices_have_a_number() {
        // A character device, a directory and a file.
        for path in ["/dev/null", "/dev", "/proc/self/stat"] {
            assert_eq!(LinuxBlockDevices.number_of(path.as_ref()).unwrap(), None, "{path}");
        }
        assert!(LinuxBlockDevices.number_of("/no/such/device".as_ref()).is_err());
    }

    /// A loop device, detached when it is dropped.
    struct Loop(PathBuf);

    impl Loop {
        fn over(backing: &Path) -> Self {
            let output = Command::new("losetup").args(["--find", "--show"]).arg(backing).output().unwrap();
            assert!(output.status.success(), "this test makes loop devices: run it as root");
            Self(String::from_utf8(output.stdout).unwrap().trim().into())
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            Command::new("losetup").arg("--detach").arg(&self.0).status().ok();
        }
    }

    #[test]
    fn a_real_device_is_claimed_once_and_its_loop_devices_are_seen() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let lower = Loop::over(file.path());
        let upper = Loop::over(&lower.0);
        let kernel = LinuxBlockDevices;
        let number = kernel.number_of(&lower.0).unwrap();
        assert!(number.is_some());
        assert_eq!(kernel.backing_of(&upper.0).unwrap(), number);
        assert_eq!(kernel.backing_of(&lower.0).unwrap(), None);

        let claim = kernel.claim(&lower.0).unwrap();
        kernel.flush(&claim).unwrap();
        let refusal = kernel.claim(&lower.0).unwrap_err();
        assert_eq!(Errno::from_io_error(&refusal), Some(Errno::BUSY), "{refusal}");
        drop(claim);
        kernel.claim(&lower.0).unwrap();
    }
}
