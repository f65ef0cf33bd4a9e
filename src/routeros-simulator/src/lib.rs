//! A simulated MikroTik ROSE Data Server: an SSH server that speaks as much RouterOS as a storage driver needs.
//!
//! It stands in for the hardware in tests and in a cluster on one machine. What it says and does follows captures
//! and reports of real appliances; where they are silent it takes the harsher guess, or can be set either way
//! ([`SimulatorConfig`]). Scripts run one at a time under one lock. That two scripts never interleave is an
//! **assumption about hardware** that nobody has proven.
//!
//! Life cycle: [`Simulator::start`] binds and serves in the background; tests [`inject`](Simulator::inject) faults,
//! hold commands back and deliver them late, and read [`disks`](Simulator::disks) and [`log`](Simulator::log);
//! [`shutdown`](Simulator::shutdown) or dropping it ends it. With a state file, a host key file and a backing
//! directory a restarted process comes back as the same appliance.
//!
//! - `server`: logins, commands, faults on their way
//! - `script`: the interpreter
//! - `appliance`, `backing`: what is stored
//! - `exporter`: exports that are real
//! - `print`: the human form

mod appliance;
mod backing;
mod config;
mod exporter;
mod fault;
mod keys;
mod log;
mod print;
mod script;
mod server;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use std::{fmt, io};

use russh::keys::PublicKey;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use appliance::SimulatedDisk;
pub use config::{ErrorStream, Latencies, Pool, PrintStyle, SimulatorConfig, Wrap};
pub use exporter::NvmetTarget;
pub use fault::{Fault, Scope};
pub use keys::generate_client_key;
pub use log::{Effect, LogEntry};

use appliance::{Appliance, Contents};
use backing::Backing;
use exporter::Exporter;
use fault::Faults;
use script::ast::Menu;
use server::{Machine, Shared};

/// Why a simulator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A line of `authorized_keys` is no public key.
    #[error("authorized key {line:?} is no OpenSSH public key")]
    AuthorizedKey {
        /// The line.
        line: String,
    },
    /// The host key cannot be read or made.
    #[error("cannot read or make the host key: {0}")]
    HostKey(#[source] io::Error),
    /// The state file cannot be read.
    #[error("cannot read the state file: {0}")]
    State(#[source] io::Error),
    /// What it exports cannot really be exported.
    #[error("cannot export what it holds: {0}")]
    Export(#[source] io::Error),
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// What `/disk print detail` prints on an appliance that has `disks` and no pool.
pub fn print_disks(disks: &[SimulatedDisk], style: &PrintStyle) -> String {
    let mut appliance = Appliance::new(Contents::default(), Vec::new(), Backing::new(None));
    disks.iter().for_each(|disk| appliance.plant_disk(disk.clone()));
    print::human(Menu::Disk, &appliance.items(Menu::Disk), style)
}

/// A running simulated appliance.
pub struct Simulator {
    shared: Arc<Shared>,
    address: SocketAddr,
    host_public_key: String,
}

impl Simulator {
    /// Starts a simulated appliance in the background of the current Tokio runtime.
    pub async fn start(config: SimulatorConfig) -> Result<Self, StartError> {
        let authorized = config
            .authorized_keys
            .iter()
            .map(|line| {
                PublicKey::from_openssh(line).map_err(|_| StartError::AuthorizedKey { line: line.clone() })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let host_key = keys::host_key(config.host_key_file.as_deref()).map_err(StartError::HostKey)?;
        let host_public_key =
            host_key.public_key().to_openssh().map_err(|e| StartError::HostKey(io::Error::other(e)))?;
        let contents = backing::load(config.state_file.as_deref()).map_err(StartError::State)?;
        let backing = Backing::new(config.backing_directory.clone());
        let listen_error = |error| StartError::Listen { address: config.listen, error };
        let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let stop = CancellationToken::new();
        let mut appliance = Appliance::new(contents, config.pools.clone(), backing);
        if let Some(target) = &config.exporter {
            let exporter =
                Exporter::start(target.clone(), &appliance.exports()).map_err(StartError::Export)?;
            appliance.export_with(exporter);
        }
        let machine = Machine {
            appliance,
            faults: Faults::default(),
            held: Vec::new(),
            log: Vec::new(),
            commands_seen: 0,
            commands_run: 0,
            connections_seen: 0,
            refuses_connections: false,
            cut: stop.child_token(),
        };
        let shared = Arc::new(Shared {
            config,
            authorized,
            started: Instant::now(),
            machine: Mutex::new(machine),
            stop,
        });
        tokio::spawn(server::listen(shared.clone(), listener, Arc::new(server::ssh_config(host_key))));
        Ok(Self { shared, address, host_public_key })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its host key, as an OpenSSH line.
    pub fn host_public_key(&self) -> &str {
        &self.host_public_key
    }

    /// Its file-backed disks.
    pub fn disks(&self) -> Vec<SimulatedDisk> {
        self.shared.machine().appliance.disks()
    }

    /// Its files: sizes in bytes by name, without a leading `/`.
    pub fn files(&self) -> BTreeMap<String, u64> {
        self.shared.machine().appliance.files()
    }

    /// Everything that changed since it started, in order.
    pub fn log(&self) -> Vec<LogEntry> {
        self.shared.machine().log.clone()
    }

    /// How many commands arrived since it started, whatever became of them.
    pub fn commands_seen(&self) -> u64 {
        self.shared.machine().commands_seen
    }

    /// How many connections were made since it started, refused ones too.
    pub fn connections_seen(&self) -> u64 {
        self.shared.machine().connections_seen
    }

    /// How many commands ran since it started, late ones too, whether they changed anything or not.
    pub fn commands_run(&self) -> u64 {
        self.shared.machine().commands_run
    }

    /// Puts a disk and its file there, unchecked.
    pub fn plant_disk(&self, disk: SimulatedDisk) {
        self.shared.machine().appliance.plant_disk(disk);
    }

    /// Puts a file without a disk there, unchecked.
    pub fn plant_file(&self, name: &str, size_bytes: u64) {
        self.shared.machine().appliance.plant_file(name, size_bytes);
    }

    /// Lets `fault` strike the next `count` commands in `scope`.
    pub fn inject(&self, fault: Fault, scope: Scope, count: u32) {
        self.shared.machine().faults.arm(fault, scope, count);
    }

    /// Takes back the faults that have not struck.
    pub fn clear_faults(&self) {
        self.shared.machine().faults.clear();
    }

    /// How many commands the faults that are armed still strike.
    pub fn armed_faults(&self) -> u32 {
        self.shared.machine().faults.left()
    }

    /// Whether new connections are dropped as soon as they are made.
    pub fn refuse_connections(&self, refuse: bool) {
        self.shared.machine().refuses_connections = refuse;
    }

    /// How many commands are held back.
    pub fn held(&self) -> usize {
        self.shared.machine().held.len()
    }

    /// Runs the commands that are held back, in order, as if they arrived only now. Returns how many.
    pub fn deliver_held(&self) -> usize {
        self.shared.deliver_held()
    }

    /// Drops all connections and makes all exports anew, as a restart does; what is stored stays.
    pub fn restart(&self) {
        let mut machine = self.shared.machine();
        machine.appliance.withdraw_exports();
        machine.appliance.export_again();
        let next = self.shared.stop.child_token();
        std::mem::replace(&mut machine.cut, next).cancel();
    }

    /// Ends it: connections drop, the address is free again, nothing is exported any more.
    pub fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.machine().appliance.withdraw_exports();
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl fmt::Debug for Simulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulator").field("address", &self.address).finish_non_exhaustive()
    }
}
