//! Stale attachments: the verdict on a node that may be off (DESIGN.md, "Proof" (c) and (d)).
//!
//! A node that speaks is not off, whatever Kubernetes says of it: the taint is set, and the object deleted, by people
//! and by programs that may be wrong. So both proofs need its silence as well, counted by this leader from its taking
//! office at the earliest, so that a node has time to find the new leader.

use std::time::Duration;

use state_machine::OffProof;

use super::decide::Proof;
use super::evidence::Standing;

/// A session that is silent for so long has no word any more (DESIGN.md, "Node sessions").
pub(crate) const SILENCE_OF_A_LOST_SESSION: Duration = Duration::from_secs(30);
/// A node whose object was deleted is off after so much silence (DESIGN.md, "Proof" (d)).
pub(crate) const SILENCE_OF_A_DELETED_NODE: Duration = Duration::from_secs(60);

/// What is known of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    /// What Kubernetes says.
    pub(crate) standing: Standing,
    /// Kubernetes has some of the ledger's nodes, and no more nodes speak that it does not have.
    pub(crate) is_known_cluster: bool,
    /// How long this leader has listened to it and heard nothing.
    pub(crate) silence: Duration,
    /// This leader did hear it.
    pub(crate) was_heard: bool,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OffVerdict {
    /// Nothing says that it is off.
    NotOff,
    /// It may be off; not yet proven.
    Wait { why: &'static str },
    /// It is said to be off, and is not.
    LeaveAlone { why: &'static str },
    /// It is off.
    Off(OffProof),
}

impl NodeFacts {
    /// Whether its attachments may be taken from it.
    pub(crate) fn verdict(&self) -> OffVerdict {
        if planted::is(planted::Bug::LostSessionIsProof) && self.silence >= SILENCE_OF_A_LOST_SESSION {
            return OffVerdict::Off(OffProof::OutOfService);
        }
        match self.standing {
            Standing::Unknown | Standing::Present => OffVerdict::NotOff,
            Standing::OutOfService if self.silence >= SILENCE_OF_A_LOST_SESSION => {
                OffVerdict::Off(OffProof::OutOfService)
            }
            Standing::OutOfService if self.was_heard => OffVerdict::LeaveAlone {
                why: "it is tainted out-of-service, and yet its node plugin was just heard: it is not off; \
                      shut it down, or remove the taint",
            },
            Standing::OutOfService => OffVerdict::Wait {
                why: "it is tainted out-of-service; a leader new in office listens first whether it speaks",
            },
            Standing::Missing if !self.is_known_cluster => OffVerdict::LeaveAlone {
                why: "Kubernetes does not have it, nor most of the nodes that speak: it is another cluster, or nodes have \
                      other names there, so that proves nothing",
            },
            Standing::Missing if self.silence >= SILENCE_OF_A_DELETED_NODE => {
                OffVerdict::Off(OffProof::NodeDeleted)
            }
            Standing::Missing => OffVerdict::Wait {
                why: "it was deleted from Kubernetes; it is off when its node plugin has been silent for a minute",
            },
        }
    }

    /// What that is worth when a side of a migration is looked for.
    pub(crate) fn proof(&self) -> Proof {
        match self.standing {
            Standing::Unknown | Standing::Present => Proof::None,
            Standing::OutOfService => Proof::OutOfService,
            Standing::Missing if self.is_known_cluster && self.silence >= SILENCE_OF_A_DELETED_NODE => {
                Proof::NodeDeleted
            }
            Standing::Missing => Proof::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_off_by_taint_or_deletion_and_silence() {
        let rows = [
            (Standing::Unknown, 1000, "not off"),
            (Standing::Present, 1000, "not off"),
            (Standing::OutOfService, 0, "leave alone"),
            (Standing::OutOfService, 29, "leave alone"),
            (Standing::OutOfService, 30, "off"),
            (Standing::Missing, 0, "wait"),
            (Standing::Missing, 59, "wait"),
            (Standing::Missing, 60, "off"),
        ];
        for (standing, silence_seconds, expected) in rows {
            let silence = Duration::from_secs(silence_seconds);
            let facts = NodeFacts { standing, is_known_cluster: true, silence, was_heard: true };
            let verdict = match facts.verdict() {
                OffVerdict::NotOff => "not off",
                OffVerdict::Wait { .. } => "wait",
                OffVerdict::LeaveAlone { .. } => "leave alone",
                OffVerdict::Off(_) => "off",
            };
            assert_eq!(verdict, expected, "{facts:?}");
        }
    }

    #[test]
    fn a_cluster_that_has_other_nodes_proves_nothing() {
        let facts = NodeFacts {
            standing: Standing::Missing,
            is_known_cluster: false,
            silence: SILENCE_OF_A_DELETED_NODE,
            was_heard: true,
        };
        assert!(matches!(facts.verdict(), OffVerdict::LeaveAlone { .. }));
        assert_eq!(facts.proof(), Proof::None);
    }

    #[test]
    fn a_tainted_node_that_this_leader_never_heard_is_waited_for_quietly() {
        let facts = NodeFacts {
            standing: Standing::OutOfService,
            is_known_cluster: true,
            silence: Duration::from_secs(29),
            was_heard: false,
        };
        assert!(matches!(facts.verdict(), OffVerdict::Wait { .. }));
    }
}
