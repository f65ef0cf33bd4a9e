//! Migrations: the only reason for a volume to be on two nodes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{NodeId, VolumeId};
use crate::volume::LedgerTime;

/// How many ended migrations stay readable.
pub const ENDED_MIGRATIONS_KEPT: usize = 100;
/// `migrationTimeoutSeconds` when a class does not say.
pub const DEFAULT_MIGRATION_TIMEOUT_SECONDS: u32 = 300;
/// The least `migrationTimeoutSeconds`.
pub const MIN_MIGRATION_TIMEOUT_SECONDS: u32 = 30;
/// The largest `migrationTimeoutSeconds`: a day.
pub const MAX_MIGRATION_TIMEOUT_SECONDS: u32 = 86_400;

/// A migration's number; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MigrationId(pub u64);

impl fmt::Display for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A migration that has not ended: `target` was admitted beside `source`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    /// Its number.
    pub id: MigrationId,
    /// The node that had the volume.
    pub source: NodeId,
    /// The node that was admitted.
    pub target: NodeId,
    /// When it was admitted.
    pub started_at: LedgerTime,
    /// From when on it is overdue.
    pub deadline: LedgerTime,
    /// Where it is in its life.
    pub phase: MigrationPhase,
}

/// Where a migration is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MigrationPhase {
    /// Within its time.
    Active,
    /// Past its deadline: reported, and evidence is looked for.
    Overdue,
    /// One side was found stale and is being cut.
    Reaping(ReapDecision),
}

impl MigrationPhase {
    /// The phase's name, for people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Active => "Active",
            Self::Overdue => "Overdue",
            Self::Reaping(_) => "Reaping",
        }
    }
}

/// Which side of an overdue migration goes, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReapDecision {
    /// The side that goes: the migration's source or target.
    pub stale: NodeId,
    /// Who decided.
    pub decided_by: String,
    /// On what evidence, in a sentence.
    pub evidence: String,
}

/// How a migration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MigrationOutcome {
    /// The source left.
    Success,
    /// The target left.
    Failed,
    /// A side was reaped.
    Timeout,
}

impl MigrationOutcome {
    /// The value of the metric's `result` label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
        }
    }
}

/// A migration that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedMigration {
    /// Its number.
    pub id: MigrationId,
    /// Its volume.
    pub volume: VolumeId,
    /// The node that had the volume.
    pub source: NodeId,
    /// The node that was admitted.
    pub target: NodeId,
    /// When it began.
    pub started_at: LedgerTime,
    /// From when on it was, or would have been, overdue.
    pub deadline: LedgerTime,
    /// When one side was proven off.
    pub ended_at: LedgerTime,
    /// How it ended.
    pub outcome: MigrationOutcome,
    /// Who decided.
    pub decided_by: String,
    /// On what evidence.
    pub evidence: String,
}
