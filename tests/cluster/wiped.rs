//! A replica loses its disk: it comes back as somebody else, and never founds a second cluster.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proto::csi::v1::{ListVolumesRequest, ProbeRequest};
use tests::requests::{MIB, create, eventually, expect_unavailable, insist, within};
use tests::{Csi, Lab};

/// How long wiped replicas are watched, in milliseconds: many elections' time.
const WATCHED_MS: u64 = 5_000;

/// What each caller gives the driver, in milliseconds.
const LIMIT_MS: u64 = 1_500;

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_replica_returns_with_a_new_id_and_catches_up() -> Result<()> {
    Lab::tell(async |lab| {
        for wiped in [lab.follower_name().await?, lab.leader_name().await?] {
            let csi = lab.csi(&wiped)?;
            insist("create", || csi.create(create(&format!("before-{wiped}"), MIB))).await?;
            let before = lab.status(&wiped).await?;

            lab.kill(&wiped)?;
            lab.wipe(&wiped)?;
            lab.start_again(&wiped).await?;
            eventually("the wiped replica is a voter again", async || {
                let after = lab.status(&wiped).await?;
                ensure!(after.cluster_id == before.cluster_id, "another cluster: {after:?}");
                ensure!(after.responder_id != before.responder_id, "the same id: {after:?}");
                let ids: BTreeSet<_> = after.replicas.iter().map(|replica| replica.id).collect();
                ensure!(!ids.contains(&before.responder_id), "the dead id is still a member: {after:?}");
                let own = after.replicas.iter().find(|replica| replica.id == after.responder_id);
                ensure!(
                    own.context("not a member")?.voter && ids.len() == 3,
                    "not a voter of three: {after:?}"
                );
                lab.expect_equal_replicas().await
            })
            .await?;
            expect_volume(&csi, &format!("before-{wiped}")).await?;
        }
        Ok(())
    })
    .await
}

async fn expect_volume(csi: &Csi, name: &str) -> Result<()> {
    let before = insist("list", || csi.list(ListVolumesRequest::default())).await?.entries.len();
    insist("create again", || csi.create(create(name, MIB))).await?;
    let after = insist("list", || csi.list(ListVolumesRequest::default())).await?.entries.len();
    ensure!(before == after, "{name} was forgotten");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_wiped_replicas_of_three_never_form_a_cluster() -> Result<()> {
    Lab::tell(async |lab| {
        let kept = lab.leader_name().await?;
        let csi = lab.csi(&kept)?;
        insist("create", || csi.create(create("kept", MIB))).await?;
        let before = lab.status(&kept).await?;
        let wiped: Vec<_> = lab.controllers().into_iter().filter(|name| *name != kept).collect();
        for name in lab.controllers() {
            lab.kill(&name)?;
        }
        for name in &wiped {
            lab.wipe(name)?;
            lab.start(name)?;
        }
        for name in &wiped {
            let csi = lab.csi(name)?;
            insist("probe", || csi.probe(ProbeRequest {})).await?;
        }
        // First they are alone: what they do not hear of may still be there.
        expect_no_cluster(lab, &wiped, &before.cluster_id).await?;
        lab.start(&kept)?;
        expect_no_cluster(lab, &wiped, &before.cluster_id).await?;

        let after = lab.status(&kept).await?;
        ensure!(after.cluster_id == before.cluster_id && after.volumes == 1, "forgotten: {after:?}");
        let answer = csi.create(within(Duration::from_millis(LIMIT_MS), create("new", MIB))).await;
        expect_unavailable("create through the one that is left", answer)
    })
    .await
}

/// Watches `wiped` replicas for a while: none decides anything, none belongs to a cluster but `cluster_id`.
async fn expect_no_cluster(lab: &Lab, wiped: &[String], cluster_id: &str) -> Result<()> {
    let limit = Duration::from_millis(LIMIT_MS);
    let watched_until = Instant::now() + Duration::from_millis(WATCHED_MS);
    let mut heard = BTreeSet::new();
    while Instant::now() < watched_until {
        for name in wiped {
            let answer = lab.csi(name)?.create(within(limit, create("new", MIB))).await;
            expect_unavailable("create through a wiped replica", answer)?;
            // It may not serve operators as long as it belongs nowhere.
            if let Ok(status) = lab.status(name).await {
                ensure!(
                    status.cluster_id.is_empty() || status.cluster_id == cluster_id,
                    "founded: {status:?}"
                );
                ensure!(status.volumes == 0 && status.leader_id.is_none(), "decides: {status:?}");
                heard.insert(name);
            }
        }
    }
    ensure!(heard.len() == wiped.len(), "only {heard:?} of {wiped:?} ran");
    Ok(())
}
