//! What the test binaries share: a simulated appliance with keys, and specs.

// Each test binary uses its own part.
#![allow(dead_code, unreachable_pub)]

use std::time::Duration;

use backend::{Backend, Disk, DiskSpec, RouterOs, RouterOsConfig};
use routeros_simulator::{Simulator, SimulatorConfig, generate_client_key};
use state_machine::{AppliancePath, ByteSize, HostAddress, Nqn, VolumeId};
use tempfile::TempDir;

pub const GIB: u64 = 1 << 30;

/// A simulated appliance and the key that may log in.
pub struct Lab {
    pub simulator: Simulator,
    directory: TempDir,
}

impl Lab {
    pub async fn start(config: SimulatorConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let public = generate_client_key(&directory.path().join("key")).unwrap();
        let config = SimulatorConfig { authorized_keys: vec![public], ..config };
        Self { simulator: Simulator::start(config).await.unwrap(), directory }
    }

    /// A config for this appliance with limits that suit tests.
    pub fn config(&self) -> RouterOsConfig {
        let address = self.simulator.address();
        RouterOsConfig {
            port: address.port(),
            connect_timeout_ms: 2_000,
            read_timeout_ms: 2_000,
            change_timeout_ms: 2_000,
            operation_timeout_ms: 10_000,
            ..RouterOsConfig::new(
                HostAddress::parse(&address.ip().to_string()).unwrap(),
                self.directory.path().join("key"),
                vec![self.simulator.host_public_key().to_owned()],
            )
        }
    }

    pub fn connect(&self) -> RouterOs {
        RouterOs::new(self.config()).unwrap()
    }

    /// A leader that has begun `term`.
    pub async fn leader(&self, term: u64) -> RouterOs {
        let leader = self.connect();
        leader.begin_term(term).await.unwrap();
        leader
    }

    /// Slots and sizes of the disks that the appliance has.
    pub fn slots(&self) -> Vec<(String, u64)> {
        self.simulator.disks().into_iter().map(|disk| (disk.slot, disk.size_bytes)).collect()
    }

    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }
}

pub fn volume(name: &str) -> VolumeId {
    VolumeId::parse(name).unwrap()
}

pub fn directory() -> AppliancePath {
    AppliancePath::parse("/storage-pool/csi").unwrap()
}

pub fn spec(name: &str, size_bytes: u64) -> DiskSpec {
    let volume = volume(name);
    let prefix = Nqn::parse("nqn.2000-02.com.mikrotik").unwrap();
    DiskSpec {
        nqn: Nqn::of_volume(&prefix, &volume).unwrap(),
        volume,
        directory: directory(),
        size: ByteSize::exactly(size_bytes).unwrap(),
        nvme_port: 4420,
    }
}

/// The disk that `spec` asks for, as it looks when it is complete.
pub fn disk_of(spec: &DiskSpec) -> Disk {
    Disk {
        volume: spec.volume.clone(),
        file_path: spec.file_path(),
        size_bytes: spec.size.bytes(),
        exported: true,
        nqn: Some(spec.nqn.clone()),
        nvme_port: Some(spec.nvme_port),
        mounted_by_appliance: false,
    }
}

/// Waits until `holds`; panics with `what` after some seconds.
pub async fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
