//! Publish: DESIGN's table, first match wins, and what the executor proposes about a grant.

use crate::access::{AccessType, AttachmentMode};
use crate::history::Fact;
use crate::ids::{NodeId, VolumeId};
use crate::migration::{MAX_MIGRATION_TIMEOUT_SECONDS, Migration, MigrationId, MigrationPhase};
use crate::observed::{Observed, VmiObservation};
use crate::response::{Refusal, Response};
use crate::state::State;
use crate::volume::{
    Attachment, AttachmentPhase, Connection, Generation, LedgerTime, Problem, Volume, VolumePhase,
};

impl State {
    pub(super) fn publish(
        &mut self,
        id: &VolumeId,
        node: &NodeId,
        mode: AttachmentMode,
        observed: Observed,
    ) -> Result<Response, Refusal> {
        let observed = observed.bounded();
        let volume = self.volumes.get(id).ok_or_else(|| Refusal::VolumeNotFound { volume: id.clone() })?;
        let known = self.nodes.get(node).ok_or_else(|| Refusal::NodeNotFound { node: node.clone() })?;
        let max_volumes = known.max_volumes;
        if volume.phase != VolumePhase::Ready {
            return Err(volume.busy());
        }
        if !mode.access_mode.is_single_node() && mode.access_type != AccessType::Block {
            return Err(Refusal::FilesystemOnManyNodes { volume: id.clone() });
        }
        let already = volume.published_already(node, mode)?;
        if let Some(generation) = already.filter(|_| !planted::is(planted::Bug::RetryDuplicates)) {
            // Somebody asks again: trouble that was met before is to be met again before it is told again.
            self.attachment(id, node, generation)?.problem = None;
            return Ok(Response::Attached { generation });
        }
        if volume.cut_off.contains(node) {
            return Err(Refusal::CutOff { volume: id.clone(), node: node.clone() });
        }
        if max_volumes > 0 && self.attachments_of(node) >= max_volumes as usize {
            return Err(Refusal::NodeFull { node: node.clone(), max_volumes });
        }
        let source = volume.admit(node, mode, &observed, self.clock)?;
        self.check_vm_is_not_busy(id, &observed)?;
        Ok(self.attach(id, node, mode, source, observed))
    }

    /// Records the attachment and, if the volume is on `source` already, the migration.
    fn attach(
        &mut self,
        id: &VolumeId,
        node: &NodeId,
        mode: AttachmentMode,
        source: Option<NodeId>,
        observed: Observed,
    ) -> Response {
        let generation = self.next_generation();
        let clock = self.clock;
        if let Some(volume) = self.volumes.get_mut(id) {
            let attachment = Attachment {
                mode,
                generation,
                phase: AttachmentPhase::Granting,
                connection: Connection::Disconnected,
                heard: None,
                problem: None,
                since: clock,
                vm: observed.vm,
            };
            volume.attachments.insert(node.clone(), attachment);
            if let Some(source) = source {
                let class_seconds = volume.parameters.migration_timeout_seconds;
                let least_seconds = observed.least_timeout_seconds.unwrap_or(0);
                let timeout_seconds = class_seconds.max(least_seconds).min(MAX_MIGRATION_TIMEOUT_SECONDS);
                self.start_migration(id, source, node.clone(), timeout_seconds);
            }
        }
        Response::Attached { generation }
    }

    pub(super) fn start_migration(&mut self, on: &VolumeId, source: NodeId, target: NodeId, seconds: u32) {
        let Some(volume) = self.volumes.get_mut(on) else { return };
        self.last_migration = MigrationId(self.last_migration.0 + 1);
        let (id, started_at) = (self.last_migration, self.clock);
        let deadline = started_at.plus_seconds(seconds);
        let timeout_seconds = seconds;
        let started =
            Fact::MigrationStarted { id, source: source.clone(), target: target.clone(), timeout_seconds };
        let phase = MigrationPhase::Active;
        volume.migration = Some(Migration { id, source, target, started_at, deadline, phase });
        self.deadlines.insert((deadline, on.clone()));
        self.record(on, started);
    }

