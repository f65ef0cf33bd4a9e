//! Creation, expansion and deletion: intents, and the outcomes that the executor proposes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::history::Fact;
use crate::ids::{ByteSize, VolumeId, VolumeName};
use crate::response::{Refusal, Response};
use crate::state::{Failure, State};
use crate::volume::{Generation, Problem, ProblemKind, Volume, VolumeParameters, VolumePhase};

impl State {
    pub(super) fn create_volume(
        &mut self,
        id: VolumeId,
        name: VolumeName,
        required: ByteSize,
        limit_bytes: Option<u64>,
        parameters: VolumeParameters,
    ) -> Result<Response, Refusal> {
        if let Some(existing) = self.volumes.get_mut(&id) {
            return existing.create_again(&name, required, limit_bytes, &parameters);
        }
        if let Some(limit_bytes) = limit_bytes.filter(|limit| *limit < required.bytes()) {
            return Err(Refusal::LimitExceeded { volume: id, size: required, limit_bytes });
        }
        let generation = self.next_generation();
        let volume = Volume {
            id: id.clone(),
            name,
            size: required,
            parameters,
            phase: VolumePhase::Creating { slot_was_free: false },
            generation,
            problem: None,
            attachments: BTreeMap::new(),
            migration: None,
            cut_off: BTreeSet::new(),
            created_at: self.clock,
            history: VecDeque::new(),
        };
        self.volumes.insert(id, volume);
        Ok(Response::Pending { generation })
    }

    pub(super) fn slot_was_free(
        &mut self,
        id: &VolumeId,
        generation: Generation,
    ) -> Result<Response, Refusal> {
        let volume = self.running_operation(id, generation)?;
        match volume.phase {
            VolumePhase::Creating { .. } => {
                volume.phase = VolumePhase::Creating { slot_was_free: true };
                Ok(Response::Done)
            }
            VolumePhase::Ready | VolumePhase::Expanding { .. } | VolumePhase::Deleting => {
                Err(stale(id, generation))
            }
        }
    }

    pub(super) fn volume_created(
        &mut self,
        id: &VolumeId,
        generation: Generation,
    ) -> Result<Response, Refusal> {
        let volume = self.running_operation(id, generation)?;
        match volume.phase {
            VolumePhase::Creating { slot_was_free: true } => volume.settle(),
            VolumePhase::Creating { slot_was_free: false }
            | VolumePhase::Ready
            | VolumePhase::Expanding { .. }
            | VolumePhase::Deleting => return Err(stale(id, generation)),
        }
        let size = volume.size;
        self.record(id, Fact::Created { size });
        Ok(Response::Done)
    }

    pub(super) fn expand_volume(
        &mut self,
        id: &VolumeId,
        required: ByteSize,
        limit_bytes: Option<u64>,
    ) -> Result<Response, Refusal> {
        let next = Generation(self.last_generation.0 + 1);
        let volume =
            self.volumes.get_mut(id).ok_or_else(|| Refusal::VolumeNotFound { volume: id.clone() })?;
        let target = volume.size.max(required);
        if let Some(limit_bytes) = limit_bytes.filter(|limit| *limit < target.bytes()) {
            return Err(Refusal::LimitExceeded { volume: id.clone(), size: target, limit_bytes });
        }
        match volume.phase {
            VolumePhase::Ready if required <= volume.size => Ok(Response::Exists { size: volume.size }),
            VolumePhase::Ready => {
                volume.phase = VolumePhase::Expanding { to: required };
                volume.generation = next;
                volume.problem = None;
                self.last_generation = next;
                Ok(Response::Pending { generation: next })
            }
            VolumePhase::Expanding { to } if to == required => {
                volume.problem = None;
                Ok(Response::Pending { generation: volume.generation })
            }
            VolumePhase::Expanding { .. } | VolumePhase::Creating { .. } | VolumePhase::Deleting => {
                Err(volume.busy())
            }
        }
    }

    pub(super) fn volume_expanded(
        &mut self,
        id: &VolumeId,
        generation: Generation,
    ) -> Result<Response, Refusal> {
        let volume = self.running_operation(id, generation)?;
        match volume.phase {
            VolumePhase::Expanding { to } => {
                volume.size = to;
                volume.settle();
                self.record(id, Fact::Expanded { size: to });
                Ok(Response::Done)
            }
            VolumePhase::Creating { .. } | VolumePhase::Ready | VolumePhase::Deleting => {
                Err(stale(id, generation))
            }
        }
    }

