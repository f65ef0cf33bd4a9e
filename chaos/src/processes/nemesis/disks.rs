//! Disks fill up, lose their power, fail, are slow.

use std::time::Duration;

use anyhow::{Context, Result};
use rand::Rng;
use rand::seq::SliceRandom;
use tokio::time::{Instant, sleep};

use super::{Nemesis, POLL, Struck};
use crate::history::Installed;

/// How long a full disk may be there until the replica needs space: a log that is written all the time needs it soon.
const FULL_LIMIT: Duration = Duration::from_secs(6);
/// How long a disk is slow, in ms.
const TROUBLE_MS: std::ops::Range<u64> = 1_500..4_000;
/// How long controllers without power are away, in ms.
const AWAY_MS: std::ops::Range<u64> = 100..800;
/// How long a controller may take to notice that a sync has failed, and to end.
const END_LIMIT: Duration = Duration::from_secs(3);
/// How long it may take until it syncs at all.
const STRIKE_LIMIT: Duration = Duration::from_secs(3);

impl Nemesis {
    /// The replica ends once it needs the space: only then the full disk has struck. It is started again with room.
    pub(super) async fn fill_disk(&mut self) -> Result<Vec<Struck>> {
        let Some(target) = self.any_controller() else { return Ok(self.skipped("a controller")) };
        let hit_leader = self.is_leader(&target);
        let lab = self.lab.clone();
        let disk = lab.disks.get(&target).context("it has no disk of its own")?;
        disk.fill()?;
        let has_struck = self.is_gone(&target, FULL_LIMIT).await;
        let at = lab.recorder.now();
        disk.empty()?;
        let installed = if has_struck { Installed::Yes } else { Installed::Skipped };
        Ok(vec![Struck { target, at, installed, hit_leader, healed: true }])
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

    /// A sync fails once, of an append or, once the leader is gone, of a vote. An error is final: the process has to end.
    pub(super) async fn fail_sync(&mut self) -> Result<Vec<Struck>> {
        let leader = self.lab.watch.leader().map(|leader| leader.name);
        let killed = leader.filter(|_| self.random.random_bool(0.5));
        let target = if killed.is_some() { self.follower() } else { self.any_controller() };
        let Some(target) = target else { return Ok(self.skipped("a controller")) };
        let hit_leader = killed.is_some() || self.is_leader(&target);
        if let Some(leader) = &killed {
            self.lab.kill(leader)?;
        }
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
        let target = killed.map_or(target.clone(), |leader| format!("{target}, {leader}"));
        Ok(vec![Struck { target, at, installed: Installed::Yes, hit_leader, healed: true }])
    }

    /// On the leader, or on all: then nothing is committed before the disks have it, while heartbeats are as fast as
    /// ever.
    pub(super) async fn slow_sync(&mut self) -> Result<Vec<Struck>> {
        let Some(leader) = self.leader_in_migration().await else { return Ok(self.skipped("the leader")) };
        let all = self.lab.doors.controllers();
        let targets = if self.random.random_bool(0.5) { all } else { vec![leader.name] };
        for name in &targets {
            self.lab.was_felt(name);
            self.lab.arm(name, "sync-slow")?;
        }
        let at = self.lab.recorder.now();
        self.wait(TROUBLE_MS).await;
        let mut felt = 0;
        for name in &targets {
            self.lab.disarm(name);
            felt += usize::from(self.lab.was_felt(name));
        }
        let installed = match felt {
            0 => Installed::Skipped,
            _ if felt < targets.len() => Installed::Indeterminate,
            _ => Installed::Yes,
        };
        Ok(vec![Struck { target: targets.join(", "), at, installed, hit_leader: true, healed: true }])
    }
}
