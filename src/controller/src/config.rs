//! The controller's settings: one file, parsed once, all mistakes reported together.

mod hotplug;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use backend::{RouterOs, RouterOsConfig};
use csi::Topology;
use replica::Timing;
use schemars::JsonSchema;
use serde::Deserialize;
use state_machine::{AppliancePath, HostAddress, Nqn};

/// Longest `orphans.interval_seconds` and `orphans.grace_seconds`: a week.
const MAX_ORPHAN_SECONDS: u32 = 604_800;
/// Largest `reap_after_seconds`: ten minutes.
const MAX_REAP_AFTER_SECONDS: u32 = 600;
/// Largest `orphans.max_per_pass`.
const MAX_ORPHANS_PER_PASS: u32 = 1_000;
pub use hotplug::HotplugConfig;

/// Settings of one controller replica, as its TOML file gives them.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ControllerConfig {
    /// This replica's name: its pod's. Empty here if it is given to the program, as where pods share one file.
    #[serde(default)]
    pub name: String,
    /// Where raft's log, vote and snapshots live. Never on a volume of this driver.
    pub data_dir: PathBuf,
    /// Where peers, nodes and operators are served.
    pub listen: SocketAddr,
    /// All replicas of the cluster, this one included.
    pub peers: Vec<Peer>,
    /// Certificates for peers, nodes and operators.
    pub tls: Tls,
    /// CSI's unix socket, `unix:///path` or a path.
    pub csi_socket: String,
    /// Where `/metrics`, `/healthz` and `/readyz` are served.
    #[serde(default = "default_metrics_address")]
    pub metrics_address: SocketAddr,
    /// The storage box.
    pub appliance: RouterOsConfig,
    /// What a class that does not say gets.
    pub volumes: VolumeDefaults,
    /// Raft's timers.
    #[serde(default)]
    pub timing: RaftTiming,
    /// Where the nodes are that reach the appliance, as CSI's topology segments; empty is everywhere.
    #[serde(default)]
    pub topology: BTreeMap<String, String>,
    /// Whether a node must be proven off before its slot is free; `false` believes the orchestrator.
    #[serde(default = "yes")]
    pub require_detach_proof: bool,
    /// How long one side of an overdue migration has to be stale, seen by one leader, before its node loses the volume,
    /// in seconds. Less than an unpublish usually takes, and migrations that succeeded late are told as timeouts.
    #[serde(default = "default_reap_after_seconds")]
    pub reap_after_seconds: u32,
    /// Kubernetes, as far as it is asked.
    #[serde(default)]
    pub kubernetes: KubernetesConfig,
    /// The admission webhook that keeps KubeVirt's hotplugged volumes in place; without this table there is none.
    pub hotplug: Option<HotplugConfig>,
    /// The longest that a CSI call may take when its caller sets no deadline, in seconds.
    #[serde(default = "default_call_timeout_seconds")]
    pub call_timeout_seconds: u32,
    /// What is on the appliance and nobody's.
    #[serde(default)]
    pub orphans: OrphansConfig,
}

/// Volumes and files on the appliance that neither the ledger nor a PersistentVolume knows. They are always looked for;
/// removed are only those whose making this ledger recorded, or that are under a path which nobody else uses, and
/// only while Kubernetes is watched.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OrphansConfig {
    /// Whether any are removed, or would be if it were no dry run.
    pub enabled: bool,
    /// Whether it is only logged what would be removed.
    pub dry_run: bool,
    /// How often they are looked for, in seconds.
    pub interval_seconds: u32,
    /// For how long the leader has to have seen one in each of its looks before it is removed, in seconds.
    pub grace_seconds: u32,
    /// Directories on the appliance in which every volume is this installation's.
    #[schemars(with = "Vec<String>")]
    pub exclusive_volume_paths: Vec<AppliancePath>,
    /// How many are removed after one look at most.
    pub max_per_pass: u32,
}

impl Default for OrphansConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            dry_run: true,
            interval_seconds: 3_600,
            grace_seconds: 300,
            exclusive_volume_paths: Vec::new(),
            max_per_pass: 10,
        }
    }
}

