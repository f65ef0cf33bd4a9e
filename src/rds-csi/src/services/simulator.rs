//! The simulated appliance's settings file.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use routeros_simulator::{Latencies, NvmetTarget, Pool, SimulatorConfig};
use serde::{Deserialize, Serialize};

/// How a simulated appliance is set up, as its TOML file gives it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SimulatorSettings {
    /// Where it serves SSH.
    pub(crate) listen: SocketAddr,
    /// How long its commands take.
    #[serde(default)]
    pub(crate) latencies: SimulatedLatencies,
    /// Public keys that may log in, as OpenSSH lines.
    pub(crate) authorized_keys: Vec<String>,
    /// Keeps the host key; a new one each time without it.
    pub(crate) host_key_file: Option<PathBuf>,
    /// Keeps disks, files and scripts; forgotten at each end without it.
    pub(crate) state_file: Option<PathBuf>,
    /// Where each disk's file is a real sparse file; sizes only without it.
    pub(crate) backing_directory: Option<PathBuf>,
    /// What really exports that which it exports; nothing does without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) exporter: Option<SimulatedExporter>,
    /// Its storage pools.
    pub(crate) pools: Vec<SimulatedPool>,
}

/// What really exports that which a simulated appliance exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum SimulatedExporter {
    /// Linux' own NVMe/TCP target, on this machine; root, and the modules nvmet and nvmet-tcp.
    Nvmet {
        /// The address that it listens on; the port is the disk's.
        listen: IpAddr,
    },
}

/// How long a simulated appliance's commands take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SimulatedLatencies {
    /// No time.
    None,
    /// What was measured on hardware.
    #[default]
    AsMeasured,
}

/// A simulated storage pool.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SimulatedPool {
    /// Its slot and its mount point.
    pub(crate) name: String,
    /// Its size, in bytes.
    pub(crate) size_bytes: u64,
}

impl SimulatorSettings {
    /// Reads a TOML document, or says all that is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, Vec<String>> {
        let settings: Self = toml::from_str(text).map_err(|error| vec![error.to_string()])?;
        let mut mistakes = Vec::new();
        if settings.authorized_keys.is_empty() {
            mistakes.push("authorized_keys: without a key nobody can log in".to_owned());
        }
        if settings.pools.is_empty() {
            mistakes.push("pools: without a pool no disk has room".to_owned());
        }
        if settings.exporter.is_some() && settings.backing_directory.is_none() {
            mistakes.push("exporter: without a backing_directory there is nothing to export".to_owned());
        }
        if mistakes.is_empty() { Ok(settings) } else { Err(mistakes) }
    }

    /// The simulator's own form of it.
    pub(crate) fn into_config(self) -> SimulatorConfig {
        let pool = |pool: SimulatedPool| Pool {
            slot: pool.name.clone(),
            mount_point: pool.name,
            size_bytes: pool.size_bytes,
            free_bytes: pool.size_bytes,
        };
        SimulatorConfig {
            listen: self.listen,
            authorized_keys: self.authorized_keys,
            host_key_file: self.host_key_file,
            backing_directory: self.backing_directory,
            exporter: self.exporter.map(|exporter| match exporter {
                SimulatedExporter::Nvmet { listen } => NvmetTarget::of_this_machine(listen),
            }),
            state_file: self.state_file,
            pools: self.pools.into_iter().map(pool).collect(),
            latencies: match self.latencies {
                SimulatedLatencies::None => Latencies::NONE,
                SimulatedLatencies::AsMeasured => Latencies::AS_MEASURED,
            },
            ..SimulatorConfig::default()
        }
    }
}
