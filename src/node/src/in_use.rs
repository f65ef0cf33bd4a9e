//! Who holds a block device: asked before it is disconnected.
//!
//! Two looks together. Opening the device exclusively fails while the kernel holds it: mounted in whatever
//! namespace, used by device mapper, md or swap. Open descriptors of processes do not show there and are looked
//! for in `/proc` by device number; in a pod that needs the host's PID namespace. A loop device over the device
//! shows in neither.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags, major, minor};
use rustix::io::Errno;

/// At most this many processes are named in an answer.
const MAX_NAMED: usize = 8;

/// Whether the kernel holds the device at `device` exclusively.
pub(crate) fn held_by_kernel(device: &Path) -> io::Result<bool> {
    match rustix::fs::open(device, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => Ok(false),
        Err(Errno::BUSY) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// What a look at all processes found, each as `process <pid> (<command>)`.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    /// They have the device open.
    pub(crate) holders: Vec<String>,
    /// They may not be looked into, so they may have it open.
    pub(crate) unseen: Vec<String>,
}

/// The processes under `proc` that have the block device of this number open.
pub(crate) fn open_in_processes(proc: &Path, number: (u32, u32)) -> io::Result<Processes> {
    let mut processes = Processes::default();
    for entry in fs::read_dir(proc)? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let list = match process_has_open(&entry.path(), number) {
            Ok(false) => continue,
            Ok(true) => &mut processes.holders,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => &mut processes.unseen,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        if list.len() < MAX_NAMED {
            let command = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            list.push(format!("process {pid} ({})", command.trim_end()));
        }
    }
    Ok(processes)
}

fn process_has_open(process: &Path, number: (u32, u32)) -> io::Result<bool> {
    for descriptor in fs::read_dir(process.join("fd"))? {
        match is_device(&descriptor?.path(), number) {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn is_device(descriptor: &Path, number: (u32, u32)) -> io::Result<bool> {
    // Only files with a path can be devices; following the others could wait for somebody else's file server.
    if !fs::read_link(descriptor)?.is_absolute() {
        return Ok(false);
    }
    let metadata = fs::metadata(descriptor)?;
    let rdev = metadata.rdev();
    Ok(metadata.file_type().is_block_device() && (major(rdev), minor(rdev)) == number)
}

/// Processes end, and files are closed, while they are looked at.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn processes_are_looked_into_by_device_number() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, links) in [("7", vec!["/dev/null", "socket:[1]", "/gone"]), ("8", vec![]), ("self", vec![])]
        {
            let directory = proc.path().join(pid);
            fs::create_dir_all(directory.join("fd")).unwrap();
            fs::write(directory.join("comm"), "qemu-kvm\n").unwrap();
            for (number, link) in links.iter().enumerate() {
                symlink(link, directory.join("fd").join(number.to_string())).unwrap();
            }
        }
        // A process that ended between the two looks has no descriptors left.
        fs::create_dir(proc.path().join("9")).unwrap();
        let found = open_in_processes(proc.path(), (1, 3)).unwrap();
        // /dev/null is a character device of this number, not a block device.
        assert_eq!((found.holders, found.unseen), (Vec::new(), Vec::<String>::new()));
        assert!(open_in_processes(&proc.path().join("nowhere"), (1, 3)).is_err());
    }
}
