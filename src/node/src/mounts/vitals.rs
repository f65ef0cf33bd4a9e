//! Whether a mounted file system still does its work: read from what the kernel shows, without writing to it.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use state_machine::FsType;

use super::{Filled, MountEntry, Usage};
use crate::fabric::Device;
use crate::sysfs::at;

/// Options that the kernel prints of a file system that has stopped.
const STOPPED_OPTIONS: [&str; 2] = ["shutdown", "emergency_ro"];
/// Where ext4 shows in sysfs what it has logged.
const EXT4: &str = "fs/ext4";

/// Why nothing can be written to what is mounted there any more, if so: seen in the mount table alone.
///
/// A mount that was asked to be read-only says `ro` first, of the mount itself. One that says `rw` there, and then `ro`
/// of its file system, was made read-only by the kernel after an error.
pub(super) fn stopped_by_options(entry: &MountEntry) -> Option<String> {
    let has = |wanted: &str| entry.options.iter().any(|option| option == wanted);
    if let Some(option) = STOPPED_OPTIONS.into_iter().find(|option| has(option)) {
        return Some(format!("the kernel reports {option}"));
    }
    let asked_writable = entry.options.first().is_some_and(|option| option == "rw");
    (asked_writable && has("ro")).then(|| "the kernel made it read-only after an error".to_owned())
}

/// Why what is mounted there cannot even be opened any more, if so. May hang if the path to its device is lost.
pub(super) fn stopped_by_opening(path: &Path) -> io::Result<Option<String>> {
    match File::open(path) {
        Ok(_) => Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
            Ok(Some("it answers with I/O errors".to_owned()))
        }
        Err(error) => Err(error),
    }
}

/// How many errors the file system has logged since it was last checked; 0 where the kernel does not count.
pub(super) fn logged_errors(sysfs: &Path, device: &Device, fs_type: FsType) -> io::Result<u64> {
    let (FsType::Ext4, Some(name)) = (fs_type, device.path.file_name()) else { return Ok(0) };
    let mounted = sysfs.join(EXT4);
    // Without it no file system would seem to have any.
    fs::metadata(&mounted).map_err(at(&mounted))?;
    let file = mounted.join(name).join("errors_count");
    match fs::read_to_string(&file) {
        Ok(text) => {
            text.trim().parse().map_err(|_| io::Error::other(format!("{} reads {text:?}", file.display())))
        }
        // Unmounted since it was found mounted.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::DeviceId;

    #[test]
    fn logged_errors_are_read_or_not_known() {
        let sysfs = tempfile::tempdir().unwrap();
        let device = Device {
            volume: state_machine::VolumeId::parse("pvc-1").unwrap(),
            id: DeviceId::Number { major: 259, minor: 1 },
            path: "/dev/nvme1n1".into(),
            size_bytes: 1 << 20,
        };
        let logged = |fs_type| logged_errors(sysfs.path(), &device, fs_type);
        assert!(logged(FsType::Ext4).is_err(), "sysfs shows no ext4 at all");
        let mounted = sysfs.path().join("fs/ext4/nvme1n1");
        fs::create_dir_all(&mounted).unwrap();
        assert_eq!(logged(FsType::Ext4).unwrap(), 0, "it was unmounted meanwhile");
        fs::write(mounted.join("errors_count"), "3\n").unwrap();
        assert_eq!(logged(FsType::Ext4).unwrap(), 3);
        assert_eq!(logged(FsType::Xfs).unwrap(), 0, "XFS counts none");
        fs::write(mounted.join("errors_count"), "many\n").unwrap();
        assert!(logged(FsType::Ext4).is_err());
    }

    #[test]
    fn a_mount_that_was_asked_to_be_read_only_has_not_stopped() {
        let rows = [
            ("rw,relatime,rw", false),
            ("ro,relatime,ro", false),
            ("ro,relatime", false),
            // A read-only bind mount of a writable file system.
            ("ro,noatime,rw", false),
            ("rw,noatime,ro", true),
            ("rw,noatime,rw,shutdown", true),
            ("rw,noatime,rw,emergency_ro", true),
        ];
        let stopped = |options: &str| {
            let options: Vec<_> = options.split(',').map(str::to_owned).collect();
            stopped_by_options(&MountEntry {
                device: DeviceId::Number { major: 259, minor: 1 },
                root: "/".to_owned(),
                path: "/staging".into(),
                fs_type: "ext4".to_owned(),
                read_only: options.iter().any(|option| option == "ro"),
                options,
            })
        };
        for (options, expected) in rows {
            assert_eq!(stopped(options).is_some(), expected, "{options}");
        }
    }
}
