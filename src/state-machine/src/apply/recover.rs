//! Another ledger's contents, and volumes that have no ledger, taken in. What a node has to prove is not believed: it
//! may be connected until it says otherwise.

use crate::history::Fact;
use crate::ids::VolumeId;
use crate::migration::MigrationPhase;
use crate::observed::cut_text;
use crate::response::{Refusal, Response};
use crate::state::{Node, State};
use crate::volume::{Connection, Generation, Problem, ProblemKind, Volume};

impl State {
    pub(super) fn raise_epoch(&mut self, epoch: u32) -> Response {
        self.last_generation = self.last_generation.max(Generation(u64::from(epoch) << u32::BITS));
        Response::Done
    }

    pub(super) fn restore(
        &mut self,
        from: String,
        piece: Self,
        end: Option<u64>,
    ) -> Result<Response, Refusal> {
        let message = cut_text(from);
        let taken_in = Fact::TakenIn { from: message.clone() };
        let under_way = Problem { kind: ProblemKind::Restoring, message };
        if let Some(first) = self.volumes.values().next() {
            if first.history.iter().any(|record| record.fact == taken_in) {
                return Ok(Response::Done);
            }
            if first.problem.as_ref() != Some(&under_way) {
                let reason = format!("the ledger is not empty, it has volume {}", first.id);
                return Err(Refusal::Unsound { reason });
            }
        }
        self.clock = self.clock.max(piece.clock);
        self.last_generation = self.last_generation.max(piece.last_generation);
        self.last_migration = self.last_migration.max(piece.last_migration);
        self.last_record = self.last_record.max(piece.last_record);
        for (id, node) in piece.nodes {
            // One that registered here meanwhile is better known than the backup knows it, if it is the same machine.
            if self.nodes.get(&id).is_none_or(|known| known.host_nqn != node.host_nqn) {
                self.nodes.insert(id, Node { words: 0, ..node });
            }
        }
        for (id, mut volume) in piece.volumes {
            self.doubt_connections(&mut volume);
            volume.problem = Some(under_way.clone());
            self.volumes.insert(id, volume);
        }
        let Some(volumes) = end else { return Ok(Response::Done) };
        let all: Vec<VolumeId> = self.volumes.keys().cloned().collect();
        if volumes != all.len() as u64 {
            let reason = format!("only {} of {volumes} volumes have come", all.len());
            return Err(Refusal::Unsound { reason });
        }
        all.iter().for_each(|id| self.count_from_now(id, &taken_in));
        Ok(Response::Done)
    }

    fn count_from_now(&mut self, id: &VolumeId, taken_in: &Fact) {
        let Some(volume) = self.volumes.get_mut(id) else { return };
        volume.problem = None;
        let active = volume.migration.as_ref().filter(|running| running.phase == MigrationPhase::Active);
        self.deadlines.extend(active.map(|running| (running.deadline, id.clone())));
        self.record(id, taken_in.clone());
    }

    /// Whoever has the volume may be connected.
    fn doubt_connections(&self, volume: &mut Volume) {
        for (node, attachment) in &mut volume.attachments {
            (attachment.connection, attachment.problem) = (Connection::Permitted, None);
            let boot = self.nodes.get(node).map(|known| &known.boot);
            attachment.heard.take_if(|heard| boot != Some(&heard.boot));
        }
    }

