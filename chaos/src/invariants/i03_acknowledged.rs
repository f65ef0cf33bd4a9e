//! I3: what was acknowledged is in every later read and in the final one, unless something later undid it; and what
//! was undone comes back only by a later request.
//!
//! Undone by a request that may have happened later: a delete, an unpublish; not by one that the same client had given
//! up before, for nothing comes of that once he was told that a later one is done. A node loses a volume without being
//! asked only where the ledger reaped it, or where something was done to the node itself, as a fault that names it.
//! And what was created is on the appliance (`kept`).

use std::collections::BTreeMap;

use crate::history::{Answer, History, LedgerFact, Micros, Operation, Request, Transition, VolumeRead};

use super::kept::lost_on_appliance;
use super::seen::{Effect, OBSERVER_LAG_MICROS, time};

pub(super) fn check(history: &History) -> Vec<String> {
    let mut volumes: BTreeMap<&str, Volume<'_>> = BTreeMap::new();
    for operation in &history.operations {
        let volume = volumes.entry(operation.request.volume()).or_default();
        volume.operations.push(operation);
        if let (Answer::Read(found), Some(ended)) = (&operation.answer, operation.ended) {
            let (from, to) = (operation.started, ended);
            volume.looks.push(Look { from, to, found: found.as_ref() });
        }
    }
    for seen in &history.ledger {
        volumes.entry(&seen.volume).or_default().ledger.push(seen);
    }
    for (id, volume) in &mut volumes {
        if let Some(end) = &history.end {
            volume.looks.push(Look { from: end.at, to: end.at, found: end.ledger.get(*id) });
        }
        volume.looks.sort_by_key(|look| look.to);
    }
    let judged = |volume: &Volume<'_>| -> Vec<String> {
        volume.operations.iter().filter_map(|operation| volume.contradiction(history, operation)).collect()
    };
    let mut found: Vec<_> = volumes.values().flat_map(judged).collect();
    found.extend(lost_on_appliance(history));
    found
}

/// A moment at which it was said how a volume is.
struct Look<'a> {
    from: Micros,
    to: Micros,
    found: Option<&'a VolumeRead>,
}

/// What is known of one volume.
#[derive(Default)]
struct Volume<'a> {
    operations: Vec<&'a Operation>,
    looks: Vec<Look<'a>>,
    ledger: Vec<&'a Transition>,
}

