//! Real exports: what the simulated appliance exports, Linux' own NVMe/TCP target (nvmet) really serves.
//!
//! Like the hardware's, an export is shared: one subsystem per disk, open to any host. Over a backing file the
//! target writes through its page cache, so that what was not flushed is lost with the machine: the harsher guess.
//!
//! Life cycle: [`Exporter::start`] removes what an earlier process left, and exports anew what the appliance kept,
//! since nvmet's configuration outlives no boot. Changes follow one by one; [`Exporter::withdraw_all`] is the
//! appliance being off. Only subsystems that bear the simulator's model are ever touched.
//!
//! - `steps`: what is done to nvmet's configuration, and in which order

mod steps;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use steps::{MODEL, Step};

/// Where nvmet's configuration is once configfs is mounted.
const NVMET: &str = "/sys/kernel/config/nvmet";

/// Linux' NVMe/TCP target, which is to serve what the simulated appliance exports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmetTarget {
    /// Its configuration directory.
    pub configfs: PathBuf,
    /// The address that it listens on; the port is the disk's.
    pub listen: IpAddr,
}

impl NvmetTarget {
    /// The kernel's own target, listening on `listen`.
    pub fn of_this_machine(listen: IpAddr) -> Self {
        Self { configfs: NVMET.into(), listen }
    }
}

/// A disk that is exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Export {
    /// Its subsystem.
    pub(crate) nqn: String,
    /// The TCP port.
    pub(crate) port: u16,
    /// The file that holds its bytes.
    pub(crate) file: PathBuf,
}

/// What keeps nvmet's configuration as the appliance's.
#[derive(Debug)]
pub(crate) struct Exporter {
    target: NvmetTarget,
}

impl Exporter {
    /// Takes the target over: leftovers go, `exports` are there.
    pub(crate) fn start(target: NvmetTarget, exports: &[Export]) -> io::Result<Self> {
        let exporter = Self { target };
        exporter.withdraw_all()?;
        exporter.export_all(exports)?;
        Ok(exporter)
    }

    /// Exports all of them. The listener of a port appears with its first subsystem, and from then on refuses hosts
    /// of those that are still to come; so everything slow is done before.
    pub(crate) fn export_all(&self, exports: &[Export]) -> io::Result<()> {
        for export in exports {
            self.make(export)?;
        }
        exports.iter().try_for_each(|export| self.offer(export))
    }

    /// Exports one.
    pub(crate) fn export(&self, export: &Export) -> io::Result<()> {
        self.export_all(std::slice::from_ref(export)).inspect_err(|_| {
            if let Err(error) = self.withdraw(&export.nqn) {
                tracing::warn!(nqn = export.nqn, %error, "simulated appliance left half an export");
            }
        })
    }

    fn make(&self, export: &Export) -> io::Result<()> {
        let subsystem = steps::subsystem(&self.target.configfs, &export.nqn);
        if subsystem.exists() {
            if !is_ours(&subsystem) {
                return Err(io::Error::other(format!("{} is somebody else's subsystem", export.nqn)));
            }
            self.withdraw(&export.nqn)?;
        }
        take_all(&steps::make(&self.target.configfs, export))
    }

    fn offer(&self, export: &Export) -> io::Result<()> {
        let port = steps::port(&self.target.configfs, export.port);
        if !port.exists() {
            take_all(&steps::make_port(&self.target, export.port))?;
        }
        take_all(&[steps::offer(&self.target.configfs, export)])
    }

    /// Tells hosts that the export has another size.
    pub(crate) fn announce_size(&self, nqn: &str) -> io::Result<()> {
        take_all(&[steps::announce_size(&self.target.configfs, nqn)])
    }

    /// Takes an export back; once this returns nothing of any host is in flight. One that is not there is success,
    /// and so is somebody else's, which stays.
    pub(crate) fn withdraw(&self, nqn: &str) -> io::Result<()> {
        let subsystem = steps::subsystem(&self.target.configfs, nqn);
        if !subsystem.exists() || !is_ours(&subsystem) {
            return Ok(());
        }
        let ports = entries(&self.target.configfs.join("ports"))?;
        take_all(&steps::withdraw(&subsystem, &ports, nqn))
    }

    /// Takes back every export of a simulator.
    pub(crate) fn withdraw_all(&self) -> io::Result<()> {
        for subsystem in entries(&self.target.configfs.join("subsystems"))? {
            if is_ours(&subsystem)
                && let Some(nqn) = subsystem.file_name().and_then(|name| name.to_str())
            {
                self.withdraw(nqn)?;
            }
        }
        Ok(())
    }
}

/// Whether a simulator made this subsystem.
fn is_ours(subsystem: &Path) -> bool {
    fs::read_to_string(subsystem.join("attr_model")).is_ok_and(|model| model.trim() == MODEL)
}

/// What is in `directory`, in order; nothing if it is not there.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = match fs::read_dir(directory) {
        Ok(entries) => {
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    found.sort();
    Ok(found)
}

fn take_all(steps: &[Step]) -> io::Result<()> {
    steps.iter().try_for_each(|step| {
        step.take().map_err(|error| io::Error::new(error.kind(), format!("{step:?}: {error}")))
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const NQN: &str = "nqn.2000-02.com.mikrotik:pvc-1";

    /// A plain directory tree in place of configfs. It has none of the kernel's attributes of its own accord, and
    /// a directory that has some does not go; what has to go is therefore shown by steps, here and in `steps`.
    fn exporter(configfs: &Path) -> Exporter {
        Exporter {
            target: NvmetTarget { configfs: configfs.to_owned(), listen: Ipv4Addr::UNSPECIFIED.into() },
        }
    }

    fn export() -> Export {
        Export { nqn: NQN.to_owned(), port: 4420, file: "/appliance/pool/pvc-1.img".into() }
    }

    fn read(directory: &Path, path: &str) -> String {
        fs::read_to_string(directory.join(path)).unwrap()
    }

    #[test]
    fn an_export_is_a_shared_subsystem_over_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let configfs = directory.path();
        exporter(configfs).export_all(&[export()]).unwrap();
        let subsystem = configfs.join("subsystems").join(NQN);
        assert_eq!(read(&subsystem, "attr_allow_any_host"), "1");
        assert_eq!(read(&subsystem, "namespaces/1/device_path"), "/appliance/pool/pvc-1.img");
        assert_eq!(read(&subsystem, "namespaces/1/enable"), "1");
        let port = configfs.join("ports/4420");
        assert_eq!(read(&port, "addr_trsvcid"), "4420");
        assert_eq!(fs::read_link(port.join("subsystems").join(NQN)).unwrap(), subsystem);
    }

    #[test]
    fn a_subsystem_of_somebody_else_is_never_touched() {
        let directory = tempfile::tempdir().unwrap();
        let subsystem = directory.path().join("subsystems").join(NQN);
        fs::create_dir_all(subsystem.join("namespaces/1")).unwrap();
        fs::write(subsystem.join("attr_model"), "Linux\n").unwrap();
        let exporter = exporter(directory.path());
        let error = exporter.export(&export()).unwrap_err();
        assert!(error.to_string().contains("somebody else's"), "{error}");
        exporter.withdraw(NQN).unwrap();
        exporter.withdraw_all().unwrap();
        assert!(subsystem.join("namespaces/1").is_dir());
        assert!(!subsystem.join("namespaces/1/enable").exists());
    }

    #[test]
    fn what_is_not_there_is_withdrawn_already() {
        let directory = tempfile::tempdir().unwrap();
        exporter(directory.path()).withdraw(NQN).unwrap();
        exporter(directory.path()).withdraw_all().unwrap();
    }
}
