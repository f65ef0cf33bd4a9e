//! The look at the node: what is connected, what is mounted, what kubelet believes. Nothing is decided here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use csi::DRIVER_NAME;
use state_machine::VolumeId;
use tokio::time::Instant;

use super::kubelet::{self, KubeletPaths, Role};
use crate::fabric::{Connection, DeviceId};
use crate::mounts::{MountEntry, MountError};
use crate::outcome::NodeError;
use crate::volumes::NodeVolumes;

/// All that was seen. Whatever could not be seen makes the whole look an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    /// Connections to what is called like a volume.
    pub(crate) connections: Vec<ConnectionFact>,
    /// Connections to what has the driver's prefix and another name.
    pub(crate) foreign: Vec<String>,
    /// What is at the paths that kubelet gave to this driver.
    pub(crate) paths: Vec<PathFact>,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConnectionFact {
    pub(crate) volume: VolumeId,
    pub(crate) device: Option<DeviceId>,
    /// The state of the connection, for people.
    pub(crate) state: String,
    /// How long it has been seen without a device, in ms; 0 if it has one.
    pub(crate) without_device_ms: u64,
    /// Where it is mounted or published, for people. Who has it open is asked when it is to be disconnected.
    pub(crate) uses: Vec<String>,
}

/// What is at a path of kubelet's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathFact {
    pub(crate) volume: VolumeId,
    pub(crate) path: PathBuf,
    pub(crate) there: There,
}

/// What it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum There {
    /// A mount.
    Mount {
        /// Whether this is where the volume is staged, not where a pod looks for it.
        staging: bool,
        device: DeviceId,
        /// Whether there still is such a device.
        exists: bool,
        /// Where else this device is mounted.
        elsewhere: Vec<PathBuf>,
    },
    /// A pod's device node.
    Node {
        device: DeviceId,
        /// Whether there is such a device.
        exists: bool,
    },
    /// Links to block targets, in a staging directory.
    Links,
}

impl NodeFacts {
    /// The volumes that any of it is about.
    pub(crate) fn volumes(&self) -> BTreeSet<VolumeId> {
        let connected = self.connections.iter().map(|connection| connection.volume.clone());
        connected.chain(self.paths.iter().map(|path| path.volume.clone())).collect()
    }
}

/// Looks again and again, and remembers only for how long a connection had no device.
pub(super) struct Lookout {
    volumes: NodeVolumes,
    kubelet_directory: PathBuf,
    without_device_since: BTreeMap<VolumeId, Instant>,
}

impl Lookout {
    pub(super) fn new(volumes: NodeVolumes, kubelet_directory: PathBuf) -> Self {
        Self { volumes, kubelet_directory, without_device_since: BTreeMap::new() }
    }

    /// Looks at everything. What is connected is looked at before and after the rest: a volume that changed meanwhile
    /// is being worked on, and is left out.
    pub(super) async fn look(&mut self) -> Result<NodeFacts, NodeError> {
        let before = self.volumes.fabric.connections().await?;
        let usage = Usage::look(&self.volumes, &self.kubelet_directory).await?;
        let now = self.volumes.fabric.connections().await?;
        let is_settled =
            |volume: &VolumeId| device_of(&before.volumes, volume) == device_of(&now.volumes, volume);
        let mut paths = self.paths(&usage, &now.volumes).await?;
        paths.retain(|path| is_settled(&path.volume));
        let ages = self.ages(&now.volumes, Instant::now());
        let settled = now.volumes.iter().filter(|connection| is_settled(&connection.volume));
        let facts = settled.map(|connection| {
            let device = connection.device.as_ref().map(|device| &device.id);
            ConnectionFact {
                volume: connection.volume.clone(),
                device: device.cloned(),
                state: connection.state.clone(),
                without_device_ms: ages.get(&connection.volume).copied().unwrap_or(0),
                uses: usage.of(&connection.volume, device),
            }
        });
        Ok(NodeFacts { connections: facts.collect(), foreign: now.foreign, paths })
    }

    /// For how long each connection without a device has been seen so, in ms.
    fn ages(&mut self, connections: &[Connection], at: Instant) -> BTreeMap<VolumeId, u64> {
        let mut since = BTreeMap::new();
        let mut ages = BTreeMap::new();
        for connection in connections.iter().filter(|connection| connection.device.is_none()) {
            let volume = &connection.volume;
            let first = self.without_device_since.get(volume).copied().unwrap_or(at);
            since.insert(volume.clone(), first);
            let age = at.saturating_duration_since(first).as_millis();
            ages.insert(volume.clone(), u64::try_from(age).unwrap_or(u64::MAX));
        }
        self.without_device_since = since;
        ages
    }

