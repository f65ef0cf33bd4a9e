//! The look that a report rests on: what is connected, who uses it, what is about to be connected.
//!
//! What could not be seen is said so, volume by volume if possible. That a volume is left out of a complete report is
//! taken for a proof that it is not connected, so the order of the steps matters:
//!
//! 1. the moment: whatever the node is permitted after it, the ledger does not take this look for an answer to;
//! 2. the operations under way: one that was permitted to connect before the moment either is among them, or has ended;
//! 3. the connections: what has ended shows here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use proto::node::v1::VolumeReport;
use state_machine::VolumeId;

use crate::fabric::{Connections, Device, DeviceId};
use crate::operations::Operations;
use crate::reconcile::Usage;
use crate::volumes::NodeVolumes;

/// Looks at one node.
#[derive(Clone)]
pub(super) struct Lookout {
    pub(super) volumes: NodeVolumes,
    pub(super) operations: Arc<Operations>,
    pub(super) kubelet_directory: PathBuf,
}

/// What was seen, and when the look began.
#[derive(Debug, Clone)]
pub(super) struct Look {
    pub(super) since_boot_ns: u64,
    pub(super) content: Content,
    /// The connections, to be compared with.
    pub(super) outline: Option<Outline>,
}

/// What a report says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Content {
    /// Why not everything could be seen; empty if it could.
    pub(super) incomplete: String,
    pub(super) volumes: Vec<VolumeReport>,
}

impl Content {
    /// Whether all could be seen.
    pub(super) fn is_complete(&self) -> bool {
        self.incomplete.is_empty() && self.volumes.iter().all(|volume| volume.unseen.is_empty())
    }
}

/// As much of the connections as changes when they do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outline(Vec<(VolumeId, Option<DeviceId>, String)>);

impl Outline {
    fn of(connections: &Connections) -> Self {
        let line = |connection: &crate::fabric::Connection| {
            let device = connection.device.as_ref().map(|device| device.id.clone());
            (connection.volume.clone(), device, connection.state.clone())
        };
        Self(connections.volumes.iter().map(line).collect())
    }
}

impl Lookout {
    /// Looks at everything. `held` is what attempts to cut have found since the last look: it may be what only they see.
    pub(super) async fn look(&self, held: &BTreeMap<VolumeId, Vec<String>>) -> Look {
        let since_boot_ns = self.volumes.identity.moment().since_boot_ns;
        let mut reports = Reports::default();
        for volume in self.operations.running() {
            reports.of(&volume).busy = true;
        }
        let mut outline = None;
        match self.volumes.fabric.connections().await {
            Err(error) => reports.incomplete = error.to_string(),
            Ok(connections) => {
                outline = Some(Outline::of(&connections));
                self.report(&connections, held, &mut reports).await;
            }
        }
        Look { since_boot_ns, content: reports.into_content(), outline }
    }

    /// The connections only; `None` if they cannot be seen.
    pub(super) async fn outline(&self) -> Option<Outline> {
        self.volumes.fabric.connections().await.ok().as_ref().map(Outline::of)
    }

    async fn report(
        &self,
        connections: &Connections,
        held: &BTreeMap<VolumeId, Vec<String>>,
        reports: &mut Reports,
    ) {
        if !connections.nameless.is_empty() {
            let names = connections.nameless.join(", ");
            reports.incomplete = format!("it is not known what {names} is connected to");
        }
        for (volume, why) in &connections.unclear {
            reports.of(volume).unseen.clone_from(why);
        }
        let devices: Vec<Device> =
            connections.volumes.iter().filter_map(|connection| connection.device.clone()).collect();
        let usage = Usage::look(&self.volumes, &self.kubelet_directory).await;
        let holders = self.volumes.fabric.holders(&devices).await;
        for connection in &connections.volumes {
            let report = reports.of(&connection.volume);
            report.connected = true;
            if connection.device.is_none() && connection.live {
                report.unseen.clone_from(&connection.state);
            }
            match &usage {
                Ok(usage) => {
                    let device = connection.device.as_ref().map(|device| &device.id);
                    report.held_by.extend(usage.of(&connection.volume, device));
                }
                Err(error) => report.unseen = error.to_string(),
            }
            match &holders {
                Ok(holders) => {
                    report.held_by.extend(holders.get(&connection.volume).into_iter().flatten().cloned())
                }
                Err(error) => report.unseen = error.to_string(),
            }
            if report.held_by.is_empty() {
                report.held_by.extend(held.get(&connection.volume).into_iter().flatten().cloned());
            }
        }
    }
}

/// The report as it grows.
#[derive(Default)]
struct Reports {
    incomplete: String,
    volumes: BTreeMap<VolumeId, VolumeReport>,
}

impl Reports {
    fn of(&mut self, volume: &VolumeId) -> &mut VolumeReport {
        let begun = || VolumeReport { volume_id: volume.to_string(), ..VolumeReport::default() };
        self.volumes.entry(volume.clone()).or_insert_with(begun)
    }

    fn into_content(self) -> Content {
        Content { incomplete: self.incomplete, volumes: self.volumes.into_values().collect() }
    }
}
