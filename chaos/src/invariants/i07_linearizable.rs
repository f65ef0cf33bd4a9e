//! I7: the history of each volume is linearizable: what all clients saw is what they would have seen if everything
//! had happened one after the other, each thing at one moment while it was asked for.
//!
//! The ledger takes a volume from a node by itself where it reaps a side, or where the node is proven off: these are
//! calls of a client within. A search that grows too large is given up, and says so.

use std::collections::BTreeMap;
use std::fmt;

use crate::history::{Answer, History, LedgerFact, Micros, Operation, Request, Transition, VolumeRead};

use super::search::{Call, Deed, Model, Verdict, rounded, search};
use super::seen::{self, Effect, OBSERVER_LAG_MICROS, OBSERVER_LEAD_MICROS, time};

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked(operation) => write!(f, "{operation:?}"),
            Self::Within(seen) => write!(f, "by the ledger itself, {:?}", seen.fact),
            Self::End(found) => write!(f, "the final read, {found:?}"),
        }
    }
}

/// What came of all searches.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) broken: Vec<String>,
    pub(super) searched: usize,
    /// Volumes without a verdict.
    pub(super) given_up: Vec<String>,
}

/// A call, and where it comes from.
type Told<'a> = (Call, Origin<'a>);

/// Where a call comes from.
enum Origin<'a> {
    /// A client.
    Asked(&'a Operation),
    /// The ledger, which did this by itself.
    Within(&'a Transition),
    /// The final read.
    End(Option<&'a VolumeRead>),
}

pub(super) fn check(history: &History) -> Outcome {
    let shared = seen::shared_volumes(history);
    let mut volumes: BTreeMap<&str, Vec<Told<'_>>> = BTreeMap::new();
    for operation in &history.operations {
        let calls = volumes.entry(operation.request.volume()).or_default();
        calls.extend(call_of(operation).map(|call| (call, Origin::Asked(operation))));
    }
    for (volume, calls) in &mut volumes {
        calls.extend(calls_within(history, volume));
        if let Some(end) = &history.end {
            let deed = Deed::Look(model(end.ledger.get(*volume)));
            let call = Call { deed, started: end.at, ended: Some(end.at) };
            calls.push((call, Origin::End(end.ledger.get(*volume))));
        }
    }
    let mut outcome = Outcome::default();
    for (volume, told) in volumes {
        let calls: Vec<Call> = told.iter().map(|(call, _)| call.clone()).collect();
        outcome.searched += 1;
        match search(&calls, if shared.contains(volume) { 2 } else { 1 }) {
            Verdict::Orderly => {}
            Verdict::GivenUp => outcome.given_up.push(volume.to_owned()),
            Verdict::Stuck { call, before } => {
                let (at, what) = (time(calls[call].ended.unwrap_or_default()), &told[call].1);
                let before: Vec<_> = before.iter().collect();
                outcome.broken.push(format!("{volume} has no order at {at}: {what}, after {before:?}"));
            }
        }
    }
    outcome
}

fn model(read: Option<&VolumeRead>) -> Model {
    let Some(read) = read else { return Model::default() };
    Model { size_bytes: Some(rounded(read.size_bytes)), nodes: read.nodes.clone() }
}

/// The call of a client; none if it says nothing of the volume.
fn call_of(operation: &Operation) -> Option<Call> {
    let ended = match operation.effect() {
        Effect::Done => operation.ended,
        Effect::Maybe => None,
        Effect::None => return None,
    };
    let deed = match &operation.request {
        Request::Create { size_bytes, .. } => Deed::Create { size_bytes: rounded(*size_bytes) },
        Request::Delete { .. } => Deed::Delete,
        Request::Publish { node, .. } => Deed::Attach { node: node.clone() },
        Request::Unpublish { node, .. } => Deed::Detach { node: node.clone() },
        Request::Expand { size_bytes, .. } => Deed::Grow { size_bytes: rounded(*size_bytes) },
        Request::Read { .. } => match (&operation.answer, ended) {
            (Answer::Read(found), Some(_)) => Deed::Look(model(found.as_ref())),
            (Answer::Ok | Answer::Published(_) | Answer::Read(_), _)
            | (Answer::Refused(_) | Answer::Unknown(_), _) => return None,
        },
    };
    Some(Call { deed, started: operation.started, ended })
}

/// What the ledger did by itself: each detachment that nobody was told of, or that follows a reap.
fn calls_within<'a>(history: &'a History, volume: &str) -> Vec<Told<'a>> {
    let mut calls = Vec::new();
    // Of each node, when it was attached, when something was last seen of that, and whether it was reaped.
    let mut standing: BTreeMap<&str, Standing> = BTreeMap::new();
    for seen in history.ledger.iter().filter(|seen| seen.volume == volume) {
        match &seen.fact {
            LedgerFact::Attached { node, .. } => {
                standing.insert(node, Standing { attached: seen.at, last: seen.at, reaped: false });
            }
            LedgerFact::Revoking { node, .. } => {
                standing.entry(node).or_default().last = seen.at;
            }
            LedgerFact::Reaping { node, .. } => {
                let side = standing.entry(node).or_default();
                (side.last, side.reaped) = (seen.at, true);
            }
            LedgerFact::Detached { node, .. } => {
                let side = standing.remove(node.as_str()).unwrap_or_default();
                // Where nobody was told, what was asked may have been done before, and this be the ledger's own.
                if side.reaped || !is_acknowledged(history, volume, node, side.attached, seen.at) {
                    calls.push(side.detached(seen, node));
                }
            }
            LedgerFact::MigrationStarted { .. }
            | LedgerFact::MigrationOverdue { .. }
            | LedgerFact::MigrationEnded { .. } => {}
        }
    }
    calls
}

