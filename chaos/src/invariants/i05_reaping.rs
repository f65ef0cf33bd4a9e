//! I5: a migration is reaped once at most, never its last attachment, and never a side that is held open: neither is
//! it chosen, if it was open ever since the migration is overdue, nor is it cut. And nobody loses a slot in the ledger
//! while really connected.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Connection, ConnectionChange, History, LedgerFact, Micros, Transition};

use super::seen::{OBSERVER_LAG_MICROS, OBSERVER_LEAD_MICROS, time};

/// What each volume's connection on each node went through, by time.
type Wires<'a> = BTreeMap<(&'a str, &'a str), Vec<&'a ConnectionChange>>;

pub(super) fn check(history: &History) -> Vec<String> {
    let mut found = decisions(history);
    let mut wires = Wires::new();
    for change in &history.connections {
        wires.entry((&change.volume, &change.node)).or_default().push(change);
    }
    for changes in wires.values_mut() {
        changes.sort_by_key(|change| change.at);
    }
    for seen in &history.ledger {
        match &seen.fact {
            LedgerFact::Detached { node, generation } => {
                let wire = wire_of(&wires, &seen.volume, node);
                found.extend(freed_too_early(history, seen, node, *generation, wire));
            }
            LedgerFact::Reaping { migration, node } => {
                let wire = wire_of(&wires, &seen.volume, node);
                found.extend(chosen_while_open(history, seen, *migration, node, wire));
            }
            LedgerFact::Attached { .. }
            | LedgerFact::Revoking { .. }
            | LedgerFact::MigrationStarted { .. }
            | LedgerFact::MigrationOverdue { .. }
            | LedgerFact::MigrationEnded { .. } => {}
        }
    }
    for ((volume, node), changes) in &wires {
        found.extend(cut_while_open(history, volume, node, changes));
    }
    found
}

fn wire_of<'w, 'a>(wires: &'w Wires<'a>, volume: &'a str, node: &'a str) -> &'w [&'a ConnectionChange] {
    wires.get(&(volume, node)).map_or(&[], Vec::as_slice)
}

/// How a node's attachment stands.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Stays,
    Leaves,
    /// It leaves because it was reaped, and has the volume again if the other side leaves before it.
    Reaped,
}

/// How the ledger decides to reap.
fn decisions(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    let mut reaped = BTreeSet::new();
    let mut attached: BTreeMap<&str, BTreeMap<&str, Side>> = BTreeMap::new();
    for seen in &history.ledger {
        let nodes = attached.entry(&seen.volume).or_default();
        match &seen.fact {
            LedgerFact::Attached { node, .. } => {
                nodes.insert(node, Side::Stays);
            }
            LedgerFact::Revoking { node, .. } => {
                let side = nodes.entry(node).or_insert(Side::Leaves);
                if *side == Side::Stays {
                    *side = Side::Leaves;
                }
            }
            LedgerFact::Detached { node, .. } => {
                nodes.remove(node.as_str());
                nodes.values_mut().filter(|side| **side == Side::Reaped).for_each(|side| *side = Side::Stays);
            }
            LedgerFact::Reaping { migration, node } => {
                let (volume, at) = (&seen.volume, time(seen.at));
                if !reaped.insert(*migration) {
                    found.push(format!("migration {migration} of {volume} is reaped again at {at}"));
                }
                if !nodes.iter().any(|(other, side)| *other != node.as_str() && *side == Side::Stays) {
                    found.push(format!("{volume} is reaped from {node} at {at}, and nobody else keeps it"));
                }
                nodes.insert(node, Side::Reaped);
            }
            LedgerFact::MigrationStarted { .. }
            | LedgerFact::MigrationOverdue { .. }
            | LedgerFact::MigrationEnded { .. } => {}
        }
    }
    found
}

