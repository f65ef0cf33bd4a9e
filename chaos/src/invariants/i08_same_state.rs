//! I8: replicas that have applied the same entries have the same state.

use std::collections::BTreeMap;

use crate::history::History;

pub(super) fn check(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    let mut first: BTreeMap<u64, (u64, &str)> = BTreeMap::new();
    for seen in &history.hashes {
        let (replica, hash) = first.entry(seen.index).or_insert((seen.replica, &seen.hash));
        if *hash != seen.hash {
            let (index, other, theirs) = (seen.index, seen.replica, &seen.hash);
            found.push(format!("after entry {index} replica {replica} has {hash}, replica {other} {theirs}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::builder::*;
    use super::*;

    #[test]
    fn the_same_entry_makes_the_same_state() {
        let run = Run::default().hash(1, 1, "a").hash(2, 1, "a").hash(1, 2, "b");
        assert_none(check(&run.clone().history()));
        assert_one(check(&run.hash(3, 2, "a").history()), "entry 2");
    }
}
