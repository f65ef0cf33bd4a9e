//! Writes what the processes of a cluster need: keys, certificates and settings files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use routeros_simulator::generate_client_key;
use serde::Serialize;

use super::elsewhere::ApplianceElsewhere;
use super::layout::{ControllerPlace, Fabric, Layout, NodePlace, SIMULATOR};
use crate::certificates::{Authority, CertificateFiles, Owner};
use crate::ctl::AccessFile;
use crate::services::{SimulatedLatencies, SimulatedPool, SimulatorSettings};

/// The simulated appliance's pool, and the first part of every path on it.
const POOL: &str = "storage-pool";
/// Where volumes' files are on the simulated appliance.
const VOLUME_PATH: &str = "/storage-pool/rds-csi";
/// The simulated pool's size, in bytes: 8 TiB.
const POOL_BYTES: u64 = 8 << 40;
/// Who operates a cluster on one machine.
const OPERATOR: &str = "dev";

#[derive(Serialize)]
struct ControllerFile {
    name: String,
    data_dir: PathBuf,
    listen: String,
    csi_socket: String,
    metrics_address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reap_after_seconds: Option<u32>,
    tls: TlsSection,
    appliance: ApplianceSection,
    volumes: VolumesSection,
    peers: Vec<PeerSection>,
}

#[derive(Serialize)]
struct TlsSection {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

/// How the simulated appliance is reached.
#[derive(Serialize)]
struct ApplianceSection {
    address: String,
    port: u16,
    private_key_file: PathBuf,
    host_key_file: PathBuf,
}

#[derive(Serialize)]
struct VolumesSection {
    nvme_address: String,
    volume_path: String,
}

#[derive(Serialize)]
struct PeerSection {
    name: String,
    address: String,
}

#[derive(Serialize)]
struct NodeFile {
    node_id: String,
    csi_socket: String,
    controllers: Vec<String>,
    host_nqn: String,
    metrics_address: String,
    kubelet_directory: PathBuf,
    tls: TlsSection,
    fabric: FabricSection,
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum FabricSection {
    Fake { directory: PathBuf },
    Loop { backing_directory: PathBuf },
}

/// The access of the cluster's operator.
pub(crate) fn operator_access(layout: &Layout) -> PathBuf {
    layout.directory().join("ctl.toml")
}

/// What may be another than usual in the settings of a cluster.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Settings {
    pub(crate) latencies: SimulatedLatencies,
    /// Where the appliance is, unless it is beside the controllers.
    pub(crate) elsewhere: Option<ApplianceElsewhere>,
    pub(crate) reap_after_seconds: Option<u32>,
}

/// Writes whatever is missing, and all settings anew.
pub(crate) fn write_all(layout: &Layout, settings: Settings) -> anyhow::Result<()> {
    let writer = Writer::open(layout, settings)?;
    writer.simulator()?;
    for place in &layout.controllers {
        writer.controller(place)?;
    }
    for place in &layout.nodes {
        writer.node(place)?;
    }
    writer.operator()
}

struct Writer<'a> {
    layout: &'a Layout,
    settings: Settings,
    authority: Authority,
    keys: PathBuf,
}

impl<'a> Writer<'a> {
    fn open(layout: &'a Layout, settings: Settings) -> anyhow::Result<Self> {
        let certificates = make_directory(&layout.directory().join("certificates"))?;
        let keys = make_directory(&layout.directory().join("ssh"))?;
        Ok(Self { layout, settings, authority: Authority::open_or_create(&certificates)?, keys })
    }

    fn simulator(&self) -> anyhow::Result<()> {
        let kept = make_directory(&self.layout.state_directory(SIMULATOR))?;
        let backing_directory = match self.layout.fabric {
            Fabric::Fake => None,
            Fabric::Loop => Some(make_directory(&self.layout.backing_directory())?),
        };
        let client = self.ssh_key("client")?;
        self.ssh_key("host")?;
        let settings = SimulatorSettings {
            listen: self.layout.simulator_address(),
            latencies: self.settings.latencies,
            authorized_keys: vec![client],
            host_key_file: Some(self.keys.join("host")),
            state_file: Some(kept.join("state.json")),
            backing_directory,
            exporter: None,
            pools: vec![SimulatedPool { name: POOL.to_owned(), size_bytes: POOL_BYTES }],
        };
        write_toml(&self.layout.config_path(SIMULATOR), &settings)
    }

    fn controller(&self, place: &ControllerPlace) -> anyhow::Result<()> {
        let files = self.authority.files(&Owner::Replica(place.name.clone()), &place.name)?;
        let peer = |peer: &ControllerPlace| PeerSection {
            name: peer.name.clone(),
            address: peer.address().to_string(),
        };
        let beside = self.layout.simulator_address();
        let appliance =
            self.settings.elsewhere.unwrap_or(ApplianceElsewhere { ssh: beside, nvme_address: beside.ip() });
        let file = ControllerFile {
            name: place.name.clone(),
            data_dir: make_directory(&self.layout.state_directory(&place.name))?,
            listen: place.address().to_string(),
            csi_socket: self.endpoint(&place.name),
            metrics_address: place.metrics_address().to_string(),
            reap_after_seconds: self.settings.reap_after_seconds,
            tls: self.tls(files),
            appliance: ApplianceSection {
                address: appliance.ssh.ip().to_string(),
                port: appliance.ssh.port(),
                private_key_file: self.keys.join("client"),
                host_key_file: self.keys.join("host.pub"),
            },
            volumes: VolumesSection {
                nvme_address: appliance.nvme_address.to_string(),
                volume_path: VOLUME_PATH.to_owned(),
            },
            peers: self.layout.controllers.iter().map(peer).collect(),
        };
        write_toml(&self.layout.config_path(&place.name), &file)
    }

