//! A VM's disk on two nodes while the VM migrates, never on three, and with the leader of the driver killed in between.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::{CONTROLLER, Cluster, NAMESPACE, NODES, path, took};
use crate::{node, objects};

const VM: &str = "vm";
const DISK: &str = "vm-disk";
const SOURCE: &str = NODES[0];
const TARGET: &str = NODES[1];
const THIRD: &str = NODES[2];

/// Where KubeVirt's objects are.
pub(crate) fn kubevirt(collection: &str) -> String {
    format!("/apis/kubevirt.io/v1/namespaces/{NAMESPACE}/{collection}")
}

/// Tells it.
pub(crate) async fn story(cluster: &mut Cluster) -> Result<()> {
    let volume = cluster.claim(&objects::disk(DISK)).await?;
    let vmi = cluster.api.create(&objects::vmi(VM, &[DISK]), false).await?.accepted()?;
    set_node(cluster, SOURCE).await?;
    cluster.run_pod(&objects::launcher("virt-launcher-vm-1", SOURCE, &vmi, &[DISK])).await?;
    let attachment = cluster.attached(&volume, SOURCE).await?;
    node::stage_on(cluster, SOURCE, &volume, &attachment).await?;
    cluster.say(&format!("{VM} runs on {SOURCE}: its disk is attached and staged there"));

    cluster.run_pod(&objects::launcher("virt-launcher-vm-2", TARGET, &vmi, &[DISK])).await?;
    let said = cluster.refused(&volume, TARGET, &["migrat"]).await?;
    cluster.say(&format!("a second virt-launcher on {TARGET}, and no migration: {said}"));
    cluster.api.delete(&format!("{}/virt-launcher-vm-2", path("pods"))).await?;
    cluster.detached(&volume, TARGET).await?;

    cluster.api.create(&objects::migration("vm-moves", VM), false).await?.accepted()?;
    let leader = cluster.leader().await?;
    let begun = Instant::now();
    cluster.kubelet.kill(&leader, CONTROLLER)?;
    cluster.say(&format!(
        "the migration is there; kill -9 of the leader, {leader}; its pod on {TARGET} is made"
    ));
    cluster.run_pod(&objects::launcher("virt-launcher-vm-2", TARGET, &vmi, &[DISK])).await?;
    let attachment = cluster.attached(&volume, TARGET).await?;
    cluster.say(&format!("attached to {TARGET} {} after the kill", took(begun)));
    let next = new_leader(cluster, &leader).await?;
    cluster.kubelet.start_again(&leader, CONTROLLER)?;
    cluster.wait_for_probe(&leader, CONTROLLER, "readinessProbe").await?;
    cluster.say(&format!("{next} leads; {leader} is back"));
    node::stage_on(cluster, TARGET, &volume, &attachment).await?;
    expect_on_two(cluster, &next, &volume).await?;

    cluster.run_pod(&objects::launcher("virt-launcher-vm-3", THIRD, &vmi, &[DISK])).await?;
    let said = cluster.refused(&volume, THIRD, &[SOURCE, TARGET]).await?;
    cluster.say(&format!("a third virt-launcher on {THIRD}: {said}"));
    cluster.api.delete(&format!("{}/virt-launcher-vm-3", path("pods"))).await?;
    cluster.detached(&volume, THIRD).await?;

    complete(cluster, &volume).await?;
    let reasons =
        ["VolumeAttached", "MigrationStarted", "MigrationCompleted", "AttachmentConflict", "VolumeDetached"];
    cluster.events(DISK, &reasons).await?;
    cluster.say(&format!("the claim has the driver's events: {}", reasons.join(", ")));
    end(cluster, &volume).await
}

/// The VM runs on `node`.
async fn set_node(cluster: &Cluster, node: &str) -> Result<()> {
    let status = json!({"status": {"phase": "Running", "nodeName": node}});
    cluster.api.patch(&format!("{}/{VM}", kubevirt("virtualmachineinstances")), &status).await.map(drop)
}

/// A leader that is not the one that was killed.
async fn new_leader(cluster: &Cluster, old: &str) -> Result<String> {
    let leader = cluster.leader().await?;
    ensure!(leader != old, "{old} leads, and is dead");
    Ok(leader)
}

async fn ledger(cluster: &Cluster, pod: &str, volume: &str) -> Result<Value> {
    let found = cluster.ctl(pod, &["volumes"]).await?;
    let volumes = found["volumes"].as_array().context("no volumes")?;
    let one = volumes.iter().find(|one| one["id"] == volume).context("not in the ledger")?;
    Ok(one.clone())
}

async fn expect_on_two(cluster: &Cluster, pod: &str, volume: &str) -> Result<()> {
    let found = ledger(cluster, pod, volume).await?;
    let attachments = found["attachments"].as_array().context("no attachments")?;
    let mut nodes: Vec<_> = attachments.iter().filter_map(|one| one["node_id"].as_str()).collect();
    nodes.sort_unstable();
    ensure!(nodes == [SOURCE, TARGET], "{found}");
    cluster.say(&format!("`ctl volumes` in {pod}: attached to {SOURCE} and {TARGET}"));
    Ok(())
}

/// The VM has moved: the source lets go, with the leader killed again while its detach is under way.
async fn complete(cluster: &mut Cluster, volume: &str) -> Result<()> {
    set_node(cluster, TARGET).await?;
    let done = json!({"status": {"phase": "Succeeded"}});
    let migrations = kubevirt("virtualmachineinstancemigrations");
    cluster.api.patch(&format!("{migrations}/vm-moves"), &done).await?;
    node::unstage_from(cluster, SOURCE, volume).await?;
    let leader = cluster.leader().await?;
    let begun = Instant::now();
    cluster.api.delete(&format!("{}/virt-launcher-vm-1", path("pods"))).await?;
    cluster.kubelet.kill(&leader, CONTROLLER)?;
    cluster
        .say(&format!("the VM is on {TARGET}; the source's pod goes, and kill -9 of the leader, {leader}"));
    cluster.detached(volume, SOURCE).await?;
    cluster.say(&format!("detached from {SOURCE} {} after the kill", took(begun)));
    cluster.kubelet.start_again(&leader, CONTROLLER)?;
    cluster.wait_for_probe(&leader, CONTROLLER, "readinessProbe").await
}

async fn end(cluster: &Cluster, volume: &str) -> Result<()> {
    node::unstage_from(cluster, TARGET, volume).await?;
    cluster.api.delete(&format!("{}/virt-launcher-vm-2", path("pods"))).await?;
    cluster.api.delete(&format!("{}/{VM}", kubevirt("virtualmachineinstances"))).await?;
    cluster.detached(volume, TARGET).await?;
    cluster.delete_claim(DISK, volume).await?;
    cluster.say("the VM is deleted: detached, and its disk is gone from the appliance");
    Ok(())
}
