//! The simulated appliance, inside this process: its own log says what really changed, and in which order.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rds_csi::dev::ApplianceElsewhere;
use routeros_simulator::{
    Effect, Latencies, LogEntry, Pool, Simulator, SimulatorConfig, generate_client_key,
};

use super::clock::Epoch;
use crate::history::{ApplianceChange, Micros, Mutation};

/// Where a cluster's files are on its appliance, as `rds-csi dev` has it.
const POOL: &str = "storage-pool";
/// Its size, in bytes.
const POOL_BYTES: u64 = 8 << 40;
/// How long commands take: a fifth of what was measured on hardware, so that a kill falls into one often enough.
const LATENCIES: Latencies = Latencies {
    print: Duration::from_millis(15),
    add: Duration::from_millis(80),
    remove: Duration::from_millis(110),
    set: Duration::from_millis(20),
};
/// A term is above this bit of a fence's number, the number in the term below it.
const TERM_SHIFT: u32 = 32;

/// The appliance, and when it was started.
#[derive(Debug)]
pub(super) struct Appliance {
    pub(super) simulator: Simulator,
    started: Micros,
}

impl Appliance {
    /// Starts it at `ip`, with the keys of the cluster that will be made in `directory`.
    pub(super) async fn start(directory: &Path, ip: IpAddr, epoch: Epoch) -> Result<Self> {
        let keys = directory.join("ssh");
        fs::create_dir_all(&keys).with_context(|| format!("cannot make {}", keys.display()))?;
        let key = |name: &str| {
            let line = generate_client_key(&keys.join(name)).context("cannot make a key")?;
            fs::write(keys.join(format!("{name}.pub")), format!("{line}\n")).context("cannot write a key")?;
            Ok::<_, anyhow::Error>(line)
        };
        let client = key("client")?;
        key("host")?;
        let pool = Pool {
            slot: POOL.to_owned(),
            mount_point: POOL.to_owned(),
            size_bytes: POOL_BYTES,
            free_bytes: POOL_BYTES,
        };
        let config = SimulatorConfig {
            listen: SocketAddr::new(ip, 0),
            authorized_keys: vec![client],
            host_key_file: Some(keys.join("host")),
            pools: vec![pool],
            latencies: LATENCIES,
            ..SimulatorConfig::default()
        };
        let started = epoch.now();
        let simulator = Simulator::start(config).await.context("cannot start the simulated appliance")?;
        Ok(Self { simulator, started })
    }

    /// Where controllers and nodes find it.
    pub(super) fn place(&self) -> ApplianceElsewhere {
        let ssh = self.simulator.address();
        ApplianceElsewhere { ssh, nvme_address: ssh.ip() }
    }

    /// Everything that changed on it, in its own order.
    pub(super) fn mutations(&self) -> Vec<Mutation> {
        let mut disks = BTreeMap::new();
        self.simulator.log().iter().flat_map(|entry| self.mutations_of(entry, &mut disks)).collect()
    }

    fn mutations_of(&self, entry: &LogEntry, disks: &mut BTreeMap<String, (u64, bool)>) -> Vec<Mutation> {
        let (volume, changes) = match &entry.effect {
            Effect::DiskAdded { slot, size_bytes, exported } => {
                disks.insert(slot.clone(), (*size_bytes, *exported));
                let changes = exported.then_some(ApplianceChange::Exported);
                (slot, std::iter::once(ApplianceChange::Created).chain(changes).collect())
            }
            Effect::DiskSet { slot, size_bytes, exported } => {
                let before = disks.insert(slot.clone(), (*size_bytes, *exported)).unwrap_or_default();
                let mut changes = Vec::new();
                match (before.1, *exported) {
                    (false, true) => changes.push(ApplianceChange::Exported),
                    (true, false) => changes.push(ApplianceChange::Unexported),
                    (true, true) | (false, false) => {}
                }
                if *size_bytes > before.0 {
                    changes.push(ApplianceChange::Grown);
                }
                (slot, changes)
            }
            Effect::DiskRemoved { slot } => {
                disks.remove(slot);
                (slot, vec![ApplianceChange::Removed])
            }
            Effect::FileRemoved { .. } | Effect::ScriptSet { .. } | Effect::ScriptRemoved { .. } => {
                return Vec::new();
            }
        };
        let of = |change| Mutation {
            at: self.started + entry.at_ms * 1_000,
            term: entry.fence.map(|fence| fence >> TERM_SHIFT),
            sequence: entry.fence.map(|fence| fence & ((1 << TERM_SHIFT) - 1)),
            volume: volume.clone(),
            change,
        };
        changes.into_iter().map(of).collect()
    }

    /// Sizes in bytes of its disks, and whether they are exported.
    pub(super) fn volumes(&self) -> BTreeMap<String, (u64, bool)> {
        let disks = self.simulator.disks().into_iter();
        disks.map(|disk| (disk.slot, (disk.size_bytes, disk.exported))).collect()
    }
}