    async fn paths(&self, usage: &Usage, connections: &[Connection]) -> Result<Vec<PathFact>, NodeError> {
        let mut facts = Vec::new();
        for owned in &usage.kubelet.owned {
            let connected = connections.iter().find(|connection| connection.volume == owned.volume);
            let own = connected.and_then(|connection| connection.device.as_ref()).map(|device| &device.id);
            let there = match (usage.mounted_at(&owned.path), owned.role) {
                (Some(entry), role) => Some(There::Mount {
                    staging: matches!(role, Role::Staging | Role::BlockStaging),
                    exists: own == Some(&entry.device) || self.volumes.fabric.exists(&entry.device).await?,
                    elsewhere: usage.elsewhere(entry),
                    device: entry.device.clone(),
                }),
                (None, Role::BlockStaging) => {
                    let links = self.volumes.links(&owned.path).await?;
                    (!links.is_empty()).then_some(There::Links)
                }
                (None, Role::BlockTarget) => match usage.nodes.iter().find(|(path, _)| *path == owned.path) {
                    Some((_, device)) => Some(There::Node {
                        exists: own == Some(device) || self.volumes.fabric.exists(device).await?,
                        device: device.clone(),
                    }),
                    None => None,
                },
                (None, Role::Staging | Role::Target) => None,
            };
            let fact =
                there.map(|there| PathFact { volume: owned.volume.clone(), path: owned.path.clone(), there });
            facts.extend(fact);
        }
        Ok(facts)
    }
}

/// `None` if the volume is not connected, `Some(None)` if it is without a device.
fn device_of<'a>(connections: &'a [Connection], volume: &VolumeId) -> Option<Option<&'a DeviceId>> {
    let found = connections.iter().find(|connection| connection.volume == *volume)?;
    Some(found.device.as_ref().map(|device| &device.id))
}

/// Who uses what on the node, as far as tables and paths show it.
pub(crate) struct Usage {
    table: Vec<MountEntry>,
    kubelet: KubeletPaths,
    /// Device nodes for pods, and what they open.
    nodes: Vec<(PathBuf, DeviceId)>,
}

impl Usage {
    pub(crate) async fn look(volumes: &NodeVolumes, kubelet_directory: &Path) -> Result<Self, NodeError> {
        let kubelet = kubelet::read(kubelet_directory, DRIVER_NAME).await?;
        let table = volumes.mounts.table().await?;
        let mut nodes = Vec::new();
        for path in &kubelet.device_nodes {
            match volumes.mounts.block_target(path).await {
                Ok(Some(target)) => nodes.push((path.clone(), target.device)),
                Ok(None) | Err(MountError::Foreign { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self { table, kubelet, nodes })
    }

    /// Where the volume, which is connected as `device`, is mounted or published, for people. Without a device,
    /// what is still mounted at its paths counts: nobody can tell what it would show.
    pub(crate) fn of(&self, volume: &VolumeId, device: Option<&DeviceId>) -> Vec<String> {
        let Some(device) = device else {
            let paths = self.kubelet.owned.iter().filter(|owned| owned.volume == *volume);
            let mounted = paths.filter(|owned| self.mounted_at(&owned.path).is_some());
            return mounted.map(|owned| format!("mounted at {}", owned.path.display())).collect();
        };
        let mounts = self.table.iter().filter(|entry| entry.device == *device);
        let nodes = self.nodes.iter().filter(|(_, opens)| opens == device);
        mounts
            .map(|entry| format!("mounted at {}", entry.path.display()))
            .chain(nodes.map(|(path, _)| format!("published at {}", path.display())))
            .collect()
    }

    /// The mount in force at `path`.
    pub(super) fn mounted_at(&self, path: &Path) -> Option<&MountEntry> {
        self.table.iter().rfind(|entry| entry.path == path)
    }

    /// Where else the device of this mount is mounted.
    pub(super) fn elsewhere(&self, entry: &MountEntry) -> Vec<PathBuf> {
        let same = self.table.iter().filter(|other| other.device == entry.device && other.path != entry.path);
        same.map(|other| other.path.clone()).collect()
    }
}
