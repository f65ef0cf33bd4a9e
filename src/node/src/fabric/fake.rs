//! The fake fabric: a connection is a plain file. No root, no data; everything it does is logged as fake.
//!
//! `connected/<volume>` under the fake machine's directory says that the volume is connected; `held/<volume>`, put
//! there by whoever plays the process that has the device open, holds the name of that process.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use state_machine::VolumeId;
use tokio::fs;

use super::{Connect, Connections, Device, DeviceId, Fabric, FabricError, Observed};
use crate::fake_machine::FakeMachine;
use crate::in_use::Incomplete;

/// Size of a fake device until it is grown, in bytes.
const FAKE_DEVICE_BYTES: u64 = 1 << 30;

/// What the file of a fake connection says.
#[derive(Debug, Serialize, Deserialize)]
struct Connection {
    nqn: String,
    address: String,
    size_bytes: u64,
    /// In which state the connection is, put there by whoever plays a lost one.
    #[serde(default)]
    lost: Option<String>,
}

/// Connections that are files.
#[derive(Debug, Clone)]
pub(crate) struct FakeFabric {
    machine: FakeMachine,
}

impl FakeFabric {
    /// The fabric of `machine`.
    pub(crate) fn new(machine: FakeMachine) -> Self {
        Self { machine }
    }

    fn file(&self, volume: &VolumeId) -> PathBuf {
        self.machine.connected().join(volume.as_str())
    }

    async fn write(&self, volume: &VolumeId, connection: &Connection) -> Result<Device, FabricError> {
        let unreachable = |reason: String| FabricError::Unreachable { volume: volume.clone(), reason };
        let text = toml::to_string(connection).map_err(|error| unreachable(error.to_string()))?;
        self.machine
            .write(&self.file(volume), &text)
            .await
            .map_err(|error| unreachable(format!("fake connection: {error}")))?;
        Ok(self.device(volume, connection))
    }

    fn device(&self, volume: &VolumeId, connection: &Connection) -> Device {
        Device {
            volume: volume.clone(),
            id: DeviceId::Fake(volume.clone()),
            path: self.file(volume),
            size_bytes: connection.size_bytes,
        }
    }

    fn end(&self, volume: &VolumeId) -> Result<(), FabricError> {
        // Before it ends: whoever is told of the end may act on it at once.
        let at_ns = FakeMachine::now_ns();
        match std::fs::remove_file(self.file(volume)) {
            Ok(()) => {
                self.note(at_ns, "disconnected", volume);
                tracing::info!(%volume, "fake connection ended");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(FabricError::StillThere { volume: volume.clone(), reason: error.to_string() });
            }
        }
        Ok(())
    }

    /// For those who watch the machine; what is connected is in the files.
    fn note(&self, at_ns: u64, change: &str, volume: &VolumeId) {
        if let Err(error) = self.machine.note(at_ns, change, volume.as_str()) {
            tracing::warn!(%volume, %error, "the fake machine's journal lacks a line");
        }
    }

    async fn read(&self, volume: &VolumeId) -> Result<Option<Connection>, FabricError> {
        let unknown = |reason: String| FabricError::Unknown { volume: volume.clone(), reason };
        match fs::read_to_string(self.file(volume)).await {
            Ok(text) => toml::from_str(&text).map(Some).map_err(|error| unknown(error.message().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unknown(error.to_string())),
        }
    }
}

#[async_trait]
impl Fabric for FakeFabric {
    fn name(&self) -> &'static str {
        "fake"
    }

    async fn find(&self, volume: &VolumeId) -> Result<Observed, FabricError> {
        Ok(match self.read(volume).await? {
            None => Observed::Absent,
            Some(connection) => Observed::Known(self.device(volume, &connection)),
        })
    }

    async fn connect(&self, connect: &Connect) -> Result<Device, FabricError> {
        if let Observed::Known(device) = self.find(&connect.volume).await? {
            return Ok(device);
        }
        let address = format!("{}:{}", connect.address, connect.port);
        tracing::info!(volume = %connect.volume, address, "fake connection made");
        let connection =
            Connection { nqn: connect.nqn.to_string(), address, size_bytes: FAKE_DEVICE_BYTES, lost: None };
        let at_ns = FakeMachine::now_ns();
        let device = self.write(&connect.volume, &connection).await?;
        self.note(at_ns, "connected", &connect.volume);
        Ok(device)
    }

    async fn rescan(&self, device: &Device, at_least_bytes: u64) -> Result<Device, FabricError> {
        match self.read(&device.volume).await? {
            None => Err(FabricError::Unreachable {
                volume: device.volume.clone(),
                reason: "the fake device is gone".to_owned(),
            }),
            Some(mut connection) => {
                connection.size_bytes = connection.size_bytes.max(at_least_bytes);
                self.write(&device.volume, &connection).await
            }
        }
    }

    async fn disconnect_unheld(&self, device: &Device) -> Result<Vec<String>, FabricError> {
        let volume = &device.volume;
        let unseen = |error: io::Error| FabricError::HoldersUnseen {
            volume: volume.clone(),
            reason: error.to_string(),
        };
        // To the end of the connection: the kernel's claim is as exclusive. Whoever holds the lock waits for nothing.
        let _nobody_opens_it = self.machine.lock_held().map_err(unseen)?;
        match std::fs::read_to_string(self.machine.held().join(volume.as_str())) {
            Ok(holder) => Ok(vec![format!("simulated process {}", holder.trim())]),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.end(volume)?;
                Ok(Vec::new())
            }
            Err(error) => Err(unseen(error)),
        }
    }

    async fn holders(&self, devices: &[Device]) -> Result<BTreeMap<VolumeId, Vec<String>>, Incomplete> {
        let mut held = BTreeMap::new();
        for Device { volume, .. } in devices {
            match fs::read_to_string(self.machine.held().join(volume.as_str())).await {
                Ok(holder) => {
                    held.insert(volume.clone(), vec![format!("simulated process {}", holder.trim())]);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(held)
    }

    async fn disconnect(&self, volume: &VolumeId) -> Result<(), FabricError> {
        self.end(volume)
    }

    async fn exists(&self, id: &DeviceId) -> Result<bool, FabricError> {
        match id {
            DeviceId::Number { .. } => Ok(false),
            DeviceId::Fake(volume) => Ok(self.read(volume).await?.is_some()),
        }
    }

    async fn connections(&self) -> Result<Connections, FabricError> {
        let names = self.machine.names_in(&self.machine.connected()).await.map_err(FabricError::Unseen)?;
        let mut connections = Connections::default();
        for name in names {
            let Ok(volume) = VolumeId::parse(&name) else {
                connections.foreign.push(name);
                continue;
            };
            if let Some(connection) = self.read(&volume).await? {
                let device = Some(self.device(&volume, &connection));
                let live = connection.lost.is_none();
                let state = connection.lost.unwrap_or_else(|| "fake".to_owned());
                connections.volumes.push(super::Connection { volume, device, live, state });
            }
        }
        Ok(connections)
    }
}
