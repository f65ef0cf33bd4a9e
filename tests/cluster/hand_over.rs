//! The leader is asked to leave, or to hand over and stay: no caller notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proto::operator::v1::Volume;
use tests::requests::{MIB, create, insist, publish, unpublish, volume_id};
use tests::{Csi, Lab, tools};
use tokio::process::Command;

/// How often the leader is asked to leave.
const ROUNDS: usize = 5;

/// Publishes before and after each leader leaves, so that it leaves under load.
const PUBLISHES_AROUND: usize = 10;

/// Publishes and unpublishes in a loop, each once: the slowest of them, and how many there were.
struct Looped {
    slowest: Duration,
    publishes: usize,
}

async fn publish_in_a_loop(
    csi: Csi,
    id: String,
    published: tokio::sync::watch::Sender<usize>,
    enough: Arc<AtomicBool>,
) -> Result<Looped> {
    let mut looped = Looped { slowest: Duration::ZERO, publishes: 0 };
    while !enough.load(Ordering::Relaxed) {
        let begun = Instant::now();
        csi.publish(publish(&id, "node-a")).await.with_context(|| format!("publish {}", looped.publishes))?;
        looped.slowest = looped.slowest.max(begun.elapsed());
        csi.unpublish(unpublish(&id, "node-a"))
            .await
            .with_context(|| format!("unpublish {}", looped.publishes))?;
        looped.publishes += 1;
        published.send_replace(looped.publishes);
    }
    Ok(looped)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_publish_fails_while_leaders_leave() -> Result<()> {
    Lab::tell(async |lab| {
        for round in 0..ROUNDS {
            let leader = lab.leader_name().await?;
            // The sidecars beside the one that leaves have their own fate; these stay.
            let csi = lab.csi(&lab.follower_name().await?)?;
            let id =
                volume_id(insist("create", || csi.create(create(&format!("round-{round}"), MIB))).await?);
            let enough = Arc::new(AtomicBool::new(false));
            let (published, mut count) = tokio::sync::watch::channel(0);
            let looping = tokio::spawn(publish_in_a_loop(csi, id, published, enough.clone()));
            let warm = count.wait_for(|count| *count >= PUBLISHES_AROUND).await.map(|count| *count);
            let status = lab.terminate(&leader).await?;
            expect_successor(lab, &leader).await?;
            let left = *count.borrow();
            if warm.is_ok() {
                // An error means that the loop has ended; it says why below.
                let _ = count.wait_for(|count| *count >= left + PUBLISHES_AROUND).await;
            }
            enough.store(true, Ordering::Relaxed);
            let looped = looping.await?.with_context(|| format!("round {round}: {leader} left"))?;
            println!(
                "round {round}: {} publishes, none failed, the slowest took {} ms",
                looped.publishes,
                looped.slowest.as_millis()
            );
            ensure!(status.success(), "{leader} ended with {status}");
            lab.start_again(&leader).await?;
        }
        Ok(())
    })
    .await
}

/// Fails unless somebody else leads already: without a hand-over, the others would notice only after a while.
async fn expect_successor(lab: &Lab, gone: &str) -> Result<()> {
    let mut heard = Vec::new();
    for name in lab.controllers().into_iter().filter(|name| name != gone) {
        let status = lab.status(&name).await?;
        heard.push((name, status.term, status.leader_id == Some(status.responder_id)));
    }
    ensure!(heard.iter().any(|(_, _, leads)| *leads), "{gone} left without a successor: {heard:?}");
    Ok(())
}

/// What is done to a leader while somebody publishes in a loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    HandOver,
    Kill,
}

