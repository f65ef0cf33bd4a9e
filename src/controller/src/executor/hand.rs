//! What a step does on the appliance. Every action is idempotent, and looks before it changes.

use std::sync::Arc;

use backend::{Backend, BackendError, DiskSpec, Presence};
use state_machine::{ByteSize, Nqn, Step, StepKind};

use super::{Action, Outcome};

/// The executor's hand on the appliance.
#[derive(Clone)]
pub(crate) struct Hand {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) nqn_prefix: Nqn,
}

impl Hand {
    /// Makes the appliance refuse what earlier terms send from now on.
    pub(crate) async fn begin_term(&self, term: u64) -> Result<(), BackendError> {
        self.backend.begin_term(term).await
    }

    /// Does it, once. Repeating it is harmless.
    pub(crate) async fn act(&self, step: &Step, action: &Action) -> Outcome {
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

    async fn create(&self, step: &Step) -> Result<(), BackendError> {
        self.backend.create(&self.disk(step, step.size)?).await
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
        match self.backend.look(&step.volume, &step.parameters.volume_path).await? {
            Presence::Disk(disk) => match disk.conflict_with(&spec) {
                Some(reason) => Err(BackendError::Conflict { reason }),
                None if disk.exported => Ok(()),
                None => self.backend.create(&spec).await,
            },
            Presence::Absent | Presence::FileOnly => {
                let reason = format!("the ledger has volume {}, the appliance has no such disk", step.volume);
                Err(BackendError::Conflict { reason })
            }
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
