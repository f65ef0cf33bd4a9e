//! What node sessions and Kubernetes watches say, as the reaper asks for it.
//!
//! Locks are taken in one order, the ledger's before the sessions'; so the ledger's state comes with each question.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use observer::{Answer, MigrationSeen, Observer};
use state_machine::{Migration, MigrationId, NodeId, State, VolumeId};
use tokio::sync::watch;

use crate::reaper::{Evidence, KubeVirt, Seen, Side, Sight, Standing};
use crate::sessions::{self, NodeSessions, Usage};

/// Migrations whose asking is remembered; of more, the oldest are asked about anew.
const MIGRATIONS_REMEMBERED: usize = 1_024;

/// The evidence of one leader.
pub(crate) struct LeadersEvidence {
    sessions: NodeSessions,
    observer: Observer,
    /// Since when each overdue migration is asked about: what Kubernetes listed before says nothing of it.
    asked_since: Mutex<BTreeMap<MigrationId, Instant>>,
}

impl LeadersEvidence {
    pub(crate) fn new(sessions: NodeSessions, observer: Observer) -> Self {
        Self { sessions, observer, asked_since: Mutex::default() }
    }

    /// When the migration was first asked about. Then Kubernetes is listed anew.
    fn asked_since(&self, migration: MigrationId) -> Instant {
        let mut asked = self.asked_since.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = asked.get(&migration) {
            return *since;
        }
        while asked.len() >= MIGRATIONS_REMEMBERED {
            asked.pop_first();
        }
        let now = Instant::now();
        asked.insert(migration, now);
        self.observer.refresh();
        now
    }
}

impl Evidence for LeadersEvidence {
    fn seen(&self, state: &State, volume: &VolumeId, node: &NodeId) -> Seen {
        let (sight, look) = match self.sessions.sight_in(state, volume, node) {
            sessions::Sight::Unknown { why } => return Seen::Nothing { why },
            sessions::Sight::Absent { look } => (Sight::Absent, look),
            sessions::Sight::Connected { used, look } => (sight_of(used), look),
        };
        Seen::Looked { answers: look.echo, sight }
    }

    fn silent_for(&self, node: &NodeId) -> Option<Duration> {
        let heard = self.sessions.last_heard(node)?;
        Some(self.sessions.now().saturating_sub(heard))
    }

    fn kubevirt(&self, volume: &VolumeId, migration: &Migration) -> KubeVirt {
        let newer_than = self.asked_since(migration.id);
        let seen = self.observer.index().migration(volume, &migration.source, &migration.target, newer_than);
        match seen {
            Answer::Absent => KubeVirt::NoVm,
            Answer::Unknown(why) => KubeVirt::Unknown { why: why.to_string() },
            Answer::Known(MigrationSeen::Running { uid }) => {
                KubeVirt::Unfinished { phase: format!("running, {uid}") }
            }
            Answer::Known(MigrationSeen::Ended { completed, lost, .. }) => {
                let lost = if lost == migration.source { Side::Source } else { Side::Target };
                let how = if completed { "completed" } else { "failed" };
                KubeVirt::Ended { lost, how: how.to_owned() }
            }
        }
    }

    fn standing(&self, node: &NodeId) -> Standing {
        match self.observer.index().node(node) {
            Answer::Known(seen) if seen.out_of_service => Standing::OutOfService,
            Answer::Known(_) => Standing::Present,
            Answer::Absent => Standing::Deleted,
            Answer::Unknown(_) => Standing::Unknown,
        }
    }

    fn ask_again(&self, nodes: &BTreeSet<NodeId>) -> u64 {
        self.sessions.ask(nodes)
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.observer.changes()
    }
}

fn sight_of(used: Usage) -> Sight {
    match used {
        Usage::Idle => Sight::Idle,
        Usage::InUse { by } => Sight::InUse { by: by.join(", ") },
        Usage::Busy => Sight::Unknown { why: "an operation on it is running there".to_owned() },
        Usage::Unseen { why } => Sight::Unknown { why },
    }
}