/// How a node's attachment stands, as it was seen.
#[derive(Default)]
struct Standing {
    attached: Micros,
    last: Micros,
    reaped: bool,
}

impl Standing {
    /// It ended some time after what was seen before, and when that was seen it had.
    fn detached<'a>(&self, seen: &'a Transition, node: &str) -> Told<'a> {
        let after = if self.last < seen.at { self.last } else { self.attached };
        let started = after.max(seen.at.saturating_sub(OBSERVER_LAG_MICROS)).min(seen.at);
        let ended = Some(seen.at + OBSERVER_LEAD_MICROS);
        let call = Call { deed: Deed::Detach { node: node.to_owned() }, started, ended };
        (call, Origin::Within(seen))
    }
}

/// Whether somebody was told that the node was unpublished, of what may have been between the two.
fn is_acknowledged(history: &History, volume: &str, node: &str, attached: Micros, detached: Micros) -> bool {
    let mut operations = history.operations.iter();
    operations.any(|operation| {
        operation.request.unpublishes(volume, node)
            && operation.effect() == Effect::Done
            && operation.may_fall_between(attached, detached)
    })
}

#[cfg(test)]
mod tests {
    use super::super::builder::*;
    use super::*;

    fn broken(run: Run) -> Vec<String> {
        let outcome = check(&run.history());
        assert_eq!(outcome.given_up, Vec::<String>::new());
        outcome.broken
    }

    fn attached() -> Run {
        Run::with_shared_volume().asked(10, 11, publish("a"), published(1)).attach(10, "a", 1)
    }

    #[test]
    fn a_migration_with_reads_all_along_is_linearizable() {
        assert_none(broken(good_migration()));
        let reads = (0..20).fold(attached(), |run, n| run.asked(20 + n, 40, read(), on(SIZE, &["a"])));
        assert_none(broken(reads));
    }

    #[test]
    fn an_old_read_is_seen() {
        assert_one(broken(attached().asked(12, 13, read(), on(SIZE, &[]))), "no order at 0.013");
        assert_one(broken(attached().asked(12, 13, read(), Answer::Read(None))), "no order");
        assert_one(broken(attached().asked(12, 13, read(), on(2 * SIZE, &["a"]))), "no order");
    }

    #[test]
    fn the_final_read_is_one_of_them() {
        assert_none(broken(attached().ends(20, &["a"])));
        assert_one(broken(attached().ends(20, &[])), "the final read");
    }

    #[test]
    fn a_side_that_was_reaped_went_by_itself() {
        let lost = |run: Run| run.detach(5_000, "a", 1).asked(5_100, 5_101, read(), on(SIZE, &[]));
        assert_none(broken(lost(attached().reap(4_000, 1, "a").revoke(4_000, "a", 1))));
        let too_soon = attached().reap(4_000, 1, "a").asked(2_000, 2_001, read(), on(SIZE, &[]));
        assert_one(broken(too_soon.detach(5_000, "a", 1)), "no order");
    }

    #[test]
    fn what_was_asked_for_is_not_the_ledgers_own() {
        // The unpublish happened before it was attached again: somebody else took it then.
        let run = attached()
            .asked(20, 30, unpublish("a"), Answer::Ok)
            .detach(25, "a", 1)
            .asked(40, 50, publish("a"), published(2))
            .attach(45, "a", 2);
        let again = run.clone().asked(60, 61, read(), on(SIZE, &[]));
        assert_one(broken(again), "no order");
        assert_none(broken(run.detach(55, "a", 2).asked(60, 61, read(), on(SIZE, &[]))));
    }

    #[test]
    fn a_node_that_was_off_lost_it_by_itself_though_somebody_had_asked_in_vain_before() {
        // The unpublish that nobody was told of was done at 25; the node went off at 5000.
        let run = attached()
            .asked_in_vain(20, unpublish("a"))
            .detach(25, "a", 1)
            .asked(30, 31, read(), on(SIZE, &[]))
            .asked(40, 50, publish("a"), published(2))
            .attach(45, "a", 2)
            .detach(5_000, "a", 2);
        assert_none(broken(run.clone().asked(5_100, 5_101, read(), on(SIZE, &[]))));
        assert_one(broken(run.asked(7_000, 7_001, read(), on(SIZE, &["a"]))), "no order");
    }

    #[test]
    fn what_nobody_was_told_may_be_either_way_and_a_refusal_of_a_publish_too() {
        for nodes in [&[][..], &["a", "b"], &["b"]] {
            let run = Run::with_shared_volume().asked(5, 6, publish("a"), refused());
            let run = run.asked_in_vain(7, publish("b"));
            assert_none(broken(run.asked(20, 21, read(), on(SIZE, nodes))));
        }
        let run = Run::with_shared_volume().asked(5, 6, expand(2 * SIZE), refused());
        assert_one(broken(run.asked(20, 21, read(), on(2 * SIZE, &[]))), "no order");
    }

    #[test]
    fn sizes_are_rounded_as_the_driver_does() {
        let run = Run::default().asked(0, 1, create(SIZE + 1, false), Answer::Ok);
        assert_none(broken(run.asked(2, 3, read(), on(2 * SIZE, &[]))));
    }

    #[test]
    fn each_volume_has_its_own_order() {
        let other = Request::Create { volume: "w".to_owned(), size_bytes: SIZE, shared: false };
        let run = Run::with_volume().asked(5, 6, other, Answer::Ok);
        assert_eq!(check(&run.history()).searched, 2);
    }
}
