//! What the node plugin does not do.

use anyhow::{Result, ensure};
use tests::vm::{NODES, VmLab};

use super::life_cycle::{expect_checksum, write_noise};
use crate::holder::Holder;
use crate::volume::{Kind, Volume, expect_refused};

/// A volume whose device a process has open is not taken from under it; the refusal says who. Afterwards it goes.
pub(super) async fn held(lab: &mut VmLab) -> Result<()> {
    let node = NODES[0];
    let mut block = Volume::create(lab, "held-block", Kind::Block, &[]).await?;
    block.bring(lab, node).await?;
    // The pod's own path goes, as when a container ends whose process lives on.
    let holder = Holder::of(lab, node, &block.target()).await?;
    block.unpublish(lab, node).await?;
    expect_held(&block, lab, node, &holder).await?;
    holder.release().await?;
    block.unstage(lab, node).await?;
    block.expect_gone(lab, node).await?;
    block.detach(lab, node).await?;
    block.delete(lab).await?;

    // A file system's device can be held beside its mount; the refusal leaves the mount usable.
    let mut mounted = Volume::create(lab, "held-ext4", Kind::Ext4, &[]).await?;
    mounted.bring(lab, node).await?;
    let written = write_noise(lab, node, &format!("{}/noise", mounted.target())).await?;
    mounted.unpublish(lab, node).await?;
    let holder = Holder::of(lab, node, &format!("/dev/{}", mounted.device(lab, node).await?)).await?;
    expect_held(&mounted, lab, node, &holder).await?;
    mounted.stage(lab, node).await?;
    mounted.publish(lab, node).await?;
    expect_checksum(lab, node, &format!("{}/noise", mounted.target()), &written).await?;
    holder.release().await?;
    mounted.take(lab, node).await?;
    mounted.delete(lab).await
}

async fn expect_held(volume: &Volume, lab: &VmLab, node: &str, holder: &Holder) -> Result<()> {
    expect_refused(volume.try_unstage(lab, node).await?, &[holder.pid(), "sleep"])?;
    // Nothing was cut: the device is still there.
    volume.device(lab, node).await.map(drop)
}

/// A volume that held a file system, and whose superblock is gone or garbage, is refused and not touched.
pub(super) async fn damaged_superblock(lab: &mut VmLab) -> Result<()> {
    let node = NODES[0];
    for (name, kind, source) in [
        ("damaged-ext4", Kind::Ext4, "/dev/urandom"),
        ("wiped-ext4", Kind::Ext4, "/dev/zero"),
        ("damaged-xfs", Kind::Xfs, "/dev/urandom"),
    ] {
        let mut volume = Volume::create(lab, name, kind, &[]).await?;
        volume.bring(lab, node).await?;
        write_noise(lab, node, &format!("{}/noise", volume.target())).await?;
        volume.unpublish(lab, node).await?;
        volume.unstage(lab, node).await?;
        let file = backing_file(lab, &volume).await?;
        let target = lab.target();
        let of = format!("of={file}");
        let source = format!("if={source}");
        target.run(&["dd", &source, &of, "bs=4096", "count=1", "conv=notrunc,fsync"]).await?;
        let before = target.run(&["md5sum", &file]).await?;
        // Whoever is refused comes again.
        for _ in 0..2 {
            expect_refused(volume.try_stage(lab, node).await?, &["it is not formatted"])?;
        }
        let after = target.run(&["md5sum", &file]).await?;
        ensure!(before == after, "{name}: {before} became {after}");
        volume.unstage(lab, node).await?;
        volume.expect_gone(lab, node).await?;
        volume.detach(lab, node).await?;
        volume.delete(lab).await?;
    }
    Ok(())
}

/// The volume's file in the target.
async fn backing_file(lab: &VmLab, volume: &Volume) -> Result<String> {
    let script = r#"cat /sys/kernel/config/nvmet/subsystems/*"$0"/namespaces/1/device_path"#;
    lab.target().run(&["sh", "-euc", script, &volume.id]).await
}

/// What holds a device without an open file is found as well, and keeps it: a loop device over it, swap on it, a
/// mount that only another mount namespace has.
pub(super) async fn held_without_a_file(lab: &mut VmLab) -> Result<()> {
    let node = NODES[0];
    let guest = lab.guest(node)?;
    let mut volume = Volume::create(lab, "held-otherwise", Kind::Block, &[]).await?;
    volume.attach(lab, node).await?;
    volume.stage(lab, node).await?;
    let device = format!("/dev/{}", volume.device(lab, node).await?);
    for (hold, named, release) in [
        ("losetup /dev/loop7 \"$0\"", "/dev/loop7", "losetup -d /dev/loop7"),
        ("mkswap \"$0\" && swapon \"$0\"", "swap on", "swapoff \"$0\""),
    ] {
        guest.run(&["sh", "-euc", hold, &device]).await?;
        expect_refused(volume.try_unstage(lab, node).await?, &[named])?;
        volume.device(lab, node).await?;
        guest.run(&["sh", "-euc", release, &device]).await?;
    }
    guest.run(&["mkfs.ext4", "-q", "-F", &device]).await?;
    let mount = "mkdir -p /elsewhere; mount -t ext4 \"$0\" /elsewhere; exec sleep 10000";
    let holder = Holder::start(lab, node, &["unshare", "--mount", "sh", "-euc", mount, &device]).await?;
    ensure!(
        !guest.run(&["cat", "/proc/self/mountinfo"]).await?.contains("/elsewhere"),
        "it is mounted here too"
    );
    expect_refused(volume.try_unstage(lab, node).await?, &["mounted at /elsewhere"])?;
    volume.device(lab, node).await?;
    holder.release().await?;
    volume.unstage(lab, node).await?;
    volume.expect_gone(lab, node).await?;
    volume.detach(lab, node).await?;
    volume.delete(lab).await
}
