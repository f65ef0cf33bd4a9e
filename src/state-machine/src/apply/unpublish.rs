//! Unpublish: an attachment is revoked first, and goes only when its node is proven off.

use crate::history::{Fact, ORCHESTRATOR, PROVEN_OFF};
use crate::ids::{NodeId, VolumeId};
use crate::migration::{EndedMigration, Migration, MigrationOutcome, MigrationPhase};
use crate::observed::cut_text;
use crate::response::{Refusal, Response};
use crate::state::State;
use crate::volume::{AttachmentPhase, Connection};

impl State {
    pub(super) fn unpublish(
        &mut self,
        id: &VolumeId,
        node: Option<&NodeId>,
        require_proof: bool,
    ) -> Result<Response, Refusal> {
        let Some(volume) = self.volumes.get_mut(id) else { return Ok(Response::Done) };
        volume.cut_off.retain(|marked| node.is_some_and(|node| node != marked));
        let asked: Vec<NodeId> =
            volume.attachments.keys().filter(|n| node.is_none_or(|node| *n == node)).cloned().collect();
        for node in &asked {
            self.revoke(id, node, ORCHESTRATOR.to_owned());
        }
        let mut nodes = Vec::new();
        for node in asked {
            let freed = if require_proof {
                self.free_if_proven_off(id, &node)
            } else {
                self.free(id, &node, ORCHESTRATOR, "the orchestrator says so, unproven");
                true
            };
            if !freed {
                nodes.push(node);
            }
        }
        if nodes.is_empty() { Ok(Response::Done) } else { Ok(Response::Revoking { nodes }) }
    }

    /// Lets an attachment be cut; says whether it was not to be cut before.
    pub(super) fn revoke(&mut self, id: &VolumeId, node: &NodeId, why: String) -> bool {
        let attachment = self.volumes.get_mut(id).and_then(|volume| volume.attachments.get_mut(node));
        let Some(attachment) = attachment else { return false };
        match attachment.phase {
            AttachmentPhase::Granting | AttachmentPhase::Granted => {
                attachment.phase = AttachmentPhase::Revoking;
                attachment.problem = None;
                self.record(id, Fact::Revoked { node: node.clone(), why });
                true
            }
            AttachmentPhase::Revoking => false,
        }
    }

    /// Frees a revoking attachment whose node is proven off; says whether it did.
    pub(super) fn free_if_proven_off(&mut self, id: &VolumeId, node: &NodeId) -> bool {
        let proven = self.volumes.get(id).and_then(|volume| volume.attachments.get(node)).is_some_and(|a| {
            a.phase == AttachmentPhase::Revoking && a.connection == Connection::Disconnected
        });
        if proven {
            self.free(id, node, ORCHESTRATOR, PROVEN_OFF);
        }
        proven
    }

