//! I11: no replica votes for two candidates in a term, a wiped one never votes under its old id, and no second
//! cluster ever forms.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::History;

use super::seen::time;

pub(super) fn check(history: &History) -> Vec<String> {
    let mut votes: Vec<_> = history.votes.iter().collect();
    votes.sort_by_key(|vote| vote.at);
    let mut found = Vec::new();
    let mut of_replica: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    let mut of_place: BTreeMap<(&str, u64), u64> = BTreeMap::new();
    let mut lives: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for vote in votes {
        let (replica, place, term, candidate) =
            (vote.replica, vote.place.as_str(), vote.term, vote.candidate);
        let at = time(vote.at);
        let first = *of_replica.entry((replica, term)).or_insert(candidate);
        let first_there = *of_place.entry((place, term)).or_insert(candidate);
        if first != candidate {
            found.push(format!(
                "replica {replica} voted for {first} and at {at} for {candidate} in term {term}"
            ));
        } else if first_there != candidate {
            found.push(format!("{place} voted for {first_there} and at {at} for {candidate} in term {term}"));
        }
        let lives = lives.entry(place).or_default();
        if lives.last() != Some(&replica) {
            if lives.contains(&replica) {
                found.push(format!("replica {replica} of {place} voted at {at}, after it was wiped"));
            }
            lives.push(replica);
        }
    }
    let mut clusters: BTreeSet<&str> = history.votes.iter().map(|vote| vote.cluster.as_str()).collect();
    clusters.extend(history.end.iter().flat_map(|end| &end.clusters).map(String::as_str));
    // A replica that does not know its cluster yet is of no other.
    clusters.remove("");
    if clusters.len() > 1 {
        found.push(format!("there are the clusters {clusters:?}"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::builder::*;
    use super::*;

    fn run() -> Run {
        Run::default()
            .vote(1, 11, "r1", "one", 1, 11)
            .vote(1, 12, "r2", "one", 1, 11)
            .vote(2, 12, "r2", "one", 2, 13)
    }

    #[test]
    fn a_vote_may_be_repeated_and_a_wiped_replica_votes_under_a_new_id() {
        let run = run().vote(3, 12, "r2", "one", 2, 13).vote(4, 21, "r1", "one", 3, 12);
        let run = run.ends(9, &[]).but(|end| _ = end.clusters.insert(String::new()));
        assert_none(check(&run.history()));
    }

    #[test]
    fn two_candidates_in_a_term_are_seen() {
        assert_one(check(&run().vote(3, 12, "r2", "one", 2, 11).history()), "replica 12 voted for 13");
        assert_one(check(&run().vote(3, 22, "r2", "one", 2, 11).history()), "r2 voted for 13");
    }

    #[test]
    fn a_wiped_replica_does_not_vote_under_its_old_id() {
        let run = run().vote(4, 21, "r1", "one", 3, 12).vote(5, 11, "r1", "one", 4, 12);
        assert_one(check(&run.history()), "after it was wiped");
    }

    #[test]
    fn a_second_cluster_is_seen() {
        assert_one(check(&run().vote(5, 12, "r2", "two", 3, 12).history()), "clusters");
        let end = run().ends(9, &[]).but(|end| _ = end.clusters.insert("two".to_owned()));
        assert_one(check(&end.history()), "clusters");
    }
}
