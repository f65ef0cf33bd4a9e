//! I2: a volume that is not made for two nodes is on one at most, in the ledger and as really connected.

use crate::history::History;

use super::{occupancy, seen};

/// How many nodes may have a volume that is not shared.
const MOST_NODES: usize = 1;

pub(super) fn check(history: &History) -> Vec<String> {
    let shared = seen::shared_volumes(history);
    occupancy::exceeded(history, MOST_NODES, |volume| !shared.contains(volume))
}

#[cfg(test)]
mod tests {
    use super::super::builder::*;
    use super::*;
    use crate::history::Connection::{Connected, Disconnected};

    #[test]
    fn one_node_after_the_other_is_fine() {
        let run = Run::with_volume().attach(1, "a", 1).detach(2, "a", 1).attach(3, "b", 2);
        let run = run.wire(1, "a", Connected).wire(2, "a", Disconnected).wire(3, "b", Connected);
        assert_none(check(&run.history()));
    }

    #[test]
    fn two_in_the_ledger_are_too_many() {
        assert_one(check(&Run::with_volume().attach(1, "a", 1).attach(3, "b", 2).history()), "ledger has v");
    }

    #[test]
    fn two_connections_are_too_many() {
        let run = Run::with_volume().wire(1, "a", Connected).wire(2, "b", Connected);
        assert_one(check(&run.history()), "is connected on");
    }

    #[test]
    fn a_shared_volume_is_not_meant() {
        assert_none(check(&Run::with_shared_volume().attach(1, "a", 1).attach(3, "b", 2).history()));
    }
}
