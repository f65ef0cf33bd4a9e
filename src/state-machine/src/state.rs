//! The ledger's state and what can be read from it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::ids::{BootId, NodeId, Nqn, VolumeId};
use crate::migration::{ENDED_MIGRATIONS_KEPT, EndedMigration, MigrationId, MigrationOutcome};
use crate::volume::{Generation, LedgerTime, Problem, ProblemKind, Volume, VolumePhase};

/// How many failed operations stay readable for those who wait for them.
pub const FAILURES_KEPT: usize = 100;

/// A node whose plugin registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its present boot.
    pub boot: BootId,
    /// Its host NQN.
    pub host_nqn: Nqn,
    /// How many volumes it can take; 0 is no limit.
    pub max_volumes: u32,
    /// How often it was heard: registrations, permissions to connect, reports.
    pub words: u64,
}

/// An operation that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its volume.
    pub volume: VolumeId,
    /// Its generation.
    pub generation: Generation,
    /// Why.
    pub problem: Problem,
}

/// How an operation on a volume stands, for whoever waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperationStatus {
    /// It runs.
    Running,
    /// It met trouble and is tried again.
    Retrying(Problem),
    /// It succeeded: the volume is `Ready`.
    Succeeded,
    /// It was given up.
    Abandoned(Problem),
    /// A later operation on the volume took its place.
    Overtaken,
    /// The volume is gone.
    VolumeGone,
}

/// The replicated state. Equal logs make equal states, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub(crate) cluster_version: u32,
    pub(crate) clock: LedgerTime,
    pub(crate) last_generation: Generation,
    pub(crate) last_migration: MigrationId,
    pub(crate) volumes: BTreeMap<VolumeId, Volume>,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) ended_migrations: VecDeque<EndedMigration>,
    pub(crate) failures: VecDeque<Failure>,
    /// Deadlines of migrations in phase `Active`: what the clock has to be compared with.
    pub(crate) deadlines: BTreeSet<(LedgerTime, VolumeId)>,
    pub(crate) last_record: u64,
    pub(crate) migrations_ended: [u64; 3],
}

impl Default for State {
    fn default() -> Self {
        Self {
            cluster_version: 1,
            clock: LedgerTime::default(),
            last_generation: Generation::default(),
            last_migration: MigrationId(0),
            volumes: BTreeMap::new(),
            nodes: BTreeMap::new(),
            ended_migrations: VecDeque::new(),
            failures: VecDeque::new(),
            deadlines: BTreeSet::new(),
            last_record: 0,
            migrations_ended: [0; 3],
        }
    }
}

impl State {
    /// Which commands may be proposed.
    pub fn cluster_version(&self) -> u32 {
        self.cluster_version
    }

    /// The upper half of the last generation: raised above what another ledger may have given out.
    pub fn epoch(&self) -> u64 {
        self.last_generation.0 >> u32::BITS
    }

    /// Whether a backup is being restored: all volumes are parts of it, and none counts yet.
    pub fn is_restoring(&self) -> bool {
        let problem = self.volumes.values().next().and_then(|first| first.problem.as_ref());
        problem.is_some_and(|problem| problem.kind == ProblemKind::Restoring)
    }

    /// The nodes and volumes in pieces that may be restored one after the other. A volume's oldest records are left out
    /// of a piece that does not fit.
    pub fn pieces(&self, fits: impl Fn(&Self) -> bool) -> Vec<Self> {
        let Self { clock, last_generation, last_migration, last_record, .. } = *self;
        let bare = Self { clock, last_generation, last_migration, last_record, ..Self::default() };
        let node =
            |(id, n): (&NodeId, &Node)| Self { nodes: [(id.clone(), n.clone())].into(), ..bare.clone() };
        let volume = |(id, volume): (&VolumeId, &Volume)| {
            let mut piece = Self { volumes: [(id.clone(), volume.clone())].into(), ..bare.clone() };
            while !fits(&piece) && piece.volumes.values_mut().any(|v| v.history.pop_front().is_some()) {}
            piece
        };
        self.nodes.iter().map(node).chain(self.volumes.iter().map(volume)).collect()
    }

    /// The ledger's clock.
    pub fn clock(&self) -> LedgerTime {
        self.clock
    }

    /// The volume `id`.
    pub fn volume(&self, id: &VolumeId) -> Option<&Volume> {
        self.volumes.get(id)
    }

    /// All volumes, by id.
    pub fn volumes(&self) -> &BTreeMap<VolumeId, Volume> {
        &self.volumes
    }

    /// All registered nodes.
    pub fn nodes(&self) -> &BTreeMap<NodeId, Node> {
        &self.nodes
    }

    /// The last migrations that ended, oldest first.
    pub fn ended_migrations(&self) -> &VecDeque<EndedMigration> {
        &self.ended_migrations
    }

    /// Whether something waits for the clock: then the leader proposes ticks.
    pub fn is_timed(&self) -> bool {
        !self.deadlines.is_empty()
    }

    /// How the operation `generation` on `volume` stands.
    pub fn operation(&self, volume: &VolumeId, generation: Generation) -> OperationStatus {
        let failure = self.failures.iter().rev().find(|f| f.volume == *volume && f.generation == generation);
        if let Some(failure) = failure {
            return OperationStatus::Abandoned(failure.problem.clone());
        }
        let Some(found) = self.volumes.get(volume) else { return OperationStatus::VolumeGone };
        if found.generation != generation {
            return OperationStatus::Overtaken;
        }
        match (found.phase, &found.problem) {
            (VolumePhase::Ready, _) => OperationStatus::Succeeded,
            (_, Some(problem)) => OperationStatus::Retrying(problem.clone()),
            (_, None) => OperationStatus::Running,
        }
    }

    /// Whether the ledger recorded the making of this volume, in a slot that it had seen free, and has it no more; as far
    /// as the operations that were given up tell. What it found in a slot is given up as a conflict, what it never began
    /// as superseded: neither was made by it.
    pub fn made_once(&self, volume: &VolumeId) -> bool {
        let began = |problem: &Problem| matches!(problem.kind, ProblemKind::Full | ProblemKind::Rejected);
        let gave_up = self.failures.iter().any(|f| f.volume == *volume && began(&f.problem));
        gave_up && !self.volumes.contains_key(volume)
    }

    pub(crate) fn next_generation(&mut self) -> Generation {
        self.last_generation.0 += 1;
        self.last_generation
    }

    pub(crate) fn record_failure(&mut self, failure: Failure) {
        self.failures.push_back(failure);
        while self.failures.len() > FAILURES_KEPT {
            self.failures.pop_front();
        }
    }

    /// How many migrations have ever ended so.
    pub fn migrations_ended(&self, outcome: MigrationOutcome) -> u64 {
        self.migrations_ended[outcome as usize]
    }

    pub(crate) fn record_ended(&mut self, migration: EndedMigration) {
        self.migrations_ended[migration.outcome as usize] += 1;
        self.ended_migrations.push_back(migration);
        while self.ended_migrations.len() > ENDED_MIGRATIONS_KEPT {
            self.ended_migrations.pop_front();
        }
    }
}