impl OrphansConfig {
    fn mistakes(&self) -> Vec<String> {
        let numbers = [
            ("interval_seconds", self.interval_seconds, MAX_ORPHAN_SECONDS),
            ("grace_seconds", self.grace_seconds, MAX_ORPHAN_SECONDS),
            ("max_per_pass", self.max_per_pass, MAX_ORPHANS_PER_PASS),
        ];
        let wrong = numbers.into_iter().filter(|(_, value, most)| !(1..=*most).contains(value));
        wrong.map(|(name, value, most)| format!("orphans.{name}: {value} is not from 1 to {most}")).collect()
    }
}

/// Kubernetes, as far as it is asked.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KubernetesConfig {
    /// Whether the cluster that this pod runs in is watched. If not, nothing is known of VMs and pods, and no events
    /// are posted; all else works.
    pub enabled: bool,
    /// Whether the volumes of one VM are attached one after the other.
    pub one_publish_per_vm: bool,
    /// A simulated API server that is watched in place of the cluster, as `http://host:port`, without credentials.
    pub simulated_api_server: Option<String>,
    /// Whose ServiceAccount tokens speak for nodes. Without it, a node needs a certificate of its own.
    pub node_tokens: Option<NodeTokensConfig>,
}

impl KubernetesConfig {
    fn mistakes(&self) -> Vec<String> {
        let Some(NodeTokensConfig { audience, namespace, service_account }) = &self.node_tokens else {
            return Vec::new();
        };
        let named = [("audience", audience), ("namespace", namespace), ("service_account", service_account)];
        let empty = named.into_iter().filter(|(_, value)| value.is_empty());
        let mut found: Vec<_> =
            empty.map(|(name, _)| format!("kubernetes.node_tokens.{name}: must not be empty")).collect();
        if !self.enabled {
            found.push("kubernetes.node_tokens: needs kubernetes.enabled, to have them checked".to_owned());
        }
        found
    }
}

/// The tokens that node plugins show.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeTokensConfig {
    /// What the tokens are issued for: the audience of the projected volume.
    pub audience: String,
    /// The namespace of the node plugins' ServiceAccount.
    pub namespace: String,
    /// Its name.
    pub service_account: String,
}

/// Raft's timers, in milliseconds. The defaults let a killed leader's place be taken in about half a second; a disk
/// whose fdatasync takes longer than `election_min_ms` needs longer ones, or no vote arrives in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RaftTiming {
    /// How often a leader shows that it lives.
    pub heartbeat_ms: u32,
    /// The least random part of a follower's patience, and how long a vote may take.
    pub election_min_ms: u32,
    /// The largest random part, and the length of a leader's lease.
    pub election_max_ms: u32,
}

impl Default for RaftTiming {
    fn default() -> Self {
        Self { heartbeat_ms: 50, election_min_ms: 150, election_max_ms: 300 }
    }
}

impl From<RaftTiming> for Timing {
    fn from(timing: RaftTiming) -> Self {
        let ms = |ms: u32| Duration::from_millis(u64::from(ms));
        Self {
            heartbeat: ms(timing.heartbeat_ms),
            election_min: ms(timing.election_min_ms),
            election_max: ms(timing.election_max_ms),
        }
    }
}

/// Another replica, or this one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// `host:port` where it serves its peers.
    pub address: String,
}

/// PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The authority that signed everybody's certificate.
    pub ca: PathBuf,
    /// This replica's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// What a class that does not say gets.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeDefaults {
    /// `nvmeAddress`: the appliance's storage address.
    #[schemars(with = "String")]
    pub nvme_address: HostAddress,
    /// `nvmePort`.
    #[serde(default = "default_nvme_port")]
    pub nvme_port: u16,
    /// `volumePath`: the directory of backing files on the appliance.
    #[schemars(with = "String")]
    pub volume_path: AppliancePath,
    /// The NQN of a volume is this, a colon and the volume's id.
    #[serde(default = "default_nqn_prefix")]
    #[schemars(with = "String")]
    pub nqn_prefix: Nqn,
}

fn default_metrics_address() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 9809))
}

fn default_nvme_port() -> u16 {
    4420
}

fn default_call_timeout_seconds() -> u32 {
    60
}

