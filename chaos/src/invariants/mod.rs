//! The invariants of the chaos suite: what must be true of every run, whatever was broken in it.
//!
//! Each one is judged on the recorded [`History`] alone, and knows nothing of the code that made it. What cannot be
//! said for certain from a history is held to be good: an answer that nobody got may stand for a change or for none.
//!
//! | | Invariant |
//! |---|---|
//! | I1 | A volume for two nodes is on two at most, in the ledger and as really connected |
//! | I2 | Any other volume is on one at most |
//! | I3 | What was acknowledged is not lost, and not resurrected |
//! | I4 | The appliance carries out no command of a term or number that is behind |
//! | I5 | A migration is reaped once at most, never the last attachment, never held open |
//! | I6 | A migration is overdue in its time: never early, and late within a bound |
//! | I7 | Each volume's history is linearizable |
//! | I8 | The same entries make the same state |
//! | I9 | In the end the ledger, the appliance and the nodes agree |
//! | I10 | A request that is repeated gets the same answer |
//! | I11 | Nobody votes twice, nobody votes for the dead, and there is one cluster |

#[cfg(test)]
mod builder;
mod i01_two_nodes;
mod i02_one_node;
mod i03_acknowledged;
mod i04_fence;
mod i05_reaping;
mod i06_deadlines;
mod i07_linearizable;
mod i08_same_state;
mod i09_agreement;
mod i10_repeated;
mod i11_votes;
mod kept;
mod occupancy;
mod search;
mod seen;

use std::fmt;

use crate::history::History;

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Its name, `I1` to `I11`.
    pub invariant: &'static str,
    /// What was seen, in a sentence.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// What came of judging a history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The broken invariants.
    pub violations: Vec<Violation>,
    /// How many volumes' histories were put in an order, for I7.
    pub searched: usize,
    /// The volumes where that took too long: nothing is known of I7 there.
    pub given_up: Vec<String>,
}

/// An invariant: what breaks it, in a sentence each.
type Judge = fn(&History) -> Vec<String>;

/// I7 is not among them: it may come to no verdict.
const JUDGES: &[(&str, Judge)] = &[
    ("I1", i01_two_nodes::check),
    ("I2", i02_one_node::check),
    ("I3", i03_acknowledged::check),
    ("I4", i04_fence::check),
    ("I5", i05_reaping::check),
    ("I6", i06_deadlines::check),
    ("I8", i08_same_state::check),
    ("I9", i09_agreement::check),
    ("I10", i10_repeated::check),
    ("I11", i11_votes::check),
];

/// Judges a finished run.
pub fn judge(history: &History) -> Report {
    let found = |invariant: &'static str, what: String| Violation { invariant, what };
    let mut report = Report::default();
    for (name, check) in JUDGES {
        report.violations.extend(check(history).into_iter().map(|what| found(name, what)));
    }
    let order = i07_linearizable::check(history);
    report.violations.extend(order.broken.into_iter().map(|what| found("I7", what)));
    (report.searched, report.given_up) = (order.searched, order.given_up);
    report
}

/// The broken invariants of a finished run. [`judge`] says as well where there was no verdict.
pub fn check(history: &History) -> Vec<Violation> {
    judge(history).violations
}

#[cfg(test)]
mod tests {
    use super::builder::*;
    use super::*;

    #[test]
    fn a_good_run_breaks_nothing() {
        let report = judge(&good_migration().history());
        assert_eq!(report.violations, []);
        assert_eq!((report.searched, report.given_up.len()), (1, 0));
    }

    #[test]
    fn a_broken_invariant_has_its_name() {
        let history = good_migration().hash(1, 7, "a").hash(2, 7, "b").history();
        let found = check(&history);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].to_string().starts_with("I8: "), "{}", found[0]);
    }

    #[test]
    fn every_invariant_is_judged() {
        let mut names: Vec<_> = JUDGES.iter().map(|(name, _)| *name).collect();
        names.push("I7");
        names.sort_by_key(|name| name[1..].parse::<u8>().unwrap());
        let expected: Vec<_> = (1..=11).map(|number| format!("I{number}")).collect();
        assert_eq!(names, expected);
    }
}
