//! I1: a volume that two nodes may have is on two at most, in the ledger and as really connected.

use crate::history::History;

use super::{occupancy, seen};

/// How many nodes may have a shared volume.
const MOST_NODES: usize = 2;

pub(super) fn check(history: &History) -> Vec<String> {
    let shared = seen::shared_volumes(history);
    occupancy::exceeded(history, MOST_NODES, |volume| shared.contains(volume))
}

#[cfg(test)]
mod tests {
    use super::super::builder::*;
    use super::*;
    use crate::history::Connection::{Connected, Disconnected};

    fn two_nodes() -> Run {
        Run::with_shared_volume().attach(10, "a", 1).attach(20, "b", 2)
    }

    #[test]
    fn two_nodes_and_then_another_are_fine() {
        let run = two_nodes().revoke(30, "a", 1).detach(40, "a", 1).attach(50, "c", 3);
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
    fn a_late_word_of_an_earlier_attachment_ends_nothing() {
        let run = two_nodes().detach(30, "a", 0).attach(40, "c", 3);
        assert_one(check(&run.history()), "ledger has v on");
    }
}
