//! What a simulated run records: the history that the invariants judge, and a story for people.
//!
//! The ledger's facts are taken at the first application of an entry by any replica, from what it changed.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use bincode::Options;
use state_machine::{
    AttachmentPhase, Command, Generation, Migration, MigrationId, MigrationOutcome, MigrationPhase, NodeId,
    Response, State, Volume, VolumeId,
};
use storage::LogId;

use super::runtime::now_micros;
use crate::history::{Decided, History, LedgerFact, StateHash, Transition};

/// How many lines of a story are kept.
const STORY_LINES: usize = 400;
/// Every so many entries the state is hashed: the last of a divergence's consequences stays.
const HASHED_EVERY: u64 = 8;

/// Of the entries of a term, one is recorded in so many microseconds.
const DECIDED_EVERY_MICROS: u64 = 250_000;

/// Whether stories are shown while they are told.
static FOLLOWED: AtomicBool = AtomicBool::new(false);

/// Has stories shown while they are told.
pub(crate) fn follow() {
    FOLLOWED.store(true, Ordering::Relaxed);
}

/// Something that must not be, seen while the run went on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// The invariant's name, as in the issue, or what else it is.
    pub invariant: String,
    /// In a sentence.
    pub what: String,
}

/// FNV-1a, as a writer.
#[derive(Debug, Clone)]
pub(crate) struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    /// The hash of everything written.
    #[must_use]
    pub(crate) const fn value(&self) -> u64 {
        self.0
    }
}

impl io::Write for Digest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    attachments: BTreeMap<NodeId, (Generation, bool)>,
    migration: Option<Migration>,
}

impl Seen {
    fn of(volume: &Volume) -> Self {
        let held = volume.attachments.iter();
        let attachments = held
            .map(|(node, held)| (node.clone(), (held.generation, held.phase == AttachmentPhase::Revoking)))
            .collect();
        Self { attachments, migration: volume.migration.clone() }
    }

    fn is_as(&self, volume: &Volume) -> bool {
        self.migration == volume.migration
            && self.attachments.len() == volume.attachments.len()
            && volume.attachments.iter().all(|(node, held)| {
                let is_leaving = held.phase == AttachmentPhase::Revoking;
                self.attachments.get(node) == Some(&(held.generation, is_leaving))
            })
    }
}

/// Records one run.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    pub(crate) history: History,
    pub(crate) breaches: Vec<Breach>,
    story: VecDeque<String>,
    digest: Digest,
    ledger: BTreeMap<VolumeId, Seen>,
    applied: u64,
    hashes: BTreeMap<u64, (u64, u64)>,
    reaped: u64,
    /// Migrations that are under way.
    migrations: usize,
}

impl Recorder {
    /// Adds a line to the story.
    pub(crate) fn tell(&mut self, line: &str) {
        let micros = now_micros();
        let line = format!("{:>5}.{:06} {line}", micros / 1_000_000, micros % 1_000_000);
        if FOLLOWED.load(Ordering::Relaxed) {
            println!("{line}");
        }
        // Writing into a hash does not fail.
        let _ = io::Write::write_all(&mut self.digest, line.as_bytes());
        if self.story.len() == STORY_LINES {
            self.story.pop_front();
        }
        self.story.push_back(line);
    }

    /// The story's last lines.
    pub(crate) fn story(&mut self) -> Vec<String> {
        std::mem::take(&mut self.story).into()
    }

    /// The hash of the whole story.
    pub(crate) fn digest(&self) -> u64 {
        self.digest.value()
    }

    /// Something that must not be.
    pub(crate) fn breach(&mut self, invariant: &str, what: String) {
        self.tell(&format!("VIOLATION {invariant}: {what}"));
        self.breaches.push(Breach { invariant: invariant.to_owned(), what });
    }

    /// Whether a migration is under way, as far as anybody has applied.
    pub(crate) fn is_migrating(&self) -> bool {
        self.migrations > 0
    }