    pub(super) fn delete_volume(&mut self, id: &VolumeId) -> Result<Response, Refusal> {
        let next = Generation(self.last_generation.0 + 1);
        let Some(volume) = self.volumes.get_mut(id) else { return Ok(Response::Done) };
        if !volume.attachments.is_empty() {
            let nodes = volume.attachments.keys().cloned().collect();
            return Err(Refusal::StillAttached { volume: id.clone(), nodes });
        }
        volume.problem = None;
        match volume.phase {
            VolumePhase::Deleting => Ok(Response::Pending { generation: volume.generation }),
            VolumePhase::Creating { slot_was_free: false } => {
                // Nothing in the slot can be ours yet, so nothing may be removed there.
                let problem = Problem {
                    kind: ProblemKind::Superseded,
                    message: "the volume was deleted before it was created".to_owned(),
                };
                let failure = Failure { volume: id.clone(), generation: volume.generation, problem };
                self.volumes.remove(id);
                self.record_failure(failure);
                Ok(Response::Done)
            }
            VolumePhase::Creating { slot_was_free: true }
            | VolumePhase::Ready
            | VolumePhase::Expanding { .. } => {
                volume.phase = VolumePhase::Deleting;
                volume.generation = next;
                self.last_generation = next;
                Ok(Response::Pending { generation: next })
            }
        }
    }

    pub(super) fn volume_deleted(
        &mut self,
        id: &VolumeId,
        generation: Generation,
    ) -> Result<Response, Refusal> {
        let volume = self.running_operation(id, generation)?;
        match volume.phase {
            VolumePhase::Deleting => {
                self.volumes.remove(id);
                Ok(Response::Done)
            }
            VolumePhase::Creating { .. } | VolumePhase::Ready | VolumePhase::Expanding { .. } => {
                Err(stale(id, generation))
            }
        }
    }

    pub(super) fn operation_failed(
        &mut self,
        id: &VolumeId,
        generation: Generation,
        problem: Problem,
    ) -> Result<Response, Refusal> {
        let volume = self.running_operation(id, generation)?;
        match volume.phase {
            VolumePhase::Creating { .. } | VolumePhase::Expanding { .. } | VolumePhase::Deleting => {
                volume.problem = Some(problem);
                Ok(Response::Done)
            }
            VolumePhase::Ready => Err(stale(id, generation)),
        }
    }

    pub(super) fn operation_abandoned(
        &mut self,
        id: &VolumeId,
        generation: Generation,
        problem: Problem,
    ) -> Result<Response, Refusal> {
        let volume = self.running_operation(id, generation)?;
        match volume.phase {
            VolumePhase::Creating { .. } => {
                self.volumes.remove(id);
            }
            VolumePhase::Expanding { .. } => volume.settle(),
            VolumePhase::Ready | VolumePhase::Deleting => return Err(stale(id, generation)),
        }
        self.record_failure(Failure { volume: id.clone(), generation, problem });
        Ok(Response::Done)
    }

    /// The volume, if `generation` is its latest intent's.
    fn running_operation(&mut self, id: &VolumeId, generation: Generation) -> Result<&mut Volume, Refusal> {
        self.volumes
            .get_mut(id)
            .filter(|volume| volume.generation == generation)
            .ok_or_else(|| stale(id, generation))
    }
}

impl Volume {
    fn settle(&mut self) {
        self.phase = VolumePhase::Ready;
        self.problem = None;
    }

    pub(super) fn busy(&self) -> Refusal {
        Refusal::VolumeBusy { volume: self.id.clone(), phase: self.phase.name().to_owned() }
    }

    /// `CreateVolume` for a name that is taken: the same volume, or a refusal.
    pub(super) fn create_again(
        &mut self,
        name: &VolumeName,
        required: ByteSize,
        limit_bytes: Option<u64>,
        parameters: &VolumeParameters,
    ) -> Result<Response, Refusal> {
        let fits = required <= self.size && limit_bytes.is_none_or(|limit| self.size.bytes() <= limit);
        let difference = if self.name != *name {
            Some(format!("name, {}", self.name))
        } else if !fits {
            Some(format!("size, {} bytes", self.size))
        } else if self.parameters != *parameters {
            Some("set of class parameters".to_owned())
        } else {
            None
        };
        match (self.phase, difference) {
            (VolumePhase::Deleting, _) => Err(self.busy()),
            (_, Some(difference)) => Err(Refusal::VolumeDiffers { volume: self.id.clone(), difference }),
            (VolumePhase::Creating { .. }, None) => {
                self.problem = None;
                Ok(Response::Pending { generation: self.generation })
            }
            (VolumePhase::Ready | VolumePhase::Expanding { .. }, None) => {
                Ok(Response::Exists { size: self.size })
            }
        }
    }
}

