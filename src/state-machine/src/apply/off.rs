//! Nodes that are known to be off without their own word: DESIGN.md, "Proof", (c) to (e).

use crate::ids::{NodeId, VolumeId};
use crate::observed::OffProof;
use crate::response::{Refusal, Response};
use crate::state::State;
use crate::volume::{Generation, Volume};

impl State {
    /// Revokes and frees the node's attachments up to a generation, the last one of a volume too: nobody is there any
    /// more who could use it. What was attached after the proof was seen stays, and a node that spoke since has all.
    pub(super) fn node_is_off(
        &mut self,
        node: &NodeId,
        volume: Option<&VolumeId>,
        up_to: Generation,
        words: u64,
        proof: OffProof,
    ) -> Result<Response, Refusal> {
        if self.nodes.get(node).is_some_and(|known| known.words > words) {
            return Err(Refusal::NodeSpoke { node: node.clone() });
        }
        let is_meant = |held: &Volume| {
            let attachment = held.attachments.get(node);
            volume.is_none_or(|id| *id == held.id) && attachment.is_some_and(|a| a.generation <= up_to)
        };
        let volumes = self.volumes.values().filter(|volume| is_meant(volume));
        let affected: Vec<VolumeId> = volumes.map(|volume| volume.id.clone()).collect();
        let (by, evidence) = proof.words();
        for id in affected {
            self.cut_off(&id, node, evidence.clone());
            self.free(&id, node, &by, &evidence);
        }
        Ok(Response::Done)
    }

