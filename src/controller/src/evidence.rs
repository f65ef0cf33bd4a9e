//! What node sessions and Kubernetes watches say, as the reaper asks for it.
//!
//! Locks are taken in one order, the ledger's before the sessions'; so the ledger's state comes with each question.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use observer::{Answer, MigrationSeen, Observer, Why};
use state_machine::{Migration, MigrationId, NodeId, State, VolumeId};
use tokio::sync::watch;

use crate::reaper::{Evidence, KubeVirt, Seen, Side, Sight, Standing};
use crate::sessions::{self, NodeSessions, Usage};

/// How old Kubernetes' word may be: then it is listed anew.
const KUBERNETES_WORD_KEPT: Duration = Duration::from_secs(60);
/// When a migration is forgotten that nobody asks about any more.
const MIGRATION_FORGOTTEN: Duration = Duration::from_secs(600);

/// The evidence of one leader.
pub(crate) struct LeadersEvidence {
    sessions: NodeSessions,
    observer: Observer,
    /// Since when Kubernetes' word on each overdue migration counts.
    asked_since: Mutex<BTreeMap<MigrationId, Instant>>,
}

impl LeadersEvidence {
    pub(crate) fn new(sessions: NodeSessions, observer: Observer) -> Self {
        Self { sessions, observer, asked_since: Mutex::default() }
    }

    /// Since when Kubernetes' word on the migration counts: the first asking, and again when that is long ago.
    fn asked_since(&self, migration: MigrationId) -> Instant {
        let mut asked = self.asked_since.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(since) = asked.get(&migration).filter(|since| since.elapsed() < KUBERNETES_WORD_KEPT) {
            return *since;
        }
        asked.retain(|_, since| since.elapsed() < MIGRATION_FORGOTTEN);
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

    fn listening(&self) -> Option<Duration> {
        let since = self.sessions.in_office_since()?;
        Some(self.sessions.now().saturating_sub(since))
    }

    fn kubevirt(&self, volume: &VolumeId, migration: &Migration) -> KubeVirt {
        let newer_than = self.asked_since(migration.id);
        let seen = self.observer.index().migration(volume, &migration.source, &migration.target, newer_than);
        match seen {
            Answer::Absent => KubeVirt::NoVm,
            Answer::Unknown(why @ (Why::NoKubernetes | Why::NotInstalled(_) | Why::Unclear(_))) => {
                KubeVirt::Unknown { why: why.to_string() }
            }
            Answer::Unknown(why @ (Why::NotListed(_) | Why::Broken { .. } | Why::TooOld(_))) => {
                KubeVirt::Awaited { why: why.to_string() }
            }
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
            Answer::Absent => Standing::Missing,
            Answer::Unknown(_) => Standing::Unknown,
        }
    }

    fn ask_again(&self, nodes: &BTreeSet<NodeId>) -> u64 {
        self.sessions.ask(nodes)
    }

    fn watch(&self) -> watch::Receiver<u64> {
        // What Kubernetes says anew is judged within a second anyhow.
        self.sessions.watch_reports()
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
