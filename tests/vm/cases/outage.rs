//! The appliance or the network goes away under volumes that are used.

use anyhow::{Context, Result, bail, ensure};
use tests::vm::{NODES, VmLab};

use super::life_cycle::{expect_checksum, write_noise};
use crate::volume::{Kind, Volume};

/// What the process that writes records is called.
const WRITER: &str = "writer";

/// How many records a writer may write: as many as fit, and more than it has time for.
const MOST_RECORDS: u64 = 12_000;

/// How many records are acknowledged before an outage, and again after it.
const RECORDS: u64 = 30;

/// How long so many records may take, in milliseconds, an outage included.
const PROGRESS_MS: u64 = 120_000;

/// The target loses its power in the middle of writes on a file system and on a device, and comes back. Writers see
/// no error, and every record that was acknowledged is there, for this node and for the other.
pub(super) async fn target_restart(lab: &mut VmLab) -> Result<()> {
    let class = [("reconnectDelay", "1")];
    let mut volumes = Vec::new();
    // Each kernel has one of them.
    for (name, kind, node) in [("outage-ext4", Kind::Ext4, NODES[0]), ("outage-block", Kind::Block, NODES[1])]
    {
        let mut volume = Volume::create(lab, name, kind, &class).await?;
        volume.bring(lab, node).await?;
        let path = if kind == Kind::Ext4 { format!("{}/records", volume.target()) } else { volume.target() };
        let most = MOST_RECORDS.to_string();
        lab.guest(node)?.spawn(WRITER, &["/bin/vm-agent", "write", &path, &most]).await?;
        volumes.push((volume, node, path));
    }
    for (_, node, _) in &volumes {
        wait_for_records(lab, node, RECORDS).await?;
    }
    lab.restart_target().await?;
    let mut acknowledged = Vec::new();
    for (_, node, _) in &volumes {
        let so_far = records(lab, node).await?;
        wait_for_records(lab, node, so_far + RECORDS).await?;
        ensure!(
            lab.guest(node)?.ended(WRITER).await?.is_none(),
            "the writer on {node} ended: it saw an error"
        );
        lab.guest(node)?.kill(WRITER).await?;
        acknowledged.push(records(lab, node).await?);
    }
    for ((volume, node, path), count) in volumes.iter_mut().zip(acknowledged) {
        check(lab, node, path, count).await?;
        volume.take(lab, node).await?;
        let other = NODES.into_iter().find(|other| other != node).context("there is one node only")?;
        volume.bring(lab, other).await?;
        check(lab, other, path, count).await?;
        volume.take(lab, other).await?;
    }
    for (volume, _, _) in volumes {
        volume.delete(lab).await?;
    }
    Ok(())
}

/// How many records are acknowledged.
async fn records(lab: &VmLab, node: &str) -> Result<u64> {
    let log = lab.guest(node)?.log(WRITER).await?;
    // The last line may be cut short, and the numbers begin at 0.
    let last = log.lines().filter_map(|line| line.parse::<u64>().ok()).next_back();
    Ok(last.map_or(0, |last| last + 1))
}

async fn wait_for_records(lab: &VmLab, node: &str, count: u64) -> Result<()> {
    let guest = lab.guest(node)?;
    guest
        .eventually("records are acknowledged", PROGRESS_MS, async || {
            let found = records(lab, node).await?;
            ensure!(found >= count, "{found} of {count}");
            Ok(())
        })
        .await
}

/// Fails unless the first `count` records are there, as the appliance has them.
async fn check(lab: &VmLab, node: &str, path: &str, count: u64) -> Result<()> {
    let guest = lab.guest(node)?;
    guest.sh("echo 3 >/proc/sys/vm/drop_caches").await?;
    guest.run(&["/bin/vm-agent", "check", path, &count.to_string()]).await.map(drop)
}

/// A class whose connections are given up within seconds of a loss.
pub(super) const SOON_GIVEN_UP: [(&str, &str); 3] =
    [("reconnectDelay", "1"), ("ctrlLossTmo", "3"), ("keepAliveTmo", "1")];

/// Cuts the node's path until the kernel has given the volume's connection up, and mends the path.
pub(super) async fn lose_for_good(lab: &VmLab, node: &str, volume: &Volume) -> Result<()> {
    let guest = lab.guest(node)?;
    guest.sh("ip link set eth1 down").await?;
    let script = r#"! cat /sys/class/nvme/*/subsysnqn 2>/dev/null | grep -q -- "$0""#;
    guest
        .eventually("the NVMe controller is given up", PROGRESS_MS, async || {
            guest.run(&["sh", "-euc", script, &volume.id]).await
        })
        .await?;
    guest.sh("ip link set eth1 up").await.map(drop)
}

