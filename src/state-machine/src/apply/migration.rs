//! Migrations past their deadline.

use crate::history::Fact;
use crate::ids::VolumeId;
use crate::migration::{MigrationId, MigrationPhase, ReapDecision};
use crate::observed::cut_text;
use crate::response::{Refusal, Response};
use crate::state::State;
use crate::volume::{Attachment, AttachmentPhase};

impl State {
    pub(super) fn become_overdue(&mut self, id: &VolumeId) {
        let running = self.volumes.get_mut(id).and_then(|volume| volume.migration.as_mut());
        if let Some(running) = running.filter(|running| running.phase == MigrationPhase::Active) {
            running.phase = MigrationPhase::Overdue;
            let overdue = Fact::MigrationOverdue { id: running.id };
            self.record(id, overdue);
        }
    }

    /// Revokes the stale side of an overdue migration; only proof that it is off frees it.
    pub(super) fn reap(
        &mut self,
        id: &VolumeId,
        migration: MigrationId,
        decision: ReapDecision,
    ) -> Result<Response, Refusal> {
        let nothing = |reason: &str| Refusal::NothingToReap { volume: id.clone(), reason: reason.to_owned() };
        let volume = self.volumes.get_mut(id).ok_or_else(|| nothing("it is not known"))?;
        let running = volume.migration.as_mut().filter(|running| running.id == migration);
        let Some(running) = running else { return Err(nothing("the migration has ended")) };
        match running.phase {
            MigrationPhase::Overdue => {}
            MigrationPhase::Active => return Err(nothing("the migration is within its time")),
            MigrationPhase::Reaping(_) => return Err(nothing("the migration is being reaped")),
        }
        let stale = decision.stale.clone();
        if stale != running.source && stale != running.target {
            return Err(nothing("the node is no side of the migration"));
        }
        let leaving = |a: &Attachment| a.phase == AttachmentPhase::Revoking;
        if volume.attachments.iter().any(|(node, attachment)| *node != stale && leaving(attachment)) {
            return Err(nothing("the other side is leaving already, and the last one is never taken"));
        }
        let (decided_by, evidence) = (cut_text(decision.decided_by), cut_text(decision.evidence));
        let why = cut_text(format!("migration {migration} is overdue: {evidence}"));
        let decided = Fact::ReapDecided {
            id: migration,
            stale: stale.clone(),
            decided_by: decided_by.clone(),
            evidence: evidence.clone(),
        };
        running.phase = MigrationPhase::Reaping(ReapDecision { stale: stale.clone(), decided_by, evidence });
        self.record(id, decided);
        self.cut_off(id, &stale, why);
        if self.free_if_proven_off(id, &stale) {
            return Ok(Response::Done);
        }
        Ok(Response::Revoking { nodes: vec![stale] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::migration::MigrationOutcome;
    use crate::testing::*;

    fn migrating() -> Ledger {
        let mut ledger = Ledger::with_volume();
        ledger.connect("a", BLOCK_RWX);
        ledger.connect("b", BLOCK_RWX);
        ledger
    }

    fn phase(ledger: &Ledger) -> &'static str {
        ledger.volume().migration.as_ref().unwrap().phase.name()
    }

    fn reap(ledger: &mut Ledger, migration: u64, stale: &str) -> Response {
        let decision = ReapDecision {
            stale: node(stale),
            decided_by: "a test".to_owned(),
            evidence: "it says so".to_owned(),
        };
        ledger.apply(Command::Reap { volume: volume(V), migration: MigrationId(migration), decision })
    }

    #[test]
    fn overdue_at_the_deadline_and_not_before() {
        let mut ledger = migrating();
        ledger.pass_seconds(299);
        assert_eq!(phase(&ledger), "Active");
        assert!(ledger.state.is_timed());
        ledger.pass_seconds(1);
        assert_eq!(phase(&ledger), "Overdue");
        assert!(!ledger.state.is_timed());
        assert_eq!(ledger.holders(), ["a", "b"], "a timer alone takes nothing");
    }

    #[test]
    fn the_clock_never_goes_back() {
        let mut ledger = migrating();
        ledger.pass_seconds(300);
        let past = crate::command::Entry { at: crate::volume::LedgerTime(0), command: Command::Tick };
        ledger.state.apply(past);
        assert_eq!(ledger.state.clock().0, 300_000);
        assert_eq!(phase(&ledger), "Overdue");
    }

    #[test]
    fn an_overdue_migration_still_ends_well() {
        let mut ledger = migrating();
        ledger.pass_seconds(300);
        ledger.unpublish("a");
        let moment = ledger.moment("boot-1");
        ledger.report_off("a", moment);
        assert_eq!(ledger.state.ended_migrations()[0].outcome, MigrationOutcome::Success);
    }

    #[test]
    fn a_reaped_side_keeps_its_slot_until_it_is_proven_off_and_is_marked() {
        let mut ledger = migrating();
        ledger.pass_seconds(300);
        assert_eq!(reap(&mut ledger, 1, "b"), Response::Revoking { nodes: vec![node("b")] });
        assert_eq!(phase(&ledger), "Reaping");
        assert!(matches!(ledger.publish("c", BLOCK_RWX).refusal(), Refusal::TwoNodesAlready { .. }));
        let moment = ledger.moment("boot-1");
        ledger.report_off("b", moment);
        let ended = &ledger.state.ended_migrations()[0];
        assert_eq!(ended.outcome, MigrationOutcome::Timeout);
        let ended_so = [MigrationOutcome::Success, MigrationOutcome::Failed, MigrationOutcome::Timeout]
            .map(|outcome| ledger.state.migrations_ended(outcome));
        assert_eq!(ended_so, [0, 0, 1]);
        assert_eq!((ended.decided_by.as_str(), ended.evidence.as_str()), ("a test", "it says so"));
        assert!(matches!(ledger.publish("b", BLOCK_RWX).refusal(), Refusal::CutOff { .. }));
        ledger.grant("c", BLOCK_RWX);
    }

    #[test]
    fn a_reap_never_takes_the_last_attachment() {
        let mut ledger = migrating();
        ledger.pass_seconds(300);
        ledger.unpublish("a");
        assert!(reap(&mut ledger, 1, "b").refusal().to_string().contains("never taken"));
        assert!(matches!(reap(&mut ledger, 1, "a"), Response::Revoking { .. }), "the one that leaves may go");
    }

    #[test]
    fn the_reaped_side_stays_if_the_other_one_leaves_first() {
        let mut ledger = migrating();
        ledger.pass_seconds(300);
        reap(&mut ledger, 1, "b");
        ledger.unpublish("a");
        let moment = ledger.moment("boot-1");
        ledger.report_off("a", moment);
        assert_eq!(ledger.state.ended_migrations()[0].outcome, MigrationOutcome::Success);
        assert_eq!(ledger.holders(), ["b"]);
        // It has what it had, under the same generation, as soon as the export is confirmed.
        let generation = ledger.grant("b", BLOCK_RWX);
        let moment = ledger.moment("boot-1");
        assert_eq!(ledger.permit("b", generation, moment), Response::Done);
        let late = ledger.moment("boot-1");
        ledger.report_off("b", late);
        assert_eq!(ledger.holders(), ["b"], "a cut that was on its way frees nothing");
    }

    #[test]
    fn a_side_that_is_reaped_and_unpublished_goes_if_the_other_one_leaves_first() {
        let mut ledger = migrating();
        ledger.pass_seconds(300);
        reap(&mut ledger, 1, "b");
        ledger.unpublish("b");
        ledger.unpublish("a");
        for side in ["a", "b"] {
            let moment = ledger.moment("boot-1");
            ledger.report_off(side, moment);
        }
        assert!(ledger.holders().is_empty());
    }

    #[test]
    fn an_unpublish_in_the_middle_of_a_reap_clears_the_mark() {
        let mut ledger = migrating();
        ledger.pass_seconds(300);
        reap(&mut ledger, 1, "b");
        ledger.unpublish("b");
        let moment = ledger.moment("boot-1");
        ledger.report_off("b", moment);
        assert_eq!(ledger.state.ended_migrations()[0].outcome, MigrationOutcome::Timeout);
        ledger.grant("b", BLOCK_RWX);
    }

    #[test]
    fn a_side_that_leaves_by_itself_is_reaped_without_a_mark() {
        let mut ledger = migrating();
        ledger.pass_seconds(300);
        ledger.unpublish("a");
        assert!(matches!(reap(&mut ledger, 1, "a"), Response::Revoking { .. }));
        let moment = ledger.moment("boot-1");
        ledger.report_off("a", moment);
        assert_eq!(ledger.volume().cut_off.len(), 0, "nobody would unpublish it once more");
        ledger.grant("a", BLOCK_RWX);
    }

    #[test]
    fn only_an_overdue_migration_is_reaped_once_and_only_a_side_of_it() {
        let mut ledger = migrating();
        assert!(reap(&mut ledger, 1, "b").refusal().to_string().contains("within its time"));
        ledger.pass_seconds(300);
        assert!(reap(&mut ledger, 2, "b").refusal().to_string().contains("has ended"));
        assert!(reap(&mut ledger, 1, "c").refusal().to_string().contains("no side"));
        reap(&mut ledger, 1, "b");
        assert!(reap(&mut ledger, 1, "a").refusal().to_string().contains("being reaped"));
    }
}
