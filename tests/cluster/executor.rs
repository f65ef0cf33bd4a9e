//! The leader dies while it changes the appliance: the next one finishes or undoes.

use std::time::Duration;

use anyhow::{Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::requests::{MIB, create, delete, expand, insist, volume_id};
use tests::{Csi, Lab};
use tokio::task::JoinSet;

/// How often the leader dies.
const KILLS: u64 = 20;

/// When it dies, in milliseconds after the requests were sent. The simulated appliance is as slow as the real one:
/// making a disk takes it 430 ms, removing one 560 ms, and some of it runs one after the other.
const MOMENTS_MS: std::ops::Range<u64> = 0..1_500;

/// Makes the moments of a run the same each time.
const SEED: u64 = 2;

/// What one caller asked for, and whether it was told that it is so.
#[derive(Debug)]
enum Outcome {
    Created { id: String, acknowledged: bool },
    Expanded { id: String, acknowledged: bool },
    Deleted { id: String, acknowledged: bool },
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_midway_leaves_nothing_half_done() -> Result<()> {
    Lab::tell(async |lab| {
        let mut random = StdRng::seed_from_u64(SEED);
        let mut ready: Vec<String> = Vec::new();
        for kill in 0..KILLS {
            while ready.len() < 2 {
                let csi = lab.csi(&lab.leader_name().await?)?;
                let name = format!("kill-{kill}-ready-{}", ready.len());
                ready.push(volume_id(insist("create", || csi.create(create(&name, MIB))).await?));
            }
            let (grown, doomed) = (ready.remove(0), ready.remove(0));
            let leader = lab.leader_name().await?;
            let callers = send(&lab.csi(&lab.follower_name().await?)?, kill, grown, doomed);
            let moment_ms = random.random_range(MOMENTS_MS);
            // Not a wait for something: the moment of death is what is tried out.
            tokio::time::sleep(Duration::from_millis(moment_ms)).await;
            lab.kill(&leader)?;
            lab.start_again(&leader).await?;
            let outcomes = callers.join_all().await;
            lab.settle()
                .await
                .map_err(|error| error.context(format!("kill {kill} at {moment_ms} ms: {outcomes:?}")))?;
            check(lab, &outcomes, &mut ready).await?;
        }
        Ok(())
    })
    .await
}

/// Sends one request of each kind at once, each a single attempt.
fn send(csi: &Csi, kill: u64, grown: String, doomed: String) -> JoinSet<Outcome> {
    let mut callers = JoinSet::new();
    let caller = csi.clone();
    callers.spawn(async move {
        let answer = caller.create(create(&format!("kill-{kill}-new"), MIB)).await;
        let acknowledged = answer.is_ok();
        Outcome::Created { id: answer.map(volume_id).unwrap_or_default(), acknowledged }
    });
    let caller = csi.clone();
    callers.spawn(async move {
        let acknowledged = caller.expand(expand(&grown, 2 * MIB)).await.is_ok();
        Outcome::Expanded { id: grown, acknowledged }
    });
    let caller = csi.clone();
    callers.spawn(async move {
        let acknowledged = caller.delete(delete(&doomed)).await.is_ok();
        Outcome::Deleted { id: doomed, acknowledged }
    });
    callers
}

/// What was acknowledged is so; the volumes that are there serve the next round.
async fn check(lab: &Lab, outcomes: &[Outcome], ready: &mut Vec<String>) -> Result<()> {
    let ledger = lab.ledger().await?;
    let size = |id: &String| ledger.iter().find(|volume| volume.id == *id).map(|volume| volume.size_bytes);
    for outcome in outcomes {
        match outcome {
            Outcome::Created { id, acknowledged: true } => ensure!(size(id).is_some(), "lost: {outcome:?}"),
            Outcome::Expanded { id, acknowledged } => {
                let grown = size(id) == Some(2 * MIB.unsigned_abs());
                ensure!(size(id).is_some() && (grown || !acknowledged), "lost: {outcome:?}, {:?}", size(id));
            }
            Outcome::Deleted { id, acknowledged: true } => ensure!(size(id).is_none(), "back: {outcome:?}"),
            Outcome::Created { .. } | Outcome::Deleted { .. } => {}
        }
    }
    *ready =
        ledger.into_iter().filter(|volume| volume.size_bytes == MIB.unsigned_abs()).map(|v| v.id).collect();
    Ok(())
}
