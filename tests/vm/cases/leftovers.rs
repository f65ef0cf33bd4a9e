//! What nobody clears away by a call.

use anyhow::{Context, Result, ensure};
use tests::requests::unpublish;
use tests::vm::{Guest, NODES, VmLab};

use super::life_cycle::{expect_checksum, write_noise};
use super::outage::{SOON_GIVEN_UP, lose_for_good};
use crate::holder::Holder;
use crate::volume::{Kind, Volume, expect_refused};

/// How long the node may take to find and mend something, in milliseconds.
const MENDING_MS: u64 = 60_000;

/// A volume is to be detached although kubelet never unstaged it: while somebody holds it that is refused, and says
/// who; then its node is told to end the connection, and only that frees the volume for others.
pub(super) async fn detached_without_unstage(lab: &mut VmLab) -> Result<()> {
    let [node, other] = NODES;
    let guest = lab.guest(node)?;
    let mut volume = Volume::create(lab, "left-behind", Kind::Block, &[]).await?;
    volume.bring(lab, node).await?;
    let holder = Holder::of(lab, node, &volume.target()).await?;

    let held = format!("process {} (sleep)", holder.pid());
    guest
        .eventually("a detach is refused, and the holder named", MENDING_MS, async || {
            expect_refused(lab.controller()?.unpublish(unpublish(&volume.id, node)).await, &[node, &held])
        })
        .await?;
    expect_refused(volume.try_attach(lab, other).await?, &[node])?;
    volume.device(lab, node).await.context("it is cut while it is held")?;

    holder.release().await?;
    volume.unpublish(lab, node).await?;
    volume.detach(lab, node).await?;
    volume.expect_gone(lab, node).await?;
    volume.bring(lab, other).await?;
    volume.take(lab, other).await?;
    volume.delete(lab).await
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
