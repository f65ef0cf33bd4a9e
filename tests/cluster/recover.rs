//! Starting from nothing, or from another's state: a backup brings the ledger back after all replicas lost their disks;
//! without one it is made anew from the appliance, from Kubernetes' objects and from what live nodes report; and volumes
//! that the Go driver made are adopted. Kubernetes' objects are recorded ones, in files.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::csi::v1::ControllerPublishVolumeResponse;
use rds_csi::dev::requests::{Context as CsiContext, stage, within};
use serde_json::{Value, json};
use tests::requests::{MIB, create, delete, eventually, insist, publish, unpublish};
use tests::{Csi, Lab, tools};
use tokio::process::Command;

const DRIVER: &str = "rds.csi.srvlab.io";
const NODE: &str = "node-a";
/// How long a call to a node plugin may take, in milliseconds.
const NODE_MS: u64 = 10_000;

/// What `rds-csi ctl` did.
struct Done {
    success: bool,
    said: String,
    complained: String,
}

async fn ctl(lab: &Lab, arguments: &[&str]) -> Result<Done> {
    let access = lab.operator_access();
    let mut command = Command::new(tools::rds_csi()?);
    command.arg("ctl").arg("--config").arg(access).args(arguments).kill_on_drop(true);
    let output = command.output().await.context("ctl")?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Done { success: output.status.success(), said: text(output.stdout), complained: text(output.stderr) })
}

/// The same, and it has to succeed.
async fn order(lab: &Lab, arguments: &[&str]) -> Result<String> {
    let done = ctl(lab, arguments).await?;
    ensure!(done.success, "{arguments:?}: {}", done.complained);
    Ok(done.said)
}

/// A new cluster takes such orders once every replica has said that its program knows them.
async fn order_of_a_new_cluster(lab: &Lab, arguments: &[&str]) -> Result<String> {
    eventually("an order", async || order(lab, arguments).await).await
}

struct Volume {
    id: String,
    context: CsiContext,
    published: CsiContext,
}

/// An RWX block volume, published to the node and staged there.
async fn connected_volume(lab: &Lab, csi: &Csi, name: &str) -> Result<Volume> {
    let made = insist("create", || csi.create(create(name, MIB))).await?.volume.context("a volume")?;
    let (id, context) = (made.volume_id, made.volume_context);
    let published: ControllerPublishVolumeResponse =
        insist("publish", || csi.publish(publish(&id, NODE))).await?;
    let volume = Volume { id, context, published: published.publish_context };
    stage_again(lab, &volume).await?;
    ensure!(is_connected(lab, &volume.id), "staged, and not connected");
    Ok(volume)
}

async fn stage_again(lab: &Lab, volume: &Volume) -> Result<()> {
    let staging = lab.state_directory(NODE).join("kubelet").join(&volume.id);
    fs::create_dir_all(&staging)?;
    let node = lab.csi_node(NODE)?;
    insist("stage", || {
        let request = stage(&volume.id, &staging, &volume.published, &volume.context);
        let mut node = node.clone();
        async move { node.node_stage_volume(within(Duration::from_millis(NODE_MS), request)).await }
    })
    .await
    .map(drop)
}

fn is_connected(lab: &Lab, id: &str) -> bool {
    lab.state_directory(NODE).join("connected").join(id).exists()
}

/// All replicas lose their disks at once, and form another cluster.
async fn lose_everything(lab: &mut Lab) -> Result<()> {
    let before = lab.status("controller-1").await?.cluster_id;
    for name in lab.controllers() {
        lab.kill(&name)?;
    }
    for name in lab.controllers() {
        lab.wipe(&name)?;
        lab.start(&name)?;
    }
    for name in lab.controllers() {
        lab.wait_until_ready(&name).await?;
    }
    let after = lab.status("controller-1").await?;
    ensure!(after.cluster_id != before && after.volumes == 0, "not a new cluster: {after:?}");
    Ok(())
}