/// The node stayed connected when the ledger had freed its slot. What it was given anew by then is another matter.
fn freed_too_early(
    history: &History,
    seen: &Transition,
    node: &str,
    generation: u64,
    changes: &[&ConnectionChange],
) -> Option<String> {
    let by_then = changes.iter().take_while(|change| change.at <= seen.at + OBSERVER_LEAD_MICROS);
    let (mut connected, mut open) = (None, false);
    for change in by_then {
        match change.change {
            Connection::Connected => connected = Some(change.at),
            Connection::Opened => open = true,
            Connection::Closed => open = false,
            Connection::Disconnected => (connected, open) = (None, false),
        }
    }
    let connected = connected.filter(|since| *since <= seen.at)?;
    let is_given_anew = history.ledger.iter().any(|later| {
        later.volume == seen.volume
            && later.at <= seen.at + OBSERVER_LAG_MICROS
            && matches!(&later.fact, LedgerFact::Attached { node: to, generation: new }
                if to == node && *new > generation)
    });
    if is_given_anew {
        return None;
    }
    let (volume, at, since) = (&seen.volume, time(seen.at), time(connected));
    let held = if open { ", and held open" } else { "" };
    Some(format!("{volume} is freed from {node} at {at}, which is connected since {since}{held}"))
}

/// The side was open all the time from which evidence may be: somebody must have seen that, if the node could speak.
fn chosen_while_open(
    history: &History,
    seen: &Transition,
    migration: u64,
    node: &str,
    changes: &[&ConnectionChange],
) -> Option<String> {
    let is_overdue = |fact: &LedgerFact| matches!(fact, LedgerFact::MigrationOverdue { migration: of } if *of == migration);
    let overdue = history.ledger.iter().find(|fact| is_overdue(&fact.fact))?.at;
    let last = changes.iter().take_while(|change| change.at <= seen.at + OBSERVER_LEAD_MICROS).last()?;
    let is_open = last.change == Connection::Opened && last.at.saturating_add(OBSERVER_LAG_MICROS) < overdue;
    (is_open && !is_down(history, node, seen.at)).then(|| {
        let (volume, at, since) = (&seen.volume, time(seen.at), time(last.at));
        format!("{volume} is reaped from {node} at {at}, where it is held open since {since}")
    })
}

/// A side that is being reaped was disconnected under somebody who had it open.
fn cut_while_open(
    history: &History,
    volume: &str,
    node: &str,
    changes: &[&ConnectionChange],
) -> Option<String> {
    let mut open = false;
    for change in changes {
        match change.change {
            Connection::Opened => open = true,
            Connection::Connected | Connection::Closed => open = false,
            Connection::Disconnected => {
                if open
                    && is_reaped_at(history, volume, node, change.at)
                    && !is_down(history, node, change.at)
                {
                    let at = time(change.at);
                    return Some(format!("{volume} is cut from {node} at {at} by a reap, and held open"));
                }
                open = false;
            }
        }
    }
    None
}

fn is_reaped_at(history: &History, volume: &str, node: &str, at: Micros) -> bool {
    let facts = history.ledger.iter().filter(|seen| seen.volume == volume && seen.at <= at);
    facts.fold(false, |reaped, seen| match &seen.fact {
        LedgerFact::Reaping { node: stale, .. } if stale == node => true,
        LedgerFact::Attached { node: to, .. } if to == node => false,
        // It is off, or it is the last one and has the volume again.
        LedgerFact::Detached { .. } => false,
        LedgerFact::Attached { .. }
        | LedgerFact::Revoking { .. }
        | LedgerFact::MigrationStarted { .. }
        | LedgerFact::MigrationOverdue { .. }
        | LedgerFact::Reaping { .. }
        | LedgerFact::MigrationEnded { .. } => reaped,
    })
}

/// Whether a fault of the node itself explains what happened there.
fn is_down(history: &History, node: &str, at: Micros) -> bool {
    let latest = |healed: Option<Micros>, began: Micros| healed.unwrap_or(began) + OBSERVER_LAG_MICROS;
    let mut faults = history.faults.iter().filter(|fault| fault.hit_node_before(node, at));
    faults.any(|fault| at <= latest(fault.healed, fault.at))
}

#[cfg(test)]
mod tests {
    use super::super::builder::*;
    use super::*;
    use crate::history::Installed;
    use Connection::{Closed, Connected, Disconnected, Opened};

