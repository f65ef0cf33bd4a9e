//! I6: a migration becomes overdue in its time, by the ledger's clock and by the observer's: never early, and late by
//! no more than the time without a leader and a second for each change of leader.
//!
//! So the ledger's clock is compared with the observer's at every fact of the ledger while a migration is active, not
//! only when one becomes overdue. Where the history has the entries that were decided, there was a leader between two
//! of one term that are no more than [`SILENCE_MICROS`] apart: ticks come each second. Where it has not, every fault
//! counts as time without one, from when it began until [`RECOVERY_MICROS`] after it was healed. Every term in which
//! somebody voted is a change. The bound on the late side is generous by that; on the early side nothing is granted
//! but the rate of the leaders' clocks and the error of the observer's.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Answer, FaultRecord, History, LedgerFact, Micros, Transition};

use super::seen::{Effect, OBSERVER_LAG_MICROS, OBSERVER_LEAD_MICROS, time};

/// By how much a leader's monotonic clock may run fast or slow, in percent.
pub(super) const RATE_ERROR_PERCENT: Micros = 3;
/// How long after a fault was healed there may be no leader yet, in microseconds.
const RECOVERY_MICROS: Micros = 10_000_000;
/// Who decides nothing for so long while a migration is timed does not lead, in microseconds: two ticks, and their way.
const SILENCE_MICROS: Micros = 2_500_000;
/// How much time each change of leader may cost the ledger's clock, in microseconds.
const CHANGE_MICROS: Micros = 1_000_000;
/// How late the ledger's clock may be beside that, in microseconds: the interval of ticks, and the way into the log.
const TICK_MICROS: Micros = 3_000_000;
/// How long after a publish began its entry may still be decided, in microseconds.
const DECIDED_WITHIN_MICROS: Micros = 60_000_000;

const MICROS_PER_MS: Micros = 1_000;

/// A migration that has not become overdue yet.
struct Active<'a> {
    began: &'a Transition,
    timeout_ms: u64,
    /// When its beginning was stamped, at the earliest, less the observer's error.
    stamped_at: Micros,
}

pub(super) fn check(history: &History) -> Vec<String> {
    let hours = Hours::of(history);
    let mut found = Vec::new();
    let mut active: BTreeMap<u64, Active<'_>> = BTreeMap::new();
    for seen in &history.ledger {
        for (migration, running) in &active {
            found.extend(running.compare_clocks(*migration, seen, &hours));
        }
        match &seen.fact {
            LedgerFact::MigrationStarted { migration, target, timeout_ms, .. } => {
                let (timeout_ms, stamped_at) = (*timeout_ms, stamped_at(history, seen, target));
                active.insert(*migration, Active { began: seen, timeout_ms, stamped_at });
            }
            LedgerFact::MigrationOverdue { migration } => match active.remove(migration) {
                Some(running) => found.extend(running.overdue_early(*migration, seen)),
                None => {
                    let (volume, at) = (&seen.volume, time(seen.at));
                    found.push(format!(
                        "migration {migration} of {volume} is overdue at {at}, and not active"
                    ));
                }
            },
            LedgerFact::Reaping { migration, node } if active.contains_key(migration) => {
                let (volume, at) = (&seen.volume, time(seen.at));
                found.push(format!("{volume} is reaped from {node} at {at}, within the migration's time"));
            }
            LedgerFact::MigrationEnded { migration, .. } => {
                active.remove(migration);
            }
            LedgerFact::Attached { .. }
            | LedgerFact::Revoking { .. }
            | LedgerFact::Detached { .. }
            | LedgerFact::Reaping { .. } => {}
        }
    }
    if let Some(end) = &history.end {
        found.extend(
            active.iter().filter_map(|(migration, running)| running.forgotten(*migration, end.at, &hours)),
        );
    }
    found
}

