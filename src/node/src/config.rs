//! The node plugin's configuration: parsed once, checked as a whole, handed down.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use csi::{SocketPath, Topology};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use state_machine::{BootId, NodeId, Nqn};
use uuid::Uuid;

use crate::fabric::{DEFAULT_NR_IO_QUEUES, NqnPrefix, NvmeSettings};
use crate::identity::{NodeIdentity, host_id, host_nqn};
use crate::in_use::Roots;
use crate::steps::Step;
use crate::volume_limit::{memory_bytes, volume_limit};

/// Where the kernel says which boot this is.
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";
/// Where the system says which machine this is: machine-id(5).
const MACHINE_ID_FILE: &str = "/etc/machine-id";
/// Where the kernel says how much memory the machine has.
const MEMORY_FILE: &str = "/proc/meminfo";
/// Least and largest `deadlines.controllers_ms` and `deadlines.drain_ms`.
const DEADLINE_RANGE_MS: std::ops::RangeInclusive<u64> = 100..=600_000;
/// Least and largest `reconcile_interval_seconds`.
const RECONCILE_RANGE_SECONDS: std::ops::RangeInclusive<u64> = 1..=86_400;
/// Least and largest `session_interval_seconds`: after 30 s without a word the controllers know nothing of a node.
const SESSION_RANGE_SECONDS: std::ops::RangeInclusive<u64> = 1..=10;

/// What a node plugin is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// The Kubernetes node's name. Empty here if it is given to the program, as where all nodes share one file.
    #[serde(default)]
    pub node_id: String,
    /// Where to serve CSI, as `unix:///path`.
    #[serde(default = "default_csi_socket")]
    pub csi_socket: String,
    /// The controllers, as `host:port` each.
    pub controllers: Vec<String>,
    /// How to prove to them who this is, and how to know them.
    pub tls: TlsFiles,
    /// How volumes become devices.
    pub fabric: FabricConfig,
    /// What the node calls itself to NVMe subsystems; by default made from `/etc/machine-id` and `node_id`.
    #[serde(default)]
    pub host_nqn: Option<String>,
    /// How many volumes the node can take; 0, the default, has it computed from the machine's memory.
    #[serde(default)]
    pub max_volumes: u32,
    /// Where to serve /metrics, /healthz and /readyz, as `address:port` or `:port`.
    #[serde(default = "default_metrics_address")]
    pub metrics_address: String,
    /// Stands in for the kernel's boot id in tests and on fake machines.
    #[serde(default)]
    pub boot_id: Option<String>,
    /// Time limits.
    #[serde(default)]
    pub deadlines: Deadlines,
    /// Where in the cluster the node is, as far as reaching volumes goes; empty, the default, is everywhere.
    #[serde(default)]
    pub topology: BTreeMap<String, String>,
    /// For tests only: the process ends itself with SIGKILL after the first step of this name.
    #[serde(default)]
    pub die_after_step: Option<String>,
    /// How often what the node has is compared with what the ledger says, in seconds.
    #[serde(default = "default_reconcile_interval_seconds")]
    pub reconcile_interval_seconds: u64,
    /// How often at least the controllers are told what the node has, in seconds.
    #[serde(default = "default_session_interval_seconds")]
    pub session_interval_seconds: u64,
    /// Where kubelet keeps its pods and plugins.
    #[serde(default = "default_kubelet_directory")]
    pub kubelet_directory: PathBuf,
}

/// PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Who signs the controllers' certificates.
    pub ca: PathBuf,
    /// The node's certificate, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// Its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// In place of a certificate: the plugin's projected ServiceAccount token, which kubelet renews.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

impl TlsFiles {
    fn check(&self, mistakes: &mut Mistakes) {
        let Self { ca, cert, key, token_file } = self;
        let named = [
            ("tls.ca", Some(ca)),
            ("tls.cert", cert.as_ref()),
            ("tls.key", key.as_ref()),
            ("tls.token_file", token_file.as_ref()),
        ];
        for (field, file) in named {
            let Some(file) = file else { continue };
            mistakes.take(field, fs::metadata(file).map_err(|error| format!("{}: {error}", file.display())));
        }
        if !matches!((cert, key, token_file), (Some(_), Some(_), None) | (None, None, Some(_))) {
            mistakes.add("tls", "either cert and key are required, or token_file");
        }
    }
}

