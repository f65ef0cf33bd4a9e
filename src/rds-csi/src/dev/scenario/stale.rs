//! A migration that is past its time, and whose source is not in use any more: the VM runs on the target, and the
//! source's kubelet never came to unstage. The leader dies at the deadline, and the next one between its decision and
//! the cut. One reap comes of it, and a third node is admitted only after the cut.
//!
//! The window of the second kill is as wide as it has to be: the target's plugin is stopped before the deadline, so
//! that nothing is decided before it goes on; the source's is stopped after it has said that nobody uses the volume
//! there, so that nothing is cut before it goes on.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::time::{Instant, sleep};

use super::actors::{Actors, Disk, LEADER_LIMIT_MS, SOURCE, TARGET, THIRD, course};
use super::overdue::{
    self, CLASS, Deadline, becomes_overdue, kill_leader, lines_said, only, patience, phases, records,
    running, survivors, tell_history, until, vm_ends, wait_for_line,
};
use super::timeline::{Step, Stopped, Timeline};
use super::{failover, migration};
use crate::dev::clients::Leader;

/// Pause between two tries to publish on the third node, in ms.
const TRY_PAUSE_MS: u64 = 20;

/// The story.
pub(crate) async fn tell(timeline: &mut Timeline, actors: &mut Actors) -> Result<(), Stopped> {
    let mut disk = migration::create(timeline, actors, &CLASS).await?;
    migration::attach_source(timeline, actors, &mut disk).await?;
    migration::attach_target(timeline, actors, &mut disk).await?;
    vm_moves(timeline, actors, &disk).await?;
    let deadline = overdue::deadline(timeline, actors, &disk).await?;
    let every_controller = actors.cluster.controllers();
    migration::third_node_is_refused(timeline, actors, &disk, &every_controller).await?;

    let first = kill_at_the_deadline(timeline, actors, &disk, deadline).await?;
    migration::third_node_is_refused(timeline, actors, &disk, &survivors(actors, &first)).await?;
    failover::the_killed_one_returns(timeline, actors, &first).await?;
    let second = decided(timeline, actors, &disk, deadline).await?;
    kill_in_the_reap(timeline, actors, &disk, deadline, &second).await?;
    let left = survivors(actors, &second);
    migration::third_node_is_refused(timeline, actors, &disk, &left).await?;
    cut(timeline, actors, &disk, deadline, &left).await?;
    failover::the_killed_one_returns(timeline, actors, &second).await?;
    one_reap(timeline, actors, &disk, deadline, &second).await?;
    reaped_node_is_refused(timeline, actors, &disk).await?;
    vm_ends(timeline, actors, &disk).await?;
    migration::clean_up(timeline, actors, &disk, &second.name).await
}

/// The VM runs on the target; its process on the source has ended, and kubelet there did no more than unpublish.
async fn vm_moves(timeline: &mut Timeline, actors: &Actors, disk: &Disk) -> Result<(), Stopped> {
    timeline
        .step("the VM runs on node-b; node-a's kubelet unpublishes and never unstages", async |step| {
            actors.cluster.hold(TARGET, &disk.volume)?;
            actors.leave_staged(disk, SOURCE).await?;
            for node in [SOURCE, TARGET] {
                let is_connected = actors.cluster.is_connected(node, &disk.volume);
                step.equal(format!("connected on {node}"), true, is_connected);
            }
            Ok(())
        })
        .await
}

async fn kill_at_the_deadline(
    timeline: &mut Timeline,
    actors: &mut Actors,
    disk: &Disk,
    deadline: Deadline,
) -> Result<Leader, Stopped> {
    timeline
        .step("kill -9 the leader at the deadline; node-b's plugin is stopped", async |step| {
            let stop_target = |actors: &mut Actors| actors.cluster.suspend(TARGET);
            let (killed, without_leader) =
                kill_leader(step, actors, disk, Some(deadline.at), stop_target).await?;
            let through = survivors(actors, &killed).into_iter().next().context("nobody survived")?;
            becomes_overdue(step, actors, disk, &through, deadline, without_leader).await?;
            Ok(killed)
        })
        .await
}