    /// The volumes of one VM are attached one after the other, if that is asked for. One that met trouble lets the
    /// others pass.
    fn check_vm_is_not_busy(&self, id: &VolumeId, observed: &Observed) -> Result<(), Refusal> {
        let Some(vm) = observed.vm.as_ref().filter(|_| observed.one_publish_per_vm) else { return Ok(()) };
        let is_under_way = |a: &Attachment| {
            a.phase == AttachmentPhase::Granting && a.problem.is_none() && a.vm.as_ref() == Some(vm)
        };
        let mut others = self.volumes.values().filter(|other| other.id != *id);
        let Some(other) = others.find(|other| other.attachments.values().any(is_under_way)) else {
            return Ok(());
        };
        Err(Refusal::VmBusy { volume: id.clone(), vm: vm.clone(), other: other.id.clone() })
    }

    fn attachments_of(&self, node: &NodeId) -> usize {
        self.volumes.values().filter(|volume| volume.attachments.contains_key(node)).count()
    }

    pub(super) fn export_confirmed(
        &mut self,
        id: &VolumeId,
        node: &NodeId,
        generation: Generation,
    ) -> Result<Response, Refusal> {
        let attachment = self.attachment(id, node, generation)?;
        match attachment.phase {
            AttachmentPhase::Granting => {
                attachment.phase = AttachmentPhase::Granted;
                attachment.problem = None;
                self.record(id, Fact::Attached { node: node.clone(), generation });
                Ok(Response::Done)
            }
            AttachmentPhase::Granted => Ok(Response::Done),
            AttachmentPhase::Revoking => Err(gone(id, node, generation, "it is being revoked")),
        }
    }

    pub(super) fn grant_failed(
        &mut self,
        id: &VolumeId,
        node: &NodeId,
        generation: Generation,
        problem: Problem,
    ) -> Result<Response, Refusal> {
        let attachment = self.attachment(id, node, generation)?;
        match attachment.phase {
            AttachmentPhase::Granting => {
                attachment.problem = Some(problem);
                Ok(Response::Done)
            }
            AttachmentPhase::Granted => Err(gone(id, node, generation, "it is granted already")),
            AttachmentPhase::Revoking => Err(gone(id, node, generation, "it is being revoked")),
        }
    }

    /// The attachment, if it still has `generation`.
    pub(super) fn attachment(
        &mut self,
        id: &VolumeId,
        node: &NodeId,
        generation: Generation,
    ) -> Result<&mut Attachment, Refusal> {
        let volume =
            self.volumes.get_mut(id).ok_or_else(|| Refusal::VolumeNotFound { volume: id.clone() })?;
        match volume.attachments.get_mut(node) {
            None => Err(gone(id, node, generation, "the volume is not attached to the node")),
            Some(attachment) if attachment.generation != generation => {
                Err(gone(id, node, generation, "the volume was attached anew since"))
            }
            Some(attachment) => Ok(attachment),
        }
    }
}

impl Volume {
    /// The rows about this same node: its generation, if it has the volume in the same mode.
    fn published_already(&self, node: &NodeId, mode: AttachmentMode) -> Result<Option<Generation>, Refusal> {
        let Some(attachment) = self.attachments.get(node) else { return Ok(None) };
        match attachment.phase {
            AttachmentPhase::Revoking => {
                Err(Refusal::BeingRevoked { volume: self.id.clone(), node: node.clone() })
            }
            AttachmentPhase::Granting | AttachmentPhase::Granted if attachment.mode == mode => {
                Ok(Some(attachment.generation))
            }
            AttachmentPhase::Granting | AttachmentPhase::Granted => Err(Refusal::OtherMode {
                volume: self.id.clone(),
                node: node.clone(),
                existing: attachment.mode.to_string(),
                requested: mode.to_string(),
            }),
        }
    }