/// How volumes become devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum FabricConfig {
    /// Not at all: plain files and directories under a fake machine's directory.
    Fake {
        /// The fake machine's directory; made if it is not there.
        directory: PathBuf,
    },
    /// As loop devices over the simulated appliance's backing files.
    Loop {
        /// What is `/` to the simulated appliance.
        backing_directory: PathBuf,
    },
    /// As namespaces of NVMe/TCP subsystems.
    Nvme {
        /// What the NQNs of all volumes begin with, the last colon included: the appliance's prefix.
        #[serde(default = "default_nqn_prefix")]
        nqn_prefix: String,
        /// The NVMe host ID, a UUID; by default the UUID in the host NQN, or one made of it.
        #[serde(default)]
        host_id: Option<String>,
        /// Where the host's sysfs is mounted.
        #[serde(default = "default_sysfs")]
        sysfs: PathBuf,
        /// Where the host's proc is mounted: one that shows all of its processes.
        #[serde(default = "default_proc")]
        proc: PathBuf,
        /// Where the host's device nodes are.
        #[serde(default = "default_dev")]
        dev: PathBuf,
    },
}

/// Time limits, in ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Deadlines {
    /// How long to ask the controllers when the caller sets no shorter limit.
    pub controllers_ms: u64,
    /// How long running operations may take to end after the stop.
    pub drain_ms: u64,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { controllers_ms: 60_000, drain_ms: 20_000 }
    }
}

fn default_csi_socket() -> String {
    "unix:///csi/csi.sock".to_owned()
}

fn default_metrics_address() -> String {
    ":9809".to_owned()
}

fn default_nqn_prefix() -> String {
    "nqn.2000-02.com.mikrotik:".to_owned()
}

fn default_sysfs() -> PathBuf {
    Roots::default().sysfs
}

fn default_proc() -> PathBuf {
    Roots::default().proc
}

fn default_dev() -> PathBuf {
    Roots::default().dev
}

fn default_reconcile_interval_seconds() -> u64 {
    300
}

fn default_session_interval_seconds() -> u64 {
    10
}

fn default_kubelet_directory() -> PathBuf {
    "/var/lib/kubelet".into()
}

impl NodeConfig {
    /// All that is wrong, one sentence each; empty if the configuration can be used.
    pub fn validate(&self) -> Vec<String> {
        self.check().err().unwrap_or_default()
    }

    /// The configuration as checked types, or all mistakes together.
    pub(crate) fn check(&self) -> Result<Settings, Vec<String>> {
        let mut mistakes = Mistakes::default();
        let node = mistakes.take("node_id", self.node());
        let socket = mistakes
            .take("csi_socket", SocketPath::parse(&self.csi_socket).map_err(|error| error.to_string()));
        let metrics_address = mistakes.take("metrics_address", socket_address(&self.metrics_address));
        let boot = mistakes.take("boot_id", self.boot());
        let host_nqn = node.as_ref().and_then(|node| mistakes.take("host_nqn", self.host_nqn(node)));
        if self.controllers.is_empty() {
            mistakes.add("controllers", "at least one host:port is required");
        }
        for controller in &self.controllers {
            mistakes.take("controllers", host_and_port(controller));
        }
        self.tls.check(&mut mistakes);
        let fabric = self.fabric.check(host_nqn.as_ref(), &mut mistakes);
        for (field, value) in [
            ("deadlines.controllers_ms", self.deadlines.controllers_ms),
            ("deadlines.drain_ms", self.deadlines.drain_ms),
        ] {
            if !DEADLINE_RANGE_MS.contains(&value) {
                let (least, most) = DEADLINE_RANGE_MS.into_inner();
                mistakes.add(field, &format!("{value} is not from {least} to {most}"));
            }
        }
        for (field, value, range) in [
            ("reconcile_interval_seconds", self.reconcile_interval_seconds, RECONCILE_RANGE_SECONDS),
            ("session_interval_seconds", self.session_interval_seconds, SESSION_RANGE_SECONDS),
        ] {
            if !range.contains(&value) {
                let (least, most) = range.into_inner();
                mistakes.add(field, &format!("{value} is not from {least} to {most}"));
            }
        }
        if !self.kubelet_directory.is_absolute() {
            mistakes.add("kubelet_directory", "must be an absolute path");
        }
        let max_volumes = mistakes.take("max_volumes", self.max_volumes());
        let topology = Topology::parse(&self.topology)
            .map_err(|problems| problems.iter().for_each(|problem| mistakes.add("topology", problem)));
        let step = self.die_after_step.as_deref().map(Step::parse).transpose();
        let die_after_step = mistakes.take("die_after_step", step).flatten();
        match (node, socket, metrics_address, boot, host_nqn, fabric, max_volumes, topology) {
            (
                Some(node),
                Some(socket),
                Some(metrics_address),
                Some(boot),
                Some(host_nqn),
                Some(fabric),
                Some(max_volumes),
                Ok(topology),
            ) if mistakes.0.is_empty() => Ok(Settings {
                identity: NodeIdentity { node, boot, host_nqn, max_volumes },
                topology,
                die_after_step,
                socket,
                metrics_address,
                fabric,
                controllers_limit: Duration::from_millis(self.deadlines.controllers_ms),
                drain_limit: Duration::from_millis(self.deadlines.drain_ms),
                reconcile_interval: Duration::from_secs(self.reconcile_interval_seconds),
                session_interval: Duration::from_secs(self.session_interval_seconds),
                kubelet_directory: self.kubelet_directory.clone(),
            }),
            _ => Err(mistakes.0),
        }
    }

