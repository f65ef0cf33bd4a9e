//! A backup into the log of an empty ledger.

use std::time::Instant;

use proto::operator::v1::{RestorePart, RestoreReply};
use state_machine::State;
use tonic::{Status, Streaming};

use super::backup::decode;
use super::{Recovery, collect};
use crate::operator::messages::volume_message;

impl Recovery {
    /// Checks the file, and restores it if the first part says so. A restore that was interrupted goes on with the same
    /// file.
    pub(crate) async fn restore(
        &self,
        mut parts: Streaming<RestorePart>,
        deadline: Instant,
    ) -> Result<RestoreReply, Status> {
        let first = parts.message().await?.ok_or_else(|| Status::invalid_argument("there is no file"))?;
        let apply = first.apply;
        let file = collect(&mut parts, first.data, |part| part.data).await?;
        let backup = decode(&file).map_err(|why| Status::invalid_argument(format!("the backup: {why}")))?;
        let to_come = backup.rehearse();
        let to_come = to_come.map_err(|why| Status::invalid_argument(format!("the backup: {why}")))?;
        let present = self.state(deadline).await?;
        refuse_live(&present)?;
        if apply {
            // Before anything of the backup counts: its generations, and its cluster's terms, are below this.
            let highest = self.foreign_term(&present).await?.unwrap_or(0).max(to_come.epoch());
            if !present.is_restoring() {
                self.raise_epoch(highest, deadline).await?;
            }
            for command in backup.commands() {
                self.decide(command, deadline).await?;
            }
        }
        Ok(RestoreReply {
            applied: apply,
            cluster_id: backup.header.cluster_id.clone(),
            ledger_time_ms: backup.header.ledger_time_ms,
            sha256: backup.sha256.clone(),
            volumes: to_come.volumes().values().map(|volume| volume_message(&to_come, volume)).collect(),
            node_ids: to_come.nodes().keys().map(ToString::to_string).collect(),
        })
    }
}

/// Nodes that registered are no reason: their plugins do so by themselves as soon as there is a cluster.
fn refuse_live(present: &State) -> Result<(), Status> {
    let live = (!present.is_restoring()).then(|| present.volumes().keys().next()).flatten();
    let Some(volume) = live else { return Ok(()) };
    Err(Status::failed_precondition(format!(
        "this ledger is in use: it has {} volumes, {volume} for one; a backup is restored into a new cluster only",
        present.volumes().len()
    )))
}