/// When the migration's beginning was stamped, at the earliest: not before the publish began that asked for it.
fn stamped_at(history: &History, began: &Transition, target: &str) -> Micros {
    let asked = history.operations.iter().filter(|operation| {
        let is_over = |ended: Micros| ended.saturating_add(OBSERVER_LAG_MICROS) < began.at;
        let is_answered = operation.effect() == Effect::Done && operation.ended.is_some_and(is_over);
        operation.request.publishes(&began.volume, target)
            && operation.started <= began.at
            && operation.started.saturating_add(DECIDED_WITHIN_MICROS) >= began.at
            && !is_answered
            && !matches!(&operation.answer, Answer::Refused(_) if operation.ended.is_some_and(is_over))
    });
    let first = asked.map(|operation| operation.started).min();
    let first = first.unwrap_or_else(|| began.at.saturating_sub(OBSERVER_LAG_MICROS));
    first.saturating_sub(OBSERVER_LEAD_MICROS)
}

impl Active<'_> {
    fn compare_clocks(&self, migration: u64, seen: &Transition, hours: &Hours) -> Option<String> {
        let passed = seen.ledger_ms.saturating_sub(self.began.ledger_ms) * MICROS_PER_MS;
        let volume = &self.began.volume;
        let (at, passed_time) = (time(seen.at), time(passed));
        let most = faster(seen.at.saturating_sub(self.stamped_at)) + MICROS_PER_MS;
        if passed > most {
            let real = time(seen.at.saturating_sub(self.stamped_at));
            return Some(format!(
                "the ledger's clock is early: {passed_time} in migration {migration} of {volume} at {at}, where at \
                 most {real} had passed"
            ));
        }
        let real = slower(seen.at.saturating_sub(self.began.at));
        let allowed = hours.without_leader(self.began.at, seen.at) + OBSERVER_LAG_MICROS + TICK_MICROS;
        (passed + allowed < real).then(|| {
            let (real, allowed) = (time(real), time(allowed));
            format!(
                "the ledger's clock is late: {passed_time} in migration {migration} of {volume} at {at}, where \
                 {real} had passed, at most {allowed} of it without a leader"
            )
        })
    }

    fn overdue_early(&self, migration: u64, seen: &Transition) -> Option<String> {
        let passed_ms = seen.ledger_ms.saturating_sub(self.began.ledger_ms);
        let real = faster(seen.at.saturating_sub(self.stamped_at)) + MICROS_PER_MS;
        let (timeout_ms, volume, at) = (self.timeout_ms, &self.began.volume, time(seen.at));
        let is_early = passed_ms < timeout_ms || real < timeout_ms * MICROS_PER_MS;
        is_early.then(|| {
            format!(
                "migration {migration} of {volume} is overdue at {at}: after {passed_ms} ms by the ledger's clock \
                 and at most {} by the observer's, with a timeout of {timeout_ms} ms",
                time(seen.at.saturating_sub(self.stamped_at))
            )
        })
    }

    /// It should have become overdue before the end.
    fn forgotten(&self, migration: u64, end: Micros, hours: &Hours) -> Option<String> {
        let real = slower(end.saturating_sub(self.began.at));
        let allowed = hours.without_leader(self.began.at, end) + OBSERVER_LAG_MICROS + TICK_MICROS;
        (self.timeout_ms * MICROS_PER_MS + allowed < real).then(|| {
            let (volume, began, timeout_ms) = (&self.began.volume, time(self.began.at), self.timeout_ms);
            format!("migration {migration} of {volume} never became overdue: begun at {began}, with {timeout_ms} ms")
        })
    }
}

/// The most that a clock shows after so long.
fn faster(micros: Micros) -> Micros {
    micros.saturating_add(micros / 100 * RATE_ERROR_PERCENT)
}

/// The least that a clock shows after so long.
fn slower(micros: Micros) -> Micros {
    micros.saturating_sub(micros.div_ceil(100) * RATE_ERROR_PERCENT)
}

/// When there may have been no leader, and when there was another.
struct Hours {
    /// Apart from each other, in order.
    leaderless: Vec<(Micros, Micros)>,
    /// When each term began that somebody voted in.
    terms: Vec<Micros>,
}

