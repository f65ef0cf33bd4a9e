//! A volume's story on a node with the fake fabric, told through kubelet's calls.

use std::fs;
use std::path::{Path, PathBuf};

use proto::csi::v1::VolumeCapability;
use proto::csi::v1::volume_capability::access_mode::Mode;
use tempfile::TempDir;
use tonic::Status;

use super::gateway::Gateway;
use super::requests::{VOLUME, block, file_system, publish, stage, unpublish, unstage};
use super::{TestNode, config, directory, get};
use node::NodeConfig;

/// A node, its controllers, and kubelet's paths.
pub(crate) struct Story {
    pub(crate) node: TestNode,
    pub(crate) gateway: Gateway,
    pub(crate) staging: PathBuf,
    pub(crate) target: PathBuf,
    _directory: TempDir,
}

impl Story {
    pub(crate) async fn begin() -> Self {
        Self::begin_with(|_| {}).await
    }

    /// With a configuration that is changed first.
    pub(crate) async fn begin_with(change: impl FnOnce(&mut NodeConfig)) -> Self {
        let (guard, directory) = directory();
        let gateway = Gateway::start().await;
        let mut config = config(&directory, &gateway);
        change(&mut config);
        let node = TestNode::start(config).await;
        let staging = directory.join("staging");
        fs::create_dir(&staging).unwrap();
        Self { node, gateway, staging, target: directory.join("target"), _directory: guard }
    }

    pub(crate) async fn stage(&mut self, capability: &VolumeCapability) -> Result<(), Status> {
        self.node.client.node_stage_volume(stage(&self.staging, capability.clone())).await.map(drop)
    }

    pub(crate) async fn unstage(&mut self) -> Result<(), Status> {
        self.node.client.node_unstage_volume(unstage(&self.staging)).await.map(drop)
    }

    pub(crate) async fn publish_at(
        &mut self,
        target: &Path,
        capability: &VolumeCapability,
        readonly: bool,
    ) -> Result<(), Status> {
        let request = publish(&self.staging, target, capability.clone(), readonly);
        self.node.client.node_publish_volume(request).await.map(drop)
    }

    pub(crate) async fn publish(&mut self, capability: &VolumeCapability) -> Result<(), Status> {
        self.publish_at(&self.target.clone(), capability, false).await
    }

    pub(crate) async fn unpublish(&mut self) -> Result<(), Status> {
        self.node.client.node_unpublish_volume(unpublish(&self.target)).await.map(drop)
    }

    /// Puts a file where the fake machine looks for it.
    pub(crate) fn play(&self, file: &str, text: &str) {
        fs::write(self.node.directory.join("machine").join(file).join(VOLUME), text).unwrap();
    }

    /// Takes such a file away.
    pub(crate) fn take_away(&self, file: &str) {
        fs::remove_file(self.node.directory.join("machine").join(file).join(VOLUME)).unwrap();
    }

    /// Changes what the fake machine says of the mount at `path`: each word of `changes` for what follows it.
    pub(crate) fn change_mount(&self, path: &Path, changes: &[(&str, &str)]) {
        let records = fs::read_dir(self.node.directory.join("machine/mounts")).unwrap();
        for file in records.map(|entry| entry.unwrap().path()) {
            let mut text = fs::read_to_string(&file).unwrap();
            if !text.contains(&format!("{path:?}")) {
                continue;
            }
            for (what, instead) in changes {
                assert!(text.contains(what), "{what} is not in {text}");
                text = text.replace(what, instead);
            }
            fs::write(file, text).unwrap();
            return;
        }
        panic!("nothing is mounted at {}", path.display());
    }

    /// Has the fake machine fail to change the mount at `path`, as long as the answer is a directory.
    pub(crate) fn freeze_mount(&self, path: &Path) -> PathBuf {
        let records = fs::read_dir(self.node.directory.join("machine/mounts")).unwrap();
        let mut files = records.map(|entry| entry.unwrap().path());
        let is_there = |file: &PathBuf| fs::read_to_string(file).unwrap().contains(&format!("{path:?}"));
        let mut unfinished = files.find(is_there).unwrap().into_os_string();
        unfinished.push("~");
        fs::create_dir(&unfinished).unwrap();
        unfinished.into()
    }

    /// Has the fake machine mount nothing.
    pub(crate) fn forget_mounts(&self) {
        for record in fs::read_dir(self.node.directory.join("machine/mounts")).unwrap() {
            fs::remove_file(record.unwrap().path()).unwrap();
        }
    }

    /// How the fake machine mounts at `path`; empty if it does not.
    pub(crate) fn mount_at(&self, path: &Path) -> String {
        let records = fs::read_dir(self.node.directory.join("machine/mounts")).unwrap();
        let mut texts = records.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
        texts.find(|text| text.contains(&format!("{path:?}"))).unwrap_or_default()
    }

    /// The value of the metric of this name and labels.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let metrics = get(&self.node.http, "/metrics").await;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("{name} is not in\n{metrics}"))
    }

    /// Whether the fake fabric is connected to the volume.
    pub(crate) fn is_connected(&self) -> bool {
        self.node.is_connected(VOLUME)
    }

    /// How many fake mounts there are.
    pub(crate) fn mounts(&self) -> usize {
        fs::read_dir(self.node.directory.join("machine/mounts")).unwrap().count()
    }
}

pub(crate) fn ext4() -> VolumeCapability {
    file_system("ext4", &["noatime"], Mode::SingleNodeWriter)
}

pub(crate) fn rwx() -> VolumeCapability {
    block(Mode::MultiNodeMultiWriter)
}
