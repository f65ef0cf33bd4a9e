//! Nodes that Kubernetes says are off: their attachments are freed, on whichever side of whatever volume, and those of a
//! node that is only silent stay. Needs a minute: a deleted node is off after so much silence.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rds_csi::dev::Cluster;
use tests::kubernetes::objects::{bound_claim, node, node_out_of_service};
use tests::kubernetes::{SimulatedApiServer, watch_simulated};
use tests::requests::{MIB, create, eventually, eventually_within, insist, publish, unpublish, volume_id};
use tests::{Csi, Lab};
use tonic::Code;

use crate::sessions::wait_for_metric;

const TAINTED: &str = "node-a";
const DELETED: &str = "node-b";
const SILENT: &str = "node-c";

/// A node's last word may be this much older than its end, in seconds: an interval of its session.
const REPORT_SECONDS: u64 = 10;
/// How much silence proves a tainted and a deleted node off, in seconds.
const TAINTED_SECONDS: u64 = 30;
const DELETED_SECONDS: u64 = 60;
/// How long the freeing of both may take, in milliseconds.
const FREED_MS: u64 = 90_000;

/// The volumes by name, each with its nodes in the order of publishing.
const VOLUMES: [(&str, &[&str]); 6] = [
    ("of-tainted", &[TAINTED]),
    ("of-deleted", &[DELETED]),
    ("of-silent", &[SILENT]),
    ("of-both", &[TAINTED, DELETED]),
    ("tainted-second", &[SILENT, TAINTED]),
    ("deleted-second", &[SILENT, DELETED]),
];

/// How many attachments the node has in the ledger.
async fn attachments(lab: &Lab, node: &str) -> Result<usize> {
    let ledger = lab.ledger().await?;
    let attachments = ledger.iter().flat_map(|volume| &volume.attachments);
    Ok(attachments.filter(|attachment| attachment.node_id == node).count())
}

async fn publish_all(csi: &Csi, server: &SimulatedApiServer) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for (name, nodes) in VOLUMES {
        let id = volume_id(insist("create", || csi.create(create(name, MIB))).await?);
        server.put(bound_claim(&id, name));
        for node in nodes {
            insist("publish", || csi.publish(publish(&id, node))).await?;
        }
        ids.push(id);
    }
    Ok(ids)
}

/// Waits until the node has no attachment; not before it was silent for long enough.
async fn expect_freed(lab: &Lab, name: &str, begun: Instant, silence_seconds: u64) -> Result<()> {
    eventually_within(FREED_MS, name, async || {
        let left = attachments(lab, name).await?;
        ensure!(left == 0, "{left} attachments are left");
        Ok(())
    })
    .await?;
    let took = begun.elapsed();
    println!("{name} was freed {took:?} after its end");
    ensure!(took.as_secs() >= silence_seconds - REPORT_SECONDS, "{name} was freed after {took:?} already");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_off_lose_their_attachments_and_silent_ones_do_not() -> Result<()> {
    Lab::tell_on(Cluster::builder().nodes(3), async |lab| {
        let server = SimulatedApiServer::start([TAINTED, DELETED, SILENT].map(node)).await?;
        watch_simulated(lab, &server, "").await?;
        let leader = lab.leader_name().await?;
        wait_for_metric(lab, &leader, "rds_csi_sessions_active 3").await?;
        let csi = lab.csi(&leader)?;
        let ids = publish_all(&csi, &server).await?;

        for name in [TAINTED, DELETED, SILENT] {
            lab.kill(name)?;
        }
        let begun = Instant::now();
        server.put([node_out_of_service(TAINTED)]);
        server.delete(node(DELETED));
        expect_freed(lab, TAINTED, begun, TAINTED_SECONDS).await?;
        ensure!(attachments(lab, DELETED).await? == 3, "a deleted node was freed as early as a tainted one");
        expect_freed(lab, DELETED, begun, DELETED_SECONDS).await?;
        ensure!(attachments(lab, SILENT).await? == 3, "silence alone freed a node");

        wait_for_metric(lab, &leader, "rds_csi_attachment_stale_cleared_total 6").await?;
        eventually("the events", async || {
            let cleared =
                server.events().into_iter().filter(|event| event["reason"] == "StaleAttachmentCleared");
            let mut claims: Vec<_> = cleared.map(|event| event["involvedObject"]["name"].clone()).collect();
            claims.sort_by_key(ToString::to_string);
            let expected =
                ["deleted-second", "of-both", "of-both", "of-deleted", "of-tainted", "tainted-second"];
            ensure!(claims == expected, "{claims:?}");
            Ok(())
        })
        .await?;

        let first = ids.first().context("no volume")?;
        let refused =
            csi.publish(publish(first, TAINTED)).await.err().context("attached before an unpublish")?;
        ensure!(refused.code() == Code::FailedPrecondition, "{refused}");
        insist("unpublish", || csi.unpublish(unpublish(first, TAINTED))).await?;
        for name in [TAINTED, DELETED, SILENT] {
            lab.start_again(name).await?;
        }
        insist("publish once more", || csi.publish(publish(first, TAINTED))).await.map(drop)
    })
    .await
}