/// Publishes through a follower while the leader is treated so; answers the slowest publish and the volume.
async fn slowest_publish(lab: &mut Lab, round: usize, blow: Blow) -> Result<(Duration, String)> {
    let leader = lab.leader_name().await?;
    let csi = lab.csi(&lab.follower_name().await?)?;
    let name = format!("{blow:?}-{round}").to_lowercase();
    let id = volume_id(insist("create", || csi.create(create(&name, MIB))).await?);
    let enough = Arc::new(AtomicBool::new(false));
    let (published, mut count) = tokio::sync::watch::channel(0);
    let looping = tokio::spawn(publish_again(csi.clone(), id.clone(), published, enough.clone()));
    let warm = count.wait_for(|count| *count >= PUBLISHES_AROUND).await.map(|count| *count);
    match blow {
        Blow::Kill => lab.kill(&leader)?,
        Blow::HandOver => {
            let pid = lab.pid(&leader);
            hand_over(lab, &leader).await?;
            expect_successor(lab, &leader).await?;
            ensure!(
                pid.is_some() && lab.pid(&leader) == pid,
                "{leader} is no longer the process that it was"
            );
        }
    }
    let hit = *count.borrow();
    if warm.is_ok() {
        // An error means that the loop has ended; it says why below.
        let _ = count.wait_for(|count| *count >= hit + PUBLISHES_AROUND).await;
    }
    enough.store(true, Ordering::Relaxed);
    let looped = looping.await?.with_context(|| format!("{blow:?}, round {round}"))?;
    if blow == Blow::Kill {
        lab.start_again(&leader).await?;
    }
    insist("unpublish", || csi.unpublish(unpublish(&id, "node-a"))).await?;
    Ok((looped.slowest, id))
}

/// Publishes what is published: the leader decides it each time, and the appliance has no part in it.
async fn publish_again(
    csi: Csi,
    id: String,
    published: tokio::sync::watch::Sender<usize>,
    enough: Arc<AtomicBool>,
) -> Result<Looped> {
    let mut looped = Looped { slowest: Duration::ZERO, publishes: 0 };
    insist("publish", || csi.publish(publish(&id, "node-a"))).await?;
    while !enough.load(Ordering::Relaxed) {
        let begun = Instant::now();
        csi.publish(publish(&id, "node-a")).await.with_context(|| format!("publish {}", looped.publishes))?;
        looped.slowest = looped.slowest.max(begun.elapsed());
        looped.publishes += 1;
        published.send_replace(looped.publishes);
    }
    Ok(looped)
}

/// As a preStop hook does it.
async fn hand_over(lab: &Lab, name: &str) -> Result<()> {
    let mut command = Command::new(tools::rds_csi()?);
    command.arg("hand-over").arg("--config").arg(lab.config_path(name)).env("POD_NAME", name);
    let output = command.kill_on_drop(true).output().await.context("start rds-csi")?;
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn handing_over_costs_less_than_a_leaders_death_and_loses_nothing() -> Result<()> {
    Lab::tell(async |lab| {
        let (mut slowest, mut made) = (Vec::new(), Vec::new());
        for blow in [Blow::HandOver, Blow::Kill] {
            let mut of_blow = Vec::new();
            for round in 0..ROUNDS {
                let (took, id) = slowest_publish(lab, round, blow).await?;
                of_blow.push(took);
                made.push(id);
            }
            of_blow.sort_unstable();
            println!("{blow:?}: the slowest publish of each round took {of_blow:?}");
            // The quietest round: a busy machine slows both, and a death never costs less than an election's timers.
            slowest.push(of_blow[0]);
        }
        ensure!(slowest[0] < slowest[1], "handing over took {:?}, a death {:?}", slowest[0], slowest[1]);
        let ledger = lab.ledger().await?;
        let is_there = |id: &String| ledger.iter().any(|Volume { id: there, .. }| there == id);
        let lost: Vec<_> = made.iter().filter(|id| !is_there(id)).collect();
        ensure!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        let attached: Vec<_> = ledger.iter().filter(|volume| !volume.attachments.is_empty()).collect();
        ensure!(attached.is_empty(), "every unpublish was acknowledged: {attached:?}");
        // Whoever does not lead has nothing to hand over.
        hand_over(lab, &lab.follower_name().await?).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_not_there_hands_nothing_over() -> Result<()> {
    Lab::tell(async |lab| {
        let name = lab.follower_name().await?;
        lab.terminate(&name).await?;
        let said = hand_over(lab, &name).await.err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(said.contains("exit status: 1") && said.contains("was not handed over"), "{said}");
        lab.start_again(&name).await
    })
    .await
}
