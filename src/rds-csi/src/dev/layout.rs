//! What a cluster in a directory consists of: names, ports, paths. Kept in `cluster.toml`, so that the same
//! cluster comes back at the next start.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ports;

/// The form of `cluster.toml`.
const FORMAT_VERSION: u32 = 1;
const FILE: &str = "cluster.toml";
/// The simulated appliance's process.
pub(crate) const SIMULATOR: &str = "simulator";
/// The most controllers: more only cost.
pub(crate) const MAX_CONTROLLERS: u32 = 7;
/// The most nodes: they are named by letters.
pub(crate) const MAX_NODES: u32 = 26;
/// A socket's address holds 107 bytes; the longest name under the directory has to fit.
const MAX_DIRECTORY_BYTES: usize = 107 - "/controller-0.sock".len();

/// How the nodes of a cluster on one machine connect to volumes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Fabric {
    /// Plain files that stand in for devices; no root.
    #[default]
    Fake,
    /// Loop devices over the simulated appliance's files, with real file systems and mounts; root.
    Loop,
}

/// A controller's place.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ControllerPlace {
    pub(crate) name: String,
    /// The loopback interface, unless it is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip: Option<IpAddr>,
    port: u16,
    metrics_port: u16,
}

/// A node's place.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodePlace {
    pub(crate) name: String,
    metrics_port: u16,
    pub(crate) host_nqn: String,
}

impl ControllerPlace {
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.ip(), self.port)
    }

    pub(crate) fn metrics_address(&self) -> SocketAddr {
        SocketAddr::new(self.ip(), self.metrics_port)
    }

    fn ip(&self) -> IpAddr {
        self.ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }
}

impl NodePlace {
    pub(crate) fn metrics_address(&self) -> SocketAddr {
        ports::address(self.metrics_port)
    }
}

/// What a cluster consists of.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Layout {
    version: u32,
    pub(crate) fabric: Fabric,
    simulator_port: u16,
    pub(crate) controllers: Vec<ControllerPlace>,
    pub(crate) nodes: Vec<NodePlace>,
    #[serde(skip)]
    directory: PathBuf,
}

/// What somebody wants a cluster to be; what is left open is as it was, or as usual.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    pub(crate) controllers: Option<u32>,
    pub(crate) nodes: Option<u32>,
    pub(crate) fabric: Option<Fabric>,
    /// Where controllers are that are not on the loopback interface, in their order.
    pub(crate) controllers_at: Vec<IpAddr>,
}

/// Controllers when nobody says otherwise.
const USUAL_CONTROLLERS: u32 = 3;
/// Nodes when nobody says otherwise: the two sides of a migration.
const USUAL_NODES: u32 = 2;

impl Wishes {
    /// All that cannot be fulfilled.
    pub(crate) fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if let Some(count) = self.controllers
            && (count == 0 || count > MAX_CONTROLLERS || count.is_multiple_of(2))
        {
            mistakes.push(format!("--controllers {count}: use an odd number up to {MAX_CONTROLLERS}"));
        }
        if let Some(count) = self.nodes
            && count > MAX_NODES
        {
            mistakes.push(format!("--nodes {count}: use up to {MAX_NODES}"));
        }
        mistakes
    }
}

impl Layout {
    /// The cluster of `directory`, laid out anew if there is none. Ports that somebody took are replaced.
    pub(crate) fn open_or_choose(directory: &Path, wishes: &Wishes) -> anyhow::Result<Self> {
        let directory =
            directory.canonicalize().with_context(|| format!("cannot open {}", directory.display()))?;
        if directory.as_os_str().len() > MAX_DIRECTORY_BYTES {
            bail!("{} is too long a path for unix sockets; use a shorter one", directory.display());
        }
        let mut layout = match Self::read(&directory)? {
            Some(layout) => layout.checked_against(wishes)?,
            None => Self::choose(&directory, wishes)?,
        };
        layout.replace_taken_ports()?;
        layout.save()?;
        Ok(layout)
    }