    /// How many migrations were reaped.
    pub(crate) fn reaped(&self) -> u64 {
        self.reaped
    }

    /// A replica applied an entry.
    pub(crate) fn applied(
        &mut self,
        replica: u64,
        id: LogId,
        command: &Command,
        response: &Response,
        state: &State,
    ) {
        if id.index.is_multiple_of(HASHED_EVERY) {
            self.hash(replica, id.index, state);
        }
        if id.index <= self.applied {
            return;
        }
        self.applied = id.index;
        self.decided(id.leader_id.term);
        if !matches!(command, Command::Tick) {
            let term = id.leader_id.term;
            self.tell(&format!("{term}/{} {} -> {response:?}", id.index, short(command)));
        }
        for violation in state.violations() {
            self.breach("state", violation);
        }
        self.observe(state);
    }

    fn decided(&mut self, term: u64) {
        let at = now_micros();
        let last = self.history.decided.last();
        let is_news = |last: &Decided| last.term != term || at >= last.at + DECIDED_EVERY_MICROS;
        if last.is_none_or(is_news) {
            self.history.decided.push(Decided { at, term });
        }
    }

    /// The hash of a replica's state at an index; equal indexes have equal hashes.
    pub(crate) fn hash(&mut self, replica: u64, index: u64, state: &State) {
        let mut digest = Digest::default();
        let encoded =
            bincode::DefaultOptions::new().with_fixint_encoding().serialize_into(&mut digest, state);
        if let Err(error) = encoded {
            self.breach("I8", format!("the state of replica {replica} has no encoding: {error}"));
        }
        let hash = digest.value();
        self.history.hashes.push(StateHash { replica, index, hash: format!("{hash:016x}") });
        match self.hashes.get(&index) {
            None => drop(self.hashes.insert(index, (hash, replica))),
            Some((known, other)) if *known != hash => {
                let what = format!("replicas {other} and {replica} differ after entry {index}");
                self.breach("I8", what);
            }
            Some(_) => {}
        }
    }

    fn observe(&mut self, state: &State) {
        let mut facts = Vec::new();
        for (id, seen) in &self.ledger {
            if !state.volumes().contains_key(id) {
                changes(id, Some(seen), None, state, &mut facts);
            }
        }
        self.ledger.retain(|id, _| state.volumes().contains_key(id));
        for (id, volume) in state.volumes() {
            let before = self.ledger.get(id);
            if before.is_some_and(|seen| seen.is_as(volume)) {
                continue;
            }
            let after = Seen::of(volume);
            changes(id, before, Some(&after), state, &mut facts);
            self.ledger.insert(id.clone(), after);
        }
        self.migrations = self.ledger.values().filter(|seen| seen.migration.is_some()).count();
        let (at, ledger_ms) = (now_micros(), state.clock().0);
        for (volume, fact) in facts {
            self.reaped += u64::from(matches!(fact, LedgerFact::Reaping { .. }));
            self.history.ledger.push(Transition { at, ledger_ms, volume: volume.to_string(), fact });
        }
    }
}

/// A command in a few words.
fn short(command: &Command) -> String {
    let text = format!("{command:?}");
    match command {
        Command::CreateVolume { id, .. } => format!("CreateVolume {id}"),
        Command::Tick
        | Command::SetClusterVersion { .. }
        | Command::SlotWasFree { .. }
        | Command::VolumeCreated { .. }
        | Command::ExpandVolume { .. }
        | Command::VolumeExpanded { .. }
        | Command::DeleteVolume { .. }
        | Command::VolumeDeleted { .. }
        | Command::OperationFailed { .. }
        | Command::OperationAbandoned { .. }
        | Command::Publish { .. }
        | Command::ExportConfirmed { .. }
        | Command::GrantFailed { .. }
        | Command::Unpublish { .. }
        | Command::RegisterNode { .. }
        | Command::PermitConnect { .. }
        | Command::ReportDisconnected { .. }
        | Command::Reap { .. }
        | Command::NodeIsOff { .. }
        | Command::Restore { .. }
        | Command::RaiseEpoch { .. }
        | Command::AdoptVolume { .. } => text,
    }
}