    /// The rows about other nodes: admits `node`, beside the returned one if there is one.
    fn admit(
        &self,
        node: &NodeId,
        mode: AttachmentMode,
        observed: &Observed,
        now: LedgerTime,
    ) -> Result<Option<NodeId>, Refusal> {
        let ignored = |a: &Attachment| {
            planted::is(planted::Bug::LimitBeforeForwarding)
                || a.phase == AttachmentPhase::Revoking && planted::is(planted::Bug::RevokingNotCounted)
        };
        let others: Vec<_> = self.attachments.iter().filter(|(n, a)| *n != node && !ignored(a)).collect();
        let Some((other, attachment)) = others.first() else { return Ok(None) };
        let single = [attachment.mode, mode].into_iter().find(|mode| mode.access_mode.is_single_node());
        if let Some(single) = single {
            let (volume, node, mode) = (self.id.clone(), (*other).clone(), single.to_string());
            return Err(Refusal::AttachedElsewhere { volume, node, mode });
        }
        if others.len() > 1 || self.migration.is_some() {
            let holders = others.iter().map(|(node, a)| format!("{node} ({})", a.phase.name()));
            let holders = holders.collect::<Vec<_>>().join(", ");
            let migration_age_ms = self.migration.as_ref().map_or(0, |m| now.millis_since(m.started_at));
            return Err(Refusal::TwoNodesAlready { volume: self.id.clone(), holders, migration_age_ms });
        }
        // Before the next row: that one may pass with time, and this is for somebody to mend.
        if let Some(users) = observed.other_users.as_ref().filter(|_| self.parameters.same_vm_check) {
            let (volume, node, users) = (self.id.clone(), (*other).clone(), users.clone());
            return Err(Refusal::SeveralVms { volume, node, users });
        }
        match observed.vmi {
            VmiObservation::NotMigrating => {
                Err(Refusal::NotMigrating { volume: self.id.clone(), node: (*other).clone() })
            }
            VmiObservation::Unknown | VmiObservation::Migrating => Ok(Some((*other).clone())),
        }
    }
}