/// A connection is lost for good under a mount. The volume comes back as another device, with the old content; the old
/// mount is not used, and its number is nobody else's for as long as it is there.
pub(super) async fn another_device_number(lab: &mut VmLab) -> Result<()> {
    let node = NODES[0];
    let guest = lab.guest(node)?;
    let mut lost = Volume::create(lab, "lost", Kind::Ext4, &SOON_GIVEN_UP).await?;
    lost.bring(lab, node).await?;
    let file = format!("{}/noise", lost.target());
    let written = write_noise(lab, node, &file).await?;
    let number_before = guest.run(&["stat", "-c", "%d", &lost.staging()]).await?;

    lose_for_good(lab, node, &lost).await?;

    let mut other = Volume::create(lab, "other", Kind::Ext4, &[]).await?;
    other.bring(lab, node).await?;
    let number = guest.run(&["stat", "-c", "%d", &other.staging()]).await?;
    ensure!(number != number_before, "the number of a device that is still mounted was given away");
    let other_file = format!("{}/noise", other.target());
    let other_written = write_noise(lab, node, &other_file).await?;

    // The pod that used it ends, the next one comes; kubelet had no reason to unstage.
    lost.unpublish(lab, node).await?;
    lost.stage(lab, node).await?;
    lost.publish(lab, node).await?;
    expect_checksum(lab, node, &file, &written).await?;
    let number = guest.run(&["stat", "-c", "%d", &lost.staging()]).await?;
    ensure!(number != number_before, "the old mount, {number_before}, is used");
    let mounted = guest.run(&["findmnt", "--noheadings", "--output", "SOURCE", &lost.staging()]).await?;
    let device = format!("/dev/{}", lost.device(lab, node).await?);
    ensure!(mounted == device, "{mounted} is mounted, the volume is {device}");
    let rewritten = write_noise(lab, node, &file).await?;
    expect_checksum(lab, node, &file, &rewritten).await?;
    expect_checksum(lab, node, &other_file, &other_written).await?;
    for mut volume in [lost, other] {
        volume.take(lab, node).await?;
        volume.delete(lab).await?;
    }
    Ok(())
}

/// A published block volume is lost for good, and its device's number comes to be another volume's: a device node holds
/// no number, so the pod's path opens that volume now. Published again, it is the lost volume's new device, and what is
/// written there goes to no other.
pub(super) async fn number_given_away(lab: &mut VmLab) -> Result<()> {
    for node in NODES {
        let mut lost =
            Volume::create(lab, &format!("lost-block-{node}"), Kind::Block, &SOON_GIVEN_UP).await?;
        lost.bring(lab, node).await?;
        let written = write_noise(lab, node, &lost.target()).await?;
        let number_before = number_at(lab, node, &lost.target()).await?;

        lose_for_good(lab, node, &lost).await?;

        let mut other = Volume::create(lab, &format!("other-block-{node}"), Kind::Block, &[]).await?;
        bring_as(lab, node, &mut other, &number_before).await?;
        let other_written = write_noise(lab, node, &other.target()).await?;

        lost.stage(lab, node).await?;
        lost.publish(lab, node).await?;
        let number = number_at(lab, node, &lost.target()).await?;
        ensure!(number != number_before, "its target is still {number_before}, which is another volume's");
        expect_checksum(lab, node, &lost.target(), &written).await?;
        let rewritten = write_noise(lab, node, &lost.target()).await?;
        expect_checksum(lab, node, &other.target(), &other_written).await?;
        expect_checksum(lab, node, &lost.target(), &rewritten).await?;
        for mut volume in [lost, other] {
            volume.take(lab, node).await?;
            volume.delete(lab).await?;
        }
    }
    Ok(())
}

/// How often a volume is connected until it gets a number that is free. The kernel gives the lowest one, so the first
/// time it should be that, unless it has not let go of the lost device yet.
const MOST_CONNECTS: u32 = 10;

/// Brings a block volume, as often as it takes for its device to have this number.
async fn bring_as(lab: &VmLab, node: &str, volume: &mut Volume, wanted: &str) -> Result<()> {
    let mut seen = Vec::new();
    for _ in 0..MOST_CONNECTS {
        volume.bring(lab, node).await?;
        let number = number_at(lab, node, &volume.target()).await?;
        if number == wanted {
            return Ok(());
        }
        seen.push(number);
        volume.take(lab, node).await?;
    }
    bail!("the number {wanted} was never given again, but {seen:?}")
}

/// Which device the device node at `path` opens.
async fn number_at(lab: &VmLab, node: &str, path: &str) -> Result<String> {
    lab.guest(node)?.run(&["stat", "-c", "%t:%T", path]).await
}