    fn node(&self, place: &NodePlace) -> anyhow::Result<()> {
        let files = self.authority.files(&Owner::Node(place.name.clone()), &place.name)?;
        let fabric = match self.layout.fabric {
            Fabric::Fake => {
                FabricSection::Fake { directory: make_directory(&self.layout.state_directory(&place.name))? }
            }
            Fabric::Loop => FabricSection::Loop { backing_directory: self.layout.backing_directory() },
        };
        let file = NodeFile {
            node_id: place.name.clone(),
            csi_socket: self.endpoint(&place.name),
            controllers: self.controller_addresses(),
            host_nqn: place.host_nqn.clone(),
            metrics_address: place.metrics_address().to_string(),
            kubelet_directory: make_directory(&self.layout.state_directory(&place.name).join("kubelet"))?,
            tls: self.tls(files),
            fabric,
        };
        write_toml(&self.layout.config_path(&place.name), &file)
    }

    fn operator(&self) -> anyhow::Result<()> {
        let files = self.authority.files(&Owner::Operator(OPERATOR.to_owned()), "operator")?;
        let TlsSection { ca, cert, key } = self.tls(files);
        let file = AccessFile { endpoints: self.controller_addresses(), ca, cert, key };
        write_toml(&operator_access(self.layout), &file)
    }

    fn tls(&self, files: CertificateFiles) -> TlsSection {
        TlsSection { ca: self.authority.certificate(), cert: files.cert, key: files.key }
    }

    fn endpoint(&self, name: &str) -> String {
        format!("unix://{}", self.layout.csi_socket(name).display())
    }

    fn controller_addresses(&self) -> Vec<String> {
        self.layout.controllers.iter().map(|place| place.address().to_string()).collect()
    }

    /// Makes the key `name` unless it is there; returns its public line, which is in `<name>.pub` too.
    fn ssh_key(&self, name: &str) -> anyhow::Result<String> {
        let (private, public) = (self.keys.join(name), self.keys.join(format!("{name}.pub")));
        if !public.exists() {
            // A start that was cut short before it wrote the public half begins anew.
            if private.exists() {
                fs::remove_file(&private).with_context(|| format!("cannot remove {}", private.display()))?;
            }
            let line = generate_client_key(&private)
                .with_context(|| format!("cannot make {}", private.display()))?;
            fs::write(&public, format!("{line}\n"))
                .with_context(|| format!("cannot write {}", public.display()))?;
        }
        let line =
            fs::read_to_string(&public).with_context(|| format!("cannot read {}", public.display()))?;
        Ok(line.trim().to_owned())
    }
}

fn make_directory(path: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path.to_owned())
}

fn write_toml(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let text = toml::to_string(value).with_context(|| format!("cannot write {}", path.display()))?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use controller::ControllerConfig;
    use node::NodeConfig;

    use super::super::layout::Wishes;
    use super::*;

    fn read(layout: &Layout, name: &str) -> String {
        fs::read_to_string(layout.config_path(name)).unwrap()
    }

    #[test]
    fn every_program_accepts_its_file() {
        for fabric in [Fabric::Fake, Fabric::Loop] {
            let directory = tempfile::tempdir().unwrap();
            let wishes = Wishes { fabric: Some(fabric), ..Wishes::default() };
            let layout = Layout::open_or_choose(directory.path(), &wishes).unwrap();
            write_all(&layout, Settings::default()).unwrap();
            for place in &layout.controllers {
                let config = ControllerConfig::parse(&read(&layout, &place.name)).unwrap();
                assert_eq!(config.listen, place.address());
                backend::RouterOs::new(config.appliance).unwrap();
            }
            for place in &layout.nodes {
                let config: NodeConfig = toml::from_str(&read(&layout, &place.name)).unwrap();
                assert_eq!(config.validate(), Vec::<String>::new());
            }
            let settings = SimulatorSettings::parse(&read(&layout, SIMULATOR)).unwrap();
            assert_eq!(settings.backing_directory.is_some(), fabric == Fabric::Loop);
            let access = AccessFile::read(&operator_access(&layout)).unwrap();
            assert_eq!(access.endpoints.len(), 3);
        }
    }

    #[test]
    fn keys_survive_a_second_start() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::open_or_choose(directory.path(), &Wishes::default()).unwrap();
        write_all(&layout, Settings::default()).unwrap();
        let keys = || ["ssh/client", "ssh/host"].map(|key| fs::read(directory.path().join(key)).unwrap());
        let before = keys();
        write_all(&layout, Settings::default()).unwrap();
        assert_eq!(keys(), before);
    }
}