    /// Removes the attachment and ends the migration that it was a side of. If the other side was being reaped, it is
    /// the last one now, and has the volume again.
    pub(super) fn free(&mut self, id: &VolumeId, node: &NodeId, by: &str, evidence: &str) {
        let Some(volume) = self.volumes.get_mut(id) else { return };
        if volume.attachments.remove(node).is_none() {
            return;
        }
        let is_side = |migration: &mut Migration| migration.source == *node || migration.target == *node;
        let migration = volume.migration.take_if(is_side);
        let (node_id, by_whom, proof) = (node.clone(), by.to_owned(), evidence.to_owned());
        self.record(id, Fact::Detached { node: node_id, by: by_whom, evidence: proof });
        let Some(migration) = migration else { return };
        self.deadlines.remove(&(migration.deadline, id.clone()));
        if let Some(volume) = self.volumes.get_mut(id) {
            let marked = &mut volume.cut_off;
            let spared = volume.attachments.iter_mut().filter(|(node, _)| marked.remove(*node));
            // The export is confirmed once more.
            spared.for_each(|(_, attachment)| attachment.phase = AttachmentPhase::Granting);
        }
        let (outcome, decided_by, evidence) = match migration.phase {
            MigrationPhase::Reaping(decision) if decision.stale == *node => {
                (MigrationOutcome::Timeout, decision.decided_by, decision.evidence)
            }
            MigrationPhase::Active | MigrationPhase::Overdue | MigrationPhase::Reaping(_) => {
                let (outcome, side) = if migration.source == *node {
                    (MigrationOutcome::Success, "source")
                } else {
                    (MigrationOutcome::Failed, "target")
                };
                (outcome, by.to_owned(), cut_text(format!("{side} {node} left: {evidence}")))
            }
        };
        self.record(
            id,
            Fact::MigrationEnded {
                id: migration.id,
                outcome,
                decided_by: decided_by.clone(),
                evidence: evidence.clone(),
                started_at: migration.started_at,
            },
        );
        self.record_ended(EndedMigration {
            id: migration.id,
            volume: id.clone(),
            source: migration.source,
            target: migration.target,
            started_at: migration.started_at,
            deadline: migration.deadline,
            ended_at: self.clock,
            outcome,
            decided_by,
            evidence,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::migration::ENDED_MIGRATIONS_KEPT;
    use crate::testing::*;

    fn last_outcome(ledger: &Ledger) -> Option<MigrationOutcome> {
        ledger.state.ended_migrations().back().map(|ended| ended.outcome)
    }

    fn unpublish_all(require_proof: bool) -> Command {
        Command::Unpublish { volume: volume(V), node: None, require_proof }
    }

    #[test]
    fn a_node_that_never_connected_is_off_at_once() {
        let mut ledger = Ledger::with_volume();
        ledger.grant("a", BLOCK_RWX);
        assert_eq!(ledger.unpublish("a"), Response::Done);
        assert_eq!(ledger.unpublish("a"), Response::Done, "idempotent");
        assert!(ledger.holders().is_empty());
    }

    #[test]
    fn what_is_not_known_is_unpublished_already() {
        let mut ledger = Ledger::with_volume();
        assert_eq!(ledger.unpublish("z"), Response::Done);
        let unknown = Command::Unpublish { volume: volume("elsewhere"), node: None, require_proof: true };
        assert_eq!(ledger.apply(unknown), Response::Done);
    }

    #[test]
    fn a_connected_node_stays_until_it_reports_that_it_is_off() {
        let mut ledger = Ledger::with_volume();
        ledger.connect("a", EXT4_RWO);
        assert_eq!(ledger.unpublish("a"), Response::Revoking { nodes: vec![node("a")] });
        assert_eq!(ledger.unpublish("a"), Response::Revoking { nodes: vec![node("a")] });
        assert_eq!(ledger.holders(), ["a"]);
        let moment = ledger.moment("boot-1");
        assert_eq!(ledger.report_off("a", moment), Response::Done);
        assert!(ledger.holders().is_empty());
        assert_eq!(ledger.unpublish("a"), Response::Done);
    }

    #[test]
    fn a_report_before_the_revocation_is_proof_because_connecting_asks_first() {
        let mut ledger = Ledger::with_volume();
        let generation = ledger.connect("a", EXT4_RWO);
        let moment = ledger.moment("boot-1");
        ledger.report_off("a", moment);
        assert_eq!(ledger.unpublish("a"), Response::Done);
        let moment = ledger.moment("boot-1");
        assert!(matches!(ledger.permit("a", generation, moment).refusal(), Refusal::AttachmentGone { .. }));
    }

    #[test]
    fn without_required_proof_the_orchestrator_is_believed_and_it_is_recorded() {
        let mut ledger = Ledger::with_volume();
        ledger.connect("a", BLOCK_RWX);
        ledger.connect("b", BLOCK_RWX);
        assert_eq!(ledger.apply(unpublish_all(false)), Response::Done);
        assert!(ledger.holders().is_empty());
        assert!(ledger.state.ended_migrations()[0].evidence.contains("unproven"));
    }

    #[test]
    fn a_migration_ends_with_the_side_that_left() {
        for (leaves, outcome) in [("a", MigrationOutcome::Success), ("b", MigrationOutcome::Failed)] {
            let mut ledger = Ledger::with_volume();
            ledger.connect("a", BLOCK_RWX);
            ledger.connect("b", BLOCK_RWX);
            ledger.unpublish(leaves);
            assert!(ledger.volume().migration.is_some(), "revoking counts");
            let moment = ledger.moment("boot-1");
            ledger.report_off(leaves, moment);
            assert_eq!(ledger.volume().migration, None);
            assert_eq!(last_outcome(&ledger), Some(outcome));
            assert!(!ledger.state.is_timed());
        }
    }

    #[test]
    fn all_nodes_at_once() {
        let mut ledger = Ledger::with_volume();
        ledger.connect("a", BLOCK_RWX);
        ledger.grant("b", BLOCK_RWX);
        assert_eq!(ledger.apply(unpublish_all(true)), Response::Revoking { nodes: vec![node("a")] });
        assert_eq!(ledger.holders(), ["a"]);
    }

    #[test]
    fn unpublish_clears_the_mark_of_a_node_that_was_cut_off() {
        let mut ledger = Ledger::with_volume();
        ledger.state.volumes.get_mut(&volume(V)).unwrap().cut_off.insert(node("b"));
        assert!(matches!(ledger.publish("b", BLOCK_RWX).refusal(), Refusal::CutOff { .. }));
        assert_eq!(ledger.unpublish("b"), Response::Done);
        ledger.grant("b", BLOCK_RWX);
    }

    #[test]
    fn only_so_many_ended_migrations_are_kept() {
        let mut ledger = Ledger::with_volume();
        ledger.grant("a", BLOCK_RWX);
        for _ in 0..ENDED_MIGRATIONS_KEPT + 5 {
            ledger.grant("b", BLOCK_RWX);
            ledger.unpublish("b");
        }
        assert_eq!(ledger.state.ended_migrations().len(), ENDED_MIGRATIONS_KEPT);
        assert_eq!(ledger.state.ended_migrations()[0].id.0, 6);
    }
}