    fn node(&self) -> Result<NodeId, String> {
        if self.node_id.is_empty() {
            return Err(
                "none is given; start with --node-id or NODE_NAME, or put node_id into the file".to_owned()
            );
        }
        NodeId::parse(&self.node_id).map_err(|error| error.to_string())
    }

    fn max_volumes(&self) -> Result<u32, String> {
        if self.max_volumes != 0 {
            return Ok(self.max_volumes);
        }
        let text = fs::read_to_string(MEMORY_FILE).map_err(|error| format!("{MEMORY_FILE}: {error}"))?;
        let unknown = || format!("{MEMORY_FILE} does not say how much memory there is; set max_volumes");
        Ok(volume_limit(memory_bytes(&text).ok_or_else(unknown)?, DEFAULT_NR_IO_QUEUES))
    }

    fn boot(&self) -> Result<BootId, String> {
        let text = match &self.boot_id {
            Some(text) => text.clone(),
            None => fs::read_to_string(BOOT_ID_FILE).map_err(|error| format!("{BOOT_ID_FILE}: {error}"))?,
        };
        BootId::parse(text.trim()).map_err(|error| error.to_string())
    }

    fn host_nqn(&self, node: &NodeId) -> Result<Nqn, String> {
        if let Some(text) = &self.host_nqn {
            return Nqn::parse(text).map_err(|error| error.to_string());
        }
        let unknown = |reason: String| format!("{MACHINE_ID_FILE} {reason}; set host_nqn");
        let machine = fs::read_to_string(MACHINE_ID_FILE).map_err(|error| unknown(error.to_string()))?;
        match machine.trim() {
            "" | "uninitialized" => Err(unknown("is not initialized".to_owned())),
            machine => host_nqn(machine, node).map_err(|error| error.to_string()),
        }
    }
}

/// The configuration as checked types.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) identity: NodeIdentity,
    pub(crate) socket: SocketPath,
    pub(crate) metrics_address: SocketAddr,
    pub(crate) fabric: FabricSettings,
    pub(crate) controllers_limit: Duration,
    pub(crate) drain_limit: Duration,
    pub(crate) topology: Topology,
    pub(crate) die_after_step: Option<Step>,
    pub(crate) reconcile_interval: Duration,
    pub(crate) session_interval: Duration,
    pub(crate) kubelet_directory: PathBuf,
}

/// How volumes become devices, checked.
#[derive(Debug)]
pub(crate) enum FabricSettings {
    /// Under this fake machine's directory.
    Fake(PathBuf),
    /// Over this directory of backing files.
    Loop(PathBuf),
    /// By the kernel's NVMe host.
    Nvme(NvmeSettings),
}

