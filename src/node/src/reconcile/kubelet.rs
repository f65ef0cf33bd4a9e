//! kubelet's directory: where it has our volumes staged and published.
//!
//! kubelet writes a `vol_data.json` beside each path that it hands to a CSI driver, with the driver's name and the
//! volume's id in it:
//!
//! | Of | Written in | The path |
//! |---|---|---|
//! | a staged file system | `plugins/kubernetes.io/csi/<driver>/<hash>/` | `globalmount` beside it |
//! | a published file system | `pods/<uid>/volumes/kubernetes.io~csi/<name>/` | `mount` beside it |
//! | a block volume | `plugins/kubernetes.io/csi/volumeDevices/<name>/data/` | `volumeDevices/staging/<name>`, and in `volumeDevices/publish/<name>/` one for each pod |
//!
//! Nothing below a mount is touched, so a device that is gone cannot make this hang. A file that cannot be parsed
//! (kubelet died while it wrote) leaves its paths without an owner: nothing is done about those. One that cannot be
//! read makes the whole look fail. Device nodes are listed whoever owns them, so that no use of a device is missed.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use state_machine::VolumeId;

use crate::mounts::{MountError, within};

/// How long reading the directory may take, in ms.
const READ_LIMIT_MS: u64 = 10_000;
/// Most entries of one directory: a node that has more of anything has another trouble.
const MAX_ENTRIES: usize = 10_000;
/// Longest `vol_data.json` that is read, in bytes.
const MAX_VOLUME_DATA_BYTES: u64 = 64 * 1024;
/// The file.
const VOLUME_DATA: &str = "vol_data.json";
/// Where kubelet keeps what it stages.
const PLUGIN: &str = "plugins/kubernetes.io/csi";
/// Where it keeps block volumes below that.
const BLOCK_VOLUMES: &str = "volumeDevices";
/// Where it keeps a pod's file systems below the pod's own directory.
const POD_VOLUMES: &str = "volumes/kubernetes.io~csi";

/// What a path is to kubelet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A volume's file system is staged here.
    Staging,
    /// A pod looks for a volume's file system here.
    Target,
    /// A block volume's staging directory.
    BlockStaging,
    /// A pod's device node of a block volume.
    BlockTarget,
}

/// A path that kubelet gave to this driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KubeletPath {
    pub(super) volume: VolumeId,
    pub(super) path: PathBuf,
    pub(super) role: Role,
}

/// What kubelet's directory says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KubeletPaths {
    /// The paths of this driver's volumes.
    pub(super) owned: Vec<KubeletPath>,
    /// Where device nodes of block volumes are, of whatever driver.
    pub(super) device_nodes: Vec<PathBuf>,
}

/// What is read of a `vol_data.json`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeData {
    driver_name: String,
    volume_handle: String,
}

/// Reads the directory, in bounded time.
pub(super) async fn read(directory: &Path, driver: &'static str) -> Result<KubeletPaths, MountError> {
    let path = directory.to_path_buf();
    within(READ_LIMIT_MS, "read", directory, move || Ok(paths_in(&path, driver))).await?
}

fn paths_in(directory: &Path, driver: &str) -> Result<KubeletPaths, MountError> {
    // As the kernel prints it. It has to be there: without it nobody knows what pods use.
    let root = directory.canonicalize().map_err(MountError::io("find kubelet's directory", directory))?;
    let plugin = root.join(PLUGIN);
    let mut paths = KubeletPaths::default();
    let mut own = |volume: &VolumeId, path: PathBuf, role| {
        paths.owned.push(KubeletPath { volume: volume.clone(), path, role });
    };
    for staged in entries(&plugin.join(driver))? {
        if let Some(volume) = owner(&staged, driver)? {
            own(&volume, staged.join("globalmount"), Role::Staging);
        }
    }
    for pod in entries(&root.join("pods"))? {
        for published in entries(&pod.join(POD_VOLUMES))? {
            if let Some(volume) = owner(&published, driver)? {
                own(&volume, published.join("mount"), Role::Target);
            }
        }
    }
    let block = plugin.join(BLOCK_VOLUMES);
    for named in entries(&block)? {
        let (Some(name), Some(volume)) = (named.file_name(), owner(&named.join("data"), driver)?) else {
            continue;
        };
        own(&volume, block.join("staging").join(name), Role::BlockStaging);
        for node in entries(&block.join("publish").join(name))? {
            own(&volume, node, Role::BlockTarget);
        }
    }
    for named in entries(&block.join("publish"))? {
        paths.device_nodes.extend(entries(&named)?);
    }
    Ok(paths)
}

/// What is in a directory; nothing if it is not there.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, MountError> {
    let failed = MountError::io("list", directory);
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error) if is_not_there(&error) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let found = listing.take(MAX_ENTRIES + 1).map(|entry| entry.map(|entry| entry.path()));
    match found.collect::<io::Result<Vec<_>>>() {
        Ok(found) if found.len() > MAX_ENTRIES => {
            Err(failed(io::Error::other(format!("more than {MAX_ENTRIES} entries"))))
        }
        Ok(found) => Ok(found),
        Err(error) => Err(failed(error)),
    }
}

