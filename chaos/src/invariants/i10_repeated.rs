//! I10: a request that is repeated with the same arguments, with no change in between, gets the same answer: what
//! was done once is done again, with the same publish context.

use std::collections::BTreeMap;

use crate::history::{Answer, History, LedgerFact, Micros, Operation, Request, Transition};

use super::seen::{OBSERVER_LAG_MICROS, OBSERVER_LEAD_MICROS, time};

pub(super) fn check(history: &History) -> Vec<String> {
    let mut volumes: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in &history.operations {
        volumes.entry(operation.request.volume()).or_default().push(operation);
    }
    let mut found = Vec::new();
    for operations in volumes.values() {
        let mut last_done: BTreeMap<&Request, (&Operation, Micros)> = BTreeMap::new();
        let mut by_start = operations.clone();
        by_start.sort_by_key(|operation| operation.started);
        for operation in by_start {
            if let Some((first, first_ended)) = last_done.get(&operation.request)
                && operation.started >= *first_ended
            {
                found.extend(contradiction(history, operations, first, operation));
            }
            if let (Some(ended), false) =
                (operation.acknowledged(), matches!(operation.request, Request::Read { .. }))
            {
                last_done.insert(&operation.request, (operation, ended));
            }
        }
    }
    found
}

fn contradiction(
    history: &History,
    operations: &[&Operation],
    first: &Operation,
    second: &Operation,
) -> Option<String> {
    let same = match (&first.answer, &second.answer) {
        (_, Answer::Unknown(_)) => true,
        (Answer::Published(one), Answer::Published(other)) => one == other,
        (one, other) => one == other,
    };
    let ended = second.ended?;
    if same || has_changed(history, operations, first, ended) {
        return None;
    }
    let (what, at, then) = (&second.request, time(ended), time(first.started));
    Some(format!("{what:?} got {:?} at {at}, after {:?} asked at {then}", second.answer, first.answer))
}

/// Whether anything between the two may have made the second another request.
fn has_changed(history: &History, operations: &[&Operation], first: &Operation, to: Micros) -> bool {
    let undone = operations.iter().any(|operation| {
        undoes(&operation.request, &first.request) && operation.may_fall_between(first.started, to)
    });
    let Request::Publish { volume, node } = &first.request else { return undone };
    let from = first.started.saturating_sub(OBSERVER_LEAD_MICROS);
    let until = to.saturating_add(OBSERVER_LAG_MICROS);
    undone
        || history.ledger.iter().any(|seen| {
            let is_leaving = match &seen.fact {
                LedgerFact::Revoking { node: of, .. } | LedgerFact::Reaping { node: of, .. } => of == node,
                LedgerFact::Detached { node: of, .. } => of == node && !is_replaced(history, seen, node),
                LedgerFact::Attached { .. }
                | LedgerFact::MigrationStarted { .. }
                | LedgerFact::MigrationOverdue { .. }
                | LedgerFact::MigrationEnded { .. } => false,
            };
            is_leaving && seen.volume == *volume && (from..=until).contains(&seen.at)
        })
}

/// Whether the node has the volume anew at the very moment at which it lost it: it did not leave.
fn is_replaced(history: &History, lost: &Transition, node: &str) -> bool {
    history.ledger.iter().any(|seen| {
        let is_then = (seen.at, seen.ledger_ms, &seen.volume) == (lost.at, lost.ledger_ms, &lost.volume);
        is_then && matches!(&seen.fact, LedgerFact::Attached { node: to, .. } if to == node)
    })
}

/// Whether `request` may change what `first` is answered, were it asked again.
fn undoes(request: &Request, first: &Request) -> bool {
    match first {
        Request::Create { volume, .. } => {
            request.deletes(volume) || request.creates(volume) && request != first
        }
        Request::Delete { volume } => request.creates(volume),
        Request::Publish { volume, node } => request.unpublishes(volume, node) || request.deletes(volume),
        Request::Unpublish { volume, node } => {
            request.publishes(volume, node)
                || node.is_empty() && matches!(request, Request::Publish { volume: of, .. } if of == volume)
        }
        Request::Expand { volume, .. } => request.deletes(volume),
        Request::Read { .. } => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::builder::*;
    use super::*;

    #[test]
    fn the_same_again_is_answered_the_same() {
        let run = Run::with_volume()
            .asked(2, 3, create(SIZE, false), Answer::Ok)
            .asked(10, 11, publish("a"), published(1))
            .asked(12, 13, publish("a"), unknown())
            .asked(14, 15, publish("a"), published(1));
        assert_none(check(&run.history()));
    }

    #[test]
    fn another_publish_context_is_seen() {
        let run = Run::with_volume().asked(10, 11, publish("a"), published(1));
        let other = run.clone().asked(12, 13, publish("a"), published(2));
        assert_one(check(&other.history()), "Publish");
        let unpublished = run.clone().asked_in_vain(5, unpublish("a"));
        assert_none(check(&unpublished.asked(12, 13, publish("a"), published(2)).history()));
        let reaped = run.clone().reap(12, 1, "a").asked(13, 14, publish("a"), refused());
        assert_none(check(&reaped.history()));
        let off = run.clone().detach(500, "a", 1).asked(13, 14, publish("a"), published(2));
        assert_none(check(&off.history()));
        // It is given another attachment in place of the one it has: that is no change in between, it is the answer.
        let replaced = run.detach(12, "a", 1).attach(12, "a", 2).asked(12, 14, publish("a"), published(2));
        assert_one(check(&replaced.history()), "Publish");
    }

    #[test]
    fn what_was_done_is_not_refused_the_next_time() {
        for request in [create(SIZE, false), delete(), publish("a"), unpublish("a"), expand(SIZE)] {
            let done = match request {
                Request::Publish { .. } => published(1),
                Request::Create { .. }
                | Request::Delete { .. }
                | Request::Unpublish { .. }
                | Request::Expand { .. }
                | Request::Read { .. } => Answer::Ok,
            };
            let run = Run::default().asked(10, 11, request.clone(), done);
            assert_one(check(&run.asked(12, 13, request.clone(), refused()).history()), "Refused");
        }
    }

    #[test]
    fn a_change_in_between_makes_it_another_request() {
        let rows = [
            (create(SIZE, false), delete()),
            (delete(), create(SIZE, false)),
            (unpublish("a"), publish("a")),
            (unpublish(""), publish("a")),
            (expand(SIZE), delete()),
        ];
        for (request, between) in rows {
            let run =
                Run::default().asked(10, 11, request.clone(), Answer::Ok).asked(11, 12, between, unknown());
            assert_none(check(&run.asked(13, 14, request, refused()).history()));
        }
    }

    #[test]
    fn what_overlaps_is_no_repetition() {
        let run = Run::with_volume().asked(10, 20, publish("a"), published(1));
        assert_none(check(&run.asked(15, 16, publish("a"), published(2)).history()));
    }
}