impl Hours {
    fn of(history: &History) -> Self {
        let mut spans =
            if history.decided.is_empty() { faulty_times(history) } else { silent_times(history) };
        spans.sort_unstable();
        let mut leaderless: Vec<(Micros, Micros)> = Vec::new();
        for (from, to) in spans {
            match leaderless.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                Some(_) | None => leaderless.push((from, to)),
            }
        }
        let mut votes: Vec<_> = history.votes.iter().map(|vote| (vote.at, vote.term)).collect();
        votes.sort_unstable();
        let mut known = BTreeSet::new();
        let terms = votes.into_iter().filter(|(_, term)| known.insert(*term)).map(|(at, _)| at).collect();
        Self { leaderless, terms }
    }

    /// How much of the time from `from` to `to` the ledger's clock may have stood still.
    fn without_leader(&self, from: Micros, to: Micros) -> Micros {
        let spans = self.leaderless.iter().map(|span| span.1.min(to).saturating_sub(span.0.max(from)));
        let changes = self.terms.iter().filter(|at| (from..=to).contains(*at)).count() as Micros;
        spans.sum::<Micros>() + changes * CHANGE_MICROS
    }
}

/// From each fault until some time after it was healed.
fn faulty_times(history: &History) -> Vec<(Micros, Micros)> {
    let faults = history.faults.iter().filter(|fault| fault.was_there());
    let span =
        |fault: &FaultRecord| (fault.at, fault.healed.unwrap_or(fault.at).saturating_add(RECOVERY_MICROS));
    faults.map(span).collect()
}

/// From each decided entry to the next, where that is of another term or comes late; and what is after the last.
fn silent_times(history: &History) -> Vec<(Micros, Micros)> {
    let between = history.decided.windows(2).filter_map(|pair| match pair {
        [one, next] if one.term != next.term || next.at > one.at + SILENCE_MICROS => Some((one.at, next.at)),
        _ => None,
    });
    let after = history.decided.last().map(|last| (last.at, Micros::MAX));
    between.chain(after).collect()
}

#[cfg(test)]
mod tests {
    use super::super::builder::*;
    use super::*;
    use crate::history::Installed;

    const BEGAN_MS: u64 = 100_000;
    const TIMEOUT_MS: u64 = 30_000;

    /// A migration that begins, published a moment before.
    fn migrating() -> Run {
        Run::with_shared_volume()
            .asked(BEGAN_MS - 100, BEGAN_MS + 100, publish("b"), published(2))
            .migrate(BEGAN_MS, 1, "a", "b", TIMEOUT_MS)
    }

    fn overdue_after(ms: u64, ledger_ms: u64) -> Vec<String> {
        check(&migrating().overdue(BEGAN_MS + ms, BEGAN_MS + ledger_ms, 1).history())
    }

    #[test]
    fn overdue_at_its_time_or_a_moment_later() {
        assert_none(overdue_after(TIMEOUT_MS, TIMEOUT_MS));
        assert_none(overdue_after(TIMEOUT_MS + 4_000, TIMEOUT_MS + 10));
    }

    #[test]
    fn early_by_the_ledgers_clock() {
        assert_one(overdue_after(TIMEOUT_MS, TIMEOUT_MS - 1), "is overdue at");
    }

    #[test]
    fn early_by_the_observers_clock() {
        let found = overdue_after(TIMEOUT_MS / 2, TIMEOUT_MS);
        assert!(found.iter().any(|what| what.contains("clock is early")), "{found:?}");
        assert!(found.iter().any(|what| what.contains("is overdue at")), "{found:?}");
        assert_none(overdue_after(TIMEOUT_MS - TIMEOUT_MS * 4 / 100, TIMEOUT_MS));
        assert!(!overdue_after(TIMEOUT_MS - 3_000, TIMEOUT_MS).is_empty());
    }

