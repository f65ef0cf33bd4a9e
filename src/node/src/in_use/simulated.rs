//! A simulated machine for tests: sysfs, proc and device nodes are files in a directory of their own.
//!
//! A simulated device node is a file that says `block <major>:<minor>`, and `over <major>:<minor>` on a second line if
//! it is a loop device over another device.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::io::Errno;
use tempfile::TempDir;

use super::{BlockDevices, Roots};
use crate::sysfs::{Number, parse_number};

/// The PID that this process has on simulated machines.
pub(crate) const OWN_PID: u32 = 4242;

/// A machine that is a directory.
pub(crate) struct SimulatedMachine {
    directory: TempDir,
}

impl SimulatedMachine {
    /// A machine with two processes, this one and the first, and without devices.
    pub(crate) fn new() -> Self {
        let machine = Self { directory: tempfile::tempdir().unwrap() };
        for directory in ["sys/class", "sys/block", "sys/dev/block", "proc", "dev"] {
            fs::create_dir_all(machine.path(directory)).unwrap();
        }
        machine.process(1, "systemd", &[]);
        machine.process(OWN_PID, "rds-csi", &[]);
        symlink(OWN_PID.to_string(), machine.path("proc/self")).unwrap();
        machine.write("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n");
        machine
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn link(&self, name: &str, to: &Path) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, path).unwrap();
    }

    pub(crate) fn roots(&self) -> Roots {
        Roots { sysfs: self.path("sys"), proc: self.path("proc"), dev: self.path("dev") }
    }

    /// A process in the initial namespaces, with these files open.
    pub(crate) fn process(&self, pid: u32, command: &str, open: &[&Path]) {
        let directory = format!("proc/{pid}");
        fs::create_dir_all(self.path(&format!("{directory}/fd"))).unwrap();
        fs::create_dir_all(self.path(&format!("{directory}/task/{pid}/fd"))).unwrap();
        self.write(&format!("{directory}/comm"), &format!("{command}\n"));
        self.link(&format!("{directory}/ns/pid"), Path::new("pid:[4026531836]"));
        self.link(&format!("{directory}/ns/mnt"), Path::new("mnt:[4026531840]"));
        self.write(&format!("{directory}/mountinfo"), "1 0 254:0 / / rw - ext4 /dev/vda rw\n");
        for (number, file) in open.iter().enumerate() {
            self.link(&format!("{directory}/fd/{number}"), file);
            self.write(&format!("{directory}/fdinfo/{number}"), "pos:\t0\nflags:\t02100002\nmnt_id:\t1\n");
        }
    }

    /// A block device `name` whose sysfs directory is `directory`, with a node.
    pub(crate) fn block_device(&self, directory: &str, name: &str, number: &str, sectors: u64) {
        self.write(&format!("{directory}/{name}/dev"), &format!("{number}\n"));
        self.write(&format!("{directory}/{name}/size"), &format!("{sectors}\n"));
        // As the kernel has it, among files that are no directories.
        self.write(&format!("{directory}/{name}/alignment_offset"), "0\n");
        fs::create_dir_all(self.path(&format!("{directory}/{name}/holders"))).unwrap();
        self.link(&format!("sys/dev/block/{number}"), &self.path(&format!("{directory}/{name}")));
        self.node(name, &format!("block {number}"));
    }

    pub(crate) fn node(&self, name: &str, text: &str) {
        self.write(&format!("dev/{name}"), text);
    }
}

/// What the simulated machine's kernel says of its block devices.
#[derive(Default)]
pub(crate) struct SimulatedBlockDevices {
    /// Why a device, by its node, cannot be claimed.
    pub(crate) unclaimable: Mutex<BTreeMap<PathBuf, Errno>>,
    /// Why claimed devices cannot be written out.
    pub(crate) unwritable: Mutex<Option<Errno>>,
    /// How often devices were written out.
    pub(crate) flushes: Mutex<usize>,
}

impl BlockDevices for SimulatedBlockDevices {
    fn number_of(&self, path: &Path) -> io::Result<Option<Number>> {
        let path = path.canonicalize()?;
        if !path.is_file() {
            return Ok(None);
        }
        let text = fs::read_to_string(path)?;
        Ok(text.lines().next().and_then(|line| parse_number(line.strip_prefix("block ")?)))
    }

    fn claim(&self, device: &Path) -> io::Result<OwnedFd> {
        match self.unclaimable.lock().unwrap().get(device) {
            Some(errno) => Err((*errno).into()),
            None => Ok(File::open(device)?.into()),
        }
    }

    fn flush(&self, _claim: &OwnedFd) -> io::Result<()> {
        *self.flushes.lock().unwrap() += 1;
        self.unwritable.lock().unwrap().map_or(Ok(()), |errno| Err(errno.into()))
    }

    fn backing_of(&self, loop_device: &Path) -> io::Result<Option<Number>> {
        let text = fs::read_to_string(loop_device)?;
        Ok(text.lines().find_map(|line| parse_number(line.strip_prefix("over ")?)))
    }
}