    /// Both sides connected, the target left behind.
    fn overdue() -> Run {
        Run::with_shared_volume()
            .attach(1, "a", 1)
            .wire(2, "a", Connected)
            .wire(3, "a", Opened)
            .attach(10, "b", 2)
            .migrate(10, 1, "a", "b", 30_000)
            .wire(11, "b", Connected)
            .overdue(30_010, 30_010, 1)
    }

    fn reaped() -> Run {
        overdue().reap(30_100, 1, "b").revoke(30_100, "b", 2)
    }

    #[test]
    fn a_stale_side_is_cut_and_then_freed() {
        let run = reaped().wire(30_200, "b", Disconnected).detach(30_300, "b", 2);
        assert_none(check(&run.migrated(30_300, 1, "timeout").history()));
    }

    #[test]
    fn a_second_reap_is_seen() {
        assert_one(check(&reaped().reap(30_150, 1, "b").history()), "reaped again");
    }

    #[test]
    fn a_side_that_is_seen_open_is_not_chosen() {
        let open = |at| overdue().wire(at, "b", Opened);
        assert_one(check(&open(20).reap(30_100, 1, "b").history()), "where it is held open since 0.02");
        assert_none(check(&open(20).wire(30_050, "b", Closed).reap(30_100, 1, "b").history()));
        assert_none(check(&open(30_050).reap(30_100, 1, "b").history()));
        let cut_off = open(20).fault(29_000, Some(40_000), "b", Installed::Yes);
        assert_none(check(&cut_off.reap(30_100, 1, "b").history()));
    }

    #[test]
    fn the_last_attachment_is_not_reaped() {
        let alone = Run::with_shared_volume().attach(1, "a", 1).overdue(30_010, 30_010, 1);
        assert_one(check(&alone.reap(30_100, 1, "a").history()), "nobody else keeps it");
        let leaving = overdue().revoke(30_050, "a", 1).reap(30_100, 1, "b");
        assert_one(check(&leaving.history()), "nobody else keeps it");
    }

    #[test]
    fn a_side_that_was_reaped_keeps_the_volume_once_the_other_has_left() {
        let spared = reaped().wire(30_200, "a", Disconnected).detach(30_300, "a", 1);
        let spared = spared.migrated(30_300, 1, "success").attach(40_000, "c", 3);
        let again = spared.migrate(40_000, 2, "b", "c", 30_000).overdue(70_010, 70_010, 2);
        assert_none(check(&again.clone().reap(70_100, 2, "c").history()));
        let leaving = again.revoke(70_050, "b", 2).reap(70_100, 2, "c");
        assert_one(check(&leaving.history()), "nobody else keeps it");
    }

    #[test]
    fn a_side_that_is_still_connected_is_not_freed() {
        let freed = reaped().detach(30_300, "b", 2);
        assert_one(check(&freed.clone().history()), "connected since 0.011000 s");
        assert_one(check(&freed.clone().wire(31_400, "b", Disconnected).history()), "connected since");
        assert_none(check(&freed.wire(31_200, "b", Disconnected).history()));
        let open = reaped().wire(30_150, "b", Opened).detach(30_300, "b", 2);
        assert_one(check(&open.history()), "held open");
    }

    #[test]
    fn a_node_that_has_it_anew_may_be_connected() {
        let run = reaped().wire(30_200, "b", Disconnected).wire(30_290, "b", Connected);
        assert_none(check(&run.clone().detach(30_300, "b", 2).attach(30_300, "b", 3).history()));
        assert_one(check(&run.detach(30_300, "b", 2).history()), "is freed from b");
    }

    #[test]
    fn nothing_held_open_is_cut_by_a_reap() {
        let run = reaped().wire(30_150, "b", Opened).wire(30_200, "b", Disconnected);
        assert_one(check(&run.clone().history()), "held open");
        assert_none(check(&run.fault(30_190, None, "b", Installed::Yes).history()));
        let closed = reaped().wire(30_150, "b", Opened).wire(30_160, "b", Closed);
        assert_none(check(&closed.wire(30_200, "b", Disconnected).history()));
        let not_reaped = overdue().wire(30_200, "a", Disconnected);
        assert_none(check(&not_reaped.history()));
    }
}
