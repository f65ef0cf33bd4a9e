//! How many nodes have a volume at once, in the ledger and really: the ground of I1 and I2.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Connection, History, LedgerFact};

use super::seen::time;

/// Where one of the volumes that `applies` holds for is on more than `most` nodes, each time that it comes to be so.
pub(super) fn exceeded(history: &History, most: usize, applies: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = in_ledger(history, most, &applies);
    found.extend(really(history, most, &applies));
    found
}

/// One that is being revoked still counts.
fn in_ledger(history: &History, most: usize, applies: &impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut attached: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
    for seen in history.ledger.iter().filter(|seen| applies(&seen.volume)) {
        let nodes = attached.entry(&seen.volume).or_default();
        match &seen.fact {
            LedgerFact::Attached { node, generation } => {
                let is_new = nodes.insert(node, *generation).is_none();
                if is_new && nodes.len() > most {
                    let nodes: Vec<_> = nodes.keys().collect();
                    let (volume, at) = (&seen.volume, time(seen.at));
                    found.push(format!("at {at} the ledger has {volume} on {nodes:?}, at most {most}"));
                }
            }
            LedgerFact::Detached { node, generation } => {
                if nodes.get(node.as_str()).is_some_and(|held| held <= generation) {
                    nodes.remove(node.as_str());
                }
            }
            LedgerFact::Revoking { .. }
            | LedgerFact::MigrationStarted { .. }
            | LedgerFact::MigrationOverdue { .. }
            | LedgerFact::Reaping { .. }
            | LedgerFact::MigrationEnded { .. } => {}
        }
    }
    found
}

fn really(history: &History, most: usize, applies: &impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut changes: Vec<_> = history.connections.iter().filter(|seen| applies(&seen.volume)).collect();
    changes.sort_by_key(|seen| seen.at);
    let mut connected: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for seen in changes {
        let nodes = connected.entry(&seen.volume).or_default();
        match seen.change {
            Connection::Connected => {
                if nodes.insert(&seen.node) && nodes.len() > most {
                    let (volume, at) = (&seen.volume, time(seen.at));
                    found.push(format!("at {at} {volume} is connected on {nodes:?}, at most {most}"));
                }
            }
            Connection::Disconnected => {
                nodes.remove(seen.node.as_str());
            }
            Connection::Opened | Connection::Closed => {}
        }
    }
    found
}
