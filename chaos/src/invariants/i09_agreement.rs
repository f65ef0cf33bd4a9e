//! I9: when everything is healed and quiet, the ledger, the appliance and the nodes agree: the same volumes with the
//! same sizes, exported where a node has them, and connected only where the ledger has them.

use crate::history::{FinalRead, History};

pub(super) fn check(history: &History) -> Vec<String> {
    let Some(end) = &history.end else { return vec!["the run has no final read".to_owned()] };
    let mut found = volumes(end);
    for (node, volume) in &end.connected {
        if !end.ledger.get(volume).is_some_and(|known| known.nodes.contains(node)) {
            found.push(format!("{volume} is connected on {node}, where the ledger does not have it"));
        }
    }
    found
}

fn volumes(end: &FinalRead) -> Vec<String> {
    let mut found = Vec::new();
    for (volume, known) in &end.ledger {
        match end.appliance.get(volume) {
            None => found.push(format!("{volume} is in the ledger and not on the appliance")),
            Some((size_bytes, exported)) => {
                if *size_bytes != known.size_bytes {
                    let recorded = known.size_bytes;
                    found.push(format!("{volume} has {size_bytes} bytes, the ledger says {recorded}"));
                }
                if !exported && !known.nodes.is_empty() {
                    found.push(format!("{volume} is on {:?} and not exported", known.nodes));
                }
            }
        }
    }
    let strays = end.appliance.keys().filter(|volume| !end.ledger.contains_key(*volume));
    found.extend(strays.map(|volume| format!("{volume} is on the appliance and not in the ledger")));
    found
}

#[cfg(test)]
mod tests {
    use super::super::builder::*;
    use super::*;

    fn end(change: impl FnOnce(&mut FinalRead)) -> History {
        Run::default().ends(10, &["a"]).but(change).history()
    }

    #[test]
    fn all_agree() {
        assert_none(check(&end(|_| {})));
        assert_none(check(&end(|end| end.connected.clear())));
    }

    #[test]
    fn each_disagreement_is_seen() {
        assert_one(check(&end(|end| end.appliance.clear())), "not on the appliance");
        assert_one(
            check(&end(|end| _ = end.appliance.insert("w".to_owned(), (1, true)))),
            "not in the ledger",
        );
        assert_one(check(&end(|end| _ = end.appliance.insert(V.to_owned(), (1, true)))), "has 1 bytes");
        assert_one(check(&end(|end| _ = end.appliance.insert(V.to_owned(), (SIZE, false)))), "not exported");
        let stray = |volume: &str| ("b".to_owned(), volume.to_owned());
        assert_one(check(&end(|end| _ = end.connected.insert(stray(V)))), "does not have it");
        assert_one(check(&end(|end| _ = end.connected.insert(stray("w")))), "does not have it");
    }

    #[test]
    fn a_run_without_an_end_is_not_good() {
        assert_one(check(&Run::default().history()), "no final read");
    }
}