fn default_reap_after_seconds() -> u32 {
    10
}

fn yes() -> bool {
    true
}

#[expect(clippy::unwrap_used, reason = "the constant is a valid NQN, which a test shows")]
fn default_nqn_prefix() -> Nqn {
    Nqn::parse("nqn.2000-02.com.mikrotik").unwrap()
}

impl ControllerConfig {
    /// Reads a TOML document; the error has every mistake that can be told apart, one a line.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        Self::parse_for(text, None)
    }

    /// The same, for the replica `name`, whatever name is in the document.
    pub fn parse_for(text: &str, name: Option<&str>) -> Result<Self, Vec<String>> {
        let mut config: Self = toml::from_str(text).map_err(|error| vec![error.to_string()])?;
        if let Some(name) = name {
            name.clone_into(&mut config.name);
        }
        let mistakes = config.mistakes();
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }

    /// The longest that a CSI call may take when its caller sets no deadline.
    pub fn call_timeout(&self) -> Duration {
        Duration::from_secs(u64::from(self.call_timeout_seconds))
    }

    /// How long one side of an overdue migration has to be stale before its node loses the volume.
    pub fn reap_after(&self) -> Duration {
        Duration::from_secs(u64::from(self.reap_after_seconds))
    }

    /// This replica's own entry in `peers`.
    pub fn own_address(&self) -> Option<&str> {
        self.peers.iter().find(|peer| peer.name == self.name).map(|peer| peer.address.as_str())
    }

    fn mistakes(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.name.is_empty() {
            found.push(
                "name: none is given; start with --name or POD_NAME, or put name into the file".to_owned(),
            );
        } else if self.own_address().is_none() {
            let names: Vec<&str> = self.peers.iter().map(|peer| peer.name.as_str()).collect();
            found.push(format!("peers: {:?}, this replica's name, is not among {names:?}", self.name));
        }
        if self.peers.len().is_multiple_of(2) {
            found.push(format!(
                "peers: {} replicas; use an odd number, three by preference",
                self.peers.len()
            ));
        }
        for (index, peer) in self.peers.iter().enumerate() {
            if self
                .peers
                .iter()
                .take(index)
                .any(|other| other.name == peer.name || other.address == peer.address)
            {
                found.push(format!("peers: {} at {} is there twice", peer.name, peer.address));
            }
            if peer.address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()).is_none() {
                found.push(format!("peers: address {:?} is not host:port", peer.address));
            }
        }
        for (name, path) in
            [("tls.ca", &self.tls.ca), ("tls.cert", &self.tls.cert), ("tls.key", &self.tls.key)]
        {
            if let Err(error) = std::fs::File::open(path) {
                found.push(format!("{name}: {}: {error}", path.display()));
            }
        }
        // Making it opens nothing; it checks.
        if let Err(errors) = RouterOs::new(self.appliance.clone()) {
            found.extend(errors.0.into_iter().map(|error| format!("appliance.{error}")));
        }
        if let Err(mistakes) = Topology::parse(&self.topology) {
            found.extend(mistakes.into_iter().map(|mistake| format!("topology: {mistake}")));
        }
        found.extend(self.kubernetes.mistakes());
        found.extend(self.orphans.mistakes());
        if let Some(hotplug) = &self.hotplug {
            found.extend(hotplug.mistakes(self.kubernetes.enabled, &[self.listen, self.metrics_address]));
        }
        if self.call_timeout_seconds == 0 {
            found.push("call_timeout_seconds: must be at least 1".to_owned());
        }
        if self.reap_after_seconds > MAX_REAP_AFTER_SECONDS {
            found.push(format!(
                "reap_after_seconds: {} is not from 0 to {MAX_REAP_AFTER_SECONDS}",
                self.reap_after_seconds
            ));
        }
        let RaftTiming { heartbeat_ms, election_min_ms, election_max_ms } = self.timing;
        if heartbeat_ms == 0 || heartbeat_ms >= election_min_ms || election_min_ms >= election_max_ms {
            found.push("timing: must be 0 < heartbeat_ms < election_min_ms < election_max_ms".to_owned());
        }
        if self.volumes.nvme_port == 0 {
            found.push("volumes.nvme_port: must not be 0".to_owned());
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(peers: &str, rest: &str) -> String {
        format!(
            r#"
            name = "controller-0"
            data_dir = "/nowhere"
            listen = "127.0.0.1:1"
            csi_socket = "/nowhere/csi.sock"
            {rest}
            [tls]
            ca = "/nowhere/ca.pem"
            cert = "/nowhere/cert.pem"
            key = "/nowhere/key.pem"
            [appliance]
            address = "127.0.0.1"
            port = 0
            private_key_file = "/nowhere/key"
            [volumes]
            nvme_address = "127.0.0.1"
            volume_path = "/pool/csi"
            {peers}
            "#
        )
    }

    #[test]
    fn all_mistakes_are_reported_together() {
        let peers = r#"
            [[peers]]
            name = "a"
            address = "x"
            [[peers]]
            name = "a"
            address = "y:1"
        "#;
        let mistakes = ControllerConfig::parse(&config(
            peers,
            "call_timeout_seconds = 0\nreap_after_seconds = 601\ntiming = { heartbeat_ms = 200 }\n\
             topology = { \"a.example/zone\" = \"\", \"b.example/rack\" = \"7\" }\n\
             orphans = { interval_seconds = 0, grace_seconds = 0, max_per_pass = 1001 }\n\
             kubernetes.node_tokens = { audience = \"\", namespace = \"n\", service_account = \"s\" }\n\
             hotplug = { max_hold_seconds = 0, kubevirt_namespace = \"KubeVirt\" }",
        ))
        .unwrap_err();
        for part in [
            "this replica's name",
            "2 replicas",
            "is there twice",
            "\"x\" is not host:port",
            "tls.ca",
            "tls.key",
            "appliance.port",
            "call_timeout_seconds",
            "reap_after_seconds: 601 is not",
            "kubernetes.node_tokens: needs",
            "orphans.interval_seconds: 0 is not",
            "orphans.grace_seconds: 0 is not",
            "orphans.max_per_pass: 1001 is not",
            "kubernetes.node_tokens.audience",
            "hotplug: needs kubernetes.enabled",
            "hotplug.max_hold_seconds: 0 is not",
            "hotplug.kubevirt_namespace: \"KubeVirt\"",
            "timing:",
            "topology: the value \"\" of \"a.example/zone\"",
            "topology: the keys have the prefixes",
        ] {
            assert!(mistakes.iter().any(|mistake| mistake.contains(part)), "{part} is not in {mistakes:#?}");
        }
    }

    #[test]
    fn a_name_from_outside_wins_and_one_is_needed() {
        let text = config("[[peers]]\nname = \"a\"\naddress = \"a:1\"", "");
        let named = |text: &str, name: Option<&str>| {
            let mistakes = ControllerConfig::parse_for(text, name).unwrap_err();
            let of_name =
                |mistake: &String| mistake.starts_with("name:") || mistake.contains("replica's name");
            mistakes.into_iter().find(of_name).unwrap_or_default()
        };
        assert!(named(&text, None).contains("\"controller-0\""), "the file's");
        assert!(named(&text, Some("controller-7")).contains("\"controller-7\""));
        let nameless = text.replace("name = \"controller-0\"", "");
        assert!(named(&nameless, None).starts_with("name: none is given"));
        assert!(named(&nameless, Some("controller-7")).contains("\"controller-7\""));
    }

    #[test]
    fn an_unknown_setting_is_a_mistake() {
        let mistakes = ControllerConfig::parse(&config("", "call_timeout = 3")).unwrap_err();
        assert!(mistakes[0].contains("unknown field `call_timeout`"), "{mistakes:?}");
    }

    #[test]
    fn no_orphan_is_removed_unless_two_settings_say_so() {
        let OrphansConfig { enabled, dry_run, .. } = OrphansConfig::default();
        assert!(!enabled && dry_run);
        let only_enabled: OrphansConfig = toml::from_str("enabled = true").unwrap();
        assert!(only_enabled.dry_run);
    }

    #[test]
    fn the_default_nqn_prefix_is_the_go_drivers() {
        assert_eq!(default_nqn_prefix().as_str(), "nqn.2000-02.com.mikrotik");
    }
}
