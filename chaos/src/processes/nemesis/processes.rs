//! Controllers are killed, stopped for a while, restarted.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::{Kind, Nemesis, Struck};
use crate::history::Installed;

/// How far into a migration's step the leader is killed, in ms.
const INTO_STEP_MS: std::ops::Range<u64> = 0..150;
/// How long a killed controller is away, in ms.
const AWAY_MS: std::ops::Range<u64> = 100..900;
/// How long a leader is stopped: longer than its lease, in ms.
const STOPPED_MS: std::ops::Range<u64> = 900..3_000;
/// How long the others may take to elect one meanwhile.
const ELECTION_LIMIT: Duration = Duration::from_secs(5);
/// How long a controller may take to end after SIGTERM: it gives requests 10 s to end.
const END_LIMIT: Duration = Duration::from_secs(15);

impl Nemesis {
    pub(super) async fn kill_leader(&mut self) -> Result<Vec<Struck>> {
        self.leader_in_migration().await;
        self.wait(INTO_STEP_MS).await;
        let Some(leader) = self.lab.watch.leader() else { return Ok(self.skipped("the leader")) };
        self.lab.kill(&leader.name)?;
        let at = self.lab.recorder.now();
        let next = self.lab.watch.leader_after(leader.term, ELECTION_LIMIT).await;
        if next.is_none() {
            self.lab.recorder.trouble(format!(
                "nobody leads {} s after {} was killed in term {}",
                ELECTION_LIMIT.as_secs(),
                leader.name,
                leader.term
            ));
        }
        self.wait(AWAY_MS).await;
        self.lab.ensure_running(&leader.name)?;
        Ok(vec![Struck {
            target: leader.name,
            at,
            installed: Installed::Yes,
            hit_leader: true,
            healed: true,
        }])
    }

    pub(super) async fn kill_follower(&mut self) -> Result<Vec<Struck>> {
        let Some(target) = self.follower() else { return Ok(self.skipped("a follower")) };
        self.lab.kill(&target)?;
        let at = self.lab.recorder.now();
        self.wait(AWAY_MS).await;
        self.lab.ensure_running(&target)?;
        Ok(vec![Struck { target, at, installed: Installed::Yes, hit_leader: false, healed: true }])
    }

    pub(super) async fn kill_all(&mut self) -> Result<Vec<Struck>> {
        self.leader_in_migration().await;
        let (names, leader) = (self.lab.doors.controllers(), self.lab.watch.leader());
        let at = self.lab.recorder.now();
        for name in &names {
            self.lab.kill(name)?;
        }
        self.wait(AWAY_MS).await;
        for name in &names {
            self.lab.ensure_running(name)?;
        }
        let hit_leader = leader.is_some();
        Ok(vec![Struck { target: names.join(", "), at, installed: Installed::Yes, hit_leader, healed: true }])
    }

    /// SIGSTOP until another one leads, and then SIGCONT: two believe that they lead.
    pub(super) async fn pause_leader(&mut self) -> Result<Vec<Struck>> {
        self.leader_in_migration().await;
        let Some(leader) = self.lab.watch.leader() else { return Ok(self.skipped("the leader")) };
        self.lab.cluster().suspend(&leader.name)?;
        let at = self.lab.recorder.now();
        self.wait(STOPPED_MS).await;
        let is_stopped = self.lab.process_state(&leader.name) == Some('T');
        let next = self.lab.watch.leader_after(leader.term, ELECTION_LIMIT).await;
        self.lab.cluster().resume(&leader.name)?;
        // Without another leader the lease was not over: then it was only a short sleep.
        let installed = if is_stopped && next.is_some() { Installed::Yes } else { Installed::Indeterminate };
        Ok(vec![Struck { target: leader.name, at, installed, hit_leader: true, healed: true }])
    }

    pub(super) async fn restart_each(&mut self) -> Result<Vec<Struck>> {
        let mut struck = Vec::new();
        for name in self.lab.doors.controllers() {
            let hit_leader = self.is_leader(&name);
            let pid = self.lab.cluster().pid(&name).context("it does not run")?;
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a process id")?;
            let at = self.lab.recorder.now();
            kill_process(pid, Signal::TERM).context("cannot signal a controller")?;
            let ended = self.is_gone(&name, END_LIMIT).await;
            if !ended {
                self.lab
                    .recorder
                    .trouble(format!("{name} does not end on SIGTERM in {} s", END_LIMIT.as_secs()));
                self.lab.kill(&name)?;
            }
            self.lab.ensure_running(&name)?;
            let installed = if ended { Installed::Yes } else { Installed::Indeterminate };
            struck.push(Struck { target: name, at, installed, hit_leader, healed: true });
            self.settle(Kind::RollingRestart).await?;
        }
        Ok(struck)
    }
}
