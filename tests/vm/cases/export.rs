//! What the lab itself stands on.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::requests::MIB;
use tests::vm::{NODES, VmLab};

use crate::volume::{Kind, Volume};

/// Connects as the node plugin does, but without it; the instance.
const CONNECT: &str = r#"
    exec 3<>/dev/nvme-fabrics
    printf %s "transport=tcp,traddr=10.0.0.1,trsvcid=4420,nqn=$0" >&3
    read -r answer <&3
    instance=${answer#instance=}
    echo "${instance%%,*}""#;

/// How long a connect may take until it is refused.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);

/// What the simulated appliance says that it exports, a kernel that knows nothing of this driver can use: it connects,
/// formats, mounts, sees the size change, and loses it once the volume is deleted. Nothing is left in the target then.
pub(super) async fn is_real(lab: &mut VmLab) -> Result<()> {
    for node in NODES {
        let guest = lab.guest(node)?;
        let volume = Volume::create(lab, &format!("export-{node}"), Kind::Ext4, &[]).await?;
        let nqn = volume.nqn()?;
        let instance = guest.run(&["sh", "-euc", CONNECT, &nqn]).await?;
        let device =
            guest.eventually("the device appears", 20_000, async || volume.device(lab, node).await).await?;
        let device = format!("/dev/{device}");
        guest.run(&["mkfs.ext4", "-q", &device]).await?;
        let mounted =
            "mkdir -p /tmp/mnt; mount -t ext4 \"$0\" /tmp/mnt; echo text >/tmp/mnt/file; umount /tmp/mnt";
        guest.run(&["sh", "-euc", mounted, &device]).await?;
        let wanted = Kind::Ext4.size_bytes() + 64 * MIB;
        volume.grow_export(lab, wanted).await?;
        guest
            .eventually("the device grows", 20_000, async || {
                let size = guest.run(&["blockdev", "--getsize64", &device]).await?;
                ensure!(size == wanted.to_string(), "it has {size} bytes");
                Ok(())
            })
            .await?;
        guest.sh(&format!("echo 1 >/sys/class/nvme/nvme{instance}/delete_controller")).await?;
        let again = guest.run(&["sh", "-euc", CONNECT, &nqn]).await?;
        guest.eventually("the device is back", 20_000, async || volume.device(lab, node).await).await?;
        let read = "mount -t ext4 \"$0\" /tmp/mnt; cat /tmp/mnt/file; umount /tmp/mnt";
        let device = format!("/dev/{}", volume.device(lab, node).await?);
        ensure!(guest.run(&["sh", "-euc", read, &device]).await? == "text", "the file is not what it was");
        guest.sh(&format!("echo 1 >/sys/class/nvme/nvme{again}/delete_controller")).await?;
        // Whatever took the export away, the next change of its disk brings it back.
        let target = lab.target();
        target.run(&["sh", "-euc", "rm /sys/kernel/config/nvmet/ports/*/subsystems/\"$0\"", &nqn]).await?;
        volume.grow_export(lab, wanted + 64 * MIB).await?;
        let again = guest.run(&["sh", "-euc", CONNECT, &nqn]).await?;
        guest.sh(&format!("echo 1 >/sys/class/nvme/nvme{again}/delete_controller")).await?;
        volume.delete(lab).await?;
        let ports = target.sh("ls /sys/kernel/config/nvmet/ports").await?;
        ensure!(ports.is_empty(), "ports without an export are left: {ports}");
        let refused = guest.try_run(&["sh", "-euc", CONNECT, &nqn], "", CONNECT_LIMIT).await?;
        ensure!(
            refused.status.is_some_and(|status| status != 0),
            "a deleted volume accepts a connection: {refused:?}"
        );
    }
    Ok(())
}
