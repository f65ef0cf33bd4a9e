//! Disks fill up, lose their power, fail, are slow.

use std::time::Duration;

use anyhow::{Context, Result};
use rand::seq::SliceRandom;
use tokio::time::{Instant, sleep};

use super::{Nemesis, POLL, Struck};
use crate::history::Installed;

/// How long a disk is full or slow, in ms.
const TROUBLE_MS: std::ops::Range<u64> = 1_500..4_000;
/// How long controllers without power are away, in ms.
const AWAY_MS: std::ops::Range<u64> = 100..800;
/// How long a controller may take to notice that a sync has failed, and to end: sled lets go of its file within 5 s.
const END_LIMIT: Duration = Duration::from_secs(8);
/// How long it may take until it syncs at all.
const STRIKE_LIMIT: Duration = Duration::from_secs(3);

impl Nemesis {
    /// The replica ends if it needs the space; then it is started again with room.
    pub(super) async fn fill_disk(&mut self) -> Result<Vec<Struck>> {
        let Some(target) = self.any_controller() else { return Ok(self.skipped("a controller")) };
        let hit_leader = self.is_leader(&target);
        let lab = self.lab.clone();
        let disk = lab.disks.get(&target).context("it has no disk of its own")?;
        let at = lab.recorder.now();
        disk.fill()?;
        self.wait(TROUBLE_MS).await;
        disk.empty()?;
        Ok(vec![Struck { target, at, installed: Installed::Yes, hit_leader, healed: true }])
    }

    /// The power of `count` controllers is cut in one moment.
    pub(super) async fn cut_power(&mut self, count: usize) -> Result<Vec<Struck>> {
        self.leader_in_migration().await;
        let leader = self.lab.watch.leader().map(|leader| leader.name);
        let mut names = self.lab.doors.controllers();
        names.shuffle(&mut self.random);
        // The leader is always among them.
        names.sort_by_key(|name| Some(name) != leader.as_ref());
        names.truncate(count);
        let lab = self.lab.clone();
        let disk = |name: &String| lab.disks.get(name).context("it has no disk of its own");
        // A machine without power says nothing more. Processes would: ext4 answers a sync with success if its journal
        // was given up while the data was on its way.
        for name in &names {
            lab.cluster().suspend(name)?;
        }
        let at = lab.recorder.now();
        for name in &names {
            disk(name)?.cut_power()?;
        }
        for name in &names {
            lab.kill(name)?;
        }
        self.wait(AWAY_MS).await;
        for name in &names {
            disk(name)?.remount()?;
            lab.ensure_running(name)?;
        }
        let hit_leader = leader.is_some();
        Ok(vec![Struck { target: names.join(", "), at, installed: Installed::Yes, hit_leader, healed: true }])
    }

    /// A sync fails once. An error is final: the process has to end.
    pub(super) async fn fail_sync(&mut self) -> Result<Vec<Struck>> {
        let Some(target) = self.any_controller() else { return Ok(self.skipped("a controller")) };
        let hit_leader = self.is_leader(&target);
        self.lab.arm(&target, "sync-error")?;
        let until = Instant::now() + STRIKE_LIMIT;
        while self.lab.is_armed(&target) && Instant::now() < until {
            sleep(POLL).await;
        }
        let at = self.lab.recorder.now();
        if self.lab.disarm(&target) {
            return Ok(self.skipped(&target));
        }
        if !self.is_gone(&target, END_LIMIT).await {
            self.lab.recorder.trouble(format!(
                "{target} still runs {} s after a sync of its log failed",
                END_LIMIT.as_secs()
            ));
            self.lab.kill(&target)?;
        }
        Ok(vec![Struck { target, at, installed: Installed::Yes, hit_leader, healed: true }])
    }

    pub(super) async fn slow_sync(&mut self) -> Result<Vec<Struck>> {
        let Some(leader) = self.leader_in_migration().await else { return Ok(self.skipped("the leader")) };
        self.lab.was_felt(&leader.name);
        self.lab.arm(&leader.name, "sync-slow")?;
        let at = self.lab.recorder.now();
        self.wait(TROUBLE_MS).await;
        self.lab.disarm(&leader.name);
        let installed = if self.lab.was_felt(&leader.name) { Installed::Yes } else { Installed::Skipped };
        Ok(vec![Struck { target: leader.name, at, installed, hit_leader: true, healed: true }])
    }
}