    #[test]
    fn a_clock_that_jumps_is_seen_at_the_next_fact() {
        let run = migrating().attach(BEGAN_MS + 1_000, "c", 3).by_ledger(BEGAN_MS + 20_000);
        assert_one(check(&run.history()), "clock is early");
        let behind = migrating().attach(BEGAN_MS + 20_000, "c", 3).by_ledger(BEGAN_MS + 1_000);
        assert_one(check(&behind.history()), "clock is late");
    }

    #[test]
    fn time_without_a_leader_is_no_lateness() {
        let late = |run: Run| run.overdue(BEGAN_MS + TIMEOUT_MS + 25_000, BEGAN_MS + TIMEOUT_MS, 1).history();
        assert_one(check(&late(migrating())), "clock is late");
        let fault = |installed| migrating().fault(BEGAN_MS + 1_000, Some(BEGAN_MS + 15_000), "r1", installed);
        assert_none(check(&late(fault(Installed::Yes))));
        assert_one(check(&late(fault(Installed::Skipped))), "clock is late");
        let before = migrating().fault(1_000, Some(15_000), "r1", Installed::Yes);
        assert_one(check(&late(before)), "clock is late");
        let changes = (0..25).fold(migrating(), |run, n| run.vote(BEGAN_MS + n, 1, "r1", "one", n, 1));
        assert_none(check(&late(changes)));
    }

    #[test]
    fn time_in_which_nothing_was_decided_is_no_lateness_and_a_fault_is_no_excuse() {
        let overdue = BEGAN_MS + TIMEOUT_MS + 25_000;
        let late = |silence: std::ops::Range<u64>, term_after: u64| {
            let run = migrating().fault(BEGAN_MS, Some(overdue), "r1", Installed::Yes);
            let times = (BEGAN_MS..=overdue).step_by(1_000).filter(|at| !silence.contains(at));
            let run =
                times.fold(run, |run, at| run.decided(at, if at < silence.end { 1 } else { term_after }));
            check(&run.overdue(overdue, BEGAN_MS + TIMEOUT_MS, 1).history())
        };
        assert_one(late(0..0, 1), "clock is late");
        assert_none(late(BEGAN_MS + 5_000..BEGAN_MS + 30_000, 1));
        assert_none(late(BEGAN_MS + 5_000..BEGAN_MS + 30_000, 2));
        assert_one(late(BEGAN_MS + 5_000..BEGAN_MS + 7_000, 1), "clock is late");
    }

    #[test]
    fn a_publish_that_was_decided_late_is_stamped_when_it_was_asked_for() {
        let run = Run::with_shared_volume()
            .asked(BEGAN_MS - 10_000, BEGAN_MS - 5_000, publish("b"), unknown())
            .migrate(BEGAN_MS, 1, "a", "b", TIMEOUT_MS)
            .by_ledger(BEGAN_MS - 9_900);
        let soon = BEGAN_MS + TIMEOUT_MS - 9_000;
        assert_none(check(&run.overdue(soon, soon, 1).history()));
        assert!(!check(&migrating().overdue(soon, soon + 9_100, 1).history()).is_empty());
    }

    #[test]
    fn one_that_never_becomes_overdue_is_seen() {
        let end = BEGAN_MS + TIMEOUT_MS + 60_000;
        assert_one(check(&migrating().ends(end, &["b"]).history()), "never became overdue");
        assert_none(check(&migrating().migrated(BEGAN_MS + 5, 1, "success").ends(end, &["b"]).history()));
        assert_none(check(&migrating().ends(BEGAN_MS + TIMEOUT_MS, &["b"]).history()));
    }

    #[test]
    fn a_reap_within_the_time_and_a_second_end_are_seen() {
        assert_one(check(&migrating().reap(BEGAN_MS + 5, 1, "b").history()), "within the migration's time");
        let twice = migrating().overdue(BEGAN_MS + TIMEOUT_MS, BEGAN_MS + TIMEOUT_MS, 1).overdue(
            BEGAN_MS + TIMEOUT_MS + 5,
            BEGAN_MS + TIMEOUT_MS + 5,
            1,
        );
        assert_one(check(&twice.history()), "not active");
    }
}