type Facts = Vec<(VolumeId, LedgerFact)>;

/// What one entry changed of a volume, in the order in which it is told: deadlines, reaps, leaves, ends, arrivals.
fn changes(id: &VolumeId, before: Option<&Seen>, after: Option<&Seen>, state: &State, facts: &mut Facts) {
    let mut add = |fact| facts.push((id.clone(), fact));
    let none = BTreeMap::new();
    let held_before = before.map_or(&none, |seen| &seen.attachments);
    let held_after = after.map_or(&none, |seen| &seen.attachments);
    let migration_before = before.and_then(|seen| seen.migration.as_ref());
    let migration_after = after.and_then(|seen| seen.migration.as_ref());
    let same = migration_after.filter(|now| migration_before.is_some_and(|then| then.id == now.id));
    let ended = migration_before.filter(|_| same.is_none()).and_then(|then| end_of(state, then.id));
    if let Some(then) = migration_before {
        let was_active = then.phase == MigrationPhase::Active;
        let is_active = same.is_some_and(|now| now.phase == MigrationPhase::Active);
        let reaped = ended.is_some_and(|(outcome, _)| outcome == MigrationOutcome::Timeout);
        if was_active && !is_active && (same.is_some() || reaped) {
            add(LedgerFact::MigrationOverdue { migration: then.id.0 });
        }
        if let Some(node) = stale_side(then, same, reaped, held_after) {
            add(LedgerFact::Reaping { migration: then.id.0, node });
        }
    }
    for (node, (generation, was_leaving)) in held_before {
        let now = held_after.get(node).filter(|(now, _)| now == generation);
        if now.is_some_and(|(_, is_leaving)| *is_leaving && !was_leaving) {
            add(LedgerFact::Revoking { node: node.to_string(), generation: generation.0 });
        }
        if now.is_none() {
            add(LedgerFact::Detached { node: node.to_string(), generation: generation.0 });
        }
    }
    if let (Some(then), None) = (migration_before, same) {
        let outcome = ended.map_or("unknown", |(outcome, _)| outcome.name());
        add(LedgerFact::MigrationEnded { migration: then.id.0, outcome: outcome.to_owned() });
    }
    for (node, (generation, _)) in held_after {
        if held_before.get(node).is_none_or(|(before, _)| before != generation) {
            add(LedgerFact::Attached { node: node.to_string(), generation: generation.0 });
        }
    }
    if let Some(now) = migration_after.filter(|_| same.is_none()) {
        add(LedgerFact::MigrationStarted {
            migration: now.id.0,
            source: now.source.to_string(),
            target: now.target.to_string(),
            timeout_ms: now.deadline.millis_since(now.started_at),
        });
    }
}

fn end_of(state: &State, id: MigrationId) -> Option<(MigrationOutcome, MigrationId)> {
    let ended = state.ended_migrations().iter().rev().find(|ended| ended.id == id)?;
    Some((ended.outcome, ended.id))
}

/// The side that is reaped from now on.
fn stale_side(
    then: &Migration,
    now: Option<&Migration>,
    reaped: bool,
    held_after: &BTreeMap<NodeId, (Generation, bool)>,
) -> Option<String> {
    if matches!(then.phase, MigrationPhase::Reaping(_)) {
        return None;
    }
    match now.map(|now| &now.phase) {
        Some(MigrationPhase::Reaping(decision)) => Some(decision.stale.to_string()),
        Some(MigrationPhase::Active | MigrationPhase::Overdue) => None,
        None if reaped => {
            let gone = [&then.source, &then.target].into_iter().find(|side| !held_after.contains_key(*side));
            gone.map(ToString::to_string)
        }
        None => None,
    }
}
