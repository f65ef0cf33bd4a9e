//! Faults, one after the other: above all the leader is killed in mid-migration, in between everything else.
//!
//! A fault is recorded as installed only if it was seen to be there: a process gone or stopped, a rule listed by the
//! kernel, a file system that takes nothing any more, a command that was struck. What this machine or program cannot
//! do is skipped, with the reason.
//!
//! - `kinds`: which there are
//! - `processes`, `nodes`, `appliance`, `points`, `network`, `disks`, `clocks`, `membership`: how each is done

mod appliance;
mod clocks;
mod disks;
mod kinds;
mod membership;
mod network;
mod nodes;
mod points;
mod processes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use tokio::time::{Instant, sleep};

use super::lab::Lab;
use super::watch::Leader;
use crate::history::{FaultRecord, Installed, Micros};

pub(super) use kinds::{ALL, Kind};

/// How long the controllers may take, all healed, until each answers and one leads.
const SETTLE_LIMIT: Duration = Duration::from_secs(15);
/// How long a migration is waited for before a leader is killed.
const MIGRATION_LIMIT: Duration = Duration::from_secs(4);
/// Pause between two looks.
const POLL: Duration = Duration::from_millis(10);
/// The kills that are asked for are to be made in this part of the time, in percent.
const KILLS_WITHIN_PERCENT: u64 = 85;

/// How long it rages, with what, how often leaders are to be killed in mid-migration if that is among it, and how long
/// clients may take to end once all is healed.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) duration: Duration,
    pub(super) kills: usize,
    pub(super) kinds: Vec<Kind>,
    pub(super) patience: Duration,
}

/// Does the faults.
pub(super) struct Nemesis {
    lab: Arc<Lab>,
    random: StdRng,
    /// When the commands are to arrive that the appliance has not heard yet.
    delivery_due: Option<Instant>,
    /// Why kinds were skipped.
    pub(super) skipped: BTreeMap<&'static str, &'static str>,
}

/// What came of one fault.
struct Struck {
    target: String,
    at: Micros,
    installed: Installed,
    hit_leader: bool,
    /// It ended by itself or was ended; false if it needs no healing.
    healed: bool,
}

impl Nemesis {
    pub(super) fn new(lab: Arc<Lab>, random: StdRng) -> Self {
        Self { lab, random, delivery_due: None, skipped: BTreeMap::new() }
    }

    /// Leaders that were killed in mid-migration.
    pub(super) fn kills(&self) -> usize {
        self.lab.recorder.hit_in_migration(is_kill_of_leader)
    }

    /// Strikes until the time is over.
    pub(super) async fn rage(&mut self, plan: &Plan) -> Result<()> {
        let began = Instant::now();
        let kills_leaders = plan.kinds.contains(&Kind::LeaderKill);
        let mut deck: Vec<Kind> = Vec::new();
        while began.elapsed() < plan.duration {
            let share = began.elapsed().as_millis() * 100
                / (plan.duration.as_millis() * u128::from(KILLS_WITHIN_PERCENT) / 100).max(1);
            let due = plan.kills as u128 * share.min(100) / 100;
            let kind = if kills_leaders && (self.kills() as u128) < due.max(1) {
                Kind::LeaderKill
            } else {
                if deck.is_empty() {
                    deck.clone_from(&plan.kinds);
                    deck.shuffle(&mut self.random);
                }
                deck.pop().context("there are no faults to make")?
            };
            self.strike(kind).await?;
        }
        Ok(())
    }

    /// One fault from its beginning to its end, and the time that the controllers need to have a leader again.
    async fn strike(&mut self, kind: Kind) -> Result<()> {
        if let Err(reason) = kind.needs(&self.lab.abilities) {
            self.skipped.insert(kind.name(), reason);
            return Ok(());
        }
        self.deliver_late();
        self.lab.recorder.begin_fault(kind.name());
        let struck = self.carry_out(kind).await?;
        for Struck { target, at, installed, hit_leader, healed } in struck {
            let healed = healed.then(|| self.lab.recorder.now());
            self.lab.recorder.fault(FaultRecord {
                at,
                healed,
                kind: kind.name().to_owned(),
                target,
                installed,
                in_migration: false,
                hit_leader,
            });
        }
        self.settle(kind).await
    }

