//! A migration that takes three times its time, and is in use on both sides all the while: it is reported, loudly,
//! survives a leader, and is left alone. It ends well when the source leaves.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::time::sleep;

use super::actors::{Actors, Disk, LEADER_LIMIT_MS, SOURCE, TARGET};
use super::overdue::{
    self, CLASS, Deadline, TIMEOUT_SECONDS, becomes_overdue, kill_leader, patience, phases, records, running,
    survivors, tell_history, until, vm_ends, wait_for_line,
};
use super::timeline::{Step, Stopped, Timeline};
use super::{failover, migration};
use crate::dev::clients::Leader;

/// How many times its timeout the migration takes.
const TIMES: u64 = 3;
/// Pause between two looks while it takes its time, in ms.
const LOOK_PAUSE_MS: u64 = 500;
/// Looks that there must be, at least: fewer prove little.
const LEAST_LOOKS: usize = 20;
/// The gauge of migrations past their time.
const OVERDUE: &str = "rds_csi_migration_overdue_migrations";

/// The story.
pub(crate) async fn tell(timeline: &mut Timeline, actors: &mut Actors) -> Result<(), Stopped> {
    let mut disk = migration::create(timeline, actors, &CLASS).await?;
    migration::attach_source(timeline, actors, &mut disk).await?;
    migration::attach_target(timeline, actors, &mut disk).await?;
    let opened = async |_: &mut Step| {
        for node in [SOURCE, TARGET] {
            actors.cluster.hold(node, &disk.volume)?;
        }
        Ok(())
    };
    timeline.step("the VM is copied: its device is open on both nodes", opened).await?;
    let deadline = overdue::deadline(timeline, actors, &disk).await?;
    reported(timeline, actors, &disk, deadline).await?;
    let killed = leader_dies(timeline, actors, &disk).await?;
    failover::the_killed_one_returns(timeline, actors, &killed).await?;
    left_alone(timeline, actors, &disk, deadline).await?;
    let every_controller = actors.cluster.controllers();
    migration::third_node_is_refused(timeline, actors, &disk, &every_controller).await?;
    let done = async |_: &mut Step| actors.cluster.release(SOURCE, &disk.volume);
    timeline.step("the copy is done: the VM runs on node-b only", done).await?;
    migration::source_leaves(timeline, actors, &disk, &killed.name).await?;
    ended_well(timeline, actors, &disk, deadline).await?;
    vm_ends(timeline, actors, &disk).await?;
    migration::clean_up(timeline, actors, &disk, &killed.name).await
}

async fn reported(
    timeline: &mut Timeline,
    actors: &Actors,
    disk: &Disk,
    deadline: Deadline,
) -> Result<(), Stopped> {
    timeline
        .step("its time is over: overdue, reported, both nodes keep it", async |step| {
            let leader = actors.cluster.leader(Duration::from_millis(LEADER_LIMIT_MS)).await?;
            becomes_overdue(step, actors, disk, &leader.name, deadline, Duration::ZERO).await?;
            loudly(step, actors, disk, &leader).await
        })
        .await
}

/// The leader says so in its log and in the gauge, which nobody else has.
async fn loudly(step: &mut Step, actors: &Actors, disk: &Disk, leader: &Leader) -> anyhow::Result<()> {
    let words = [disk.volume.as_str(), "WARN", "overdue migration", "both sides are in use"];
    let line = wait_for_line(actors, &leader.name, &words).await?;
    step.tell(format!("{}: {line}", leader.name));
    gauge(step, actors, leader, "1").await
}

async fn gauge(step: &mut Step, actors: &Actors, leader: &Leader, expected: &str) -> anyhow::Result<()> {
    for name in actors.cluster.controllers() {
        let leads = name == leader.name;
        let value = match actors.cluster.metric(&name, OVERDUE).await {
            Ok(value) => value,
            // The one that was just killed.
            Err(_) if !leads => continue,
            Err(error) => return Err(error),
        };
        let (role, expected) = if leads { ("the leader", expected) } else { ("a follower", "0") };
        step.equal(format!("{OVERDUE} of {name}, {role}"), expected, value);
    }
    Ok(())
}

