//! NVMe controllers and their block devices, as sysfs has them: found by NQN, never by number.
//!
//! | What | Where |
//! |---|---|
//! | an NVMe controller | `class/nvme/nvme<N>`: `transport`, `hostnqn`, `subsysnqn`, `state`, `address` |
//! | its namespace's device, with multipath | `class/nvme-subsystem/nvme-subsys<S>/nvme<S>n<I>`: `dev`, `size` |
//! | without multipath | `class/nvme/nvme<N>/nvme<N>n<I>` |
//! | a path of a device, with multipath; nobody can open it | `class/nvme/nvme<N>/nvme<S>c<N>n<I>` |
//!
//! Only NVMe controllers over TCP are looked at: not the host's own disks. One that has not been connected for the
//! first time yet has no subsystem, and its `subsysnqn` reads `(efault)` or the like: it is nameless. An attribute that
//! is not there belongs to what is just being removed; one that cannot be read is an error, and never "nothing there".

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use state_machine::{IdError, Nqn, VolumeId};

use super::kernel::Kernel;
use crate::in_use::BlockDevices;
use crate::sysfs::{Number, at, has, is_gone, names_in, parse_number, read_if_there, unreadable};

/// Unit of a block device's `size`, in bytes.
const SECTOR_BYTES: u64 = 512;
/// The longest attribute that is read, in bytes: a page, which is sysfs' own limit.
const MAX_ATTRIBUTE_BYTES: u64 = 4096;

/// What the NQNs of all volumes begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NqnPrefix(String);