/// Waits until the appliance has a term that no leader of a lost cluster had: those were elected a few times.
async fn expect_taken_over(lab: &Lab) -> Result<()> {
    let file = lab.state_directory(lab.simulator()).join("state.json");
    eventually("the fence", async || {
        let state: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
        let fence = state["scripts"][0]["source"].as_str().context("a fence")?.parse::<u64>()?;
        ensure!(fence >> 32 > 1 << 16, "the appliance's fence is of term {}", fence >> 32);
        Ok(())
    })
    .await
}

fn path(lab: &Lab, name: &str) -> PathBuf {
    lab.directory().join(name)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

async fn holders(lab: &Lab, id: &str) -> Result<Vec<(String, u64, String)>> {
    let ledger = lab.ledger().await?;
    let found =
        ledger.into_iter().find(|volume| volume.id == id).with_context(|| format!("{id} is not known"))?;
    Ok(found.attachments.into_iter().map(|has| (has.node_id, has.generation, has.connection)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_brings_the_ledger_back_and_the_nodes_go_on() -> Result<()> {
    Lab::tell(async |lab| {
        let csi = lab.csi("controller-1")?;
        let volume = connected_volume(lab, &csi, "kept").await?;
        let idle = insist("create", || csi.create(create("idle", MIB))).await?.volume.context("a volume")?;
        let before = holders(lab, &volume.id).await?;
        let file = path(lab, "ledger.backup");
        order(lab, &["backup", text(&file)?]).await?;

        let live = ctl(lab, &["restore", text(&file)?]).await?;
        ensure!(!live.success && live.complained.contains("in use"), "a live ledger: {}", live.complained);

        lose_everything(lab).await?;
        let mut damaged = fs::read(&file)?;
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        let damaged_file = path(lab, "damaged.backup");
        fs::write(&damaged_file, damaged)?;
        let refused = ctl(lab, &["restore", text(&damaged_file)?]).await?;
        ensure!(!refused.success && refused.complained.contains("checksum"), "{}", refused.complained);
        let shown = order(lab, &["restore", text(&file)?, "--dry-run"]).await?;
        ensure!(shown.contains("Nothing was changed") && shown.contains(&volume.id), "{shown}");
        ensure!(lab.ledger().await?.is_empty(), "a dry run restored something");
        println!("{}", order_of_a_new_cluster(lab, &["restore", text(&file)?]).await?);

        let after = holders(lab, &volume.id).await?;
        let [(node, generation, connection)] = &after[..] else { anyhow::bail!("{after:?}") };
        ensure!((node.as_str(), *generation) == (NODE, before[0].1), "{after:?}, not {before:?}");
        ensure!(connection.contains("may be connected"), "{after:?}");
        ensure!(is_connected(lab, &volume.id), "the node was cut off");
        stage_again(lab, &volume).await?;

        // The appliance has the lost cluster's terms; the new one changes it all the same.
        expect_taken_over(lab).await?;
        insist("create", || csi.create(create("new", MIB))).await?;
        insist("unpublish", || csi.unpublish(unpublish(&volume.id, NODE))).await?;
        ensure!(!is_connected(lab, &volume.id), "OK, and still connected");
        insist("delete", || csi.delete(delete(&volume.id))).await?;
        insist("delete", || csi.delete(delete(&idle.volume_id))).await?;
        lab.settle().await
    })
    .await
}

/// A PersistentVolume as the Go driver's provisioner writes it.
fn persistent_volume(id: &str, size_bytes: i64, path: &str) -> Value {
    json!({
        "kind": "PersistentVolume",
        "metadata": { "name": id, "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "volumeMode": "Block",
            "capacity": { "storage": size_bytes.to_string() },
            "csi": {
                "driver": DRIVER,
                "volumeHandle": id,
                "volumeAttributes": {
                    "rdsAddress": "127.0.0.1", "nvmeAddress": "127.0.0.1", "nvmePort": "4420",
                    "nqn": format!("nqn.2000-02.com.mikrotik:{id}"), "volumePath": path,
                    "ctrlLossTmo": "-1", "reconnectDelay": "5", "keepAliveTmo": "0",
                    "migrationTimeoutSeconds": "300"
                }
            }
        }
    })
}

fn volume_attachment(id: &str, node: &str, second: u32, metadata: &CsiContext) -> Value {
    json!({
        "kind": "VolumeAttachment",
        "metadata": { "name": format!("csi-{id}-{node}"), "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z") },
        "spec": { "attacher": DRIVER, "nodeName": node, "source": { "persistentVolumeName": id } },
        "status": { "attached": true, "attachmentMetadata": metadata }
    })
}

fn list(items: Vec<Value>) -> Value {
    json!({ "kind": "List", "apiVersion": "v1", "items": items })
}

/// The verdict on a volume, and all that was said of it.
fn row(reply: &str, id: &str) -> Result<(String, String)> {
    let reply: Value = serde_json::from_str(reply).context("JSON")?;
    let rows = reply["rows"].as_array().context("rows")?;
    let row =
        rows.iter().find(|row| row["volume_id"] == id).with_context(|| format!("no row of {id}: {reply}"))?;
    Ok((row["verdict"].as_str().unwrap_or_default().to_owned(), row.to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_was_lost_is_made_anew_with_what_live_nodes_report() -> Result<()> {
    Lab::tell(async |lab| {
        let csi = lab.csi("controller-1")?;
        let attached = connected_volume(lab, &csi, "attached").await?;
        let unlisted = connected_volume(lab, &csi, "unlisted").await?;
        let given = holders(lab, &attached.id).await?[0].1;
        lose_everything(lab).await?;

        // Nothing that was found is touched by a cluster that does not know it.
        let appliance = lab.appliance()?;
        insist("delete", || csi.delete(delete(&attached.id))).await?;
        insist("unpublish", || csi.unpublish(unpublish(&attached.id, NODE))).await?;
        ensure!(lab.appliance()? == appliance, "a volume that the ledger does not know was touched");

        let path_of = |volume: &Volume| volume.context.get("volumePath").cloned().unwrap_or_default();
        let mut items = Vec::new();
        for volume in [&attached, &unlisted] {
            let mut object = persistent_volume(&volume.id, MIB, &path_of(volume));
            object["spec"]["csi"]["volumeAttributes"] = json!(volume.context);
            items.push(object);
        }
        items.push(volume_attachment(&attached.id, NODE, 1, &attached.published));
        let objects = path(lab, "objects.json");
        fs::write(&objects, list(items).to_string())?;
        let arguments = ["rebuild", "--from-json", text(&objects)?, "-o", "json"];
        eventually("the node's session", async || {
            let shown = order(lab, &arguments).await?;
            let (verdict, said) = row(&shown, &unlisted.id)?;
            ensure!(verdict == "adopt" && said.contains("without a VolumeAttachment"), "{said}");
            ensure!(row(&shown, &attached.id)?.0 == "adopt", "{shown}");
            Ok(())
        })
        .await?;
        ensure!(lab.ledger().await?.is_empty(), "a dry run changed the ledger");
        order_of_a_new_cluster(lab, &[&arguments[..], &["--apply"]].concat()).await?;
        expect_taken_over(lab).await?;
        eventually("both", async || {
            ensure!(
                holders(lab, &attached.id).await?[0].1 == given,
                "the generation that the node was given"
            );
            ensure!(holders(lab, &unlisted.id).await?[0].0 == NODE, "a node that is connected has it");
            Ok(())
        })
        .await?;
        ensure!(is_connected(lab, &attached.id) && is_connected(lab, &unlisted.id), "something was cut");
        stage_again(lab, &attached).await?;
        for volume in [&attached, &unlisted] {
            insist("unpublish", || csi.unpublish(unpublish(&volume.id, NODE))).await?;
            ensure!(!is_connected(lab, &volume.id), "OK, and still connected");
            insist("delete", || csi.delete(delete(&volume.id))).await?;
        }
        lab.settle().await
    })
    .await
}

/// Puts disks on the simulated appliance as the Go driver made them: `mount-filesystem` never set.
async fn plant(lab: &mut Lab, disks: &[(String, i64, String)]) -> Result<()> {
    let simulator = lab.simulator();
    lab.kill(simulator)?;
    let file = lab.state_directory(simulator).join("state.json");
    let mut state: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    for (number, (slot, size_bytes, file_path)) in (900u64..).zip(disks) {
        state["disks"][number.to_string()] = json!({
            "slot": slot, "file_path": file_path, "size_bytes": size_bytes, "mount_filesystem": true,
            "compress": false, "exported": true, "nvme_port": 4420, "nqn": format!("nqn.2000-02.com.mikrotik:{slot}"),
        });
        state["files"][file_path.trim_start_matches('/')] = json!(size_bytes);
    }
    state["next_id"] = json!(1000);
    fs::write(&file, state.to_string())?;
    lab.start_again(simulator).await
}

fn id(number: u32) -> String {
    format!("pvc-00000000-0000-4000-8000-{number:012}")
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_that_the_go_driver_made_are_adopted_only_where_both_sides_say_the_same() -> Result<()> {
    Lab::tell(async |lab| {
        let csi = lab.csi("controller-1")?;
        let own = insist("create", || csi.create(create("own", MIB))).await?.volume.context("a volume")?;
        let directory = own.volume_context.get("volumePath").context("a path")?.clone();
        let file_of = |id: &str| format!("{directory}/{id}.img");
        let disk = |number: u32, size: i64| (id(number), size, file_of(&id(number)));
        let other_path = (id(4), MIB, format!("{directory}/elsewhere/{}.img", id(4)));
        plant(lab, &[disk(1, MIB), disk(2, MIB), disk(3, 2 * MIB), other_path, disk(5, MIB), disk(7, MIB)])
            .await?;

        let pv = |number: u32| persistent_volume(&id(number), MIB, &directory);
        let mut items: Vec<Value> = [1, 2, 3, 4, 6, 7].into_iter().map(pv).collect();
        // What the Go driver knew of an attachment has no generation.
        let none = CsiContext::new();
        items.push(volume_attachment(&id(1), "node-a", 2, &none));
        items.push(volume_attachment(&id(1), "node-b", 1, &none));
        items.push(volume_attachment(&id(7), "node-z", 1, &none));
        let mut own_object = persistent_volume(&own.volume_id, MIB, &directory);
        own_object["spec"]["csi"]["volumeAttributes"] = json!(own.volume_context);
        own_object["metadata"]["name"] = json!("own");
        items.push(own_object);
        let objects = path(lab, "objects.json");
        fs::write(&objects, list(items).to_string())?;

        let before = lab.appliance()?;
        let arguments = ["adopt", "--from-json", text(&objects)?, "-o", "json"];
        let shown = eventually("the appliance", async || order(lab, &arguments).await).await?;
        let expected = [
            (id(1), "adopt", "from node-b to node-a"),
            (id(2), "adopt", "mount-filesystem=no"),
            (id(3), "refused", "size in bytes"),
            (id(4), "refused", "its file"),
            (id(5), "refused", "no PersistentVolume"),
            (id(6), "refused", "the appliance does not have it"),
            (id(7), "refused", "node-z has it and has not registered"),
            (own.volume_id.clone(), "known", ""),
        ];
        for (id, verdict, word) in &expected {
            let (found, said) = row(&shown, id)?;
            ensure!(found == *verdict && said.contains(word), "{id} was to be {verdict} ({word}): {said}");
        }
        println!("{}", order(lab, &["adopt", "--from-json", text(&objects)?]).await?);
        ensure!(lab.ledger().await?.len() == 1, "a dry run changed the ledger");

        for _ in 0..2 {
            order_of_a_new_cluster(lab, &[&arguments[..], &["--apply"]].concat()).await?;
        }
        ensure!(lab.appliance()? == before, "adoption changed the appliance");
        ensure!(lab.ledger().await?.len() == 3, "{:?}", lab.ledger().await?);
        let holders: Vec<String> = holders(lab, &id(1)).await?.into_iter().map(|(node, ..)| node).collect();
        ensure!(holders == ["node-a", "node-b"], "{holders:?}");
        insist("publish", || csi.publish(publish(&id(2), NODE))).await?;
        for node in ["node-b", "node-a"] {
            insist("unpublish", || csi.unpublish(unpublish(&id(1), node))).await?;
        }
        insist("delete", || csi.delete(delete(&id(1)))).await?;
        Ok(())
    })
    .await
}