impl FabricConfig {
    fn check(&self, host_nqn: Option<&Nqn>, mistakes: &mut Mistakes) -> Option<FabricSettings> {
        match self {
            Self::Fake { directory } => Some(FabricSettings::Fake(directory.clone())),
            Self::Loop { backing_directory } => {
                mistakes.take("fabric.backing_directory", is_directory(backing_directory))?;
                Some(FabricSettings::Loop(backing_directory.clone()))
            }
            Self::Nvme { nqn_prefix, host_id: id, sysfs, proc, dev } => {
                let prefix = NqnPrefix::parse(nqn_prefix).map_err(|error| error.to_string());
                let prefix = mistakes.take("fabric.nqn_prefix", prefix);
                let not_a_uuid = |error| format!("is not a UUID: {error}");
                let id = id.as_deref().map(|text| Uuid::parse_str(text).map_err(not_a_uuid)).transpose();
                let id = mistakes.take("fabric.host_id", id);
                for (field, path) in [("fabric.sysfs", sysfs), ("fabric.proc", proc), ("fabric.dev", dev)] {
                    mistakes.take(field, is_directory(path));
                }
                let (prefix, id, host_nqn) = (prefix?, id?, host_nqn?.clone());
                let host_id = id.unwrap_or_else(|| host_id(&host_nqn));
                let roots = Roots { sysfs: sysfs.clone(), proc: proc.clone(), dev: dev.clone() };
                Some(FabricSettings::Nvme(NvmeSettings { prefix, host_nqn, host_id, roots }))
            }
        }
    }
}

#[derive(Default)]
struct Mistakes(Vec<String>);

impl Mistakes {
    fn add(&mut self, field: &str, problem: &str) {
        self.0.push(format!("{field}: {problem}"));
    }

    fn take<T>(&mut self, field: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|problem| self.add(field, &problem)).ok()
    }
}

fn is_directory(path: &Path) -> Result<(), String> {
    if path.is_dir() { Ok(()) } else { Err(format!("{} is not a directory", path.display())) }
}

/// `address:port`, or `:port` on every address.
fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let full = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    full.parse().map_err(|_| format!("{text:?} is neither address:port nor :port"))
}