impl NqnPrefix {
    /// A prefix ends with the colon that the volume's id follows.
    pub(crate) fn parse(text: &str) -> Result<Self, IdError> {
        Nqn::parse(text)?;
        if !text.ends_with(':') {
            return Err(IdError::Malformed("must end with ':'"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The NQN of a volume's subsystem.
    pub(super) fn nqn_of(&self, volume: &VolumeId) -> String {
        format!("{}{volume}", self.0)
    }

    /// Which volume a subsystem is: `None` if its NQN has another prefix, an error if what follows is no volume id.
    pub(super) fn volume_of(&self, nqn: &str) -> Option<Result<VolumeId, IdError>> {
        nqn.strip_prefix(&self.0).map(VolumeId::parse)
    }
}

/// An NVMe controller over TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NvmeController {
    /// The kernel's name for it at the moment.
    pub(super) name: String,
    /// As which host it is connected.
    pub(super) host_nqn: String,
    /// To which subsystem; `None` while it is nameless.
    pub(super) nqn: Option<String>,
    /// `new`, `live`, `resetting`, `connecting`, `deleting`, `deleting (no IO)` or `dead`.
    pub(super) state: String,
}

impl NvmeController {
    /// Whether its deletion has begun, which nothing stops.
    pub(super) fn is_going(&self) -> bool {
        self.state.starts_with("deleting")
    }
}

/// A namespace's block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlockDevice {
    /// Its number.
    pub(super) number: Number,
    /// Its node.
    pub(super) path: PathBuf,
    /// Its size in bytes.
    pub(super) size_bytes: u64,
}

/// sysfs, and the device nodes that go with it.
pub(super) struct Tree {
    /// sysfs(5).
    pub(super) sysfs: PathBuf,
    /// The device nodes.
    pub(super) dev: PathBuf,
    /// Tells which device a node is.
    pub(super) blocks: Arc<dyn BlockDevices>,
}

impl Tree {
    fn controllers_directory(&self) -> PathBuf {
        self.sysfs.join("class/nvme")
    }

    /// All NVMe controllers over TCP.
    pub(super) fn controllers(&self) -> io::Result<Vec<NvmeController>> {
        let classes = self.sysfs.join("class");
        // Without sysfs everything would look absent; without the class there is no NVMe at all.
        fs::metadata(&classes).map_err(at(&classes))?;
        let mut controllers = Vec::new();
        for name in names_in(&self.controllers_directory())? {
            if let Some(controller) = self.controller(name)? {
                controllers.push(controller);
            }
        }
        Ok(controllers)
    }

    /// The NVMe controller of this name; `None` if it is going away, or is none over TCP.
    fn controller(&self, name: String) -> io::Result<Option<NvmeController>> {
        let directory = self.controllers_directory().join(&name);
        let attribute = |attribute: &str| -> io::Result<Option<String>> {
            let file = directory.join(attribute);
            match read_if_there(&file)? {
                Some(text) => Ok(Some(text)),
                None if !directory.try_exists().map_err(at(&directory))? => Ok(None),
                None => {
                    Err(io::Error::new(io::ErrorKind::NotFound, format!("{} is missing", file.display())))
                }
            }
        };
        if attribute("transport")?.is_none_or(|transport| transport != "tcp") {
            return Ok(None);
        }
        let (Some(host_nqn), Some(nqn), Some(state)) =
            (attribute("hostnqn")?, attribute("subsysnqn")?, attribute("state")?)
        else {
            return Ok(None);
        };
        let nqn = nqn.starts_with("nqn.").then_some(nqn);
        Ok(Some(NvmeController { name, host_nqn, nqn, state }))
    }

    /// Address and port that an NVMe controller is connected to; `None` if it is going away.
    pub(super) fn address(&self, controller: &NvmeController) -> io::Result<Option<(String, String)>> {
        let file = self.controllers_directory().join(&controller.name).join("address");
        let Some(text) = read_if_there(&file)? else { return Ok(None) };
        let value = |key| text.split(',').find_map(|pair| pair.trim().strip_prefix(key));
        match (value("traddr="), value("trsvcid=")) {
            (Some(address), Some(port)) => Ok(Some((address.to_owned(), port.to_owned()))),
            _ => Err(unreadable(&file, &text)),
        }
    }

    /// The block devices of the subsystem `nqn` that these NVMe controllers of it lead to, by name.
    pub(super) fn devices(&self, nqn: &str, controllers: &[NvmeController]) -> io::Result<Vec<BlockDevice>> {
        let mut parents = Vec::new();
        let mut heads = Vec::new();
        for controller in controllers {
            let directory = self.controllers_directory().join(&controller.name);
            heads.extend(names_in(&directory)?.iter().filter_map(|name| head_of_path(name)));
            parents.push(directory);
        }
        let subsystems = self.sysfs.join("class/nvme-subsystem");
        for name in names_in(&subsystems)? {
            let directory = subsystems.join(name);
            if read_if_there(&directory.join("subsysnqn"))?.is_some_and(|found| found == nqn) {
                parents.push(directory);
            }
        }
        let mut devices: Vec<(String, BlockDevice)> = Vec::new();
        for parent in parents {
            for name in names_in(&parent)?.into_iter().filter(|name| is_device(name)) {
                if let Some(device) = self.device(&parent, &name)? {
                    devices.push((name, device));
                }
            }
        }
        // A device that is in use must not be overlooked because a kernel keeps it elsewhere.
        for head in heads {
            if devices.iter().all(|(name, _)| *name != head) && has(&self.sysfs.join("block"), &head)? {
                return Err(io::Error::other(format!("{head} is not below its subsystem")));
            }
        }
        Ok(devices.into_iter().map(|(_, device)| device).collect())
    }

    /// The block device of this name below `parent`; `None` if it comes or goes at the moment.
    fn device(&self, parent: &Path, name: &str) -> io::Result<Option<BlockDevice>> {
        let directory = parent.join(name);
        let (number, size) = (directory.join("dev"), directory.join("size"));
        let (Some(number_text), Some(size_text)) = (read_if_there(&number)?, read_if_there(&size)?) else {
            return Ok(None);
        };
        let sectors: u64 = size_text.parse().map_err(|_| unreadable(&size, &size_text))?;
        Ok(Some(BlockDevice {
            number: parse_number(&number_text).ok_or_else(|| unreadable(&number, &number_text))?,
            path: self.dev.join(name),
            size_bytes: sectors.saturating_mul(SECTOR_BYTES),
        }))
    }

    /// Makes sure that the device's node is that device: it is going to be written to by its name.
    pub(super) fn check_node(&self, device: &BlockDevice) -> io::Result<()> {
        if self.blocks.number_of(&device.path).map_err(at(&device.path))? == Some(device.number) {
            return Ok(());
        }
        let (major, minor) = device.number;
        let what = format!("{} is not the device {major}:{minor}", device.path.display());
        Err(io::Error::other(format!("{what}; the container needs the host's device nodes")))
    }

    /// Writes 1 to an attribute of this very NVMe controller, not of one that has its number by now. One that is gone
    /// needs nothing.
    pub(super) fn tell(
        &self,
        kernel: &dyn Kernel,
        controller: &NvmeController,
        attribute: &str,
    ) -> io::Result<()> {
        let path = self.controllers_directory().join(&controller.name);
        match self.open_attribute(&path, controller, attribute) {
            Ok(file) => kernel.tell(&path.join(attribute), file),
            Err(errno) if is_gone(errno) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Everything is opened below one descriptor, which stays with the NVMe controller when its name is used again.
    fn open_attribute(
        &self,
        path: &Path,
        controller: &NvmeController,
        attribute: &str,
    ) -> rustix::io::Result<File> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())?;
        let open = |name: &str, flags| openat(&directory, name, flags | OFlags::CLOEXEC, Mode::empty());
        let wanted = [("hostnqn", Some(&controller.host_nqn)), ("subsysnqn", controller.nqn.as_ref())];
        for (name, wanted) in wanted {
            let mut text = String::new();
            let file = File::from(open(name, OFlags::RDONLY)?);
            let read = file.take(MAX_ATTRIBUTE_BYTES).read_to_string(&mut text);
            read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            if Some(text.trim_end()) != wanted.map(String::as_str) {
                return Err(Errno::NOENT);
            }
        }
        Ok(File::from(open(attribute, OFlags::WRONLY)?))
    }
}

/// `nvme<N>n<I>`: a device that can be opened.
fn is_device(name: &str) -> bool {
    name.strip_prefix("nvme")
        .and_then(|rest| rest.split_once('n'))
        .is_some_and(|(controller, namespace)| [controller, namespace].into_iter().all(is_digits))
}

/// The device that the path `nvme<S>c<N>n<I>` leads to.
fn head_of_path(name: &str) -> Option<String> {
    let (subsystem, rest) = name.strip_prefix("nvme")?.split_once('c')?;
    let (controller, namespace) = rest.split_once('n')?;
    let all = [subsystem, controller, namespace].into_iter().all(is_digits);
    all.then(|| format!("nvme{subsystem}n{namespace}"))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
