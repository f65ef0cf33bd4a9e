//! A simulated NVMe host for tests: it changes the sysfs of a simulated machine as the kernel changes the real one.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use super::kernel::Kernel;
use crate::in_use::simulated::SimulatedMachine;

/// This node's host NQN on simulated machines.
pub(super) const HOST: &str = "nqn.2014-08.org.example:node-a";
/// Another host on the same machine.
pub(super) const OTHER_HOST: &str = "nqn.2014-08.org.example:other";
/// What the NQNs of volumes begin with.
pub(super) const PREFIX: &str = "nqn.2000-02.com.mikrotik:";

/// What the simulated kernel makes of a connect. Without a script it connects, with a device.
pub(super) enum Outcome {
    /// It connects, and the subsystem has this many namespaces.
    Namespaces(u32),
    /// It fails.
    Fails(Errno),
    /// It says that it has begun, waits for a word, and then connects.
    Late(Sender<()>, Receiver<()>),
}

/// What the simulated kernel makes of a deletion. Without a script the NVMe controller is gone at once.
pub(super) enum Deletion {
    /// It begins and does not end.
    Hangs,
    /// It is refused.
    Fails(Errno),
}

/// The simulated NVMe host.
pub(super) struct SimulatedKernel {
    pub(super) machine: Arc<SimulatedMachine>,
    pub(super) outcomes: Mutex<VecDeque<Outcome>>,
    pub(super) deletions: Mutex<VecDeque<Deletion>>,
    /// The options of all connects.
    pub(super) connects: Mutex<Vec<String>>,
    /// All attributes that were written to, as `nvme0/delete_controller`.
    pub(super) told: Mutex<Vec<String>>,
    /// The size that devices have after a rescan, in 512-byte units.
    pub(super) grown_sectors: Mutex<Option<u64>>,
    /// One NVMe controller comes or goes at a time, as its number is used again.
    changing: Mutex<()>,
}

impl SimulatedKernel {
    pub(super) fn new(machine: Arc<SimulatedMachine>) -> Self {
        Self {
            machine,
            outcomes: Mutex::default(),
            deletions: Mutex::default(),
            connects: Mutex::default(),
            told: Mutex::default(),
            grown_sectors: Mutex::default(),
            changing: Mutex::default(),
        }
    }
}

/// A gate that a connect stops at: the end that waits for the connect to begin, and the one that lets it go on.
pub(super) fn gate() -> (Outcome, Receiver<()>, Sender<()>) {
    let (begun, has_begun) = channel();
    let (go, may_go) = channel();
    (Outcome::Late(begun, may_go), has_begun, go)
}

/// Adds an NVMe controller over TCP.
pub(super) fn add_controller(machine: &SimulatedMachine, name: &str, nqn: &str, host: &str, state: &str) {
    let directory = format!("sys/devices/virtual/nvme-fabrics/ctl/{name}");
    let attributes = [
        ("transport", "tcp"),
        ("subsysnqn", nqn),
        ("hostnqn", host),
        ("state", state),
        ("address", "traddr=10.0.0.1,trsvcid=4420,src_addr=10.0.0.5"),
        ("cntlid", "1"),
        ("delete_controller", ""),
        ("rescan_controller", ""),
        ("reset_controller", ""),
    ];
    for (attribute, value) in attributes {
        machine.write(&format!("{directory}/{attribute}"), &format!("{value}\n"));
    }
    machine.link(&format!("sys/class/nvme/{name}"), &machine.path(&directory));
}

/// Adds a device without multipath: below its NVMe controller.
pub(super) fn add_plain_device(machine: &SimulatedMachine, controller: &str, name: &str, number: &str) {
    let directory = format!("sys/devices/virtual/nvme-fabrics/ctl/{controller}");
    machine.block_device(&directory, name, number, 2048);
    machine.link(&format!("sys/block/{name}"), &machine.path(&format!("{directory}/{name}")));
}

/// Adds a subsystem.
pub(super) fn add_subsystem(machine: &SimulatedMachine, subsystem: &str, nqn: &str) {
    let directory = format!("sys/devices/virtual/nvme-subsystem/{subsystem}");
    machine.write(&format!("{directory}/subsysnqn"), &format!("{nqn}\n"));
    machine.link(&format!("sys/class/nvme-subsystem/{subsystem}"), &machine.path(&directory));
}