/// A host's name or address and a port. Not resolved: names may come to be later.
fn host_and_port(text: &str) -> Result<(), String> {
    let well_formed = text.rsplit_once(':').is_some_and(|(host, port)| {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = match bare {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => state_machine::HostAddress::parse(host).is_ok() && !host.contains(':'),
        };
        is_host && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if well_formed { Ok(()) } else { Err(format!("{text:?} is not host:port")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        node_id = "node-a"
        controllers = ["127.0.0.1:9000", "rds-csi-0.rds-csi:9000", "[::1]:9000"]
        [tls]
        ca = "/dev/null"
        cert = "/dev/null"
        key = "/dev/null"
        [fabric]
        kind = "fake"
        directory = "/tmp/node-a"
    "#;

    fn minimal() -> NodeConfig {
        NodeConfig {
            host_nqn: Some("nqn.2014-08.org.example:a".to_owned()),
            ..toml::from_str(MINIMAL).unwrap()
        }
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let config = minimal();
        assert_eq!(config.validate(), Vec::<String>::new());
        let settings = config.check().unwrap();
        assert_eq!(settings.metrics_address, "0.0.0.0:9809".parse().unwrap());
        assert!((8..=256).contains(&settings.identity.max_volumes), "computed");
        assert_eq!(NodeConfig { max_volumes: 7, ..minimal() }.check().unwrap().identity.max_volumes, 7);
        assert!(settings.topology.is_everywhere());
        assert_eq!(settings.die_after_step, None);
        assert_eq!(config.csi_socket, "unix:///csi/csi.sock");
    }

    #[test]
    fn a_node_needs_an_id() {
        let nameless: NodeConfig = toml::from_str(&MINIMAL.replace("node_id = \"node-a\"", "")).unwrap();
        let mistakes = nameless.validate();
        assert!(mistakes.iter().any(|mistake| mistake.starts_with("node_id: none is given")), "{mistakes:?}");
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(toml::from_str::<NodeConfig>(&format!("typing_eror = 1\n{MINIMAL}")).is_err());
        assert!(toml::from_str::<NodeConfig>(&MINIMAL.replace("directory", "backing_directory")).is_err());
    }

    #[test]
    fn all_mistakes_come_together() {
        let mistakes = NodeConfig {
            node_id: "node a".to_owned(),
            csi_socket: "relative.sock".to_owned(),
            controllers: vec!["no-port".to_owned(), "host:0".to_owned(), "::1:9000".to_owned()],
            tls: TlsFiles {
                ca: "/nowhere/ca".into(),
                cert: Some("/nowhere/cert".into()),
                key: Some("/nowhere/key".into()),
                token_file: Some("/nowhere/token".into()),
            },
            fabric: FabricConfig::Loop { backing_directory: "/nowhere".into() },
            metrics_address: "9809".to_owned(),
            boot_id: Some("a b".to_owned()),
            deadlines: Deadlines { controllers_ms: 1, drain_ms: u64::MAX },
            topology: BTreeMap::from([("-zone".to_owned(), "a b".to_owned())]),
            die_after_step: Some("mount".to_owned()),
            reconcile_interval_seconds: 0,
            session_interval_seconds: 11,
            kubelet_directory: "kubelet".into(),
            ..minimal()
        }
        .validate();
        let fields = [
            "node_id",
            "csi_socket",
            "metrics_address",
            "boot_id",
            "controllers",
            "controllers",
            "controllers",
            "tls.ca",
            "tls.cert",
            "tls.key",
            "tls.token_file",
            "tls",
            "fabric.backing_directory",
            "deadlines.controllers_ms",
            "deadlines.drain_ms",
            "reconcile_interval_seconds",
            "session_interval_seconds",
            "kubelet_directory",
            "topology",
            "topology",
            "die_after_step",
        ];
        let named: Vec<_> = mistakes.iter().filter_map(|mistake| mistake.split(": ").next()).collect();
        assert_eq!(named, fields, "{mistakes:#?}");
    }

    #[test]
    fn a_node_has_a_certificate_or_a_token() {
        let mistakes = |tls: &str| {
            let tls = toml::from_str(&format!("ca = \"/dev/null\"\n{tls}")).unwrap();
            NodeConfig { tls, ..minimal() }.validate()
        };
        assert_eq!(mistakes("token_file = \"/dev/null\""), Vec::<String>::new());
        for tls in ["", "cert = \"/dev/null\"", "key = \"/dev/null\"\ntoken_file = \"/dev/null\""] {
            assert_eq!(mistakes(tls), ["tls: either cert and key are required, or token_file"], "{tls}");
        }
    }

    #[test]
    fn an_nvme_fabric_needs_no_more_than_its_kind() {
        let nvme = |text: &str| NodeConfig {
            fabric: toml::from_str(&format!("kind = \"nvme\"\n{text}")).unwrap(),
            ..minimal()
        };
        let FabricSettings::Nvme(settings) = nvme("").check().unwrap().fabric else { panic!() };
        assert_eq!(settings.prefix, NqnPrefix::parse("nqn.2000-02.com.mikrotik:").unwrap());
        assert_eq!(settings.host_nqn.as_str(), "nqn.2014-08.org.example:a");
        assert_eq!(settings.roots.dev, PathBuf::from("/dev"));
        let wrong = r#"
            nqn_prefix = "nqn.2000-02.com.mikrotik"
            host_id = "7"
            sysfs = "/nowhere/sys"
            proc = "/nowhere/proc"
            dev = "/dev/null"
        "#;
        let mistakes = nvme(wrong).validate();
        let named: Vec<_> = mistakes.iter().filter_map(|mistake| mistake.split(": ").next()).collect();
        let fields = ["nqn_prefix", "host_id", "sysfs", "proc", "dev"].map(|field| format!("fabric.{field}"));
        assert_eq!(named, fields, "{mistakes:#?}");
    }

    #[test]
    fn a_host_id_is_the_uuid_in_the_host_nqn() {
        let uuid = "6f1d3c52-8d0e-5b1b-9a35-1c0a52d57c11";
        let of = |nqn: &str| host_id(&Nqn::parse(nqn).unwrap());
        assert_eq!(of(&format!("nqn.2014-08.org.nvmexpress:uuid:{uuid}")).to_string(), uuid);
        let made = of("nqn.2014-08.org.example:node-a");
        assert_eq!(made, of("nqn.2014-08.org.example:node-a"));
        assert_ne!(made, of("nqn.2014-08.org.example:node-b"));
    }

    #[test]
    fn a_host_nqn_is_stable_and_a_nodes_own() {
        let of = |node| host_nqn("3d1219c7c4c5404aaa1f6d2a48adfda4", &NodeId::parse(node).unwrap()).unwrap();
        let nqn = of("node-a");
        assert_eq!(nqn, of("node-a"));
        assert_ne!(nqn, of("node-b"));
        assert!(nqn.as_str().starts_with("nqn.2014-08.org.nvmexpress:uuid:"), "{nqn}");
    }
}
