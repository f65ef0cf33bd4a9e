//! Real exports: what the simulated appliance exports, Linux' own NVMe/TCP target (nvmet) really serves.
//!
//! Like the hardware's, an export is shared: one subsystem per disk, open to any host. The target writes to a backing
//! file through its page cache: a volatile cache, as hosts are told. What a power cut takes of it depends on the file
//! system that has the files; mounted `sync`, as the VM lab mounts it, nothing that was answered.
//!
//! Life cycle: [`Exporter::start`] removes what an earlier process left, and exports anew what the appliance kept,
//! since nvmet's configuration outlives no boot; a disk that cannot be exported is left out. Changes follow one by one;
//! [`Exporter::withdraw_all`] is the appliance being off. Only subsystems that bear the simulator's model are ever
//! touched, or blank ones of a name that is to be exported; a port goes with the last of ours that it offered.
//!
//! Disabling a namespace waits for what is in flight, however long its backing device takes, and the simulated
//! appliance waits with it, SSH and all: giving up earlier would say that hosts are cut when they are not.
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
    /// Takes the target over: leftovers go, and `exports` are there, as far as they can be.
    pub(crate) fn start(target: NvmetTarget, exports: &[Export]) -> io::Result<Self> {
        let configfs = &target.configfs;
        if !configfs.is_dir() {
            let reason =
                format!("{} is not there: nvmet is not loaded, or configfs not mounted", configfs.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, reason));
        }
        let exporter = Self { target };
        exporter.withdraw_all()?;
        exporter.export_all(exports);
        Ok(exporter)
    }

    /// Exports all of them; one that cannot be exported is left out, and logged. The listener of a port appears with
    /// its first subsystem, and from then on refuses hosts of those that are still to come; so everything slow is done
    /// before.
    pub(crate) fn export_all(&self, exports: &[Export]) {
        let made: Vec<_> =
            exports.iter().filter(|export| self.or_nothing(export, self.make(export))).collect();
        for export in made {
            self.or_nothing(export, self.offer(export));
        }
    }

    /// Whether it was done; if not, nothing is left of the export.
    fn or_nothing(&self, export: &Export, done: io::Result<()>) -> bool {
        let nqn = &export.nqn;
        if let Err(error) = &done {
            tracing::error!(nqn, %error, "simulated appliance leaves a disk out that it cannot export");
            self.clear(nqn);
        }
        done.is_ok()
    }

    fn clear(&self, nqn: &str) {
        if let Err(error) = self.withdraw(nqn) {
            tracing::warn!(nqn, %error, "simulated appliance left half an export");
        }
    }

    /// Exports one.
    pub(crate) fn export(&self, export: &Export) -> io::Result<()> {
        self.make(export).and_then(|()| self.offer(export)).inspect_err(|_| self.clear(&export.nqn))
    }

    /// Whether it is offered to hosts.
    pub(crate) fn is_offered(&self, export: &Export) -> bool {
        let port = steps::port(&self.target.configfs, export.port);
        // The link cannot be without its subsystem, and is made last.
        steps::link(&port, &export.nqn).is_symlink()
    }

    fn make(&self, export: &Export) -> io::Result<()> {
        let subsystem = steps::subsystem(&self.target.configfs, &export.nqn);
        if subsystem.exists() {
            if !is_ours(&subsystem) && !self.is_blank(&subsystem, &export.nqn)? {
                return Err(io::Error::other(format!("{} is somebody else's subsystem", export.nqn)));
            }
            self.withdraw(&export.nqn)?;
        }
        take_all(&steps::make(&self.target.configfs, export))
    }

    /// Whether a subsystem has nothing to lose: no namespace, no host, no port. So is one of ours, if the process
    /// ended before it could mark it.
    fn is_blank(&self, subsystem: &Path, nqn: &str) -> io::Result<bool> {
        let is_without = |name| entries(&subsystem.join(name)).map(|found| found.is_empty());
        Ok(is_without("namespaces")?
            && is_without("allowed_hosts")?
            && self.ports_that_offer(nqn)?.is_empty())
    }

    fn offer(&self, export: &Export) -> io::Result<()> {
        let port = steps::port(&self.target.configfs, export.port);
        // One that offers nothing may be half made, or made for another address. One that does cannot be changed.
        if entries(&port.join("subsystems"))?.is_empty() {
            take_all(&steps::make_port(&self.target, export.port))?;
        } else if !steps::is_port_as_wanted(&self.target, export.port) {
            return Err(io::Error::other(format!("{} is somebody else's port", port.display())));
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
        take_all(&steps::withdraw(&subsystem, &self.ports_that_offer(nqn)?, nqn))
    }

    fn ports_that_offer(&self, nqn: &str) -> io::Result<Vec<PathBuf>> {
        let mut ports = entries(&self.target.configfs.join("ports"))?;
        ports.retain(|port| steps::link(port, nqn).is_symlink());
        Ok(ports)
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
        exporter(configfs).export_all(&[export()]);
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
    fn one_that_cannot_be_exported_is_left_out_and_the_others_are_there() {
        let directory = tempfile::tempdir().unwrap();
        let configfs = directory.path();
        fs::create_dir_all(configfs.join("subsystems/somebody/namespaces/1")).unwrap();
        let bad = Export { nqn: "somebody".to_owned(), ..export() };
        Exporter::start(exporter(configfs).target, &[bad.clone(), export()]).unwrap();
        assert!(exporter(configfs).is_offered(&export()));
        assert!(!exporter(configfs).is_offered(&bad));
    }

    #[test]
    fn without_a_target_it_does_not_start() {
        let directory = tempfile::tempdir().unwrap();
        let error = Exporter::start(exporter(&directory.path().join("nvmet")).target, &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_subsystem_that_was_made_and_not_marked_is_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let subsystem = directory.path().join("subsystems").join(NQN);
        for group in ["namespaces", "allowed_hosts"] {
            fs::create_dir_all(subsystem.join(group)).unwrap();
        }
        fs::write(subsystem.join("attr_model"), "Linux\n").unwrap();
        exporter(directory.path()).export(&export()).unwrap();
        assert!(is_ours(&subsystem));
    }

    #[test]
    fn a_port_that_offers_nothing_is_made_as_it_should_be() {
        let directory = tempfile::tempdir().unwrap();
        let port = directory.path().join("ports/4420");
        fs::create_dir_all(port.join("subsystems")).unwrap();
        fs::write(port.join("addr_traddr"), "192.0.2.1").unwrap();
        exporter(directory.path()).export(&export()).unwrap();
        assert_eq!(read(&port, "addr_traddr"), "0.0.0.0");
        assert_eq!(read(&port, "addr_trtype"), "tcp");
    }

    #[test]
    fn a_port_of_somebody_else_is_used_only_if_it_is_as_it_should_be() {
        let directory = tempfile::tempdir().unwrap();
        let exporter = exporter(directory.path());
        exporter.export(&Export { nqn: "another".to_owned(), ..export() }).unwrap();
        let port = directory.path().join("ports/4420");
        exporter.export(&export()).unwrap();
        fs::write(port.join("addr_traddr"), "192.0.2.1\n").unwrap();
        let third = Export { nqn: "third".to_owned(), ..export() };
        let error = exporter.export(&third).unwrap_err();
        assert!(error.to_string().contains("somebody else's port"), "{error}");
        assert!(!exporter.is_offered(&third));
        assert_eq!(read(&port, "addr_traddr"), "192.0.2.1\n");
    }

    #[test]
    fn what_is_not_there_is_withdrawn_already() {
        let directory = tempfile::tempdir().unwrap();
        exporter(directory.path()).withdraw(NQN).unwrap();
        exporter(directory.path()).withdraw_all().unwrap();
    }
}
