//! Volumes that grow while they are used.

use anyhow::{Context, Result, ensure};
use tests::requests::MIB;
use tests::vm::{NODES, VmLab};

use super::life_cycle::{expect_checksum, write_noise};
use crate::volume::{Kind, Volume};

/// How much each volume grows by, in bytes.
const GROWTH_BYTES: i64 = 64 * MIB;

/// Device and file system follow, and what was there is still there.
pub(super) async fn online(lab: &mut VmLab) -> Result<()> {
    for (name, kind, node) in [
        ("grow-ext4", Kind::Ext4, NODES[0]),
        ("grow-xfs", Kind::Xfs, NODES[1]),
        ("grow-block", Kind::Block, NODES[1]),
    ] {
        let mut volume = Volume::create(lab, name, kind, &[]).await?;
        volume.bring(lab, node).await?;
        let is_block = kind == Kind::Block;
        let path = if is_block { volume.target() } else { format!("{}/noise", volume.target()) };
        let written = write_noise(lab, node, &path).await?;
        let before = size_bytes(lab, node, &volume, is_block).await?;
        let wanted = kind.size_bytes() + GROWTH_BYTES;
        volume.grow(lab, node, wanted).await?;
        let after = size_bytes(lab, node, &volume, is_block).await?;
        if is_block {
            ensure!(after == wanted, "the device has {after} bytes of {wanted}");
        } else {
            // A file system needs some of it for itself.
            ensure!(after - before > GROWTH_BYTES * 8 / 10, "the file system grew from {before} to {after}");
        }
        expect_checksum(lab, node, &path, &written).await?;
        volume.take(lab, node).await?;
        volume.delete(lab).await?;
    }
    Ok(())
}

/// What the pod sees, in bytes.
async fn size_bytes(lab: &VmLab, node: &str, volume: &Volume, is_block: bool) -> Result<i64> {
    let guest = lab.guest(node)?;
    let text = if is_block {
        guest.run(&["blockdev", "--getsize64", &volume.target()]).await?
    } else {
        let script = r#"set -- $(stat -f -c "%b %S" "$0"); echo $(($1 * $2))"#;
        guest.run(&["sh", "-euc", script, &volume.target()]).await?
    };
    text.parse().with_context(|| format!("{text} is no size"))
}
