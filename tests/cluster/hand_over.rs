//! The leader is asked to leave: it hands over first, and no caller notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::requests::{MIB, create, insist, publish, unpublish, volume_id};
use tests::{Csi, Lab};

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