fn stale(volume: &VolumeId, generation: Generation) -> Refusal {
    Refusal::StaleOperation { volume: volume.clone(), generation }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::plan::{StepKind, plan};
    use crate::state::OperationStatus;
    use crate::testing::*;

    fn step(ledger: &Ledger) -> Option<StepKind> {
        plan(&ledger.state).pop().map(|step| step.kind)
    }

    fn status(ledger: &Ledger, generation: Generation) -> OperationStatus {
        ledger.state.operation(&volume(V), generation)
    }

    fn expand(gibibytes: u64, limit_bytes: Option<u64>) -> Command {
        Command::ExpandVolume { volume: volume(V), required: size(gibibytes), limit_bytes }
    }

    fn delete() -> Command {
        Command::DeleteVolume { volume: volume(V) }
    }

    #[test]
    fn creation_inspects_the_slot_before_it_creates_there() {
        let mut ledger = Ledger::default();
        let generation = ledger.create(V, 1).generation();
        assert_eq!(step(&ledger), Some(StepKind::InspectSlot));
        let early = Command::VolumeCreated { volume: volume(V), generation };
        assert!(matches!(ledger.apply(early).refusal(), Refusal::StaleOperation { .. }));
        ledger.apply(Command::SlotWasFree { volume: volume(V), generation });
        assert_eq!(step(&ledger), Some(StepKind::Create));
        assert_eq!(status(&ledger, generation), OperationStatus::Running);
        ledger.apply(Command::VolumeCreated { volume: volume(V), generation });
        assert_eq!(step(&ledger), None);
        assert_eq!(status(&ledger, generation), OperationStatus::Succeeded);
    }

    #[test]
    fn the_same_creation_again_is_the_same_volume() {
        let mut ledger = Ledger::default();
        let generation = ledger.create(V, 1).generation();
        assert_eq!(ledger.create(V, 1), Response::Pending { generation });
        ledger.created(V, generation);
        assert_eq!(ledger.create(V, 1), Response::Exists { size: size(1) });
        assert!(matches!(ledger.create(V, 2).refusal(), Refusal::VolumeDiffers { .. }));
    }

    #[test]
    fn another_creation_under_the_same_name_is_refused() {
        let mut ledger = Ledger::with_volume();
        let again = |limit_bytes, parameters| Command::CreateVolume {
            id: volume(V),
            name: VolumeName::parse(V).unwrap(),
            required: ByteSize::at_least(1).unwrap(),
            limit_bytes,
            parameters,
        };
        let smaller = ledger.apply(again(Some(4096), parameters())).refusal();
        assert!(smaller.to_string().contains("another size, 1073741824 bytes"), "{smaller}");
        let class = ledger.apply(again(None, VolumeParameters { nvme_port: 4421, ..parameters() })).refusal();
        assert!(class.to_string().contains("class parameters"), "{class}");
        assert_eq!(ledger.apply(again(None, parameters())), Response::Exists { size: size(1) });
    }

    #[test]
    fn trouble_is_shown_until_somebody_asks_again() {
        let mut ledger = Ledger::default();
        let generation = ledger.create(V, 1).generation();
        let problem = problem(ProblemKind::Unavailable);
        ledger.apply(Command::OperationFailed { volume: volume(V), generation, problem: problem.clone() });
        assert_eq!(status(&ledger, generation), OperationStatus::Retrying(problem));
        ledger.create(V, 1);
        assert_eq!(status(&ledger, generation), OperationStatus::Running);
    }

    #[test]
    fn an_abandoned_creation_leaves_no_ghost_and_says_why() {
        let mut ledger = Ledger::default();
        let generation = ledger.create(V, 1).generation();
        let problem = problem(ProblemKind::Full);
        ledger.apply(Command::OperationAbandoned { volume: volume(V), generation, problem: problem.clone() });
        assert!(ledger.state.volumes().is_empty());
        assert_eq!(status(&ledger, generation), OperationStatus::Abandoned(problem));
        assert_ne!(ledger.create(V, 1).generation(), generation);
    }

    #[test]
    fn only_what_was_begun_in_a_free_slot_is_remembered_as_made() {
        let kinds = [
            (ProblemKind::Full, true),
            (ProblemKind::Rejected, true),
            // The slot was somebody else's, or nothing was done in it.
            (ProblemKind::Conflict, false),
            (ProblemKind::Superseded, false),
        ];
        for (kind, expected) in kinds {
            let mut ledger = Ledger::default();
            let generation = ledger.create(V, 1).generation();
            let problem = problem(kind);
            ledger.apply(Command::OperationAbandoned { volume: volume(V), generation, problem });
            assert_eq!(ledger.state.made_once(&volume(V)), expected, "{kind:?}");
            ledger.create(V, 1);
            assert!(!ledger.state.made_once(&volume(V)), "it is being made again");
        }
    }

    #[test]
    fn expansion_grows_and_never_shrinks() {
        let mut ledger = Ledger::with_volume();
        assert_eq!(ledger.apply(expand(1, None)), Response::Exists { size: size(1) });
        let generation = ledger.apply(expand(3, None)).generation();
        assert_eq!(ledger.apply(expand(3, None)), Response::Pending { generation });
        assert!(matches!(ledger.apply(expand(4, None)).refusal(), Refusal::VolumeBusy { .. }));
        assert_eq!(step(&ledger), Some(StepKind::Expand { to: size(3) }));
        ledger.apply(Command::VolumeExpanded { volume: volume(V), generation });
        assert_eq!(ledger.volume().size, size(3));
        let limit = Some(size(2).bytes());
        assert!(matches!(ledger.apply(expand(1, limit)).refusal(), Refusal::LimitExceeded { .. }));
    }

    #[test]
    fn an_abandoned_expansion_leaves_the_volume_as_it_was() {
        let mut ledger = Ledger::with_volume();
        let generation = ledger.apply(expand(3, None)).generation();
        let problem = problem(ProblemKind::Full);
        ledger.apply(Command::OperationAbandoned { volume: volume(V), generation, problem });
        assert_eq!((ledger.volume().size, ledger.volume().phase), (size(1), VolumePhase::Ready));
    }

    #[test]
    fn deletion_waits_for_every_attachment() {
        let mut ledger = Ledger::with_volume();
        ledger.connect("a", BLOCK_RWX);
        ledger.unpublish("a");
        assert!(matches!(ledger.apply(delete()).refusal(), Refusal::StillAttached { .. }), "revoking counts");
        let moment = ledger.moment("boot-1");
        ledger.report_off("a", moment);
        let generation = ledger.apply(delete()).generation();
        assert_eq!(ledger.apply(delete()), Response::Pending { generation });
        assert!(matches!(ledger.create(V, 1).refusal(), Refusal::VolumeBusy { .. }));
        ledger.apply(Command::VolumeDeleted { volume: volume(V), generation });
        assert_eq!(status(&ledger, generation), OperationStatus::VolumeGone);
        assert_eq!(ledger.apply(delete()), Response::Done, "idempotent");
    }

    #[test]
    fn deletion_overtakes_a_creation() {
        let mut ledger = Ledger::default();
        let first = ledger.create(V, 1).generation();
        assert_eq!(ledger.apply(delete()), Response::Done, "nothing in the slot is ours yet");
        assert!(matches!(status(&ledger, first), OperationStatus::Abandoned(_)));
        let second = ledger.create(V, 1).generation();
        ledger.apply(Command::SlotWasFree { volume: volume(V), generation: second });
        ledger.apply(delete());
        assert_eq!(step(&ledger), Some(StepKind::Delete));
        assert_eq!(status(&ledger, second), OperationStatus::Overtaken);
        let late = Command::VolumeCreated { volume: volume(V), generation: second };
        assert!(matches!(ledger.apply(late).refusal(), Refusal::StaleOperation { .. }));
    }

    #[test]
    fn an_outcome_of_an_earlier_life_changes_nothing() {
        let mut ledger = Ledger::with_volume();
        let deletion = ledger.apply(delete()).generation();
        ledger.apply(Command::VolumeDeleted { volume: volume(V), generation: deletion });
        let generation = ledger.create(V, 1).generation();
        ledger.created(V, generation);
        let late = Command::VolumeDeleted { volume: volume(V), generation: deletion };
        assert!(matches!(ledger.apply(late.clone()).refusal(), Refusal::StaleOperation { .. }));
        assert_eq!(ledger.volume().phase, VolumePhase::Ready);
        ledger.apply(delete());
        assert!(matches!(ledger.apply(late).refusal(), Refusal::StaleOperation { .. }));
        assert_eq!(ledger.volume().phase, VolumePhase::Deleting, "only its own deletion ends it");
    }
}