impl Volume<'_> {
    /// What contradicts the operation, if it was acknowledged.
    fn contradiction(&self, history: &History, operation: &Operation) -> Option<String> {
        let (from, ended) = (operation.started, operation.acknowledged()?);
        let lost = |until, holds: &dyn Fn(&Look<'_>) -> bool| {
            let mut looks = self.looks.iter().filter(|look| look.from >= ended && look.to < until);
            let look = looks.find(|look| !holds(look))?;
            let (what, ended) = (&operation.request, time(ended));
            Some(format!(
                "{what:?}, acknowledged at {ended}, but at {} there was {:?}",
                time(look.to),
                look.found
            ))
        };
        match &operation.request {
            Request::Create { volume, size_bytes, .. } | Request::Expand { volume, size_bytes } => {
                let until = self.first(operation, |request| request.deletes(volume));
                lost(until, &|look| look.found.is_some_and(|found| found.size_bytes >= *size_bytes))
            }
            Request::Delete { volume } => {
                lost(self.first(operation, |request| request.creates(volume)), &|look| look.found.is_none())
            }
            Request::Publish { volume, node } => {
                let takes = |request: &Request| request.unpublishes(volume, node) || request.deletes(volume);
                let until = self.first(operation, takes).min(self.taken(history, node, from));
                lost(until, &|look| look.found.is_some_and(|found| found.nodes.contains(node)))
            }
            Request::Unpublish { volume, node } if !node.is_empty() => {
                let until = self.first(operation, |request| request.publishes(volume, node));
                let has = |look: &Look<'_>| look.found.is_some_and(|found| found.nodes.contains(node));
                lost(until, &|look| !has(look)).or_else(|| self.attached_again(operation, node, ended, until))
            }
            Request::Unpublish { .. } | Request::Read { .. } => None,
        }
    }

    /// When first something began that may have undone what was asked for and acknowledged.
    fn first(&self, asked: &Operation, undoes: impl Fn(&Request) -> bool) -> Micros {
        let may_be_later = |other: &&&Operation| match other.effect() {
            Effect::Done => other.ended.is_some_and(|ended| ended >= asked.started),
            Effect::Maybe => other.client != asked.client || other.started > asked.started,
            Effect::None => false,
        };
        let undoing = self.operations.iter().filter(|other| undoes(&other.request));
        undoing.filter(may_be_later).map(|other| other.started).min().unwrap_or(Micros::MAX)
    }

    /// When first the ledger took the volume from the node after `from`, with a right to do so unasked.
    fn taken(&self, history: &History, node: &str, from: Micros) -> Micros {
        let mut reaped = false;
        for seen in &self.ledger {
            match &seen.fact {
                LedgerFact::Attached { node: to, .. } if to == node => reaped = false,
                LedgerFact::Reaping { node: stale, .. } if stale == node => reaped = true,
                LedgerFact::Detached { node: off, .. } if off == node && seen.at >= from => {
                    let off = || history.faults.iter().any(|fault| fault.hit_node_before(node, seen.at));
                    if reaped || off() {
                        return seen.at.saturating_sub(OBSERVER_LAG_MICROS);
                    }
                }
                LedgerFact::Attached { .. }
                | LedgerFact::Revoking { .. }
                | LedgerFact::Detached { .. }
                | LedgerFact::MigrationStarted { .. }
                | LedgerFact::MigrationOverdue { .. }
                | LedgerFact::Reaping { .. }
                | LedgerFact::MigrationEnded { .. } => {}
            }
        }
        Micros::MAX
    }

    /// The node in the ledger again, without a new request.
    fn attached_again(
        &self,
        operation: &Operation,
        node: &str,
        ended: Micros,
        until: Micros,
    ) -> Option<String> {
        let again = self.ledger.iter().find(|seen| {
            let is_later = seen.at.saturating_sub(OBSERVER_LAG_MICROS) >= ended && seen.at < until;
            is_later && matches!(&seen.fact, LedgerFact::Attached { node: to, .. } if to == node)
        })?;
        let (what, ended, at) = (&operation.request, time(ended), time(again.at));
        Some(format!("{what:?}, acknowledged at {ended}, but the ledger attached it again at {at}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::builder::*;
    use super::*;
    use crate::history::Installed;

    #[test]
    fn what_was_created_stays_until_it_is_deleted() {
        let run = Run::with_volume().asked(10, 11, read(), Answer::Read(None));
        assert_one(check(&run.history()), "Create");
        let run = Run::with_volume().asked_in_vain(5, delete()).asked(10, 11, read(), Answer::Read(None));
        assert_none(check(&run.history()));
        let before =
            Run::default().asked(0, 1, delete(), Answer::Ok).asked(2, 3, create(SIZE, false), Answer::Ok);
        assert_one(check(&before.asked(10, 11, read(), Answer::Read(None)).history()), "Create");
        let refused = Run::with_volume().asked(5, 6, delete(), refused());
        assert_one(check(&refused.asked(10, 11, read(), Answer::Read(None)).history()), "Create");
    }

    #[test]
    fn the_final_read_counts_as_well() {
        let run = Run::with_volume().ends(100, &[]).but(|end| end.ledger.clear());
        assert_one(check(&run.history()), "Create");
    }

    #[test]
    fn what_was_expanded_does_not_shrink() {
        let run = Run::with_volume().asked(10, 11, expand(2 * SIZE), Answer::Ok);
        assert_none(check(&run.clone().asked(12, 13, read(), on(2 * SIZE, &[])).history()));
        assert_one(check(&run.asked(12, 13, read(), on(SIZE, &[])).history()), "Expand");
    }

    #[test]
    fn what_was_deleted_stays_away_until_it_is_created() {
        let run = Run::with_volume().asked(10, 11, delete(), Answer::Ok);
        assert_one(check(&run.clone().asked(12, 13, read(), on(SIZE, &[])).history()), "Delete");
        let again = run.asked(12, 13, create(SIZE, false), unknown());
        assert_none(check(&again.asked(14, 15, read(), on(SIZE, &[])).history()));
    }

    #[test]
    fn a_published_node_stays_until_it_is_unpublished() {
        let run = Run::with_volume().asked(10, 11, publish("a"), published(1));
        let lost = || (read(), on(SIZE, &[]));
        let (request, answer) = lost();
        assert_one(check(&run.clone().asked(20, 21, request, answer).history()), "Publish");
        for undo in [unpublish("a"), unpublish("")] {
            let (request, answer) = lost();
            let run = run.clone().asked(12, 13, undo, unknown()).asked(20, 21, request, answer);
            assert_none(check(&run.history()));
        }
        let (request, answer) = lost();
        let other = run.clone().asked(12, 13, unpublish("b"), Answer::Ok).asked(20, 21, request, answer);
        assert_one(check(&other.history()), "Publish");
        let concurrent = run.asked(10, 21, read(), on(SIZE, &[]));
        assert_none(check(&concurrent.history()));
    }

    #[test]
    fn a_node_is_taken_only_by_a_reap_or_by_what_befell_it() {
        let run = Run::with_volume().asked(10, 11, publish("a"), published(1)).attach(10, "a", 1);
        let lost = |run: Run| run.detach(5_000, "a", 1).asked(6_000, 6_001, read(), on(SIZE, &[])).history();
        assert_one(check(&lost(run.clone())), "Publish");
        assert_none(check(&lost(run.clone().reap(4_000, 1, "a"))));
        assert_none(check(&lost(run.clone().fault(3_000, None, "node a", Installed::Yes))));
        assert_one(check(&lost(run.clone().fault(3_000, None, "node a", Installed::Skipped))), "Publish");
        assert_one(check(&lost(run.fault(3_000, None, "node b", Installed::Yes))), "Publish");
    }

    #[test]
    fn an_unpublished_node_comes_back_only_by_a_later_publish() {
        let run = Run::with_volume().asked(10, 11, publish("a"), published(1)).asked(
            12,
            13,
            unpublish("a"),
            Answer::Ok,
        );
        assert_one(check(&run.clone().asked(20, 21, read(), on(SIZE, &["a"])).history()), "Unpublish");
        assert_one(check(&run.clone().attach(9_000, "a", 3).history()), "attached it again");
        let again = run.asked(14, 15, publish("a"), unknown()).attach(9_000, "a", 3);
        assert_none(check(&again.asked(20, 21, read(), on(SIZE, &["a"])).history()));
    }

    #[test]
    fn what_a_client_gave_up_does_not_come_after_what_he_was_told_next() {
        let publisher = |client| {
            let run = Run::with_volume().asked(10, 11, publish("a"), unknown()).by(client);
            run.asked(12, 13, unpublish("a"), Answer::Ok).by(7)
        };
        let read_later = |run: Run| run.asked(20, 21, read(), on(SIZE, &["a"])).history();
        assert_one(check(&read_later(publisher(7))), "Unpublish");
        assert_one(check(&publisher(7).attach(9_000, "a", 3).history()), "attached it again");
        assert_none(check(&read_later(publisher(8))));
        assert_none(check(&publisher(8).attach(9_000, "a", 3).history()));

        let run = Run::with_volume().asked(10, 11, unpublish("a"), unknown()).by(7);
        let run = run.asked(12, 13, publish("a"), published(1)).by(7);
        assert_one(check(&run.asked(20, 21, read(), on(SIZE, &[])).history()), "Publish");
    }

    #[test]
    fn what_nobody_was_told_may_be_either_way() {
        let run = Run::with_volume().asked(10, 11, publish("a"), unknown());
        for nodes in [&[][..], &["a"]] {
            assert_none(check(&run.clone().asked(20, 21, read(), on(SIZE, nodes)).history()));
        }
    }
}