/// Which of `driver`'s volumes the `vol_data.json` in `directory` speaks of.
fn owner(directory: &Path, driver: &str) -> Result<Option<VolumeId>, MountError> {
    let file = directory.join(VOLUME_DATA);
    let mut text = String::new();
    let read =
        fs::File::open(&file).and_then(|opened| opened.take(MAX_VOLUME_DATA_BYTES).read_to_string(&mut text));
    match read {
        Ok(_) => {}
        Err(error) if is_not_there(&error) || error.kind() == io::ErrorKind::InvalidData => return Ok(None),
        Err(error) => return Err(MountError::io("read", &file)(error)),
    }
    let ours = serde_json::from_str::<VolumeData>(&text).ok().filter(|data| data.driver_name == driver);
    Ok(ours.and_then(|data| VolumeId::parse(&data.volume_handle).ok()))
}

fn is_not_there(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRIVER: &str = "rds.csi.example";

    fn write(root: &Path, directory: &str, text: &str) {
        let directory = root.join(directory);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(VOLUME_DATA), text).unwrap();
    }

    /// As kubelet writes it, with keys that are not read.
    fn data(driver: &str, handle: &str) -> String {
        format!(
            "{{\"attachmentID\":\"csi-1\",\"driverName\":\"{driver}\",\"nodeName\":\"node-a\",\
             \"specVolID\":\"{handle}\",\"volumeHandle\":\"{handle}\"}}\n"
        )
    }

    #[test]
    fn paths_are_told_by_the_files_beside_them() {
        let guard = tempfile::tempdir().unwrap();
        let root = guard.path().canonicalize().unwrap();
        let csi = "plugins/kubernetes.io/csi";
        write(&root, &format!("{csi}/{DRIVER}/0f3a"), &data(DRIVER, "pvc-1"));
        write(&root, &format!("{csi}/other.example/0f3b"), &data("other.example", "pvc-2"));
        write(&root, "pods/uid-1/volumes/kubernetes.io~csi/pvc-1", &data(DRIVER, "pvc-1"));
        write(&root, "pods/uid-1/volumes/kubernetes.io~csi/pvc-2", &data("other.example", "pvc-2"));
        fs::create_dir_all(root.join("pods/uid-2/volumes/kubernetes.io~configmap/x")).unwrap();
        write(&root, &format!("{csi}/volumeDevices/pv-3/data"), &data(DRIVER, "pvc-3"));
        for node in ["pv-3/uid-3", "pv-3/uid-4", "pv-9/uid-5"] {
            let node = root.join(csi).join("volumeDevices/publish").join(node);
            fs::create_dir_all(node.parent().unwrap()).unwrap();
            fs::write(node, "").unwrap();
        }
        // Half-written, hostile, too long, and gone since.
        write(&root, &format!("{csi}/{DRIVER}/0f3c"), "{\"driverName\":");
        write(&root, &format!("{csi}/{DRIVER}/0f3d"), &data(DRIVER, "../pvc-1"));
        write(&root, &format!("{csi}/{DRIVER}/0f3e"), &data(DRIVER, &"a".repeat(70_000)));
        fs::create_dir_all(root.join(csi).join(DRIVER).join("0f3f")).unwrap();

        let mut paths = paths_in(&root, DRIVER).unwrap();
        paths.owned.sort_by(|a, b| a.path.cmp(&b.path));
        let owned: Vec<_> = paths
            .owned
            .iter()
            .map(|owned| {
                let path = owned.path.strip_prefix(&root).unwrap().to_str().unwrap();
                (path, owned.volume.as_str(), owned.role)
            })
            .collect();
        let expected = [
            ("plugins/kubernetes.io/csi/rds.csi.example/0f3a/globalmount", "pvc-1", Role::Staging),
            ("plugins/kubernetes.io/csi/volumeDevices/publish/pv-3/uid-3", "pvc-3", Role::BlockTarget),
            ("plugins/kubernetes.io/csi/volumeDevices/publish/pv-3/uid-4", "pvc-3", Role::BlockTarget),
            ("plugins/kubernetes.io/csi/volumeDevices/staging/pv-3", "pvc-3", Role::BlockStaging),
            ("pods/uid-1/volumes/kubernetes.io~csi/pvc-1/mount", "pvc-1", Role::Target),
        ];
        assert_eq!(owned, expected);
        assert_eq!(paths.device_nodes.len(), 3, "also those whose owner is not known");
    }

    #[test]
    fn what_cannot_be_read_is_not_absent() {
        let guard = tempfile::tempdir().unwrap();
        assert_eq!(paths_in(guard.path(), DRIVER).unwrap(), KubeletPaths::default(), "nothing staged yet");
        assert!(paths_in(&guard.path().join("nowhere"), DRIVER).is_err());
        let staged = guard.path().join(PLUGIN).join(DRIVER).join("0f3a");
        fs::create_dir_all(staged.join(VOLUME_DATA)).unwrap();
        assert!(paths_in(guard.path(), DRIVER).is_err(), "its vol_data.json is a directory");
    }
}
