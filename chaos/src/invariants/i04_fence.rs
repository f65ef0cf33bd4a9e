//! I4: in the appliance's own log no mutation bears a lower term than one already effective, and the numbers within a
//! term grow; so neither a deposed leader nor a late copy of a command changes anything.
//!
//! One command may make several mutations of its volume, each of another kind, with one number.

use crate::history::{ApplianceChange, History, Mutation};

use super::seen::time;

pub(super) fn check(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    let mut last: Option<((u64, u64), &Mutation)> = None;
    let mut of_last: Vec<&ApplianceChange> = Vec::new();
    for mutation in &history.appliance {
        let (what, at) = (format!("{:?} of {}", mutation.change, mutation.volume), time(mutation.at));
        let (Some(term), Some(sequence)) = (mutation.term, mutation.sequence) else {
            found.push(format!("{what} at {at} bore no fence"));
            continue;
        };
        let number = (term, sequence);
        match last {
            Some((highest, before)) if number == highest => {
                if mutation.volume != before.volume || of_last.contains(&&mutation.change) {
                    found.push(format!("{what} at {at} bore {number:?} for the second time"));
                }
            }
            Some((highest, _)) if number < highest => {
                found.push(format!("{what} at {at} bore {number:?} after {highest:?} was effective"));
                continue;
            }
            Some(_) | None => of_last.clear(),
        }
        of_last.push(&mutation.change);
        last = Some((number, mutation));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::builder::*;
    use super::*;
    use ApplianceChange::{Created, Exported, Grown, Removed};

    fn run() -> Run {
        Run::default().mutate(Some((1, 1)), V, Created).mutate(Some((1, 1)), V, Exported)
    }

    #[test]
    fn growing_numbers_are_fine() {
        let run = run().mutate(Some((1, 2)), V, Grown).mutate(Some((3, 1)), V, Removed);
        assert_none(check(&run.mutate(Some((3, 9)), V, Created).history()));
    }

    #[test]
    fn a_lower_term_is_seen() {
        let run = run().mutate(Some((2, 1)), V, Grown).mutate(Some((1, 7)), V, Removed);
        assert_one(check(&run.history()), "(1, 7) after (2, 1)");
    }

    #[test]
    fn a_lower_number_of_the_same_term_is_seen() {
        let run = run().mutate(Some((1, 3)), V, Grown).mutate(Some((1, 2)), V, Removed);
        assert_one(check(&run.history()), "(1, 2) after (1, 3)");
    }

    #[test]
    fn a_number_is_used_by_one_command_once() {
        assert_one(check(&run().mutate(Some((1, 1)), V, Created).history()), "second time");
        assert_one(check(&run().mutate(Some((1, 1)), "other", Grown).history()), "second time");
    }

    #[test]
    fn every_mutation_bears_a_fence() {
        assert_one(check(&run().mutate(None, V, Removed).history()), "no fence");
    }
}
