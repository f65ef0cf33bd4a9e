//! A claim from its making to its end: bound, attached, grown, detached, gone.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::cluster::{Cluster, DRIVER, NODES, path, took};
use crate::objects;

const CLAIM: &str = "data";
const GIB: u64 = 1 << 30;

/// Tells it with a file system for one node.
pub(crate) async fn story(cluster: &mut Cluster) -> Result<()> {
    let begun = Instant::now();
    let volume = cluster.claim(&objects::claim(CLAIM, "rds-ext4", "ReadWriteOnce", "Filesystem")).await?;
    let pv = cluster.api.get(&format!("/api/v1/persistentvolumes/{volume}")).await?;
    ensure!(pv["spec"]["csi"]["driver"] == DRIVER && pv["spec"]["csi"]["volumeHandle"] == volume, "{pv}");
    ensure!(cluster.size_on_appliance(&volume)? == Some(GIB), "{:?}", cluster.appliance()?);
    cluster.say(&format!("claim {CLAIM} is bound after {}; the appliance has {volume}", took(begun)));

    let begun = Instant::now();
    cluster.run_pod(&objects::pod("reader", NODES[0], &[CLAIM])).await?;
    cluster.attached(&volume, NODES[0]).await?;
    cluster.say(&format!("a pod on {}: attached after {}", NODES[0], took(begun)));
    // One node at a most: the attach-detach controller asks nobody, so a VolumeAttachment is made here.
    let second = json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment",
                        "metadata": {"name": "by-hand"},
                        "spec": {"attacher": DRIVER, "nodeName": NODES[1],
                                 "source": {"persistentVolumeName": volume}}});
    cluster.api.create(&second, false).await?.accepted()?;
    let said = cluster.refused(&volume, NODES[1], &[NODES[0]]).await?;
    cluster.say(&format!("a VolumeAttachment to {} is refused: {said}", NODES[1]));
    cluster.api.delete("/apis/storage.k8s.io/v1/volumeattachments/by-hand").await?;
    cluster.detached(&volume, NODES[1]).await?;

    let begun = Instant::now();
    let more = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    cluster.api.patch(&format!("{}/{CLAIM}", path("persistentvolumeclaims")), &more).await?;
    cluster
        .eventually("the volume grows", async || {
            let pv = cluster.api.get(&format!("/api/v1/persistentvolumes/{volume}")).await?;
            ensure!(pv["spec"]["capacity"]["storage"] == "2Gi", "{}", pv["spec"]["capacity"]);
            let claim = cluster.api.get(&format!("{}/{CLAIM}", path("persistentvolumeclaims"))).await?;
            // The file system's part is kubelet's.
            let conditions = claim["status"]["conditions"].as_array().context("no conditions")?;
            let pending = |one: &serde_json::Value| one["type"] == "FileSystemResizePending";
            ensure!(conditions.iter().any(pending), "{conditions:?}");
            Ok(())
        })
        .await?;
    ensure!(cluster.size_on_appliance(&volume)? == Some(2 * GIB), "{:?}", cluster.appliance()?);
    cluster.say(&format!(
        "grown to 2 GiB, while attached, after {}; kubelet is told to grow the rest",
        took(begun)
    ));

    let begun = Instant::now();
    cluster.api.delete(&format!("{}/reader", path("pods"))).await?;
    cluster.detached(&volume, NODES[0]).await?;
    cluster.say(&format!("the pod is gone: detached after {}", took(begun)));
    cluster.events(CLAIM, &["VolumeAttached", "AttachmentConflict", "VolumeDetached"]).await?;
    cluster.say("the claim has the driver's events: VolumeAttached, AttachmentConflict, VolumeDetached");
    let begun = Instant::now();
    cluster.delete_claim(CLAIM, &volume).await?;
    cluster.say(&format!("the claim is deleted: PV and volume are gone after {}", took(begun)));
    if cluster.has_topology { expect_capacity(cluster).await } else { Ok(()) }
}

/// The provisioner publishes the appliance's free space, for the class that waits for its first consumer.
async fn expect_capacity(cluster: &Cluster) -> Result<()> {
    cluster
        .eventually("the free space is published", async || {
            let all = cluster.api.list("/apis/storage.k8s.io/v1/csistoragecapacities").await?;
            let of_class = all.iter().find(|one| one["storageClassName"] == "rds-late");
            let one = of_class.context("none for the class")?;
            ensure!(one["metadata"]["ownerReferences"][0]["kind"] == "StatefulSet", "{}", one["metadata"]);
            cluster.say(&format!("CSIStorageCapacity: {} free, owned by the StatefulSet", one["capacity"]));
            Ok(())
        })
        .await
}