/// The next leader hears node-a, and then node-b; it decides, and cannot carry it out.
async fn decided(
    timeline: &mut Timeline,
    actors: &mut Actors,
    disk: &Disk,
    deadline: Deadline,
) -> Result<Leader, Stopped> {
    timeline
        .step("node-a has answered and is stopped, node-b goes on: the reap is decided", async |step| {
            let leader = actors.cluster.leader(Duration::from_millis(LEADER_LIMIT_MS)).await?;
            let evidence = ["source node-a: connected, idle", "target node-b: unknown"];
            let words = [disk.volume.as_str(), evidence[0], evidence[1]];
            let line = wait_for_line(actors, &leader.name, &words).await?;
            step.tell(format!("{}: {line}", leader.name));
            let volume = actors.history(&leader.name, disk).await?;
            step.equal("reaps decided on half of the evidence", 0, reaps(&volume, deadline));
            actors.cluster.suspend(SOURCE)?;
            let let_go_at = Instant::now();
            actors.cluster.resume(TARGET)?;
            let volume = until(patience(), "the decision", async || {
                let volume = actors.history(&leader.name, disk).await?;
                ensure!(running(&volume)?.phase == "Reaping", "it is {}", running(&volume)?.phase);
                Ok(volume)
            })
            .await?;
            step.measure("from node-b's going on until the decision", let_go_at.elapsed());
            step.measure("from the deadline until the decision", deadline.at.elapsed());
            let decision = only(&volume, "ReapDecided", deadline.migration)?;
            step.tell(format!("ReapDecided: {}", decision.detail));
            let who = format!("the reaper of term {}, by what the sessions say", leader.term);
            step.equal("who decided", &who, &running(&volume)?.decided_by);
            step.equal("the stale node", SOURCE, &decision.node_id);
            let said = [evidence[0], "target node-b: in use by simulated process"];
            let has_both =
                said.iter().all(|words| running(&volume).is_ok_and(|m| m.evidence.contains(words)));
            step.check("its evidence", has_both, said.join("; "), running(&volume)?.evidence.clone());
            not_cut_yet(step, actors, disk, &volume);
            Ok(leader)
        })
        .await
}

fn reaps(volume: &proto::operator::v1::Volume, deadline: Deadline) -> usize {
    records(volume, "ReapDecided", deadline.migration).len()
}

fn not_cut_yet(step: &mut Step, actors: &Actors, disk: &Disk, volume: &proto::operator::v1::Volume) {
    step.equal("who holds the volume", format!("{SOURCE} Revoking, {TARGET} Granted"), phases(volume));
    step.equal("connected on node-a", true, actors.cluster.is_connected(SOURCE, &disk.volume));
}

async fn kill_in_the_reap(
    timeline: &mut Timeline,
    actors: &mut Actors,
    disk: &Disk,
    deadline: Deadline,
    decider: &Leader,
) -> Result<(), Stopped> {
    timeline
        .step("kill -9 the leader that decided, before node-a is cut", async |step| {
            let (killed, _) = kill_leader(step, actors, disk, None, |_| Ok(())).await?;
            step.equal("the killed one is the one that decided", &decider.name, &killed.name);
            for through in survivors(actors, &killed) {
                let volume = actors.history(&through, disk).await?;
                step.equal(format!("phase through {through}"), "Reaping", &running(&volume)?.phase);
                step.equal(format!("reaps decided through {through}"), 1, reaps(&volume, deadline));
                not_cut_yet(step, actors, disk, &volume);
            }
            Ok(())
        })
        .await
}

/// The third node tries on and on, while node-a's plugin goes on.
async fn cut(
    timeline: &mut Timeline,
    actors: &mut Actors,
    disk: &Disk,
    deadline: Deadline,
    controllers: &[String],
) -> Result<(), Stopped> {
    timeline
        .step("node-a's plugin goes on: it is cut, and only then node-c is admitted", async |step| {
            let through = controllers.first().context("nobody is left")?;
            let mut codes = BTreeSet::new();
            let mut tries = async |actors: &Actors| {
                let answer = actors.publish(through, disk, THIRD).await?;
                let is_connected = actors.cluster.is_connected(SOURCE, &disk.volume);
                codes.insert(answer.code());
                anyhow::Ok((answer, is_connected))
            };
            let (answer, is_connected) = tries(actors).await?;
            step.equal("connected on node-a before", true, is_connected);
            step.equal("publish on node-c before", "FAILED_PRECONDITION", answer.code());
            actors.cluster.resume(SOURCE)?;
            let let_go_at = Instant::now();
            loop {
                let (answer, is_connected) = tries(actors).await?;
                if answer.0.is_ok() {
                    step.equal("connected on node-a when node-c was admitted", false, is_connected);
                    break;
                }
                ensure!(let_go_at.elapsed() < patience(), "node-c is refused still: {}", answer.words());
                sleep(Duration::from_millis(TRY_PAUSE_MS)).await;
            }
            step.measure("from node-a's going on until node-c was admitted", let_go_at.elapsed());
            step.measure("from the deadline until node-c was admitted", deadline.at.elapsed());
            let codes: Vec<&str> = codes.into_iter().collect();
            step.equal("answers to node-c", "FAILED_PRECONDITION, OK", codes.join(", "));
            Ok(())
        })
        .await
}