    async fn carry_out(&mut self, kind: Kind) -> Result<Vec<Struck>> {
        match kind {
            Kind::LeaderKill => self.kill_leader().await,
            Kind::FollowerKill => self.kill_follower().await,
            Kind::AllKilled => self.kill_all().await,
            Kind::LeaderPaused => self.pause_leader().await,
            Kind::RollingRestart => self.restart_each().await,
            Kind::Point(point) => self.point(point).await,
            Kind::Appliance(trouble) => self.trouble_appliance(trouble).await,
            Kind::PluginKilled => self.kill_plugin().await,
            Kind::PluginStopped => self.stop_plugin().await,
            Kind::NodeRebooted => self.reboot_node().await,
            Kind::ReplicaWiped => self.wipe_replica().await,
            Kind::Network(cut) => self.cut_network(cut).await,
            Kind::DiskFull => self.fill_disk().await,
            Kind::SyncFails => self.fail_sync().await,
            Kind::SyncSlow => self.slow_sync().await,
            Kind::PowerCut(count) => self.cut_power(count).await,
            Kind::ClockJumps => self.jump_clock().await,
        }
    }

    /// Starts what has died, and waits for a leader and for everybody's answer: a fault hits a whole cluster.
    async fn settle(&mut self, kind: Kind) -> Result<()> {
        let names = self.lab.doors.controllers();
        let until = Instant::now() + SETTLE_LIMIT;
        self.deliver_late();
        loop {
            // One that the fault ends may end a little later.
            for name in names.iter().filter(|name| !self.lab.is_running(name)) {
                if !kind.may_end_a_controller() {
                    self.lab
                        .recorder
                        .trouble(format!("{name} ended by itself; the fault was: {}", kind.name()));
                }
                self.lab.ensure_running(name)?;
            }
            let silent = names.len() - self.lab.watch.statuses().len();
            let leader = self.lab.watch.leader();
            if silent == 0 && leader.is_some() {
                return Ok(());
            }
            if Instant::now() >= until {
                let at = self.lab.recorder.now() / 1_000_000;
                let limit = SETTLE_LIMIT.as_secs();
                self.lab.recorder.trouble(format!(
                    "at {at} s, {limit} s after a fault was healed: {silent} controllers do not answer, {leader:?} leads"
                ));
                return Ok(());
            }
            sleep(POLL).await;
        }
    }

    /// The leader, once a migration runs if one begins in time.
    async fn leader_in_migration(&mut self) -> Option<Leader> {
        let until = Instant::now() + MIGRATION_LIMIT;
        loop {
            match self.lab.watch.leader() {
                Some(leader) if leader.migrations > 0 => return Some(leader),
                found if Instant::now() >= until => return found,
                Some(_) | None => sleep(POLL).await,
            }
        }
    }

    fn follower(&mut self) -> Option<String> {
        let leader = self.lab.watch.leader()?.name;
        let mut names = self.lab.doors.controllers();
        names.retain(|name| *name != leader);
        names.choose(&mut self.random).cloned()
    }

    fn any_controller(&mut self) -> Option<String> {
        self.lab.doors.controllers().choose(&mut self.random).cloned()
    }

    fn any_node(&mut self) -> Option<String> {
        self.lab.doors.nodes().choose(&mut self.random).cloned()
    }

    fn is_leader(&self, name: &str) -> bool {
        self.lab.watch.leader().is_some_and(|leader| leader.name == name)
    }

    async fn wait(&mut self, range_ms: std::ops::Range<u64>) {
        sleep(Duration::from_millis(self.random.random_range(range_ms))).await;
    }

    /// Waits until the process is gone by itself.
    async fn is_gone(&self, name: &str, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while self.lab.is_running(name) {
            if Instant::now() >= until {
                return false;
            }
            sleep(POLL).await;
        }
        true
    }

    /// A fault that could not be at this moment.
    fn skipped(&self, target: &str) -> Vec<Struck> {
        let (at, target) = (self.lab.recorder.now(), target.to_owned());
        vec![Struck { target, at, installed: Installed::Skipped, hit_leader: false, healed: false }]
    }
}

/// Whether a leader's process was killed by this fault.
pub(super) fn is_kill_of_leader(fault: &FaultRecord) -> bool {
    let kills = ALL.iter().any(|kind| kind.kills() && kind.name() == fault.kind);
    kills && fault.hit_leader && fault.installed == Installed::Yes
}
