//! I1: a volume that two nodes may have is on two at most, in the ledger and as really connected, and on two in the
//! ledger only while it migrates: who is given it beside a node that has not left is the target of a migration.

use std::collections::BTreeMap;

use crate::history::{History, LedgerFact, Transition};

use super::seen::time;
use super::{occupancy, seen};

/// How many nodes may have a shared volume.
const MOST_NODES: usize = 2;

pub(super) fn check(history: &History) -> Vec<String> {
    let shared = seen::shared_volumes(history);
    let mut found = occupancy::exceeded(history, MOST_NODES, |volume| shared.contains(volume));
    found.extend(without_migration(
        history.ledger.iter().filter(|seen| shared.contains(seen.volume.as_str())),
    ));
    found
}

/// What the ledger said of a volume until now.
#[derive(Default)]
struct Standing<'a> {
    /// With the generation that each has it by.
    nodes: BTreeMap<&'a str, u64>,
    migration: Option<u64>,
    is_told: bool,
}

impl<'a> Standing<'a> {
    fn take(&mut self, fact: &'a LedgerFact) {
        match fact {
            LedgerFact::Attached { node, generation } => {
                self.nodes.insert(node, *generation);
            }
            LedgerFact::Detached { node, generation } => {
                self.nodes.retain(|held, since| *held != node.as_str() || *since > *generation);
            }
            LedgerFact::MigrationStarted { migration, .. } => self.migration = Some(*migration),
            LedgerFact::MigrationEnded { migration, .. } => {
                self.migration.take_if(|running| running == migration);
            }
            LedgerFact::Revoking { .. }
            | LedgerFact::MigrationOverdue { .. }
            | LedgerFact::Reaping { .. } => {}
        }
    }
}

/// Where a volume came to be on several nodes without a migration, each time.
fn without_migration<'a>(ledger: impl Iterator<Item = &'a Transition>) -> Vec<String> {
    let mut found = Vec::new();
    let mut volumes: BTreeMap<&str, Standing<'_>> = BTreeMap::new();
    let mut ledger = ledger.peekable();
    let moment = |seen: &'a Transition| (seen.at, seen.ledger_ms, seen.volume.as_str());
    while let Some(seen) = ledger.next() {
        let standing = volumes.entry(&seen.volume).or_default();
        standing.take(&seen.fact);
        // One entry makes several facts: they are judged together.
        if ledger.peek().is_some_and(|next| moment(next) == moment(seen)) {
            continue;
        }
        let is_broken = standing.nodes.len() > 1 && standing.migration.is_none();
        if is_broken && !standing.is_told {
            let (volume, at, nodes) =
                (&seen.volume, time(seen.at), standing.nodes.keys().collect::<Vec<_>>());
            found.push(format!("at {at} the ledger has {volume} on {nodes:?} without a migration"));
        }
        standing.is_told = is_broken;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::builder::*;
    use super::*;
    use crate::history::Connection::{Connected, Disconnected};

    fn two_nodes() -> Run {
        Run::with_shared_volume().attach(10, "a", 1).attach(20, "b", 2).migrate(20, 1, "a", "b", 30_000)
    }

    #[test]
    fn two_nodes_and_then_another_are_fine() {
        let run = two_nodes().revoke(30, "a", 1).detach(40, "a", 1).migrated(40, 1, "success");
        let run = run.attach(50, "c", 3).migrate(50, 2, "b", "c", 30_000);
        let run = run.wire(11, "a", Connected).wire(21, "b", Connected).wire(39, "a", Disconnected);
        assert_none(check(&run.wire(51, "c", Connected).history()));
    }

    #[test]
    fn one_that_is_being_revoked_counts() {
        assert_one(check(&two_nodes().revoke(30, "a", 1).attach(40, "c", 3).history()), "ledger has v on");
    }

    #[test]
    fn three_connections_at_once_are_seen_whatever_the_ledger_says() {
        let run = two_nodes().wire(1, "a", Connected).wire(2, "b", Connected).wire(3, "c", Connected);
        assert_one(check(&run.history()), "is connected on");
        let other = two_nodes().wire(3, "c", Connected).wire(1, "a", Connected).wire(2, "a", Disconnected);
        assert_none(check(&other.wire(2, "b", Connected).history()));
    }

    #[test]
    fn a_volume_that_nobody_made_is_shared_if_it_migrates() {
        let run = Run::default().attach(1, "a", 1).attach(2, "b", 2).migrate(2, 1, "a", "b", 30_000);
        assert_none(check(&run.clone().history()));
        assert_one(check(&run.attach(3, "c", 3).history()), "ledger has v on");
    }

    #[test]
    fn two_nodes_without_a_migration_are_seen_one_that_is_being_revoked_too() {
        let one = || Run::with_shared_volume().attach(10, "a", 1).revoke(20, "a", 1);
        assert_one(check(&one().attach(30, "b", 2).history()), "without a migration");
        // Once, however long it lasts.
        let long = one().attach(30, "b", 2).revoke(40, "b", 2).detach(50, "b", 2);
        assert_one(
            check(&long.history()),
            "at 0.030000 s the ledger has v on [\"a\", \"b\"] without a migration",
        );
        let migrates = one().attach(30, "b", 2).migrate(30, 1, "a", "b", 30_000);
        assert_none(check(&migrates.clone().history()));
        // What is recorded when an export is confirmed comes after the migration that it belongs to.
        let late = one().migrate(30, 1, "a", "b", 30_000).attach(31, "b", 2);
        assert_none(check(&late.history()));
        assert_one(check(&migrates.migrated(40, 1, "failed").history()), "at 0.040000 s");
    }

    #[test]
    fn a_late_word_of_an_earlier_attachment_ends_nothing() {
        let run = two_nodes().detach(30, "a", 0).attach(40, "c", 3);
        assert_one(check(&run.history()), "ledger has v on");
    }
}
