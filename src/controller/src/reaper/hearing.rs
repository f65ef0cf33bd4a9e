//! What a leader hears of the nodes: their sessions with it, what the ledger heard through whichever replica, and what
//! Kubernetes says; and for how long it has listened.

use std::collections::BTreeMap;
use std::time::Duration;

use state_machine::{AttachmentPhase, Migration, NodeId, State, VolumeId};

use super::View;
use super::decide::{Facts, SideFacts, Sight, Verdict};
use super::evidence::{Evidence, Seen, Standing};
use super::off::{NodeFacts, SILENCE_OF_A_LOST_SESSION};

/// What the ledger heard of the nodes, as this leader saw it.
#[derive(Debug, Default)]
pub(super) struct Words {
    by_node: BTreeMap<NodeId, Heard>,
}

/// How often the ledger had heard a node, and since when this leader sees no more.
#[derive(Debug, Clone, Copy)]
struct Heard {
    count: u64,
    since: Duration,
    /// There were fewer when this leader looked first.
    spoke: bool,
}

impl Words {
    /// Looks at all nodes of the ledger.
    pub(super) fn count(&mut self, now: Duration, state: &State) {
        for (node, known) in state.nodes() {
            match self.by_node.get_mut(node) {
                Some(heard) if heard.count == known.words => {}
                Some(heard) => *heard = Heard { count: known.words, since: now, spoke: true },
                None => {
                    let heard = Heard { count: known.words, since: now, spoke: false };
                    self.by_node.insert(node.clone(), heard);
                }
            }
        }
    }
}

/// What this leader hears, and for how long it has listened.
pub(super) struct Hearing<'a> {
    pub(super) state: &'a State,
    evidence: &'a dyn Evidence,
    words: &'a Words,
    now: Duration,
    /// For so long this leader has listened to sessions, awake and without a break.
    listened: Duration,
    /// Nodes that Kubernetes says are out of service, or does not have.
    pub(super) doubtful: Vec<&'a NodeId>,
    /// Kubernetes has some of the ledger's nodes, and no more nodes speak that it does not have.
    knows_the_nodes: bool,
}

impl<'a> Hearing<'a> {
    pub(super) fn new(view: View<'a>, words: &'a Words, listening_since: Duration, now: Duration) -> Self {
        let View { state, evidence } = view;
        let listened = evidence.listening().unwrap_or_default().min(now.saturating_sub(listening_since));
        let (mut there, mut missing, mut doubtful) = (0, Vec::new(), Vec::new());
        for node in state.nodes().keys() {
            let standing = evidence.standing(node);
            if planted::is(planted::Bug::LostSessionIsProof)
                && matches!(standing, Standing::Unknown | Standing::Present)
            {
                doubtful.push(node);
            }
            match standing {
                Standing::Unknown => {}
                Standing::Present => there += 1,
                Standing::OutOfService => {
                    there += 1;
                    doubtful.push(node);
                }
                Standing::Missing => {
                    missing.push(node);
                    doubtful.push(node);
                }
            }
        }
        let mut hearing = Self { state, evidence, words, now, listened, doubtful, knows_the_nodes: false };
        let strangers = missing.into_iter().filter(|node| hearing.speaks(node)).count();
        hearing.knows_the_nodes = there > 0 && there >= strangers;
        hearing
    }

    /// How long nothing was heard from the node: not by its session with this leader, and not by the ledger.
    fn silence(&self, node: &NodeId) -> Duration {
        let session = self.evidence.silent_for(node).unwrap_or(self.listened);
        let ledger = self.words.by_node.get(node).map(|heard| self.now.saturating_sub(heard.since));
        session.min(ledger.unwrap_or_default()).min(self.listened)
    }

    /// How often the ledger had heard the node.
    pub(super) fn words_of(&self, node: &NodeId) -> u64 {
        self.words.by_node.get(node).map_or(0, |heard| heard.count)
    }

    fn speaks(&self, node: &NodeId) -> bool {
        self.was_heard(node) && self.silence(node) < SILENCE_OF_A_LOST_SESSION
    }

    fn was_heard(&self, node: &NodeId) -> bool {
        self.evidence.silent_for(node).is_some()
            || self.words.by_node.get(node).is_some_and(|heard| heard.spoke)
    }

    pub(super) fn node(&self, node: &NodeId) -> NodeFacts {
        NodeFacts {
            standing: self.evidence.standing(node),
            is_known_cluster: self.knows_the_nodes,
            silence: self.silence(node),
            was_heard: self.was_heard(node),
        }
    }

    pub(super) fn facts(&self, volume: &VolumeId, migration: &Migration, asked: Option<u64>) -> Facts {
        let side = |node: &NodeId| SideFacts {
            sight: self.sight(volume, node, asked),
            proof: self.node(node).proof(),
            leaving: self
                .state
                .volume(volume)
                .and_then(|volume| volume.attachments.get(node))
                .is_some_and(|attachment| attachment.phase == AttachmentPhase::Revoking),
        };
        Facts {
            migration: migration.clone(),
            kubevirt: self.evidence.kubevirt(volume, migration),
            source: side(&migration.source),
            target: side(&migration.target),
        }
    }

    /// The node's newest look, if it answers an asking of this leader after the deadline.
    fn sight(&self, volume: &VolumeId, node: &NodeId, asked: Option<u64>) -> Sight {
        match self.evidence.seen(self.state, volume, node) {
            Seen::Nothing { why } => Sight::Unknown { why },
            Seen::Looked { answers, sight } if asked.is_some_and(|asked| answers >= asked) => sight,
            Seen::Looked { .. } => Sight::Unknown { why: "not looked since the deadline".to_owned() },
        }
    }

    /// A side whose sight is unknown is taken only from a node that had time to speak, and did not.
    pub(super) fn heard_first(&self, facts: &Facts, verdict: Verdict) -> Verdict {
        let Verdict::Reap { decision, ground } = verdict else { return verdict };
        let side = if decision.stale == facts.migration.source { &facts.source } else { &facts.target };
        let may_speak = self.silence(&decision.stale) < SILENCE_OF_A_LOST_SESSION;
        if matches!(side.sight, Sight::Unknown { .. }) && may_speak {
            let why = format!("node {} is heard first; else {}", decision.stale, decision.evidence);
            return Verdict::Wait { why };
        }
        Verdict::Reap { decision, ground }
    }
}