    /// Revokes an attachment that the orchestrator has not given up, and marks the node: whoever reconciles would
    /// attach it again otherwise. Where an unpublish revoked it before, there is nobody to clear a mark.
    pub(super) fn cut_off(&mut self, id: &VolumeId, node: &NodeId, why: String) {
        if self.revoke(id, node, why)
            && let Some(volume) = self.volumes.get_mut(id)
        {
            volume.cut_off.insert(node.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::history::Fact;
    use crate::migration::{MigrationId, MigrationOutcome, ReapDecision};
    use crate::testing::*;

    const OTHER: &str = "pvc-00000000-0000-4000-8000-000000000002";

    fn off(ledger: &mut Ledger, name: &str, only: Option<&str>, up_to: Generation) -> Response {
        let words = words(ledger, name);
        let proof = OffProof::OutOfService;
        ledger.apply(Command::NodeIsOff { node: node(name), volume: only.map(volume), up_to, words, proof })
    }

    fn words(ledger: &Ledger, name: &str) -> u64 {
        ledger.state.nodes().get(&node(name)).map_or(0, |node| node.words)
    }

    fn newest(ledger: &Ledger) -> Generation {
        ledger.state.last_generation
    }

    /// Node a has both volumes and is connected to the first.
    fn two_volumes() -> Ledger {
        let mut ledger = Ledger::with_volume();
        let generation = ledger.create(OTHER, 1).generation();
        ledger.created(OTHER, generation);
        ledger.connect("a", BLOCK_RWX);
        let observed = crate::Observed::default();
        let publish = Command::Publish { volume: volume(OTHER), node: node("a"), mode: BLOCK_RWX, observed };
        ledger.apply(publish);
        ledger
    }

    fn holders(ledger: &Ledger, id: &str) -> usize {
        ledger.state.volume(&volume(id)).unwrap().attachments.len()
    }

    #[test]
    fn a_node_that_spoke_after_the_proof_was_seen_keeps_what_it_has() {
        let mut ledger = two_volumes();
        let (up_to, words) = (newest(&ledger), words(&ledger, "a"));
        let moment = ledger.moment("boot-1");
        ledger.report_off("a", moment);
        let proof = OffProof::OutOfService;
        let late = Command::NodeIsOff { node: node("a"), volume: None, up_to, words, proof };
        assert_eq!(ledger.apply(late).refusal(), Refusal::NodeSpoke { node: node("a") });
        assert_eq!((holders(&ledger, V), holders(&ledger, OTHER)), (1, 1));
    }

    #[test]
    fn every_volume_of_a_node_that_is_off_is_free_at_once_with_the_evidence() {
        let mut ledger = two_volumes();
        let up_to = newest(&ledger);
        assert_eq!(off(&mut ledger, "a", None, up_to), Response::Done);
        assert_eq!((holders(&ledger, V), holders(&ledger, OTHER)), (0, 0));
        let facts: Vec<_> = ledger.volume().history.iter().rev().take(2).map(|r| &r.fact).collect();
        let [Fact::Detached { evidence, .. }, Fact::Revoked { why, .. }] = facts[..] else {
            panic!("{facts:?}")
        };
        assert!(evidence.contains("out-of-service") && why == evidence, "{evidence}, {why}");
        ledger.connect("b", BLOCK_RWX);
    }

    #[test]
    fn one_volume_may_be_meant_alone() {
        let mut ledger = two_volumes();
        let up_to = newest(&ledger);
        off(&mut ledger, "a", Some(V), up_to);
        assert_eq!((holders(&ledger, V), holders(&ledger, OTHER)), (0, 1));
    }

    #[test]
    fn a_late_duplicate_frees_nothing_that_was_attached_since() {
        let mut ledger = Ledger::with_volume();
        let up_to = ledger.connect("a", BLOCK_RWX);
        off(&mut ledger, "a", None, up_to);
        ledger.unpublish("a");
        ledger.connect("a", BLOCK_RWX);
        let before = ledger.state.clone();
        assert_eq!(off(&mut ledger, "a", None, up_to), Response::Done);
        assert_eq!(ledger.state, before);
    }

    #[test]
    fn nothing_changes_where_nothing_is_attached() {
        let mut ledger = two_volumes();
        let (before, up_to) = (ledger.state.clone(), newest(&ledger));
        assert_eq!(off(&mut ledger, "z", None, up_to), Response::Done);
        assert_eq!(off(&mut ledger, "b", None, up_to), Response::Done);
        assert_eq!(off(&mut ledger, "a", Some("pvc-unknown"), up_to), Response::Done);
        assert_eq!(ledger.state, before);
    }

    #[test]
    fn it_is_not_attached_there_again_until_it_was_unpublished() {
        let mut ledger = Ledger::with_volume();
        let up_to = ledger.connect("a", BLOCK_RWX);
        off(&mut ledger, "a", None, up_to);
        assert!(matches!(ledger.publish("a", BLOCK_RWX).refusal(), Refusal::CutOff { .. }));
        assert_eq!(ledger.unpublish("a"), Response::Done);
        ledger.grant("a", BLOCK_RWX);
    }

    #[test]
    fn what_an_unpublish_waited_for_leaves_no_mark_that_nobody_would_clear() {
        let mut ledger = Ledger::with_volume();
        let up_to = ledger.connect("a", BLOCK_RWX);
        assert_eq!(ledger.unpublish("a"), Response::Revoking { nodes: vec![node("a")] });
        off(&mut ledger, "a", None, up_to);
        assert!(ledger.holders().is_empty());
        ledger.grant("a", BLOCK_RWX);
    }

    #[test]
    fn the_node_may_connect_no_more_under_its_old_generation() {
        let mut ledger = Ledger::with_volume();
        let up_to = ledger.connect("a", BLOCK_RWX);
        off(&mut ledger, "a", None, up_to);
        let moment = ledger.moment("boot-1");
        assert!(matches!(ledger.permit("a", up_to, moment).refusal(), Refusal::AttachmentGone { .. }));
    }

    #[test]
    fn a_migration_ends_by_the_side_that_is_off_and_says_who_said_so() {
        let ends = [("a", MigrationOutcome::Success), ("b", MigrationOutcome::Failed)];
        for (side, outcome) in ends {
            let mut ledger = Ledger::with_volume();
            ledger.connect("a", BLOCK_RWX);
            let up_to = ledger.connect("b", BLOCK_RWX);
            let proof = OffProof::Operator { name: "ann".to_owned() };
            let words = words(&ledger, side);
            ledger.apply(Command::NodeIsOff { node: node(side), volume: None, up_to, words, proof });
            let ended = &ledger.state.ended_migrations()[0];
            assert_eq!((ended.outcome, ended.decided_by.as_str()), (outcome, "operator ann"));
            assert!(ended.evidence.contains(side) && ended.evidence.contains("ann says"), "{ended:?}");
            assert_eq!(ledger.holders().len(), 1);
        }
    }

    #[test]
    fn a_side_that_was_being_reaped_ends_it_as_a_timeout() {
        let mut ledger = Ledger::with_volume();
        ledger.connect("a", BLOCK_RWX);
        let up_to = ledger.connect("b", BLOCK_RWX);
        ledger.pass_seconds(300);
        let decision = ReapDecision { stale: node("b"), decided_by: "x".into(), evidence: "y".into() };
        ledger.apply(Command::Reap { volume: volume(V), migration: MigrationId(1), decision });
        off(&mut ledger, "b", None, up_to);
        let ended = &ledger.state.ended_migrations()[0];
        assert_eq!((ended.outcome, ended.decided_by.as_str()), (MigrationOutcome::Timeout, "x"));
        assert!(matches!(ledger.publish("b", BLOCK_RWX).refusal(), Refusal::CutOff { .. }));
    }
}
