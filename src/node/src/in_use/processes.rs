//! Which processes have a block device open, and in which mount namespaces it is mounted: proc(5).
//!
//! | A process | counts as |
//! |---|---|
//! | has a descriptor of the device or of a partition | a holder |
//! | ended while it was looked at | not there |
//! | is a kernel thread | without descriptors |
//! | whose first thread has ended while others go on | its other threads |
//! | may not be looked into | unseen: it may be a holder |
//! | has a descriptor that cannot be looked at, of a file on a block device that is not the machine's root | no holder by it: that file system has failed, and device nodes are not there |
//! | has another one that cannot be looked at | the end of the look |
//!
//! Not to be seen here: a mapping of a device whose descriptor was closed, a descriptor on its way through a socket, one
//! that is registered with io_uring and closed, and a descriptor of an NVMe namespace's character device (`/dev/ng…`).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::kernel::BlockDevices;
use crate::sysfs::{Number, UNNAMED_MAJOR, at, names_in, parse_number};

/// The initial PID namespace, as the kernel has numbered it since Linux 3.8 (`PROC_PID_INIT_INO`).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Whom the look is for.
pub(super) struct Sought<'a> {
    /// The device and its partitions.
    pub(super) numbers: &'a [Number],
    /// A descriptor that is no use of the device, as `<pid>/fd/<number>` under `/proc`.
    pub(super) except: Option<PathBuf>,
    /// How descriptors are told apart.
    pub(super) blocks: &'a dyn BlockDevices,
}

/// What a look at all processes found.
#[derive(Debug, Default)]
pub(super) struct Processes {
    /// `process <pid> (<command>)`, and mounts, each with the device.
    pub(super) holders: Vec<(Number, String)>,
    /// Processes that may not be looked into.
    pub(super) unseen: Vec<String>,
}

/// Looks at all processes under `proc`.
pub(super) fn look(proc: &Path, sought: &Sought<'_>) -> io::Result<Processes> {
    let mut found = Processes::default();
    let mut namespaces = BTreeSet::new();
    for pid in pids(proc)? {
        let process = proc.join(pid.to_string());
        let name = || {
            let command = fs::read_to_string(process.join("comm")).unwrap_or_default();
            format!("process {pid} ({})", command.trim_end())
        };
        match open_of(proc, &process, sought) {
            Ok(open) => found.holders.extend(open.into_iter().map(|number| (number, name()))),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => found.unseen.push(name()),
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(at(&process)(error)),
        }
        match mounts(&process, &mut namespaces, sought.numbers) {
            Ok(points) => found.holders.extend(points.iter().map(|(number, at)| {
                (*number, format!("mounted at {at} in the mount namespace of {}", name()))
            })),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => found.unseen.push(name()),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(at(&process)(error)),
        }
    }
    found.unseen.dedup();
    Ok(found)
}

fn pids(proc: &Path) -> io::Result<BTreeSet<u32>> {
    let pids = names_in(proc)?.iter().filter_map(|name| name.parse().ok()).collect::<BTreeSet<_>>();
    // An empty table is no table.
    if pids.is_empty() {
        Err(io::Error::other(format!("{} has no processes", proc.display())))
    } else {
        Ok(pids)
    }
}

/// Whether `proc` shows the processes of the whole machine: its process 1 is the machine's.
pub(super) fn shows_all_processes(proc: &Path) -> io::Result<bool> {
    let link = proc.join("1/ns/pid");
    let namespace = fs::read_link(&link).map_err(|error| {
        let denied = error.kind() == io::ErrorKind::PermissionDenied;
        let advice = if denied { "; the container needs root and CAP_SYS_PTRACE" } else { "" };
        io::Error::new(error.kind(), format!("{}: {error}{advice}", link.display()))
    })?;
    Ok(namespace == Path::new(INITIAL_PID_NAMESPACE))
}

