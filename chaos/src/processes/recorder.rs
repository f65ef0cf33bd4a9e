//! Collects what is seen while the run goes on, from all who see something.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::clock::Epoch;
use crate::history::{
    Connection, ConnectionChange, FaultRecord, History, LedgerFact, Micros, Operation, StateHash, Transition,
    VoteGranted,
};

/// What was recorded until now.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) epoch: Epoch,
    recorded: Mutex<Recorded>,
}

#[derive(Debug, Default)]
struct Recorded {
    history: History,
    /// By the numbers of the ledger's records, which are their order.
    transitions: BTreeMap<u64, Transition>,
    /// The last hash of each replica, so that an idle one is recorded once.
    hashes: BTreeMap<u64, u64>,
    /// The fault that is being made, for progress.
    present_fault: &'static str,
    /// What went wrong with the harness or in its sight: a run with any has not passed.
    troubles: BTreeSet<String>,
}

impl Recorder {
    pub(super) fn begin() -> Self {
        Self { epoch: Epoch::begin(), recorded: Mutex::default() }
    }

    pub(super) fn now(&self) -> Micros {
        self.epoch.now()
    }

    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn operation(&self, operation: Operation) {
        self.recorded().history.operations.push(operation);
    }

    /// Somebody on the node opened or closed the device just now.
    pub(super) fn use_of_device(&self, node: &str, volume: &str, change: Connection) {
        let (at, node, volume) = (self.now(), node.to_owned(), volume.to_owned());
        self.recorded().history.connections.push(ConnectionChange { at, node, volume, change });
    }

    /// A record of the ledger; one that is known already changes nothing.
    pub(super) fn transition(&self, number: u64, transition: Transition) {
        self.recorded().transitions.entry(number).or_insert(transition);
    }

    pub(super) fn hash(&self, hash: StateHash) {
        let mut recorded = self.recorded();
        if recorded.hashes.insert(hash.replica, hash.index) != Some(hash.index) {
            recorded.history.hashes.push(hash);
        }
    }

    pub(super) fn vote(&self, vote: VoteGranted) {
        self.recorded().history.votes.push(vote);
    }

    pub(super) fn fault(&self, fault: FaultRecord) {
        self.recorded().history.faults.push(fault);
    }

    /// Something that must not be: the run has not passed.
    pub(super) fn trouble(&self, what: String) {
        self.recorded().troubles.insert(what);
    }

    /// All of that.
    pub(super) fn troubles(&self) -> Vec<String> {
        self.recorded().troubles.iter().cloned().collect()
    }

    /// This fault is being made now.
    pub(super) fn begin_fault(&self, name: &'static str) {
        self.recorded().present_fault = name;
    }

    /// The fault that is being made.
    pub(super) fn present_fault(&self) -> &'static str {
        self.recorded().present_fault
    }

    /// How many operations were recorded, and how many faults.
    pub(super) fn counts(&self) -> (usize, usize) {
        let recorded = self.recorded();
        (recorded.history.operations.len(), recorded.history.faults.len())
    }

    /// Faults of this kind that were there while a migration was under way, as far as the ledger has told.
    pub(super) fn hit_in_migration(&self, is_meant: impl Fn(&FaultRecord) -> bool) -> usize {
        let recorded = self.recorded();
        let migrations = migrations(&recorded.transitions);
        let faults = recorded.history.faults.iter().filter(|fault| is_meant(fault));
        faults.filter(|fault| is_in(&migrations, fault)).count()
    }

    /// All of it, in order. `applied_by` says by when what the ledger recorded at a time had been applied.
    pub(super) fn finish(&self, applied_by: impl Fn(u64) -> Option<Micros>) -> History {
        let mut recorded = self.recorded();
        let mut next = Micros::MAX;
        for transition in recorded.transitions.values_mut().rev() {
            // Nothing was recorded later than what was recorded after it.
            let applied = applied_by(transition.ledger_ms).unwrap_or(Micros::MAX);
            transition.at = transition.at.min(applied).min(next);
            next = transition.at;
        }
        let migrations = migrations(&recorded.transitions);
        let mut history = std::mem::take(&mut recorded.history);
        for fault in &mut history.faults {
            fault.in_migration = is_in(&migrations, fault);
        }
        history.ledger = std::mem::take(&mut recorded.transitions).into_values().collect();
        history.operations.sort_by_key(|operation| operation.started);
        history.votes.sort_by_key(|vote| vote.at);
        history.faults.sort_by_key(|fault| fault.at);
        history
    }
}

/// When migrations began and ended.
fn migrations(transitions: &BTreeMap<u64, Transition>) -> Vec<(Micros, Micros)> {
    let mut spans: BTreeMap<u64, (Micros, Micros)> = BTreeMap::new();
    for Transition { at, fact, .. } in transitions.values() {
        match fact {
            LedgerFact::MigrationStarted { migration, .. } => {
                spans.insert(*migration, (*at, Micros::MAX));
            }
            LedgerFact::MigrationEnded { migration, .. } => {
                if let Some(span) = spans.get_mut(migration) {
                    span.1 = *at;
                }
            }
            LedgerFact::Attached { .. }
            | LedgerFact::Revoking { .. }
            | LedgerFact::Detached { .. }
            | LedgerFact::MigrationOverdue { .. }
            | LedgerFact::Reaping { .. } => {}
        }
    }
    spans.into_values().collect()
}

/// Whether one of them was under way when the fault struck.
fn is_in(migrations: &[(Micros, Micros)], fault: &FaultRecord) -> bool {
    migrations.iter().any(|(began, ended)| (*began..*ended).contains(&fault.at))
}
