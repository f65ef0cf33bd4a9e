//! Who was a member: the names of replicas that are none any more.
//!
//! Someone who asks to have a dead replica replaced names its id, and may ask once more after the successor has taken
//! its place: then the membership has the dead id no more, and the roll still tells whose place it was. Each replica
//! keeps it in memory, from the memberships that it sees; after a restart it knows less, and the answer is a refusal.

use std::collections::VecDeque;

use storage::StoredMembership;

/// How many members are remembered.
const MAX_REMEMBERED: usize = 64;

/// The members seen, latest last.
#[derive(Debug, Default)]
pub(crate) struct Roll {
    seen: VecDeque<(u64, String)>,
}

impl Roll {
    /// Takes down who is in `membership`.
    pub(crate) fn note(&mut self, membership: &StoredMembership) {
        for (id, node) in membership.nodes() {
            if self.name(*id).is_some() {
                continue;
            }
            if self.seen.len() == MAX_REMEMBERED {
                self.seen.pop_front();
            }
            self.seen.push_back((*id, node.name.clone()));
        }
    }

    /// What the member `id` is or was called.
    pub(crate) fn name(&self, id: u64) -> Option<&str> {
        self.seen.iter().find(|(seen, _)| *seen == id).map(|(_, name)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use storage::{Membership, ReplicaNode};

    use super::*;

    fn note(roll: &mut Roll, id: u64, name: &str) {
        let node = ReplicaNode { name: name.to_owned(), address: String::new() };
        let membership = Membership::new(vec![BTreeSet::from([id])], BTreeMap::from([(id, node)])).unwrap();
        roll.note(&StoredMembership::new(None, membership));
    }

    #[test]
    fn those_who_are_gone_are_remembered_for_a_while() {
        let mut roll = Roll::default();
        note(&mut roll, 1, "a");
        note(&mut roll, 2, "b");
        assert_eq!((roll.name(1), roll.name(2), roll.name(3)), (Some("a"), Some("b"), None));
        for id in 3..3 + MAX_REMEMBERED as u64 - 1 {
            note(&mut roll, id, "c");
        }
        assert_eq!((roll.name(1), roll.name(2)), (None, Some("b")));
        assert_eq!(roll.seen.len(), MAX_REMEMBERED);
    }
}
