//! How a RouterOS appliance is reached.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use russh::keys::{PrivateKey, PublicKey, load_secret_key};
use schemars::JsonSchema;
use serde::Deserialize;
use state_machine::HostAddress;

use super::script::FenceName;

/// Most sessions that may be asked for; the appliance blocks long before.
const MAX_SESSIONS: usize = 64;
/// The longest time limit that makes sense, in ms.
const MAX_TIMEOUT_MS: u64 = 600_000;

/// How a RouterOS appliance is reached. Field names are those of the configuration file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouterOsConfig {
    /// Its management address.
    #[schemars(with = "String")]
    pub address: HostAddress,
    /// Its SSH port.
    #[serde(default = "defaults::port")]
    pub port: u16,
    /// The user that logs in. It needs the policies ssh, read, write, policy and test.
    #[serde(default = "defaults::user")]
    pub user: String,
    /// The file with the user's private key, in OpenSSH's format.
    pub private_key_file: PathBuf,
    /// The appliance's host keys, as OpenSSH lines. A host key that is neither here nor in `host_key_file` is refused.
    #[serde(default)]
    pub host_keys: Vec<String>,
    /// A file with more of them, one a line.
    #[serde(default)]
    pub host_key_file: Option<PathBuf>,
    /// The name of the script object that keeps the fence. One a driver installation.
    #[serde(default = "defaults::fence_name")]
    pub fence_name: String,
    /// How many commands may be in flight.
    #[serde(default = "defaults::max_sessions")]
    pub max_sessions: usize,
    /// Limit for connecting and logging in, in ms.
    #[serde(default = "defaults::connect_timeout_ms")]
    pub connect_timeout_ms: u64,
    /// Limit for a command that reads, in ms.
    #[serde(default = "defaults::read_timeout_ms")]
    pub read_timeout_ms: u64,
    /// Limit for a command that changes something, in ms.
    #[serde(default = "defaults::change_timeout_ms")]
    pub change_timeout_ms: u64,
    /// Limit for a whole call with its tries, in ms.
    #[serde(default = "defaults::operation_timeout_ms")]
    pub operation_timeout_ms: u64,
}

mod defaults {
    pub(super) fn port() -> u16 {
        22
    }
    pub(super) fn user() -> String {
        "rds-csi".to_owned()
    }
    pub(super) fn fence_name() -> String {
        "rds-csi-fence".to_owned()
    }
    pub(super) fn max_sessions() -> usize {
        4
    }
    pub(super) fn connect_timeout_ms() -> u64 {
        5_000
    }
    pub(super) fn read_timeout_ms() -> u64 {
        10_000
    }
    pub(super) fn change_timeout_ms() -> u64 {
        30_000
    }
    pub(super) fn operation_timeout_ms() -> u64 {
        60_000
    }
}

impl RouterOsConfig {
    /// A config with defaults for all but what has none.
    pub fn new(address: HostAddress, private_key_file: PathBuf, host_keys: Vec<String>) -> Self {
        Self {
            address,
            port: defaults::port(),
            user: defaults::user(),
            private_key_file,
            host_keys,
            host_key_file: None,
            fence_name: defaults::fence_name(),
            max_sessions: defaults::max_sessions(),
            connect_timeout_ms: defaults::connect_timeout_ms(),
            read_timeout_ms: defaults::read_timeout_ms(),
            change_timeout_ms: defaults::change_timeout_ms(),
            operation_timeout_ms: defaults::operation_timeout_ms(),
        }
    }
}

/// Everything that is wrong with a [`RouterOsConfig`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for ConfigErrors {}

/// A config that was checked.
pub(super) struct Settings {
    pub(super) address: HostAddress,
    pub(super) port: u16,
    pub(super) user: String,
    pub(super) private_key: PrivateKey,
    pub(super) host_keys: Vec<PublicKey>,
    pub(super) fence: FenceName,
    pub(super) max_sessions: usize,
    pub(super) connect_timeout: Duration,
    pub(super) read_timeout: Duration,
    pub(super) change_timeout: Duration,
    pub(super) operation_timeout: Duration,
}

impl Settings {
    /// Checks `config` and reads the key files; reports all mistakes together.
    pub(super) fn check(config: RouterOsConfig) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        let host_keys = host_keys(&config, &mut errors);
        let private_key = load_secret_key(&config.private_key_file, None)
            .map_err(|error| {
                errors.push(format!("private_key_file {}: {error}", config.private_key_file.display()));
            })
            .ok();
        let fence = FenceName::parse(&config.fence_name);
        if fence.is_none() {
            errors.push("fence_name: must be 1 to 64 letters, digits, '-', '_' and '.'".to_owned());
        }
        if config.user.is_empty() || config.user.chars().any(char::is_control) {
            errors.push("user: must not be empty nor have control characters".to_owned());
        }
        if config.port == 0 {
            errors.push("port: must not be 0".to_owned());
        }
        if !(1..=MAX_SESSIONS).contains(&config.max_sessions) {
            errors.push(format!("max_sessions: must be 1 to {MAX_SESSIONS}"));
        }
        let mut timeout = |name: &str, ms: u64| {
            if !(1..=MAX_TIMEOUT_MS).contains(&ms) {
                errors.push(format!("{name}: must be 1 to {MAX_TIMEOUT_MS}"));
            }
            Duration::from_millis(ms)
        };
        let connect_timeout = timeout("connect_timeout_ms", config.connect_timeout_ms);
        let read_timeout = timeout("read_timeout_ms", config.read_timeout_ms);
        let change_timeout = timeout("change_timeout_ms", config.change_timeout_ms);
        let operation_timeout = timeout("operation_timeout_ms", config.operation_timeout_ms);
        match (private_key, fence) {
            (Some(private_key), Some(fence)) if errors.is_empty() => Ok(Self {
                address: config.address,
                port: config.port,
                user: config.user,
                private_key,
                host_keys,
                fence,
                max_sessions: config.max_sessions,
                connect_timeout,
                read_timeout,
                change_timeout,
                operation_timeout,
            }),
            _ => Err(ConfigErrors(errors)),
        }
    }
}

fn host_keys(config: &RouterOsConfig, errors: &mut Vec<String>) -> Vec<PublicKey> {
    let mut lines = config.host_keys.clone();
    if let Some(path) = &config.host_key_file {
        match std::fs::read_to_string(path) {
            Ok(text) => lines.extend(text.lines().map(str::to_owned)),
            Err(error) => errors.push(format!("host_key_file {}: {error}", path.display())),
        }
    }
    let mut keys = Vec::new();
    for line in lines.iter().map(|line| line.trim()).filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        match PublicKey::from_openssh(line) {
            Ok(key) => keys.push(key),
            Err(error) => errors.push(format!("host key {line:?}: {error}")),
        }
    }
    if keys.is_empty() && errors.is_empty() {
        errors.push("host_keys: the appliance's host key is required".to_owned());
    }
    keys
}
