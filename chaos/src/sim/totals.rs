//! What a run, or many runs one after the other, came to: time simulated, and how often each fault was there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::faults::Kind;
use super::play::Played;
use crate::history::Installed;

/// Beside what is chosen: writes that were not durable when a replica went.
const WRITES_LOST: &str = "writes-lost";

/// One kind of fault.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FaultCount {
    /// It was there.
    pub(crate) installed: u64,
    /// It could not be.
    pub(crate) skipped: u64,
    /// Of those that were there: while a migration was under way.
    pub(crate) in_migration: u64,
    /// Of those that were there: it hit the leader.
    pub(crate) hit_leader: u64,
}

/// Everything that was counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Seeds played.
    pub(crate) seeds: u64,
    /// Microseconds of simulated time.
    pub(crate) simulated_micros: u64,
    /// Microseconds that it took.
    pub(crate) real_micros: u64,
    /// Of that, microseconds on a processor.
    #[serde(default)]
    pub(crate) cpu_micros: u64,
    /// Seeds with a violation.
    pub(crate) violations: u64,
    /// Volumes whose histories were too long to put in an order.
    #[serde(default)]
    pub(crate) undecided: u64,
    /// Migrations that began.
    pub(crate) migrations: u64,
    /// Migrations that were reaped.
    pub(crate) reaped: u64,
    /// Calls of clients.
    pub(crate) operations: u64,
    /// Faults that hit a leader while a migration was under way.
    pub(crate) leaders_hit_in_migration: u64,
    /// Faults by kind.
    pub(crate) faults: BTreeMap<String, FaultCount>,
}

impl Totals {
    /// What a file has; nothing if there is none.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("understand {}", path.display()))
    }

    /// Keeps it in a file.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("write totals")?;
        let new = path.with_extension("new");
        fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
        fs::rename(&new, path).with_context(|| format!("replace {}", path.display()))
    }

    /// Adds a seed.
    pub(crate) fn add(&mut self, played: &Played) {
        use crate::history::LedgerFact;
        self.seeds += 1;
        self.simulated_micros += played.simulated_micros;
        self.reaped += played.reaped;
        self.operations += played.history.operations.len() as u64;
        let started = |fact: &LedgerFact| matches!(fact, LedgerFact::MigrationStarted { .. });
        let migrations = played.history.ledger.iter().filter(|transition| started(&transition.fact));
        self.migrations += migrations.count() as u64;
        for fault in &played.history.faults {
            let count = self.faults.entry(fault.kind.clone()).or_default();
            match fault.installed {
                Installed::Yes => {
                    count.installed += 1;
                    count.in_migration += u64::from(fault.in_migration);
                    count.hit_leader += u64::from(fault.hit_leader);
                    self.leaders_hit_in_migration += u64::from(fault.in_migration && fault.hit_leader);
                }
                Installed::Skipped | Installed::Indeterminate => count.skipped += 1,
            }
        }
    }

    /// Adds what another has counted.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.simulated_micros += other.simulated_micros;
        self.real_micros += other.real_micros;
        self.cpu_micros += other.cpu_micros;
        self.violations += other.violations;
        self.undecided += other.undecided;
        self.migrations += other.migrations;
        self.reaped += other.reaped;
        self.operations += other.operations;
        self.leaders_hit_in_migration += other.leaders_hit_in_migration;
        for (kind, more) in &other.faults {
            let count = self.faults.entry(kind.clone()).or_default();
            count.installed += more.installed;
            count.skipped += more.skipped;
            count.in_migration += more.in_migration;
            count.hit_leader += more.hit_leader;
        }
    }

    /// Hours that the cluster ran in simulated time.
    #[must_use]
    pub(crate) fn cluster_hours(&self) -> f64 {
        self.simulated_micros as f64 / 3.6e9
    }

    /// How many times faster than real time it went, for each core that was busy with it all the time.
    #[must_use]
    pub(crate) fn speed_of_a_core(&self) -> f64 {
        self.simulated_micros as f64 / (self.cpu_micros.max(1)) as f64
    }

    /// Faults that were there, in each hour of simulated time.
    #[must_use]
    pub(crate) fn faults_an_hour(&self) -> f64 {
        let faults: u64 = self.faults.values().map(|count| count.installed).sum();
        faults as f64 / self.cluster_hours().max(f64::MIN_POSITIVE)
    }

    /// The kinds that were never there while a migration was under way.
    #[must_use]
    pub(crate) fn never_in_migration(&self) -> Vec<&'static str> {
        let names = Kind::all().into_iter().map(Kind::name).chain([WRITES_LOST]);
        names.filter(|name| self.faults.get(*name).is_none_or(|count| count.in_migration == 0)).collect()
    }

    /// The table of faults, a line each.
    #[must_use]
    pub(crate) fn table(&self) -> String {
        let mut lines = format!(
            "{:<24}{:>11}{:>9}{:>14}{:>12}\n",
            "fault", "installed", "skipped", "in migration", "hit leader"
        );
        for (kind, count) in &self.faults {
            let FaultCount { installed, skipped, in_migration, hit_leader } = count;
            lines += &format!("{kind:<24}{installed:>11}{skipped:>9}{in_migration:>14}{hit_leader:>12}\n");
        }
        lines
    }
}
