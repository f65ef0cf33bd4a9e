//! The appliance is away. Unknown is never absent: UNAVAILABLE, never NOT_FOUND, and in bounded time.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use proto::csi::v1::{GetCapacityRequest, ProbeRequest};
use tests::Lab;
use tests::requests::{MIB, create, delete, expand, expect_unavailable, insist, publish, volume_id, within};

/// What each caller gives the driver, in milliseconds.
const LIMIT_MS: u64 = 5_000;

#[tokio::test(flavor = "multi_thread")]
async fn an_appliance_that_is_away_is_unavailable_until_it_is_back() -> Result<()> {
    Lab::tell(async |lab| {
        let (limit, simulator) = (Duration::from_millis(LIMIT_MS), lab.simulator());
        for name in [lab.leader_name().await?, lab.follower_name().await?] {
            let csi = lab.csi(&name)?;
            let (new, quiet, grows) =
                (format!("new-{name}"), format!("quiet-{name}"), format!("grows-{name}"));
            let quiet = volume_id(insist("create", || csi.create(create(&quiet, MIB))).await?);
            let grows = volume_id(insist("create", || csi.create(create(&grows, MIB))).await?);

            lab.kill(simulator)?;
            let begun = Instant::now();
            let answers = tokio::join!(
                csi.create(within(limit, create(&new, MIB))),
                csi.capacity(within(limit, GetCapacityRequest::default())),
                csi.publish(within(limit, publish(&quiet, "node-a"))),
                csi.expand(within(limit, expand(&grows, 2 * MIB))),
            );
            expect_unavailable("create", answers.0)?;
            expect_unavailable("capacity", answers.1)?;
            expect_unavailable("publish", answers.2)?;
            expect_unavailable("expand", answers.3)?;
            ensure!(begun.elapsed() < limit, "answered only after {:?}", begun.elapsed());
            csi.probe(within(limit, ProbeRequest {})).await?;

            lab.start_again(simulator).await?;
            insist("create the new one", || csi.create(create(&new, MIB))).await?;
            insist("expand", || csi.expand(expand(&grows, 2 * MIB))).await?;
            insist("publish", || csi.publish(publish(&quiet, "node-a"))).await?;
            lab.settle().await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_without_the_appliance_is_not_a_deletion() -> Result<()> {
    Lab::tell(async |lab| {
        let (limit, simulator) = (Duration::from_millis(LIMIT_MS), lab.simulator());
        let csi = lab.csi(&lab.follower_name().await?)?;
        let id = volume_id(insist("create", || csi.create(create("doomed", MIB))).await?);

        lab.kill(simulator)?;
        expect_unavailable("delete", csi.delete(within(limit, delete(&id))).await)?;
        ensure!(!lab.appliance()?.is_empty(), "the disk is still there");

        lab.start_again(simulator).await?;
        insist("delete", || csi.delete(delete(&id))).await?;
        ensure!(lab.appliance()?.is_empty(), "left over: {:?}", lab.appliance()?);
        Ok(())
    })
    .await
}