async fn leader_dies(timeline: &mut Timeline, actors: &mut Actors, disk: &Disk) -> Result<Leader, Stopped> {
    timeline
        .step("kill -9 the leader: the next one reports it too", async |step| {
            let (killed, _) = kill_leader(step, actors, disk, None, |_| Ok(())).await?;
            let next = actors.cluster.leader(Duration::from_millis(LEADER_LIMIT_MS)).await?;
            loudly(step, actors, disk, &next).await?;
            for through in survivors(actors, &killed) {
                let volume = actors.history(&through, disk).await?;
                step.equal(format!("phase through {through}"), "Overdue", &running(&volume)?.phase);
            }
            Ok(killed)
        })
        .await
}

/// Looks at it until it has taken three times its time.
async fn left_alone(
    timeline: &mut Timeline,
    actors: &Actors,
    disk: &Disk,
    deadline: Deadline,
) -> Result<(), Stopped> {
    timeline
        .step("it takes three times its time, in use on both nodes: left alone", async |step| {
            let end_ms = deadline.ledger_ms + TIMEOUT_SECONDS * 1_000 * (TIMES - 1);
            let through = actors.cluster.leader(Duration::from_millis(LEADER_LIMIT_MS)).await?.name;
            let as_expected = format!("Overdue, {SOURCE} Granted, {TARGET} Granted, both connected, 0 reaps");
            let (mut looks, mut others) = (0, Vec::new());
            loop {
                let volume = actors.history(&through, disk).await?;
                if volume.ledger_time_ms >= end_ms {
                    break;
                }
                let phase = running(&volume).map_or("no migration", |migration| &migration.phase);
                let nodes = [SOURCE, TARGET];
                let is_both = nodes.iter().all(|node| actors.cluster.is_connected(node, &disk.volume));
                let connected = if is_both { "both connected" } else { "not both connected" };
                let reaps = records(&volume, "ReapDecided", deadline.migration).len();
                let came = format!("{phase}, {}, {connected}, {reaps} reaps", phases(&volume));
                looks += 1;
                if came != as_expected {
                    others.push(came);
                }
                sleep(Duration::from_millis(LOOK_PAUSE_MS)).await;
            }
            step.check("looks", looks >= LEAST_LOOKS, format!("{LEAST_LOOKS} or more"), looks.to_string());
            let came = others.first().unwrap_or(&as_expected);
            step.check("at each look", others.is_empty(), as_expected.clone(), came.clone());
            let elapsed = deadline.at.elapsed() + Duration::from_secs(TIMEOUT_SECONDS);
            step.measure("since it began, this machine's clock", elapsed);
            Ok(())
        })
        .await
}

async fn ended_well(
    timeline: &mut Timeline,
    actors: &Actors,
    disk: &Disk,
    deadline: Deadline,
) -> Result<(), Stopped> {
    timeline
        .step("never reaped, in the ledger's own account", async |step| {
            let leader = actors.cluster.leader(Duration::from_millis(LEADER_LIMIT_MS)).await?;
            let volume = actors.history(&leader.name, disk).await?;
            tell_history(step, &volume, deadline.migration)?;
            step.equal("reaps decided", 0, records(&volume, "ReapDecided", deadline.migration).len());
            step.equal("reported", 1, records(&volume, "MigrationOverdue", deadline.migration).len());
            step.equal("cut off nodes", "", volume.cut_off_nodes.join(", "));
            until(patience(), "the gauge", async || {
                let value = actors.cluster.metric(&leader.name, OVERDUE).await?;
                ensure!(value == "0", "{OVERDUE} is {value}");
                Ok(())
            })
            .await
            .context("nothing is overdue")?;
            gauge(step, actors, &leader, "0").await
        })
        .await
}
