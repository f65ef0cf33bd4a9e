//! What nobody clears away by a call.

use anyhow::{Context, Result, ensure};
use tests::requests::unpublish;
use tests::vm::{Guest, NODES, NodeOptions, VmLab};
use tonic::{Code, Status};

use super::life_cycle::{expect_checksum, write_noise};
use super::outage::{SOON_GIVEN_UP, lose_for_good};
use crate::holder::Holder;
use crate::volume::{Kind, Volume, expect_refused};

/// How long the node may take to find and mend something, in milliseconds.
const MENDING_MS: u64 = 60_000;

/// A volume is detached although kubelet never unstaged it: the node ends the connection once nobody uses it, and only
/// that frees the volume for others.
pub(super) async fn detached_without_unstage(lab: &mut VmLab) -> Result<()> {
    let [node, other] = NODES;
    let settings = "reconcile_interval_seconds = 1".to_owned();
    lab.restart_node(node, &NodeOptions { settings }).await?;
    let guest = lab.guest(node)?;
    let mut volume = Volume::create(lab, "left-behind", Kind::Block, &[]).await?;
    volume.bring(lab, node).await?;
    let holder = Holder::of(lab, node, &volume.target()).await?;

    let refused = lab.controller()?.unpublish(unpublish(&volume.id, node)).await;
    // Not proven, or proven not to be: both say that the volume is not free.
    let code = refused.as_ref().err().map(Status::code);
    ensure!(
        matches!(code, Some(Code::Unavailable | Code::FailedPrecondition)),
        "it is detached while {node} holds it: {refused:?}"
    );
    expect_refused(volume.try_attach(lab, other).await?, &[node])?;
    let left = format!("it is held by process {} (sleep)", holder.pid());
    guest
        .eventually("the node finds it held", MENDING_MS, async || {
            lab.node_log(node).await?.contains(&left).then_some(()).context("it does not say so")
        })
        .await?;
    volume.device(lab, node).await.context("it is cut while it is held")?;

    holder.release().await?;
    volume.unpublish(lab, node).await?;
    volume.detach(lab, node).await?;
    volume.expect_gone(lab, node).await?;
    volume.bring(lab, other).await?;
    volume.take(lab, other).await?;
    volume.delete(lab).await?;
    lab.restart_node(node, &NodeOptions::default()).await
}

/// A dead mount in which somebody has a file open stays until that has ended; then the volume is staged anew, and
/// what was durable is there.
pub(super) async fn stale_mount_that_is_used(lab: &mut VmLab) -> Result<()> {
    let node = NODES[0];
    let guest = lab.guest(node)?;
    let mut volume = Volume::create(lab, "stale-used", Kind::Ext4, &SOON_GIVEN_UP).await?;
    volume.bring(lab, node).await?;
    let file = format!("{}/noise", volume.target());
    let written = write_noise(lab, node, &file).await?;
    let staged_file = format!("{}/noise", volume.staging());
    let holder = Holder::of(lab, node, &staged_file).await?;
    lose_for_good(lab, node, &volume).await?;

    expect_refused(volume.try_stage(lab, node).await?, &[&volume.staging(), "stale mount"])?;
    ensure!(is_mounted(&guest, &volume.staging()).await?, "it was taken away under its user");
    holder.release().await?;
    volume.unpublish(lab, node).await?;
    volume.stage(lab, node).await?;
    volume.publish(lab, node).await?;
    expect_checksum(lab, node, &file, &written).await?;
    volume.take(lab, node).await?;
    volume.delete(lab).await
}

async fn is_mounted(guest: &Guest, path: &str) -> Result<bool> {
    Ok(guest.run(&["cat", "/proc/self/mountinfo"]).await?.contains(path))
}