pub(super) fn gone(volume: &VolumeId, node: &NodeId, generation: Generation, reason: &str) -> Refusal {
    Refusal::AttachmentGone {
        volume: volume.clone(),
        node: node.clone(),
        generation,
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{AccessMode, FsType};
    use crate::command::Command;
    use crate::testing::*;

    const BLOCK_RWO: AttachmentMode =
        AttachmentMode { access_mode: AccessMode::SingleNodeWriter, ..BLOCK_RWX };
    const EXT4_RWX: AttachmentMode =
        AttachmentMode { access_mode: AccessMode::MultiNodeMultiWriter, ..EXT4_RWO };
    const XFS_RWO: AttachmentMode =
        AttachmentMode { access_type: AccessType::Mount { fs_type: FsType::Xfs }, ..EXT4_RWO };

    struct Row {
        name: &'static str,
        before: fn(&mut Ledger),
        node: &'static str,
        mode: AttachmentMode,
        observed: Observed,
        expect: fn(&Response) -> bool,
    }

    impl Row {
        /// A publish of RWX block to node b.
        fn new(name: &'static str, before: fn(&mut Ledger), expect: fn(&Response) -> bool) -> Self {
            Self { name, before, node: "b", mode: BLOCK_RWX, observed: Observed::default(), expect }
        }
    }

    macro_rules! refused {
        ($pattern:pat) => {
            |response| matches!(response, Response::Refused($pattern))
        };
    }

    fn attached(response: &Response) -> bool {
        matches!(response, Response::Attached { .. })
    }

    fn on_a(ledger: &mut Ledger) {
        ledger.grant("a", BLOCK_RWX);
    }

    fn on_a_and_c(ledger: &mut Ledger) {
        on_a(ledger);
        ledger.grant("c", BLOCK_RWX);
    }

    fn seen(vmi: VmiObservation) -> Observed {
        Observed { vmi, ..Observed::default() }
    }

    fn shared(vmi: VmiObservation) -> Observed {
        Observed { other_users: Some("pods p and q".to_owned()), ..seen(vmi) }
    }

    /// DESIGN.md, "Publish", row by row; the precedence of neighbouring rows in between.
    fn table() -> Vec<Row> {
        let cut_off = |ledger: &mut Ledger| {
            let volume = ledger.state.volumes.get_mut(&volume(V)).unwrap();
            volume.cut_off.insert(node("b"));
        };
        vec![
            Row::new("unknown volume", |l| l.state.volumes.clear(), refused!(Refusal::VolumeNotFound { .. })),
            Row { node: "z", ..Row::new("unknown node", |_| {}, refused!(Refusal::NodeNotFound { .. })) },
            Row::new(
                "volume not ready",
                |l| {
                    l.apply(Command::DeleteVolume { volume: volume(V) });
                },
                refused!(Refusal::VolumeBusy { .. }),
            ),
            Row::new(
                "another operation runs",
                |l| {
                    l.grant("b", BLOCK_RWX);
                    l.apply(Command::ExpandVolume {
                        volume: volume(V),
                        required: size(2),
                        limit_bytes: None,
                    });
                },
                refused!(Refusal::VolumeBusy { .. }),
            ),
            Row {
                mode: EXT4_RWX,
                ..Row::new("RWX with a filesystem", |_| {}, refused!(Refusal::FilesystemOnManyNodes { .. }))
            },
            Row::new(
                "same node, revoking",
                |l| {
                    l.connect("b", BLOCK_RWX);
                    l.unpublish("b");
                },
                refused!(Refusal::BeingRevoked { .. }),
            ),
            Row::new(
                "same node, same mode",
                |l| {
                    l.grant("b", BLOCK_RWX);
                },
                attached,
            ),
            Row::new(
                "same node, other mode",
                |l| {
                    l.grant("b", BLOCK_RWO);
                },
                refused!(Refusal::OtherMode { .. }),
            ),
            Row {
                mode: XFS_RWO,
                ..Row::new(
                    "same node, other fs",
                    |l| {
                        l.grant("b", EXT4_RWO);
                    },
                    refused!(Refusal::OtherMode { .. }),
                )
            },
            Row::new("cut off and not unpublished since", cut_off, refused!(Refusal::CutOff { .. })),
            Row::new(
                "node at its limit",
                |l| {
                    l.register("b", "boot-1", 1);
                    let other = "pvc-00000000-0000-4000-8000-000000000002";
                    let generation = l.create(other, 1).generation();
                    l.created(other, generation);
                    let (volume, node) = (volume(other), node("b"));
                    let observed = Observed::default();
                    l.apply(Command::Publish { volume, node, mode: EXT4_RWO, observed });
                },
                refused!(Refusal::NodeFull { max_volumes: 1, .. }),
            ),
            Row::new("no other node", |_| {}, attached),
            Row { mode: EXT4_RWO, ..Row::new("no other node, filesystem", |_| {}, attached) },
            Row {
                mode: EXT4_RWO,
                ..Row::new(
                    "single-node, another node",
                    |l| {
                        l.grant("a", EXT4_RWO);
                    },
                    |r| matches!(r, Response::Refused(Refusal::AttachedElsewhere { node, .. }) if node.as_str() == "a"),
                )
            },
            Row {
                mode: BLOCK_RWO,
                ..Row::new("single-node beside RWX", on_a, refused!(Refusal::AttachedElsewhere { .. }))
            },
            Row::new(
                "RWX beside single-node",
                |l| {
                    l.grant("a", BLOCK_RWO);
                },
                refused!(Refusal::AttachedElsewhere { .. }),
            ),
            Row::new(
                "single-node, another node revoking",
                |l| {
                    l.connect("a", BLOCK_RWO);
                    l.unpublish("a");
                },
                refused!(Refusal::AttachedElsewhere { .. }),
            ),
            Row {
                observed: seen(VmiObservation::NotMigrating),
                ..Row::new("VM restarted elsewhere", on_a, refused!(Refusal::NotMigrating { .. }))
            },
            Row { observed: seen(VmiObservation::Migrating), ..Row::new("VM migrates", on_a, attached) },
            Row {
                observed: shared(VmiObservation::Migrating),
                ..Row::new("pods of more than one VM", on_a, |r| {
                    matches!(r, Response::Refused(Refusal::SeveralVms { node, users, .. })
                                 if node.as_str() == "a" && users == "pods p and q")
                })
            },
            Row {
                observed: shared(VmiObservation::NotMigrating),
                ..Row::new("more than one VM, none migrates", on_a, refused!(Refusal::SeveralVms { .. }))
            },
            Row {
                observed: shared(VmiObservation::Migrating),
                ..Row::new(
                    "more than one VM, unchecked",
                    |l| {
                        on_a(l);
                        let volume = l.state.volumes.get_mut(&volume(V)).unwrap();
                        volume.parameters.same_vm_check = false;
                    },
                    attached,
                )
            },
            Row {
                observed: shared(VmiObservation::Unknown),
                ..Row::new("more than one VM, no other node", |_| {}, attached)
            },
            Row {
                observed: shared(VmiObservation::Migrating),
                ..Row::new(
                    "more than one VM, two others",
                    on_a_and_c,
                    refused!(Refusal::TwoNodesAlready { .. }),
                )
            },
            Row::new("RWX block, one other node", on_a, attached),
            Row::new("RWX block, two others", on_a_and_c, |r| {
                matches!(r, Response::Refused(Refusal::TwoNodesAlready { holders, .. })
                             if holders == "a (Granted), c (Granted)")
            }),
            Row::new(
                "RWX block, two others, one revoking",
                |l| {
                    l.connect("a", BLOCK_RWX);
                    l.grant("c", BLOCK_RWX);
                    l.unpublish("a");
                },
                |r| {
                    matches!(r, Response::Refused(Refusal::TwoNodesAlready { holders, .. })
                             if holders == "a (Revoking), c (Granted)")
                },
            ),
        ]
    }

    #[test]
    fn every_row_of_the_publish_table() {
        for row in table() {
            let mut ledger = Ledger::with_volume();
            (row.before)(&mut ledger);
            let before = ledger.state.clone();
            let response = ledger.apply(Command::Publish {
                volume: volume(V),
                node: node(row.node),
                mode: row.mode,
                observed: row.observed,
            });
            assert!((row.expect)(&response), "{}: {response:?}", row.name);
            if matches!(response, Response::Refused(_)) {
                assert_eq!(ledger.state, before, "{}: a refusal changed something", row.name);
            }
        }
    }

    #[test]
    fn the_same_publish_keeps_its_generation() {
        let mut ledger = Ledger::with_volume();
        let first = ledger.grant("a", BLOCK_RWX);
        assert_eq!(ledger.publish("a", BLOCK_RWX), Response::Attached { generation: first });
        assert_eq!(ledger.volume().attachments[&node("a")].phase, AttachmentPhase::Granted);
    }

    #[test]
    fn the_second_node_starts_a_migration_and_the_third_is_told_its_age() {
        let mut ledger = Ledger::with_volume();
        ledger.grant("a", BLOCK_RWX);
        ledger.grant("b", BLOCK_RWX);
        let migration = ledger.volume().migration.clone().unwrap();
        assert_eq!((migration.source, migration.target), (node("a"), node("b")));
        ledger.pass_seconds(7);
        let refusal = ledger.publish("c", BLOCK_RWX).refusal();
        let told = matches!(refusal, Refusal::TwoNodesAlready { migration_age_ms: 7000, .. });
        assert!(told, "{refusal:?}");
    }

    #[test]
    fn an_attachment_to_a_limited_node_frees_its_place() {
        let mut ledger = Ledger::with_volume();
        ledger.register("a", "boot-1", 1);
        ledger.grant("a", BLOCK_RWX);
        assert_eq!(ledger.unpublish("a"), Response::Done);
        ledger.grant("a", BLOCK_RWX);
    }

    #[test]
    fn a_grant_that_failed_says_why_until_it_is_confirmed() {
        let mut ledger = Ledger::with_volume();
        let generation = ledger.publish("a", BLOCK_RWX).generation();
        let trouble = problem(crate::volume::ProblemKind::Unavailable);
        let failed =
            Command::GrantFailed { volume: volume(V), node: node("a"), generation, problem: trouble.clone() };
        assert_eq!(ledger.apply(failed.clone()), Response::Done);
        assert_eq!(ledger.volume().attachments[&node("a")].problem, Some(trouble));
        assert_eq!(ledger.publish("a", BLOCK_RWX), Response::Attached { generation });
        assert_eq!(ledger.volume().attachments[&node("a")].problem, None, "somebody asked again");
        let confirmed = Command::ExportConfirmed { volume: volume(V), node: node("a"), generation };
        assert_eq!(ledger.apply(confirmed), Response::Done);
        assert_eq!(ledger.volume().attachments[&node("a")].problem, None);
        assert!(matches!(ledger.apply(failed).refusal(), Refusal::AttachmentGone { .. }));
    }

    #[test]
    fn an_outcome_for_an_earlier_attachment_changes_nothing() {
        let mut ledger = Ledger::with_volume();
        let old = ledger.publish("a", BLOCK_RWX).generation();
        ledger.unpublish("a");
        ledger.publish("a", BLOCK_RWX);
        let late = Command::ExportConfirmed { volume: volume(V), node: node("a"), generation: old };
        assert!(matches!(ledger.apply(late).refusal(), Refusal::AttachmentGone { .. }));
        assert_eq!(ledger.volume().attachments[&node("a")].phase, AttachmentPhase::Granting);
    }

    #[test]
    fn a_migration_gets_the_time_that_kubevirt_gives_it() {
        let rows = [(None, 300), (Some(30), 300), (Some(2_700), 2_700), (Some(u32::MAX), 86_400)];
        for (least_timeout_seconds, expected) in rows {
            let mut ledger = Ledger::with_volume();
            ledger.grant("a", BLOCK_RWX);
            ledger.pass_seconds(5);
            let observed = Observed { least_timeout_seconds, ..seen(VmiObservation::Migrating) };
            ledger.publish_as("b", BLOCK_RWX, observed);
            let migration = ledger.volume().migration.clone().unwrap();
            assert_eq!(migration.deadline.millis_since(migration.started_at), expected * 1000);
        }
    }

    fn for_vm(vm: &str) -> Observed {
        Observed { vm: Some(vm.to_owned()), one_publish_per_vm: true, ..Observed::default() }
    }

    /// Asks for the first volume on node `name`, while the other one is being attached to node a for VM `vm-1`.
    fn beside_another(name: &str, observed: Observed, change: impl FnOnce(&mut Attachment)) -> Response {
        let mut ledger = Ledger::with_volume();
        let other = "pvc-00000000-0000-4000-8000-000000000002";
        let generation = ledger.create(other, 1).generation();
        ledger.created(other, generation);
        let publish = |id, name: &str, observed| Command::Publish {
            volume: volume(id),
            node: node(name),
            mode: BLOCK_RWX,
            observed,
        };
        ledger.apply(publish(other, "a", for_vm("vm-1")));
        change(
            ledger.state.volumes.get_mut(&volume(other)).unwrap().attachments.get_mut(&node("a")).unwrap(),
        );
        ledger.apply(publish(V, name, observed))
    }

    #[test]
    fn volumes_of_one_vm_are_attached_one_after_the_other() {
        for name in ["a", "b"] {
            let refusal = beside_another(name, for_vm("vm-1"), |_| {}).refusal();
            assert!(matches!(&refusal, Refusal::VmBusy { vm, .. } if vm == "vm-1"), "{refusal}");
        }
        let unserialised = Observed { one_publish_per_vm: false, ..for_vm("vm-1") };
        for observed in [for_vm("vm-2"), unserialised, Observed::default()] {
            assert!(attached(&beside_another("a", observed, |_| {})));
        }
        let granted = |a: &mut Attachment| a.phase = AttachmentPhase::Granted;
        assert!(attached(&beside_another("a", for_vm("vm-1"), granted)));
        let trouble = Some(problem(crate::volume::ProblemKind::Unavailable));
        assert!(attached(&beside_another("a", for_vm("vm-1"), |a| a.problem = trouble)));
    }

    #[test]
    fn a_volume_does_not_wait_for_its_own_attachment() {
        let mut ledger = Ledger::with_volume();
        let generation = ledger.publish_as("a", BLOCK_RWX, for_vm("vm-1")).generation();
        let again = ledger.publish_as("a", BLOCK_RWX, for_vm("vm-1"));
        assert_eq!(again, Response::Attached { generation });
        assert!(attached(&ledger.publish_as("b", BLOCK_RWX, for_vm("vm-1"))));
    }
}
