//! A replica loses its disk and comes back as another one; its old id is replaced.

use std::time::Duration;

use anyhow::Result;
use proto::operator::v1::{ReplaceReplicaRequest, StatusReply};
use rand::Rng;
use rds_csi::dev::requests::within;
use tokio::time::{Instant, sleep};

use super::{Nemesis, POLL, Struck};
use crate::history::Installed;

/// How long the replica may take to be a voter again.
const VOTER_LIMIT: Duration = Duration::from_secs(30);
/// How long an operator waits for the replacement.
const REPLACE_LIMIT: Duration = Duration::from_secs(5);

impl Nemesis {
    pub(super) async fn wipe_replica(&mut self) -> Result<Vec<Struck>> {
        let Some(target) = self.any_controller() else { return Ok(self.skipped("a controller")) };
        let Some(before) = self.lab.watch.statuses().remove(&target) else {
            return Ok(self.skipped(&target));
        };
        let hit_leader = self.is_leader(&target);
        self.lab.kill(&target)?;
        self.lab.wipe(&target)?;
        let at = self.lab.recorder.now();
        if self.random.random_bool(0.5) {
            self.replace(before.responder_id).await?;
        }
        self.lab.ensure_running(&target)?;
        let until = Instant::now() + VOTER_LIMIT;
        while !self.is_voter_again(&target, &before) {
            if Instant::now() >= until {
                let limit = VOTER_LIMIT.as_secs();
                self.lab.recorder.trouble(format!("{target} was wiped and is no voter again in {limit} s"));
                break;
            }
            sleep(POLL).await;
        }
        Ok(vec![Struck { target, at, installed: Installed::Yes, hit_leader, healed: true }])
    }

    /// As `ctl replicas replace`. It may be refused: the others may have done it by themselves.
    async fn replace(&mut self, dead_replica_id: u64) -> Result<()> {
        let Some(leader) = self.lab.watch.leader_after(0, REPLACE_LIMIT).await else { return Ok(()) };
        let request = within(REPLACE_LIMIT, ReplaceReplicaRequest { dead_replica_id });
        if let Err(status) = self.lab.doors.operator(&leader.name)?.replace_replica(request).await {
            tracing::info!(dead_replica_id, %status, "not replaced");
        }
        Ok(())
    }

    fn is_voter_again(&self, name: &str, before: &StatusReply) -> bool {
        let statuses = self.lab.watch.statuses();
        let Some(after) = statuses.get(name) else { return false };
        let votes = after.replicas.iter().any(|one| one.id == after.responder_id && one.voter);
        let dead = after.replicas.iter().any(|one| one.id == before.responder_id);
        after.responder_id != before.responder_id && votes && !dead
    }
}
