//! What a run says of itself: a line every few seconds, and tables at its end.

use std::collections::BTreeMap;
use std::time::Duration;

use super::nemesis::{ALL, is_kill_of_leader};
use crate::history::{Answer, FaultRecord, History, Installed, LedgerFact, Operation, Request};

/// What came of one run, or of several.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) ran: Duration,
    operations: BTreeMap<(&'static str, String), usize>,
    faults: BTreeMap<String, Faults>,
    skipped: BTreeMap<&'static str, &'static str>,
    pub(super) kills: usize,
    pub(super) kills_in_migration: usize,
    migrations: BTreeMap<String, usize>,
    reaps: usize,
    pub(super) troubles: Vec<String>,
    pub(super) violations: Vec<String>,
}

#[derive(Debug, Default)]
struct Faults {
    installed: usize,
    skipped: usize,
    indeterminate: usize,
    in_migration: usize,
}

impl Totals {
    /// Adds what one run has recorded.
    pub(super) fn add(&mut self, history: &History, skipped: &BTreeMap<&'static str, &'static str>) {
        self.skipped.extend(skipped);
        for Operation { request, answer, .. } in &history.operations {
            *self.operations.entry((kind_of(request), words_of(answer))).or_default() += 1;
        }
        for fault in &history.faults {
            self.add_fault(fault);
        }
        for transition in &history.ledger {
            match &transition.fact {
                LedgerFact::MigrationEnded { outcome, .. } => {
                    *self.migrations.entry(outcome.clone()).or_default() += 1;
                }
                LedgerFact::Reaping { .. } => self.reaps += 1,
                LedgerFact::Attached { .. }
                | LedgerFact::Revoking { .. }
                | LedgerFact::Detached { .. }
                | LedgerFact::MigrationStarted { .. }
                | LedgerFact::MigrationOverdue { .. } => {}
            }
        }
    }

    fn add_fault(&mut self, fault: &FaultRecord) {
        let faults = self.faults.entry(fault.kind.clone()).or_default();
        match fault.installed {
            Installed::Yes => faults.installed += 1,
            Installed::Skipped => faults.skipped += 1,
            Installed::Indeterminate => faults.indeterminate += 1,
        }
        let is_in_migration = fault.installed == Installed::Yes && fault.in_migration;
        faults.in_migration += usize::from(is_in_migration);
        if is_kill_of_leader(fault) {
            self.kills += 1;
            self.kills_in_migration += usize::from(fault.in_migration);
        }
    }

    /// Faults that this machine and program can do, and that never hit a migration.
    pub(super) fn never_exercised(&self) -> Vec<&'static str> {
        let hit = |name: &str| self.faults.get(name).is_some_and(|faults| faults.in_migration > 0);
        let names = ALL.iter().map(|kind| kind.name());
        names.filter(|name| !hit(name) && !self.skipped.contains_key(name)).collect()
    }

    /// The tables.
    pub(super) fn print(&self) {
        println!("\noperation   answer                        count");
        for ((request, answer), count) in &self.operations {
            println!("{request:<11} {answer:<28} {count:>6}");
        }
        println!("\nfault                            installed  skipped  indeterminate  in migration");
        for kind in ALL {
            let name = kind.name();
            match (self.faults.get(name), self.skipped.get(name)) {
                (_, Some(reason)) => println!("{name:<32} skipped: {reason}"),
                (Some(Faults { installed, skipped, indeterminate, in_migration }), None) => {
                    println!("{name:<32} {installed:>9} {skipped:>8} {indeterminate:>14} {in_migration:>13}");
                }
                (None, None) => println!("{name:<32} {:>9}", 0),
            }
        }
        let ended: Vec<String> =
            self.migrations.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
        println!("\nmigrations ended: {}; reaps decided: {}", ended.join(", "), self.reaps);
        println!("leaders killed: {}, in mid-migration: {}", self.kills, self.kills_in_migration);
        println!("ran: {} s", self.ran.as_secs());
        for trouble in &self.troubles {
            println!("TROUBLE: {trouble}");
        }
        for violation in &self.violations {
            println!("VIOLATION: {violation}");
        }
        println!("violations: {}", self.violations.len());
    }
}

fn kind_of(request: &Request) -> &'static str {
    match request {
        Request::Create { .. } => "create",
        Request::Delete { .. } => "delete",
        Request::Publish { .. } => "publish",
        Request::Unpublish { .. } => "unpublish",
        Request::Expand { .. } => "expand",
        Request::Read { .. } => "read",
    }
}

fn words_of(answer: &Answer) -> String {
    match answer {
        Answer::Ok | Answer::Published(_) | Answer::Read(_) => "ok".to_owned(),
        Answer::Refused(code) => format!("refused: {code}"),
        Answer::Unknown(code) => format!("unknown: {code}"),
    }
}
