//! Publish: DESIGN's table, first match wins, and what the executor proposes about a grant.

use crate::access::{AccessType, AttachmentMode};
use crate::command::VmiObservation;
use crate::ids::{NodeId, VolumeId};
use crate::migration::{Migration, MigrationId, MigrationPhase};
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
        vmi: VmiObservation,
    ) -> Result<Response, Refusal> {
        let volume = self.volumes.get(id).ok_or_else(|| Refusal::VolumeNotFound { volume: id.clone() })?;
        let Some(known) = self.nodes.get(node) else {
            return Err(Refusal::NodeNotFound { node: node.clone() });
        };
        let max_volumes = known.max_volumes;
        if volume.phase != VolumePhase::Ready {
            return Err(volume.busy());
        }
        if !mode.access_mode.is_single_node() && mode.access_type != AccessType::Block {
            return Err(Refusal::FilesystemOnManyNodes { volume: id.clone() });
        }
        if let Some(generation) = volume.published_already(node, mode)? {
            // Somebody asks again: trouble that was met before is to be met again before it is told again.
            self.attachment(id, node, generation)?.problem = None;
            return Ok(Response::Attached { generation });
        }
        if volume.reaped.contains(node) {
            return Err(Refusal::Reaped { volume: id.clone(), node: node.clone() });
        }
        if max_volumes > 0 && self.attachments_of(node) >= max_volumes as usize {
            return Err(Refusal::NodeFull { node: node.clone(), max_volumes });
        }
        let source = volume.admit(node, mode, vmi, self.clock)?;
        Ok(self.attach(id, node, mode, source))
    }

    /// Records the attachment and, if the volume is on `source` already, the migration.
    fn attach(
        &mut self,
        id: &VolumeId,
        node: &NodeId,
        mode: AttachmentMode,
        source: Option<NodeId>,
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
            };
            volume.attachments.insert(node.clone(), attachment);
            if let Some(source) = source {
                self.last_migration = MigrationId(self.last_migration.0 + 1);
                let deadline = clock.plus_seconds(volume.parameters.migration_timeout_seconds);
                volume.migration = Some(Migration {
                    id: self.last_migration,
                    source,
                    target: node.clone(),
                    started_at: clock,
                    deadline,
                    phase: MigrationPhase::Active,
                });
                self.deadlines.insert((deadline, id.clone()));
            }
        }
        Response::Attached { generation }
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
            AttachmentPhase::Granting => attachment.phase = AttachmentPhase::Granted,
            AttachmentPhase::Granted => {}
            AttachmentPhase::Revoking => return Err(gone(id, node, generation, "it is being revoked")),
        }
        attachment.problem = None;
        Ok(Response::Done)
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
        vmi: VmiObservation,
        now: LedgerTime,
    ) -> Result<Option<NodeId>, Refusal> {
        let others: Vec<_> = self.attachments.iter().filter(|(other, _)| *other != node).collect();
        let Some((other, attachment)) = others.first() else { return Ok(None) };
        let single = [attachment.mode, mode].into_iter().find(|mode| mode.access_mode.is_single_node());
        if let Some(single) = single {
            let (volume, node, mode) = (self.id.clone(), (*other).clone(), single.to_string());
            return Err(Refusal::AttachedElsewhere { volume, node, mode });
        }
        if others.len() > 1 || self.migration.is_some() {
            let holders = others
                .iter()
                .map(|(node, a)| format!("{node} ({})", a.phase.name()))
                .collect::<Vec<_>>()
                .join(", ");
            let migration_age_ms =
                self.migration.as_ref().map_or(0, |migration| now.millis_since(migration.started_at));
            return Err(Refusal::TwoNodesAlready { volume: self.id.clone(), holders, migration_age_ms });
        }
        match vmi {
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
        vmi: VmiObservation,
        expect: fn(&Response) -> bool,
    }

    impl Row {
        /// A publish of RWX block to node b.
        fn new(name: &'static str, before: fn(&mut Ledger), expect: fn(&Response) -> bool) -> Self {
            Self { name, before, node: "b", mode: BLOCK_RWX, vmi: VmiObservation::Unknown, expect }
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

    /// DESIGN.md, "Publish", row by row; the precedence of neighbouring rows in between.
    fn table() -> Vec<Row> {
        let reaped = |ledger: &mut Ledger| {
            let volume = ledger.state.volumes.get_mut(&volume(V)).unwrap();
            volume.reaped.insert(node("b"));
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
            Row::new("reaped and not unpublished since", reaped, refused!(Refusal::Reaped { .. })),
            Row::new(
                "node at its limit",
                |l| {
                    l.register("b", "boot-1", 1);
                    let other = "pvc-00000000-0000-4000-8000-000000000002";
                    let generation = l.create(other, 1).generation();
                    l.created(other, generation);
                    let (volume, node) = (volume(other), node("b"));
                    l.apply(Command::Publish { volume, node, mode: EXT4_RWO, vmi: VmiObservation::Unknown });
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
                vmi: VmiObservation::NotMigrating,
                ..Row::new("VM restarted elsewhere", on_a, refused!(Refusal::NotMigrating { .. }))
            },
            Row { vmi: VmiObservation::Migrating, ..Row::new("VM migrates", on_a, attached) },
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
                vmi: row.vmi,
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
}
