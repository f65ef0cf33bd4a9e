//! What every request does: propose within its time, and wait until the replicated state has the answer.

use std::time::Instant;

use csi::status;
use state_machine::{Command, Generation, OperationStatus, Response, State, VolumeId};
use tonic::Status;

use super::ControllerService;

impl ControllerService {
    /// Proposes `command`; a refusal is an error.
    pub(super) async fn propose(&self, command: Command, deadline: Instant) -> Result<Response, Status> {
        let response = self.propose_raw(command, deadline).await?;
        if let Response::Refused(refusal) = &response {
            return Err(status::of_refusal(refusal));
        }
        Ok(response)
    }

    /// Proposes `command`; a refusal is a response like any other.
    pub(super) async fn propose_raw(&self, command: Command, deadline: Instant) -> Result<Response, Status> {
        let response = self.replica.propose(command, deadline).await;
        response.map_err(|error| status::no_quorum(&error.to_string()))
    }

    /// Reads the state as it is now for everybody.
    pub(super) async fn read<T>(
        &self,
        deadline: Instant,
        read: impl FnOnce(&State) -> T,
    ) -> Result<T, Status> {
        self.replica.read(deadline, read).await.map_err(|error| status::no_quorum(&error.to_string()))
    }

    /// Waits until `look` finds something in the state; `None` when the time is up.
    ///
    /// Begins with a linearizable read, so that what was proposed just now is seen on a follower too.
    pub(super) async fn wait_for<T>(
        &self,
        deadline: Instant,
        look: impl Fn(&State) -> Option<T>,
    ) -> Result<Option<T>, Status> {
        let mut applied = self.replica.watch_applied();
        let mut found = self.read(deadline, &look).await?;
        while found.is_none() {
            match tokio::time::timeout_at(deadline.into(), applied.changed()).await {
                Ok(Ok(())) => found = self.replica.read_local(&look),
                Ok(Err(_)) => return Err(Status::unavailable("the replica is shutting down; try again")),
                Err(_) => return Ok(None),
            }
        }
        Ok(found)
    }

    /// Waits until the operation ended, or met trouble that the caller should know of.
    pub(super) async fn wait_for_operation(
        &self,
        volume: &VolumeId,
        generation: Generation,
        deadline: Instant,
    ) -> Result<OperationStatus, Status> {
        let ended = |state: &State| {
            Some(state.operation(volume, generation)).filter(|status| *status != OperationStatus::Running)
        };
        Ok(self.wait_for(deadline, ended).await?.unwrap_or(OperationStatus::Running))
    }
}