    fn read(directory: &Path) -> anyhow::Result<Option<Self>> {
        let path = directory.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut layout: Self =
            toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))?;
        if layout.version != FORMAT_VERSION {
            bail!("{} has version {}, known is {FORMAT_VERSION}", path.display(), layout.version);
        }
        layout.directory = directory.to_owned();
        Ok(Some(layout))
    }

    fn checked_against(self, wishes: &Wishes) -> anyhow::Result<Self> {
        let differs = |wish: Option<u32>, there: usize| wish.is_some_and(|count| count as usize != there);
        if differs(wishes.controllers, self.controllers.len())
            || differs(wishes.nodes, self.nodes.len())
            || wishes.fabric.is_some_and(|fabric| fabric != self.fabric)
        {
            bail!(
                "{} holds a cluster of {} controllers and {} nodes on the {:?} fabric; \
                 use another directory for another",
                self.directory.display(),
                self.controllers.len(),
                self.nodes.len(),
                self.fabric
            );
        }
        Ok(self)
    }

    fn choose(directory: &Path, wishes: &Wishes) -> anyhow::Result<Self> {
        let controllers = wishes.controllers.unwrap_or(USUAL_CONTROLLERS);
        let nodes = wishes.nodes.unwrap_or(USUAL_NODES);
        let count = 1 + 2 * controllers as usize + nodes as usize;
        let mut ports = ports::choose(count, &[]).context("cannot choose ports")?.into_iter();
        let mut port = || ports.next().context("too few ports were chosen");
        Ok(Self {
            version: FORMAT_VERSION,
            fabric: wishes.fabric.unwrap_or_default(),
            simulator_port: port()?,
            controllers: (0..controllers)
                .map(|index| {
                    Ok(ControllerPlace {
                        name: format!("controller-{index}"),
                        ip: wishes.controllers_at.get(index as usize).copied(),
                        port: port()?,
                        metrics_port: port()?,
                    })
                })
                .collect::<anyhow::Result<_>>()?,
            nodes: ('a'..='z')
                .take(nodes as usize)
                .map(|letter| {
                    Ok(NodePlace {
                        name: format!("node-{letter}"),
                        metrics_port: port()?,
                        host_nqn: format!("nqn.2014-08.org.nvmexpress:uuid:{}", Uuid::new_v4()),
                    })
                })
                .collect::<anyhow::Result<_>>()?,
            directory: directory.to_owned(),
        })
    }

    fn replace_taken_ports(&mut self) -> anyhow::Result<()> {
        let saved: Vec<u16> = self.ports().into_iter().map(|port| *port).collect();
        let taken: Vec<&mut u16> = self.ports().into_iter().filter(|port| !ports::is_free(**port)).collect();
        let chosen = ports::choose(taken.len(), &saved).context("cannot choose ports")?;
        for (port, free) in taken.into_iter().zip(chosen) {
            tracing::warn!(taken = *port, replacement = free, "somebody else listens on a saved port");
            *port = free;
        }
        Ok(())
    }

    fn ports(&mut self) -> Vec<&mut u16> {
        let controllers =
            self.controllers.iter_mut().flat_map(|place| [&mut place.port, &mut place.metrics_port]);
        let nodes = self.nodes.iter_mut().map(|place| &mut place.metrics_port);
        std::iter::once(&mut self.simulator_port).chain(controllers).chain(nodes).collect()
    }

    fn save(&self) -> anyhow::Result<()> {
        let path = self.directory.join(FILE);
        let text = toml::to_string(self).context("cannot write the cluster's layout")?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn simulator_address(&self) -> SocketAddr {
        ports::address(self.simulator_port)
    }

    /// The settings file of the process `name`.
    pub(crate) fn config_path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.toml"))
    }

    /// The log file of the process `name`.
    pub(crate) fn log_path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }

    /// The CSI socket of the controller or node `name`.
    pub(crate) fn csi_socket(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.sock"))
    }

    /// What the process `name` keeps.
    pub(crate) fn state_directory(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What is `/` to the simulated appliance, where its disks are real files.
    pub(crate) fn backing_directory(&self) -> PathBuf {
        self.directory.join("appliance")
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_same_cluster_comes_back_with_its_ports() {
        let directory = tempfile::tempdir().unwrap();
        let first = Layout::open_or_choose(directory.path(), &Wishes::default()).unwrap();
        assert_eq!((first.controllers.len(), first.nodes.len()), (3, 2));
        assert_eq!(first.nodes[1].name, "node-b");
        let second = Layout::open_or_choose(directory.path(), &Wishes::default()).unwrap();
        assert_eq!(toml::to_string(&first).unwrap(), toml::to_string(&second).unwrap());
    }

    #[test]
    fn a_port_that_was_taken_meanwhile_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let first = Layout::open_or_choose(directory.path(), &Wishes::default()).unwrap();
        let _squatter = TcpListener::bind(first.controllers[0].address()).unwrap();
        let second = Layout::open_or_choose(directory.path(), &Wishes::default()).unwrap();
        assert_ne!(first.controllers[0].address(), second.controllers[0].address());
        assert_eq!(first.controllers[1].address(), second.controllers[1].address());
    }

    #[test]
    fn another_shape_needs_another_directory() {
        let directory = tempfile::tempdir().unwrap();
        Layout::open_or_choose(directory.path(), &Wishes::default()).unwrap();
        let wishes = Wishes { nodes: Some(3), ..Wishes::default() };
        let error = Layout::open_or_choose(directory.path(), &wishes).unwrap_err();
        assert!(error.to_string().contains("3 controllers and 2 nodes"), "{error}");
    }

    #[test]
    fn wishes_that_cannot_be_are_all_named() {
        let wishes = Wishes { controllers: Some(4), nodes: Some(27), ..Wishes::default() };
        assert_eq!(wishes.mistakes().len(), 2);
        let wishes = Wishes { controllers: Some(3), nodes: Some(2), ..Wishes::default() };
        assert!(wishes.mistakes().is_empty());
    }
}