/// Adds a device with multipath: below its subsystem, with a path below its NVMe controller.
pub(super) fn add_head(
    machine: &SimulatedMachine,
    subsystem: &str,
    (controller, path): (&str, &str),
    name: &str,
    number: &str,
) {
    let hidden = format!("sys/devices/virtual/nvme-fabrics/ctl/{controller}/{path}");
    machine.write(&format!("{hidden}/size"), "2048\n");
    machine.write(&format!("{hidden}/hidden"), "1\n");
    let directory = format!("sys/devices/virtual/nvme-subsystem/{subsystem}");
    machine.block_device(&directory, name, number, 2048);
    machine.link(&format!("sys/block/{name}"), &machine.path(&format!("{directory}/{name}")));
}

/// Removes an NVMe controller and what is below it.
pub(super) fn remove_controller(machine: &SimulatedMachine, name: &str) {
    let link = machine.path(&format!("sys/class/nvme/{name}"));
    let directory = fs::read_link(&link).unwrap();
    fs::remove_file(link).unwrap();
    fs::remove_dir_all(directory).unwrap();
    for devices in ["sys/block", "sys/dev/block"] {
        for device in fs::read_dir(machine.path(devices)).unwrap() {
            let device = device.unwrap().path();
            if !device.exists() {
                fs::remove_file(device).unwrap();
            }
        }
    }
}

impl SimulatedKernel {
    /// Connects under the first free number.
    fn connect(&self, options: &str, namespaces: u32) -> String {
        let _alone = self.changing.lock().unwrap();
        let value = |key: &str| options.split(',').find_map(|option| option.strip_prefix(key)).unwrap();
        let free = |number: &u32| !self.machine.path(&format!("sys/class/nvme/nvme{number}")).exists();
        let number = (0..).find(free).unwrap();
        let name = format!("nvme{number}");
        add_controller(&self.machine, &name, value("nqn="), value("hostnqn="), "live");
        for namespace in 1..=namespaces {
            let minor = number + 100 * (namespace - 1);
            add_plain_device(&self.machine, &name, &format!("{name}n{namespace}"), &format!("259:{minor}"));
        }
        format!("instance={number},cntlid=1")
    }
}

impl Kernel for SimulatedKernel {
    fn establish(&self, options: &str) -> io::Result<String> {
        self.connects.lock().unwrap().push(options.to_owned());
        let outcome = self.outcomes.lock().unwrap().pop_front().unwrap_or(Outcome::Namespaces(1));
        match outcome {
            Outcome::Namespaces(namespaces) => Ok(self.connect(options, namespaces)),
            Outcome::Fails(errno) => Err(errno.into()),
            Outcome::Late(begun, may_go) => {
                begun.send(()).unwrap();
                may_go.recv().unwrap();
                Ok(self.connect(options, 1))
            }
        }
    }

    fn tell(&self, path: &Path, _attribute: File) -> io::Result<()> {
        let attribute = path.file_name().unwrap().to_str().unwrap();
        let controller = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
        self.told.lock().unwrap().push(format!("{controller}/{attribute}"));
        let directory = format!("sys/devices/virtual/nvme-fabrics/ctl/{controller}");
        match attribute {
            "delete_controller" => match self.deletions.lock().unwrap().pop_front() {
                None => {
                    let _alone = self.changing.lock().unwrap();
                    remove_controller(&self.machine, controller);
                }
                Some(Deletion::Fails(errno)) => return Err(errno.into()),
                Some(Deletion::Hangs) => {
                    fs::remove_file(self.machine.path(&format!("{directory}/{attribute}"))).unwrap();
                    self.machine.write(&format!("{directory}/state"), "deleting (no IO)\n");
                    std::thread::park();
                }
            },
            "rescan_controller" => {
                if let Some(sectors) = *self.grown_sectors.lock().unwrap() {
                    self.machine.write(&format!("{directory}/{controller}n1/size"), &format!("{sectors}\n"));
                }
            }
            other => panic!("{other} must never be written to"),
        }
        Ok(())
    }
}
