//! What a step does on the appliance. Every action is idempotent, and looks before it changes.

use std::sync::Arc;

use backend::{Backend, BackendError, Disk, DiskSpec, Presence};
use state_machine::{ByteSize, Nqn, Step, StepKind};

use super::{Action, Outcome};

/// The executor's hand on the appliance.
#[derive(Clone)]
pub struct Hand {
    pub backend: Arc<dyn Backend>,
    pub nqn_prefix: Nqn,
}

impl Hand {
    /// A hand for another term; what this one still does goes on under its own.
    pub fn for_another_term(&self) -> Self {
        Self { backend: self.backend.for_another_term(), nqn_prefix: self.nqn_prefix.clone() }
    }

    /// Makes the appliance refuse what earlier terms send from now on.
    pub async fn begin_term(&self, term: u64) -> Result<(), BackendError> {
        self.backend.begin_term(term).await
    }

    /// Does it, once. Repeating it is harmless.
    pub async fn act(&self, step: &Step, action: &Action) -> Outcome {
        planted::point("step-before");
        let outcome = self.carry_out(step, action).await;
        planted::point("step-after");
        outcome
    }

    async fn carry_out(&self, step: &Step, action: &Action) -> Outcome {
        let result = match (action, &step.kind) {
            (Action::UndoCreate { .. }, _) | (Action::Step, StepKind::Delete) => self.remove(step).await,
            (Action::Step, StepKind::InspectSlot) => return self.inspect(step).await,
            (Action::Step, StepKind::Create) => self.create(step).await,
            (Action::Step, StepKind::Expand { to }) => self.expand(step, *to).await,
            (Action::Step, StepKind::ConfirmExport { .. }) => self.confirm_export(step).await,
        };
        result.map_or_else(Outcome::Failed, |()| Outcome::Done)
    }

    async fn inspect(&self, step: &Step) -> Outcome {
        match self.backend.look(&step.volume, &step.parameters.volume_path).await {
            Ok(Presence::Absent) => Outcome::Done,
            Ok(Presence::FileOnly) => {
                Outcome::SlotTaken(format!("a file for {} without a disk", step.volume))
            }
            Ok(Presence::Disk(disk)) => {
                Outcome::SlotTaken(format!("a disk {} with {}", step.volume, disk.file_path))
            }
            Err(error) => Outcome::Failed(error),
        }
    }

    /// The slot was seen free after the intent was recorded, so a file without its disk is left of our own attempts.
    async fn create(&self, step: &Step) -> Result<(), BackendError> {
        let spec = self.disk(step, step.size)?;
        let created = self.backend.create(&spec).await;
        let is_lost = matches!(created, Err(BackendError::Unavailable { .. }));
        if planted::is(planted::Bug::CreateUndoneByRetry) && is_lost {
            return self.remove(step).await;
        }
        if !matches!(created, Err(BackendError::Conflict { .. })) {
            return created;
        }
        match self.backend.look(&step.volume, &step.parameters.volume_path).await? {
            Presence::FileOnly => self.remove(step).await?,
            Presence::Disk(_) | Presence::Absent => return created,
        }
        self.backend.create(&spec).await
    }

    async fn expand(&self, step: &Step, to: ByteSize) -> Result<(), BackendError> {
        self.backend.resize(&self.disk(step, to)?).await
    }

    async fn remove(&self, step: &Step) -> Result<(), BackendError> {
        self.backend.remove(&step.volume, &step.parameters.volume_path).await
    }

    /// Finishes an export that is half done, but never makes a disk that is missing: it would be an empty one.
    async fn confirm_export(&self, step: &Step) -> Result<(), BackendError> {
        let spec = self.disk(step, step.size)?;
        let is_served = |disk: &Disk| {
            disk.conflict_with(&spec).is_none() && disk.size_bytes >= spec.size.bytes() && disk.is_served()
        };
        match self.backend.look(&step.volume, &step.parameters.volume_path).await? {
            Presence::Disk(disk) if is_served(&disk) => Ok(()),
            Presence::Disk(_) | Presence::Absent | Presence::FileOnly => self.backend.export(&spec).await,
        }
    }

    fn disk(&self, step: &Step, size: ByteSize) -> Result<DiskSpec, BackendError> {
        let nqn = Nqn::of_volume(&self.nqn_prefix, &step.volume)
            .map_err(|error| BackendError::Rejected { words: format!("the volume's NQN {error}") })?;
        Ok(DiskSpec {
            volume: step.volume.clone(),
            directory: step.parameters.volume_path.clone(),
            size,
            nqn,
            nvme_port: step.parameters.nvme_port,
        })
    }
}
