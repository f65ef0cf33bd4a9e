//! Steps on nvmet's configuration, in the orders that work.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::{Export, NvmetTarget};

/// What the simulator's subsystems call themselves; this is how they are known again.
pub(super) const MODEL: &str = "SimulatedRDS";

/// The namespace of every export.
const NAMESPACE: &str = "1";

/// Longest serial number of a subsystem, in bytes.
const MAX_SERIAL_BYTES: usize = 20;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Makes a directory, and those above it.
    MakeDirectory(PathBuf),
    /// Writes an attribute.
    Write(PathBuf, String),
    /// Makes a symbolic link `at` to `to`.
    Link { at: PathBuf, to: PathBuf },
    /// Removes a link; none there is success.
    Unlink(PathBuf),
    /// Removes a directory; none there is success.
    RemoveDirectory(PathBuf),
    /// Removes a directory if nothing is in it.
    RemoveIfEmpty(PathBuf),
    /// Writes an attribute if its directory is there.
    WriteIfThere(PathBuf, String),
}

impl Step {
    pub(super) fn take(&self) -> io::Result<()> {
        match self {
            Self::MakeDirectory(path) => fs::create_dir_all(path),
            Self::Write(path, value) => fs::write(path, value),
            Self::Link { at, to } => {
                // The kernel makes this directory with the port; elsewhere it may be missing.
                at.parent().map_or(Ok(()), fs::create_dir_all)?;
                symlink(to, at)
            }
            Self::Unlink(path) => unless_missing(fs::remove_file(path)),
            Self::RemoveDirectory(path) => unless_missing(fs::remove_dir(path)),
            Self::RemoveIfEmpty(path) => match fs::remove_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                other => unless_missing(other),
            },
            Self::WriteIfThere(path, value) => unless_missing(fs::write(path, value)),
        }
    }
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The subsystem of `nqn`.
pub(super) fn subsystem(configfs: &Path, nqn: &str) -> PathBuf {
    configfs.join("subsystems").join(nqn)
}

/// The nvmet port of a TCP port: they have the same number.
pub(super) fn port(configfs: &Path, port: u16) -> PathBuf {
    configfs.join("ports").join(port.to_string())
}

/// A subsystem with its namespace, offered nowhere yet. The mark of who made it comes first.
pub(super) fn make(configfs: &Path, export: &Export) -> Vec<Step> {
    let subsystem = subsystem(configfs, &export.nqn);
    let namespace = subsystem.join("namespaces").join(NAMESPACE);
    let write = |directory: &Path, name: &str, value: String| Step::Write(directory.join(name), value);
    // One host refuses two subsystems whose namespaces have the same UUID, and wants to see the same one again.
    let uuid = Uuid::new_v5(&Uuid::NAMESPACE_OID, export.nqn.as_bytes());
    let serial = uuid.simple().to_string().chars().take(MAX_SERIAL_BYTES).collect();
    vec![
        Step::MakeDirectory(subsystem.clone()),
        write(&subsystem, "attr_model", MODEL.to_owned()),
        write(&subsystem, "attr_serial", serial),
        write(&subsystem, "attr_allow_any_host", "1".to_owned()),
        Step::MakeDirectory(namespace.clone()),
        write(&namespace, "device_path", export.file.display().to_string()),
        write(&namespace, "device_uuid", uuid.to_string()),
        write(&namespace, "buffered_io", "1".to_owned()),
        write(&namespace, "enable", "1".to_owned()),
    ]
}

