//! Starting from nothing, or from another's state: backup, restore, and volumes that stand without a ledger.
//!
//! A backup is the ledger as a file. It goes into an empty ledger only, piece by piece through the log; the ledger
//! counts none of them before the last one came. Without a backup, volumes are taken in one by one, and only where
//! appliance and PersistentVolume say the same. Nothing here changes a disk on the appliance.
//!
//! A new cluster begins in term 1, and the appliance refuses terms below those of the cluster that was lost. So a
//! restore and a rebuild raise the ledger's epoch, which is added to each term, above what the appliance has: leaders
//! of the lost cluster are shut out from then on, and those of the new one stay ordered by their terms.
//!
//! | file | subject |
//! |---|---|
//! | `backup` | the file's form |
//! | `restore` | the file into the log |
//! | `objects` | what Kubernetes has, as recorded JSON |
//! | `judge` | what may be taken in, and why not: a table, no IO |
//! | `take_in` | looks for the facts, and has the verdicts carried out |

mod backup;
mod judge;
mod objects;
mod restore;
mod take_in;

use std::sync::Arc;
use std::time::Instant;

use backend::{Backend, BackendError};
use csi::parse::ClassDefaults;
use csi::status;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use proto::operator::v1::FilePart;
use state_machine::{Command, Nqn, Response, State};
use tonic::Status;

use crate::sessions::AskLeader;

/// Largest backup, and largest list of objects, that is taken, in bytes.
const MAX_FILE_BYTES: usize = 256 << 20;
/// How far above a lost cluster's terms the new one begins: should a part of it still run, so many elections there would
/// be needed to come back in.
const EPOCH_MARGIN: u64 = 1 << 16;

/// A backup on its way.
pub(crate) type BackupStream = BoxStream<'static, Result<FilePart, Status>>;

/// What operators ask for when much was lost.
#[derive(Clone)]
pub(crate) struct Recovery {
    pub(crate) leader: AskLeader,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) nqn_prefix: Nqn,
    pub(crate) defaults: ClassDefaults,
}

impl Recovery {
    async fn state(&self, deadline: Instant) -> Result<State, Status> {
        let read = self.leader.replica.read(deadline, State::clone).await;
        read.map_err(|error| status::no_quorum(&error.to_string()))
    }

    /// Has it decided; a refusal is an error.
    async fn decide(&self, command: Command, deadline: Instant) -> Result<(), Status> {
        let answer = self.leader.replica.propose(command, deadline).await;
        match answer.map_err(|error| status::no_quorum(&error.to_string()))? {
            Response::Refused(refusal) => Err(status::of_refusal(&refusal)),
            Response::Done
            | Response::Pending { .. }
            | Response::Exists { .. }
            | Response::Attached { .. }
            | Response::Revoking { .. } => Ok(()),
        }
    }

    /// The highest term on the appliance, if it is above those that this cluster uses.
    async fn foreign_term(&self, state: &State) -> Result<Option<u64>, Status> {
        let highest = self.backend.highest_term().await.map_err(|error| unreached(&error))?;
        let own = state.epoch().saturating_add(self.leader.replica.status().term);
        Ok((highest > own).then_some(highest))
    }

    /// Raises the ledger's epoch above all terms and generations that a lost cluster may have used.
    async fn raise_epoch(&self, above: u64, deadline: Instant) -> Result<(), Status> {
        let epoch = u32::try_from(above.saturating_add(EPOCH_MARGIN))
            .map_err(|_| Status::failed_precondition("the appliance's fence is too high to go above it"))?;
        self.decide(Command::RaiseEpoch { epoch }, deadline).await
    }
}

fn unreached(error: &BackendError) -> Status {
    Status::unavailable(format!(
        "the appliance has to be asked, and does not answer: {error}; try again when it does"
    ))
}

/// Puts a file together, up to its largest size.
async fn collect<P>(
    parts: &mut (impl Stream<Item = Result<P, Status>> + Unpin),
    mut file: Vec<u8>,
    data: impl Fn(P) -> Vec<u8>,
) -> Result<Vec<u8>, Status> {
    while let Some(part) = parts.next().await {
        let part = data(part?);
        if file.len() + part.len() > MAX_FILE_BYTES {
            return Err(Status::invalid_argument(format!("the file has more than {MAX_FILE_BYTES} bytes")));
        }
        file.extend(part);
    }
    Ok(file)
}