/// Which of the devices the process has open.
fn open_of(proc: &Path, process: &Path, sought: &Sought<'_>) -> io::Result<BTreeSet<Number>> {
    if let Some(open) = open_in(proc, &process.join("fd"), sought)? {
        return Ok(open);
    }
    // No descriptors at all: a kernel thread, a daemon that needs none, or a thread that has ended.
    let mut open = BTreeSet::new();
    for thread in fs::read_dir(process.join("task"))? {
        match open_in(proc, &thread?.path().join("fd"), sought) {
            Ok(found) => open.extend(found.unwrap_or_default()),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(open)
}

/// Which devices these descriptors are of; `None` if there are no descriptors.
fn open_in(proc: &Path, descriptors: &Path, sought: &Sought<'_>) -> io::Result<Option<BTreeSet<Number>>> {
    let mut open = None;
    for descriptor in fs::read_dir(descriptors)? {
        let open: &mut BTreeSet<Number> = open.get_or_insert_default();
        let descriptor = descriptor?.path();
        if sought.except.as_deref() == descriptor.strip_prefix(proc).ok() {
            continue;
        }
        match device_of(&descriptor, sought) {
            Ok(number) => open.extend(number),
            Err(error) if is_gone(&error) => {}
            Err(error) => match is_on_another_device(proc, descriptors, &descriptor) {
                Ok(true) => {}
                Ok(false) => return Err(error),
                Err(other) if is_gone(&other) => {}
                Err(other) => return Err(other),
            },
        }
    }
    Ok(open)
}

/// Whether the file of a descriptor is on a block device, and not on the one with the machine's root. A file system
/// that has lost its device answers nothing about its files, as long as anybody has one open; that must not keep
/// every other volume connected.
fn is_on_another_device(proc: &Path, descriptors: &Path, descriptor: &Path) -> io::Result<bool> {
    let (Some(process), Some(name)) = (descriptors.parent(), descriptor.file_name()) else {
        return Ok(false);
    };
    let info = fs::read_to_string(process.join("fdinfo").join(name))?;
    let Some(mount) = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim) else {
        return Ok(false);
    };
    let table = fs::read(process.join("mountinfo"))?;
    let table = String::from_utf8_lossy(&table);
    let device = table.lines().find_map(|line| {
        let mut fields = line.split(' ');
        (fields.next() == Some(mount)).then(|| fields.nth(1).and_then(parse_number)).flatten()
    });
    let machine = fs::read(proc.join("1/mountinfo"))?;
    let machine = String::from_utf8_lossy(&machine);
    let root = machine.lines().rev().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let (number, _, point) = (fields.next()?, fields.next()?, fields.next()?);
        (point == "/").then(|| parse_number(number)).flatten()
    });
    Ok(match (device, root) {
        (Some(device), Some(root)) => device.0 != UNNAMED_MAJOR && device != root,
        (None, _) | (_, None) => false,
    })
}

fn device_of(descriptor: &Path, sought: &Sought<'_>) -> io::Result<Option<Number>> {
    // Only files with a path can be devices.
    if !fs::read_link(descriptor)?.is_absolute() {
        return Ok(None);
    }
    Ok(sought.blocks.number_of(descriptor)?.filter(|number| sought.numbers.contains(number)))
}

/// Where the process' mount namespace has one of the devices mounted; nothing if the namespace was looked at before.
fn mounts(
    process: &Path,
    seen: &mut BTreeSet<PathBuf>,
    numbers: &[Number],
) -> io::Result<Vec<(Number, String)>> {
    let namespace = fs::read_link(process.join("ns/mnt"))?;
    if seen.contains(&namespace) {
        return Ok(Vec::new());
    }
    let file = process.join("mountinfo");
    let table = match fs::read(&file) {
        Ok(table) => table,
        // A process that is ending has left its namespace already.
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    seen.insert(namespace);
    let mut points = Vec::new();
    for line in String::from_utf8_lossy(&table).lines() {
        let mut fields = line.split(' ').skip(2);
        let (Some(number), Some(_root), Some(point)) =
            (fields.next().and_then(parse_number), fields.next(), fields.next())
        else {
            let what = format!("{} has an unreadable line: {line:?}", file.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        };
        if numbers.contains(&number) {
            points.push((number, point.to_owned()));
        }
    }
    Ok(points)
}

/// Processes end, and files are closed, while they are looked at.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}