/// The settings of a port.
fn port_settings(target: &NvmetTarget, tcp_port: u16) -> [(&'static str, String); 4] {
    let family = if target.listen.is_ipv4() { "ipv4" } else { "ipv6" };
    [
        ("addr_trtype", "tcp".to_owned()),
        ("addr_adrfam", family.to_owned()),
        ("addr_traddr", target.listen.to_string()),
        ("addr_trsvcid", tcp_port.to_string()),
    ]
}

/// A TCP port that subsystems can be offered at, new or not. It listens once there is one.
pub(super) fn make_port(target: &NvmetTarget, tcp_port: u16) -> Vec<Step> {
    let port = port(&target.configfs, tcp_port);
    let settings = port_settings(target, tcp_port).map(|(name, value)| Step::Write(port.join(name), value));
    std::iter::once(Step::MakeDirectory(port.clone())).chain(settings).collect()
}

/// Whether a port has just the settings that it would be made with.
pub(super) fn is_port_as_wanted(target: &NvmetTarget, tcp_port: u16) -> bool {
    let port = port(&target.configfs, tcp_port);
    let has =
        |name: &str, value: &str| fs::read_to_string(port.join(name)).is_ok_and(|text| text.trim() == value);
    port_settings(target, tcp_port).iter().all(|(name, value)| has(name, value))
}

/// What offers the subsystem of `nqn` at a port.
pub(super) fn link(port: &Path, nqn: &str) -> PathBuf {
    port.join("subsystems").join(nqn)
}

/// Offers a subsystem at its port: hosts can connect.
pub(super) fn offer(configfs: &Path, export: &Export) -> Step {
    Step::Link { at: link(&port(configfs, export.port), &export.nqn), to: subsystem(configfs, &export.nqn) }
}

/// Has the namespace look at its file's size again.
pub(super) fn announce_size(configfs: &Path, nqn: &str) -> Step {
    let namespace = subsystem(configfs, nqn).join("namespaces").join(NAMESPACE);
    Step::Write(namespace.join("revalidate_size"), "1".to_owned())
}

/// Takes a subsystem back from the ports that offer it. The links go first, which cuts the hosts; only then is the
/// namespace disabled, which waits for what is in flight. The other way round a frozen host holds it up until its
/// keep-alive runs out. A port that offers nothing then goes as well.
pub(super) fn withdraw(subsystem: &Path, ports: &[PathBuf], nqn: &str) -> Vec<Step> {
    let namespace = subsystem.join("namespaces").join(NAMESPACE);
    let mut steps: Vec<_> = ports.iter().map(|port| Step::Unlink(link(port, nqn))).collect();
    steps.extend([
        Step::WriteIfThere(namespace.join("enable"), "0".to_owned()),
        Step::RemoveDirectory(namespace),
        Step::RemoveDirectory(subsystem.to_owned()),
    ]);
    steps.extend(ports.iter().cloned().map(Step::RemoveIfEmpty));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_cut_before_the_namespace_is_disabled_and_before_anything_goes() {
        let steps = withdraw(Path::new("/c/subsystems/n"), &["/c/ports/1".into(), "/c/ports/2".into()], "n");
        let expected = [
            Step::Unlink("/c/ports/1/subsystems/n".into()),
            Step::Unlink("/c/ports/2/subsystems/n".into()),
            Step::WriteIfThere("/c/subsystems/n/namespaces/1/enable".into(), "0".to_owned()),
            Step::RemoveDirectory("/c/subsystems/n/namespaces/1".into()),
            Step::RemoveDirectory("/c/subsystems/n".into()),
            Step::RemoveIfEmpty("/c/ports/1".into()),
            Step::RemoveIfEmpty("/c/ports/2".into()),
        ];
        assert_eq!(steps, expected);
    }

    #[test]
    fn an_nqn_has_its_own_serial_number_and_uuid_each_time() {
        let of = |nqn: &str| {
            let export = Export { nqn: nqn.to_owned(), port: 4420, file: "/f".into() };
            let steps = make(Path::new("/c"), &export);
            let value = |name: &str| {
                let found = steps.iter().find_map(|step| match step {
                    Step::Write(path, value) if path.ends_with(name) => Some(value.clone()),
                    Step::MakeDirectory(_)
                    | Step::Write(..)
                    | Step::WriteIfThere(..)
                    | Step::Link { .. }
                    | Step::Unlink(_)
                    | Step::RemoveDirectory(_)
                    | Step::RemoveIfEmpty(_) => None,
                });
                found.unwrap()
            };
            (value("attr_serial"), value("device_uuid"))
        };
        assert_eq!(of("nqn.a"), of("nqn.a"));
        let ((serial_a, uuid_a), (serial_b, uuid_b)) = (of("nqn.a"), of("nqn.b"));
        assert!(serial_a != serial_b && uuid_a != uuid_b);
        assert_eq!(serial_a.len(), MAX_SERIAL_BYTES);
    }

    #[test]
    fn the_mark_comes_right_after_the_subsystem_and_the_namespace_is_enabled_last() {
        let steps = make(Path::new("/c"), &Export { nqn: "n".to_owned(), port: 4420, file: "/f".into() });
        assert_eq!(steps[1], Step::Write("/c/subsystems/n/attr_model".into(), MODEL.to_owned()));
        let last = steps.last().unwrap();
        assert_eq!(*last, Step::Write("/c/subsystems/n/namespaces/1/enable".into(), "1".to_owned()));
    }
}
