//! Volumes that come and go, and what is on them does not.

use anyhow::{Result, ensure};
use tests::vm::{NODES, VmLab};

use crate::volume::{Kind, Volume};

/// How much is written, in MiB.
const WRITTEN_MIB: u64 = 4;

/// Fills `path` with noise and makes it durable; its checksum, of the noise as it was before it was written. What the
/// appliance has then is the same.
pub(super) async fn write_noise(lab: &VmLab, node: &str, path: &str) -> Result<String> {
    let script = r#"
        set -o pipefail
        dd if=/dev/urandom of=/tmp/noise bs=1M count="$1"
        dd if=/tmp/noise of="$0" bs=1M conv=notrunc,fsync
        sha256sum </tmp/noise
        rm /tmp/noise"#;
    let written = lab.guest(node)?.run(&["sh", "-euc", script, path, &WRITTEN_MIB.to_string()]).await?;
    expect_checksum(lab, node, path, &written).await?;
    Ok(written)
}

/// The checksum of what [`write_noise`] wrote, read from the appliance and not from this node's memory.
async fn checksum(lab: &VmLab, node: &str, path: &str) -> Result<String> {
    let script = r#"
        set -o pipefail
        sync
        echo 3 >/proc/sys/vm/drop_caches
        dd if="$0" bs=1M count="$1" | sha256sum"#;
    lab.guest(node)?.run(&["sh", "-euc", script, path, &WRITTEN_MIB.to_string()]).await
}

/// Fails unless the bytes at `path` have this checksum.
pub(super) async fn expect_checksum(lab: &VmLab, node: &str, path: &str, wanted: &str) -> Result<()> {
    let found = checksum(lab, node, path).await?;
    ensure!(found == wanted, "{path} on {node}: {found}, written was {wanted}");
    Ok(())
}

/// A file system is made once; what is in it is there on another node too.
pub(super) async fn filesystem(lab: &mut VmLab) -> Result<()> {
    let [first, second] = NODES;
    for (name, kind) in [("life-ext4", Kind::Ext4), ("life-xfs", Kind::Xfs)] {
        let mut volume = Volume::create(lab, name, kind, &[]).await?;
        let file = format!("{}/noise", volume.target());
        volume.bring(lab, first).await?;
        // Kubelet may ask for what is there already.
        volume.stage(lab, first).await?;
        volume.publish(lab, first).await?;
        let written = write_noise(lab, first, &file).await?;
        volume.take(lab, first).await?;
        volume.bring(lab, second).await?;
        expect_checksum(lab, second, &file, &written).await?;
        volume.take(lab, second).await?;
        volume.delete(lab).await?;
    }
    Ok(())
}

/// A block volume is a device at its target, the same bytes on every node.
pub(super) async fn block(lab: &mut VmLab) -> Result<()> {
    let [first, second] = NODES;
    let mut volume = Volume::create(lab, "life-block", Kind::Block, &[]).await?;
    let target = volume.target();
    volume.bring(lab, second).await?;
    volume.publish(lab, second).await?;
    lab.guest(second)?.run(&["test", "-b", &target]).await?;
    let size = lab.guest(second)?.run(&["blockdev", "--getsize64", &target]).await?;
    ensure!(size == Kind::Block.size_bytes().to_string(), "it has {size} bytes");
    let written = write_noise(lab, second, &target).await?;
    volume.take(lab, second).await?;
    volume.bring(lab, first).await?;
    expect_checksum(lab, first, &target, &written).await?;
    volume.take(lab, first).await?;
    volume.delete(lab).await
}

/// While a VM migrates, both nodes have the volume; what one has written the other reads, and the one that stays
/// keeps it when the other leaves.
pub(super) async fn shared_block(lab: &mut VmLab) -> Result<()> {
    let [source, target_node] = NODES;
    let mut volume = Volume::create(lab, "shared", Kind::SharedBlock, &[]).await?;
    let target = volume.target();
    volume.bring(lab, source).await?;
    volume.bring(lab, target_node).await?;
    let written = write_noise(lab, source, &target).await?;
    expect_checksum(lab, target_node, &target, &written).await?;
    let written = write_noise(lab, target_node, &target).await?;
    expect_checksum(lab, source, &target, &written).await?;
    volume.take(lab, source).await?;
    expect_checksum(lab, target_node, &target, &written).await?;
    volume.take(lab, target_node).await?;
    volume.delete(lab).await
}