    pub(super) fn adopt_volume(&mut self, mut volume: Volume, from: String) -> Result<Response, Refusal> {
        let (id, size) = (volume.id.clone(), volume.size);
        if let Some(known) = self.volumes.get_mut(&id) {
            return known.create_again(&volume.name, size, Some(size.bytes()), &volume.parameters);
        }
        self.doubt_connections(&mut volume);
        let given = volume.attachments.values().map(|attachment| attachment.generation);
        self.last_generation = given.fold(self.last_generation, Generation::max);
        volume.generation = self.next_generation();
        for attachment in volume.attachments.values_mut().filter(|a| a.generation == Generation(0)) {
            attachment.generation = self.next_generation();
        }
        if let Some(reason) = self.violations_of(&volume).into_iter().next() {
            return Err(Refusal::Unsound { reason });
        }
        let (migration, seconds) = (volume.migration.take(), volume.parameters.migration_timeout_seconds);
        self.volumes.insert(id.clone(), volume);
        self.record(&id, Fact::TakenIn { from: cut_text(from) });
        if let Some(running) = migration {
            self.start_migration(&id, running.source, running.target, seconds);
        }
        Ok(Response::Exists { size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::migration::{Migration, MigrationId, MigrationPhase};
    use crate::plan::plan;
    use crate::testing::*;
    use crate::volume::{Attachment, AttachmentPhase, LedgerTime, VolumePhase};
    use crate::{AttachmentMode, VolumeName};

    const OTHER: &str = "pvc-00000000-0000-4000-8000-000000000002";

    /// A new ledger of the cluster version that knows all commands.
    fn empty() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.apply(Command::SetClusterVersion { version: 2 });
        ledger
    }

    /// A volume that migrates from a to b, a minute after the ledger began, and one that is being created.
    fn lost() -> Ledger {
        let mut ledger = Ledger::with_volume();
        ledger.create(OTHER, 1);
        ledger.pass_seconds(60);
        ledger.connect("a", BLOCK_RWX);
        ledger.connect("b", BLOCK_RWX);
        ledger
    }

    fn commands(of: &State) -> Vec<Command> {
        let restore = |piece: State, volumes| Command::Restore {
            backup: "backup 1".to_owned(),
            piece: Box::new(piece),
            volumes,
        };
        let pieces = of.pieces(|_| true).into_iter().map(|piece| restore(piece, None));
        pieces.chain([restore(State::default(), Some(of.volumes.len() as u64))]).collect()
    }

    fn restored(of: &State) -> Ledger {
        let mut ledger = empty();
        for command in commands(of) {
            assert_eq!(ledger.apply(command), Response::Done);
        }
        ledger
    }

    fn unsound(response: Response) -> String {
        let Refusal::Unsound { reason } = response.refusal() else { panic!("another refusal") };
        reason
    }

    #[test]
    fn what_was_lost_comes_back_and_every_connection_is_doubted() {
        let lost = lost();
        let mut ledger = restored(&lost.state);
        for (id, volume) in &lost.state.volumes {
            let back = &ledger.state.volumes[id];
            assert_eq!(
                (back.phase, back.generation, &back.migration),
                (volume.phase, volume.generation, &volume.migration)
            );
            assert_eq!(back.history.len(), volume.history.len() + 1, "its story, and that it was taken in");
            let facts = |a: &Attachment| (a.mode, a.generation, a.phase, a.since);
            assert!(back.attachments.values().map(facts).eq(volume.attachments.values().map(facts)));
            assert!(back.attachments.values().all(|a| a.connection == Connection::Permitted));
        }
        assert_eq!(ledger.state.clock, lost.state.clock, "the clock does not go back");
        assert!(ledger.state.last_generation >= lost.state.last_generation);
        assert_eq!(plan(&ledger.state).len(), plan(&lost.state).len());
        assert!(ledger.state.is_timed(), "the migration's deadline");
        assert_eq!(ledger.unpublish("a"), Response::Revoking { nodes: vec![node("a")] });
        let moment = ledger.moment("boot-1");
        assert!(
            matches!(ledger.report_off("a", moment).refusal(), Refusal::PastMoment { .. }),
            "a word of before"
        );
        (0..9).for_each(|_| drop(ledger.moment("boot-1")));
        let moment = ledger.moment("boot-1");
        assert_eq!(ledger.report_off("a", moment), Response::Done);
        assert_eq!(ledger.holders(), ["b"]);
    }

    #[test]
    fn the_boot_of_a_restored_node_proves_nothing_when_another_one_follows() {
        let mut ledger = restored(&lost().state);
        ledger.unpublish("a");
        assert_eq!(ledger.reboot("a", "boot-1", "boot-2"), Response::Done);
        assert_eq!(
            ledger.holders(),
            ["a", "b"],
            "it may have been connected in boot-2 before the ledger was lost"
        );
        assert_eq!(ledger.reboot("a", "boot-2", "boot-3"), Response::Done);
        assert_eq!(ledger.holders(), ["b"], "this reboot the ledger has seen");
    }

    #[test]
    fn a_node_that_registered_meanwhile_is_known_better_unless_it_is_another_machine() {
        let lost = lost();
        let mut ledger = empty();
        ledger.register("a", "boot-7", 0);
        ledger.register("b", "boot-7", 0);
        ledger.state.nodes.get_mut(&node("b")).unwrap().host_nqn =
            crate::Nqn::parse("nqn.2014-08.other").unwrap();
        for command in commands(&lost.state) {
            ledger.apply(command);
        }
        assert_eq!(ledger.state.nodes[&node("a")].boot.as_str(), "boot-7");
        assert_eq!(ledger.state.nodes[&node("b")].host_nqn, lost.state.nodes[&node("b")].host_nqn);
        assert!(
            ledger.volume().attachments[&node("a")].heard.is_none(),
            "moments of two boots are not compared"
        );
    }

    #[test]
    fn nothing_of_a_backup_counts_before_its_end() {
        let lost = lost();
        let all = commands(&lost.state);
        let mut ledger = empty();
        for command in &all[..all.len() - 1] {
            ledger.apply(command.clone());
        }
        assert!(ledger.state.is_restoring() && plan(&ledger.state).is_empty() && !ledger.state.is_timed());
        assert_eq!(ledger.publish("c", BLOCK_RWX).refusal(), Refusal::Restoring);
        assert_eq!(ledger.create("pvc-9", 1).refusal(), Refusal::Restoring);
        assert_eq!(ledger.register("d", "boot-1", 0), Response::Done);
        let Some(Command::Restore { piece, .. }) = all.last() else { panic!("no end") };
        let early =
            Command::Restore { backup: "backup 1".to_owned(), piece: piece.clone(), volumes: Some(3) };
        assert!(unsound(ledger.apply(early)).contains("only 2 of 3"));
        let other = Command::Restore { backup: "backup 2".to_owned(), piece: piece.clone(), volumes: None };
        assert!(unsound(ledger.apply(other)).contains("not empty"), "pieces of two are never mixed");
        for command in all {
            assert_eq!(ledger.apply(command), Response::Done, "again from the beginning");
        }
        assert!(!ledger.state.is_restoring());
        assert_eq!(ledger.state.volumes, restored(&lost.state).state.volumes);
    }

    #[test]
    fn a_live_ledger_takes_no_backup_and_a_repeated_end_is_harmless() {
        let lost = lost();
        let mut live = Ledger::with_volume();
        live.apply(Command::SetClusterVersion { version: 2 });
        let before = live.state.clone();
        for command in commands(&lost.state) {
            assert!(unsound(live.apply(command)).contains("not empty"));
        }
        assert_eq!(live.state, before);
        let mut ledger = restored(&lost.state);
        let before = ledger.state.clone();
        assert_eq!(ledger.apply(commands(&lost.state).pop().unwrap()), Response::Done);
        assert_eq!(ledger.state, before);
    }

    #[test]
    fn a_piece_that_does_not_fit_loses_its_oldest_records() {
        let mut lost = lost();
        lost.apply(Command::Unpublish { volume: volume(V), node: None, require_proof: false });
        let short = |piece: &State| piece.volumes.values().all(|volume| volume.history.len() <= 2);
        let pieces = lost.state.pieces(short);
        let piece = pieces.iter().find(|piece| piece.volumes.contains_key(&volume(V))).unwrap();
        assert!(
            piece.volumes[&volume(V)].history.iter().eq(lost.volume().history.iter().rev().take(2).rev())
        );
    }

    #[test]
    fn an_epoch_only_rises_and_generations_with_it() {
        let mut ledger = Ledger::with_volume();
        ledger.apply(Command::SetClusterVersion { version: 2 });
        ledger.apply(Command::RaiseEpoch { epoch: 9 });
        ledger.apply(Command::RaiseEpoch { epoch: 7 });
        assert_eq!(ledger.state.epoch(), 9);
        assert_eq!(ledger.grant("a", BLOCK_RWX), Generation((9 << 32) + 1));
    }

    fn found(holders: &[(&str, u64, AttachmentMode)], migration: Option<(&str, &str)>) -> Volume {
        let attachment = |(name, generation, mode): &(&str, u64, AttachmentMode)| {
            let attachment = Attachment {
                mode: *mode,
                generation: Generation(*generation),
                phase: AttachmentPhase::Granted,
                connection: Connection::Disconnected,
                heard: None,
                problem: None,
                since: LedgerTime(0),
                vm: None,
            };
            (node(name), attachment)
        };
        let running = |(source, target)| Migration {
            id: MigrationId(0),
            source: node(source),
            target: node(target),
            started_at: LedgerTime(0),
            deadline: LedgerTime(0),
            phase: MigrationPhase::Active,
        };
        Volume {
            id: volume(V),
            name: VolumeName::parse(V).unwrap(),
            size: size(1),
            parameters: parameters(),
            phase: VolumePhase::Ready,
            generation: Generation(0),
            problem: None,
            attachments: holders.iter().map(attachment).collect(),
            migration: migration.map(running),
            cut_off: Default::default(),
            created_at: LedgerTime(0),
            history: Default::default(),
        }
    }

    fn adopt(ledger: &mut Ledger, volume: Volume) -> Response {
        ledger.apply(Command::AdoptVolume { volume: Box::new(volume), from: "a test".to_owned() })
    }

    fn with_nodes() -> Ledger {
        let mut ledger = empty();
        ["a", "b", "c"].iter().for_each(|name| drop(ledger.register(name, "boot-1", 0)));
        ledger
    }

    #[test]
    fn an_adopted_volume_is_ready_and_those_who_have_it_may_be_connected() {
        let mut ledger = with_nodes();
        assert_eq!(
            adopt(&mut ledger, found(&[("a", 0, EXT4_RWO)], None)),
            Response::Exists { size: size(1) }
        );
        assert_eq!(ledger.create(V, 1), Response::Exists { size: size(1) }, "whoever made it asks again");
        assert!(matches!(ledger.publish("b", EXT4_RWO).refusal(), Refusal::AttachedElsewhere { .. }));
        assert_eq!(ledger.unpublish("a"), Response::Revoking { nodes: vec![node("a")] }, "nothing is proven");
        let moment = ledger.moment("boot-1");
        ledger.report_off("a", moment);
        assert!(ledger.holders().is_empty());
        ledger.grant("b", EXT4_RWO);
    }

    #[test]
    fn a_generation_that_a_node_was_given_stands_and_is_not_given_again() {
        let mut ledger = with_nodes();
        adopt(&mut ledger, found(&[("a", 70, BLOCK_RWX), ("b", 0, BLOCK_RWX)], Some(("b", "a"))));
        let moment = ledger.moment("boot-1");
        assert_eq!(ledger.permit("a", Generation(70), moment), Response::Done);
        let given: Vec<_> = ledger.volume().attachments.values().map(|a| a.generation.0).collect();
        assert_eq!((given, ledger.volume().generation.0), (vec![70, 72], 71));
        let migration = ledger.volume().migration.clone().unwrap();
        assert_eq!((migration.source, migration.target), (node("b"), node("a")));
        assert!(ledger.state.is_timed());
    }

    #[test]
    fn what_does_not_fit_is_not_adopted() {
        let two = [("a", 0, BLOCK_RWX), ("b", 0, BLOCK_RWX)];
        let three = [two[0], two[1], ("c", 0, BLOCK_RWX)];
        let rows = [
            (found(&[("z", 0, EXT4_RWO)], None), "unknown node"),
            (found(&two, None), "without a migration"),
            (found(&two[..1], Some(("a", "b"))), "migration"),
            (found(&three, Some(("a", "b"))), "more than two nodes"),
            (found(&[("a", 0, EXT4_RWO), ("b", 0, EXT4_RWO)], Some(("a", "b"))), "not RWX block"),
        ];
        for (volume, why) in rows {
            let mut ledger = with_nodes();
            let reason = unsound(adopt(&mut ledger, volume));
            assert!(reason.contains(why), "{reason}, not {why}");
            assert!(ledger.state.volumes.is_empty());
        }
    }

    #[test]
    fn what_the_ledger_has_stays_as_it_is() {
        let mut ledger = Ledger::with_volume();
        ledger.apply(Command::SetClusterVersion { version: 2 });
        ledger.grant("c", BLOCK_RWX);
        let before = ledger.state.clone();
        let same = found(&[("a", 0, BLOCK_RWX)], None);
        assert_eq!(adopt(&mut ledger, same.clone()), Response::Exists { size: size(1) });
        let larger = Volume { size: size(2), ..same };
        assert!(matches!(adopt(&mut ledger, larger).refusal(), Refusal::VolumeDiffers { .. }));
        assert_eq!(ledger.state, before);
    }

    #[test]
    fn a_cluster_with_an_older_program_takes_none_of_it() {
        let mut ledger = Ledger::with_volume();
        let too_low = Refusal::VersionTooLow { needed: 2, current: 1 };
        assert_eq!(ledger.apply(Command::RaiseEpoch { epoch: 1 }).refusal(), too_low);
        assert_eq!(adopt(&mut ledger, found(&[], None)).refusal(), too_low);
        assert_eq!(ledger.apply(commands(&State::default()).remove(0)).refusal(), too_low);
    }
}
