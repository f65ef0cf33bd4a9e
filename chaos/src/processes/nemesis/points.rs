//! Controllers die at named places in the program.

use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep};

use super::kinds::Point;
use super::{Nemesis, POLL, Struck};
use crate::history::Installed;

/// How long the process may take to come to the place.
const STRIKE_LIMIT: Duration = Duration::from_secs(3);
/// How long a controller that died there is away, in ms.
const AWAY_MS: std::ops::Range<u64> = 50..500;

impl Nemesis {
    pub(super) async fn point(&mut self, point: Point) -> Result<Vec<Struck>> {
        self.leader_in_migration().await;
        let Some(leader) = self.lab.watch.leader() else { return Ok(self.skipped("the leader")) };
        let target = if point.is_of_votes() { self.follower() } else { Some(leader.name.clone()) };
        let Some(target) = target else { return Ok(self.skipped("a follower")) };
        self.lab.arm(&target, point.armed_as())?;
        if point.is_of_votes() {
            // Somebody has to ask for votes.
            self.lab.kill(&leader.name)?;
        }
        let died = self.dies_at(&target).await;
        let at = self.lab.recorder.now();
        let was_armed = self.lab.disarm(&target);
        let installed = match (died, was_armed) {
            (true, false) => Installed::Yes,
            (false, true) => Installed::Skipped,
            (true, true) | (false, false) => Installed::Indeterminate,
        };
        self.wait(AWAY_MS).await;
        self.lab.ensure_running(&leader.name)?;
        self.lab.ensure_running(&target)?;
        // With the votes' points the leader was killed as well.
        let target = if target == leader.name { target } else { format!("{target}, {}", leader.name) };
        Ok(vec![Struck { target, at, installed, hit_leader: true, healed: true }])
    }

    async fn dies_at(&self, name: &str) -> bool {
        let until = Instant::now() + STRIKE_LIMIT;
        while Instant::now() < until {
            if !self.lab.is_running(name) {
                return true;
            }
            sleep(POLL).await;
        }
        false
    }
}
