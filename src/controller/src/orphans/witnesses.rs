//! Who may need something on the appliance, as the leader knows it: its ledger, Kubernetes, the nodes' sessions.

use std::collections::BTreeSet;

use observer::{Answer, Observer, Why};
use replica::Replica;
use state_machine::{AppliancePath, NodeId, VolumeId};

use super::judge::{Connection, PersistentVolume};
use super::pass::{Claims, Witnesses};
use crate::sessions::{NodeSessions, Sight};

/// The leader's own knowledge.
pub(crate) struct LeadersWitnesses {
    pub(crate) replica: Replica,
    pub(crate) sessions: NodeSessions,
    pub(crate) observer: Observer,
    /// Where volumes are whose class does not say.
    pub(crate) volume_path: AppliancePath,
}

impl Witnesses for LeadersWitnesses {
    fn claims(&self, volume: &VolumeId) -> Claims {
        let persistent_volume = match self.observer.index().persistent_volume(volume) {
            Answer::Known(()) => PersistentVolume::There,
            Answer::Absent => PersistentVolume::Absent,
            Answer::Unknown(Why::NoKubernetes) => PersistentVolume::NotWatched,
            Answer::Unknown(why) => PersistentVolume::Unknown { why: why.to_string() },
        };
        let (in_ledger, made_once) =
            self.replica.read_local(|state| (state.volume(volume).is_some(), state.made_once(volume)));
        Claims { in_ledger, made_once, persistent_volume }
    }

    fn connection(&self, volume: &VolumeId) -> Connection {
        let on = self.sessions.nodes_with(volume);
        if !on.is_empty() {
            let nodes: Vec<String> = on.iter().map(ToString::to_string).collect();
            return Connection::On { nodes: nodes.join(", ") };
        }
        let nodes: Vec<NodeId> = self.replica.read_local(|state| state.nodes().keys().cloned().collect());
        for node in nodes {
            match self.sessions.sight(volume, &node) {
                Sight::Absent { .. } => {}
                // It came between the two questions.
                Sight::Connected { .. } => return Connection::On { nodes: node.to_string() },
                // A node that was deleted for good stays in the ledger, and never speaks again.
                Sight::Unknown { .. } if self.observer.index().node(&node) == Answer::Absent => {}
                Sight::Unknown { why } => return Connection::Unknown { why },
            }
        }
        Connection::Nowhere
    }

    fn directories(&self) -> BTreeSet<AppliancePath> {
        let of_volumes = self.replica.read_local(|state| {
            let paths = state.volumes().values().map(|volume| volume.parameters.volume_path.clone());
            paths.collect::<BTreeSet<_>>()
        });
        std::iter::once(self.volume_path.clone()).chain(of_volumes).collect()
    }

    fn volumes(&self) -> usize {
        self.replica.read_local(|state| state.volumes().len())
    }
}