/// What the ledger and the logs say of it afterwards.
async fn one_reap(
    timeline: &mut Timeline,
    actors: &Actors,
    disk: &Disk,
    deadline: Deadline,
    decider: &Leader,
) -> Result<(), Stopped> {
    timeline
        .step("one reap, in the ledger's own account", async |step| {
            let leader = actors.cluster.leader(Duration::from_millis(LEADER_LIMIT_MS)).await?;
            let volume = actors.history(&leader.name, disk).await?;
            tell_history(step, &volume, deadline.migration)?;
            let course_of: Vec<&str> = volume.history.iter().map(|record| record.fact.as_str()).collect();
            let expected = "Created, Attached, Attached, MigrationStarted, MigrationOverdue, ReapDecided, Revoked, \
                            Detached, MigrationEnded, Attached, MigrationStarted";
            step.equal("what happened, in this order", expected, in_order(&course_of));
            let detached = volume.history.iter().find(|record| record.fact == "Detached").context("Detached")?;
            step.equal("who was detached", SOURCE, &detached.node_id);
            let late = Duration::from_millis(detached.at_ms.saturating_sub(deadline.ledger_ms));
            step.measure("from the deadline until node-a was detached, the ledger's clock", late);
            for through in actors.cluster.controllers() {
                let migrations = actors.migrations(&through, disk).await?;
                let (first, second) = (deadline.migration, migrations.first().map_or(0, |one| one.id));
                let expected = format!(
                    "{second} from {TARGET} to {THIRD}: Active, {first} from {SOURCE} to {TARGET}: timeout"
                );
                step.equal(format!("migrations through {through}"), expected, course(&migrations));
            }
            who_did_what(step, actors, disk, decider)
        })
        .await
}

/// A second node's admission is one fact in two records; which of them comes first says nothing.
fn in_order(facts: &[&str]) -> String {
    let mut facts = facts.to_vec();
    for at in 1..facts.len() {
        if facts[at - 1] == "MigrationStarted" && facts[at] == "Attached" {
            facts.swap(at - 1, at);
        }
    }
    facts.join(", ")
}

/// Decided once, by the leader that says so; carried out once, by the node. The order that the node followed may be any
/// leader's, as it asks the ledger before it cuts.
fn who_did_what(step: &mut Step, actors: &Actors, disk: &Disk, decider: &Leader) -> anyhow::Result<()> {
    let volume = disk.volume.as_str();
    let mut deciders = Vec::new();
    for name in actors.cluster.controllers() {
        let reaped = lines_said(actors, &name, &[volume, "node node-a loses the volume"])?;
        deciders.extend(reaped.iter().map(|_| name.clone()));
        let ordered = lines_said(actors, &name, &[volume, "cut ordered"])?;
        for line in reaped.iter().chain(&ordered) {
            step.tell(format!("{name}: {line}"));
        }
    }
    step.equal("who decided, by the logs", &decider.name, deciders.join(", "));
    let cuts = lines_said(actors, SOURCE, &[volume, "cut, as ordered"])?;
    step.equal("cuts on node-a, by its log", 1, cuts.len());
    for line in cuts {
        step.tell(format!("{SOURCE}: {line}"));
    }
    Ok(())
}

/// The external-attacher would attach node-a again: not before it was unpublished.
async fn reaped_node_is_refused(
    timeline: &mut Timeline,
    actors: &Actors,
    disk: &Disk,
) -> Result<(), Stopped> {
    timeline
        .step("publish on node-a: refused until it was unpublished there", async |step| {
            for through in actors.cluster.controllers() {
                let answer = actors.publish(&through, disk, SOURCE).await?;
                let words = answer.words();
                let held =
                    answer.code() == "FAILED_PRECONDITION" && words.contains("was taken from node node-a");
                let expected = "FAILED_PRECONDITION, that it was taken from node-a".to_owned();
                step.check(format!("through {through}"), held, expected, words);
            }
            let through = migration::first_controller(actors)?;
            let volume = actors.history(&through, disk).await?;
            step.equal("cut off nodes", SOURCE, volume.cut_off_nodes.join(", "));
            let answer = actors.unpublish(&through, disk, THIRD).await?;
            step.equal("ControllerUnpublishVolume from node-c", "OK", answer.words());
            let answer = actors.publish(&through, disk, SOURCE).await?;
            step.equal("publish on node-a, with a free slot", "FAILED_PRECONDITION", answer.code());
            // What kubelet still has of it goes as if nothing had happened.
            migration::detach(step, actors, disk, &through, SOURCE).await?;
            let answer = actors.publish(&through, disk, SOURCE).await?;
            step.equal("publish on node-a once more", "OK", answer.words());
            let answer = actors.unpublish(&through, disk, SOURCE).await?;
            step.equal("ControllerUnpublishVolume from node-a once more", "OK", answer.words());
            Ok(())
        })
        .await
}
