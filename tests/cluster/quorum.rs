//! One replica of three is left: it decides nothing, says so in time, and lives.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use proto::csi::v1::{ControllerGetVolumeRequest, ListVolumesRequest, ProbeRequest};
use tests::Lab;
use tests::requests::{
    MIB, create, delete, expect_unavailable, insist, publish, unpublish, volume_id, within,
};

/// What each caller gives the driver, in milliseconds.
const LIMIT_MS: u64 = 3_000;

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_callers_are_told_in_time() -> Result<()> {
    Lab::tell(async |lab| {
        let limit = Duration::from_millis(LIMIT_MS);
        let survivor = lab.follower_name().await?;
        let csi = lab.csi(&survivor)?;
        let id = volume_id(insist("create", || csi.create(create("kept", MIB))).await?);
        insist("publish", || csi.publish(publish(&id, "node-a"))).await?;

        let others: Vec<_> = lab.controllers().into_iter().filter(|name| *name != survivor).collect();
        for name in &others {
            lab.kill(name)?;
        }
        let begun = Instant::now();
        let get = ControllerGetVolumeRequest { volume_id: id.clone() };
        let answers = tokio::join!(
            csi.create(within(limit, create("new", MIB))),
            csi.delete(within(limit, delete(&id))),
            csi.publish(within(limit, publish(&id, "node-b"))),
            csi.unpublish(within(limit, unpublish(&id, "node-a"))),
            csi.get(within(limit, get)),
            csi.list(within(limit, ListVolumesRequest::default())),
        );
        let took = begun.elapsed();
        expect_unavailable("create", answers.0)?;
        expect_unavailable("delete", answers.1)?;
        expect_unavailable("publish", answers.2)?;
        expect_unavailable("unpublish", answers.3)?;
        expect_unavailable("get", answers.4)?;
        expect_unavailable("list", answers.5)?;
        ensure!(took < limit, "answered only after {took:?}");
        csi.probe(within(limit, ProbeRequest {})).await?;

        for name in &others {
            lab.start_again(name).await?;
        }
        let kept = insist("get", || csi.get(ControllerGetVolumeRequest { volume_id: id.clone() })).await?;
        let nodes = kept.status.map(|status| status.published_node_ids).unwrap_or_default();
        ensure!(nodes == ["node-a"], "published to {nodes:?}; what was refused must not have happened");
        Ok(())
    })
    .await
}
