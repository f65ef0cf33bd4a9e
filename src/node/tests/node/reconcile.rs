//! What the node plugin finds amiss on its own, and what it does about it: each row with a fake machine, kubelet's
//! directory as kubelet writes it, and scripted controllers.

use std::fs;
use std::path::PathBuf;

use crate::common::gateway::{Heard, Standing};
use crate::common::requests::VOLUME;
use crate::common::story::{Story, ext4, rwx};
use crate::common::{get, wait_for};
use node::NodeConfig;
use proto::csi::v1::VolumeCapability;
use tonic::Code;

const OTHER: &str = "pvc-0b4fb0c0-5f5a-4a53-a6d8-2f6f4b1ff002";
const DRIVER: &str = "rds.csi.srvlab.io";

/// A story with kubelet's own paths, and a look at the node each second.
async fn begin(capability: &VolumeCapability) -> Story {
    let mut story = Story::begin_with(|config: &mut NodeConfig| config.reconcile_interval_seconds = 1).await;
    let kubelet = story.node.directory.join("kubelet");
    let csi = kubelet.join("plugins/kubernetes.io/csi");
    let data = format!("{{\"driverName\":\"{DRIVER}\",\"volumeHandle\":\"{VOLUME}\"}}\n");
    let written_in: [PathBuf; 2];
    if *capability == rwx() {
        let block = csi.join("volumeDevices");
        story.staging = block.join("staging/pv-1");
        story.target = block.join("publish/pv-1/uid-1");
        written_in = [block.join("pv-1/data"), block.join("publish/pv-1")];
        fs::create_dir_all(&story.staging).unwrap();
        fs::create_dir_all(&written_in[0]).unwrap();
        fs::create_dir_all(&written_in[1]).unwrap();
        fs::write(written_in[0].join("vol_data.json"), data).unwrap();
    } else {
        let staged = csi.join(DRIVER).join("0f3a");
        let published = kubelet.join("pods/uid-1/volumes/kubernetes.io~csi/pv-1");
        story.staging = staged.join("globalmount");
        story.target = published.join("mount");
        written_in = [staged, published];
        fs::create_dir_all(&story.staging).unwrap();
        for directory in &written_in {
            fs::create_dir_all(directory).unwrap();
            fs::write(directory.join("vol_data.json"), &data).unwrap();
        }
    }
    story
}

async fn staged(capability: &VolumeCapability) -> Story {
    let mut story = begin(capability).await;
    story.stage(capability).await.unwrap();
    story.gateway.heard();
    story
}

/// Waits until the node has been looked at once more, from the beginning to the end.
async fn look_again(story: &Story) {
    let before = story.gateway.looks();
    wait_for("another look", async || story.gateway.looks() >= before + 3).await;
}

async fn count(story: &Story, metric: &str) -> String {
    let metrics = get(&story.node.http, "/metrics").await;
    let value = metrics.lines().find_map(|line| line.strip_prefix(metric)).map(str::trim);
    value.unwrap_or("none").to_owned()
}

async fn findings(story: &Story, kind: &str) -> String {
    count(story, &format!("rds_csi_node_findings{{kind=\"{kind}\"}}")).await
}

async fn wait_for_findings(story: &Story, kind: &str, expected: &str) {
    wait_for(&format!("{expected} of {kind}"), async || findings(story, kind).await == expected).await;
}

#[tokio::test]
async fn a_connection_without_a_right_and_a_user_is_ended_and_reported() {
    for standing in [Standing::NotAttached, Standing::Revoking] {
        let story = staged(&rwx()).await;
        look_again(&story).await;
        assert!(story.is_connected(), "an attached volume was disconnected");
        story.gateway.ledger(VOLUME, standing);
        wait_for("the disconnect", async || !story.is_connected()).await;
        let mut heard = Vec::new();
        wait_for("the report", async || {
            heard.extend(story.gateway.heard());
            !heard.is_empty()
        })
        .await;
        assert!(matches!(heard[0], Heard::Disconnected(_)), "{heard:?}");
        wait_for_findings(&story, "idle_connection", "0").await;
        story.node.stop().await;
    }
}

#[tokio::test]
async fn what_is_not_ours_is_reported_and_left() {
    let story = staged(&rwx()).await;
    fs::write(story.node.directory.join("machine/connected/not a volume"), "").unwrap();
    story.gateway.ledger(VOLUME, Standing::Unknown);
    wait_for_findings(&story, "connection_not_in_ledger", "1").await;
    wait_for_findings(&story, "foreign_connection", "1").await;
    look_again(&story).await;
    assert!(story.is_connected() && story.node.is_connected("not a volume"));
    assert_eq!(story.gateway.heard(), []);
}

#[tokio::test]
async fn what_is_used_stays_connected_until_it_is_not() {
    for capability in [ext4(), rwx()] {
        let mut story = staged(&capability).await;
        story.publish(&capability).await.unwrap();
        story.gateway.ledger(VOLUME, Standing::Revoking);
        wait_for_findings(&story, "connection_in_use_without_attachment", "1").await;
        look_again(&story).await;
        assert!(story.is_connected(), "it was disconnected under a pod");
        assert_eq!(story.gateway.heard(), []);
        story.unpublish().await.unwrap();
        if capability == rwx() {
            // Nothing shows any more, but a process has it open.
            story.play("held", "4711 (qemu-kvm)");
            wait_for_findings(&story, "idle_connection", "1").await;
            look_again(&story).await;
            assert!(story.is_connected(), "it was disconnected under its holder");
            story.take_away("held");
            wait_for("the disconnect", async || !story.is_connected()).await;
        } else {
            look_again(&story).await;
            assert!(story.is_connected(), "it is still mounted where it is staged");
        }
    }
}

#[tokio::test]
async fn without_an_answer_nothing_is_touched() {
    let story = staged(&rwx()).await;
    story.gateway.ledger(VOLUME, Standing::Revoking);
    story.gateway.undescribed(Some(Code::FailedPrecondition));
    wait_for_findings(&story, "unseen", "1").await;
    look_again(&story).await;
    assert!(story.is_connected(), "no answer was taken for one");
    assert_eq!(story.gateway.heard(), []);
    story.gateway.undescribed(None);
    wait_for("the disconnect", async || !story.is_connected()).await;
    wait_for_findings(&story, "unseen", "0").await;
}

#[tokio::test]
async fn a_look_that_fails_changes_nothing() {
    let story = staged(&rwx()).await;
    let (kubelet, away) =
        (story.node.directory.join("kubelet"), story.node.directory.join("kubelet is not mounted"));
    fs::rename(&kubelet, &away).unwrap();
    wait_for_findings(&story, "unseen", "1").await;
    story.gateway.ledger(VOLUME, Standing::Revoking);
    let looks = story.gateway.looks();
    // Nothing is asked of the ledger then, so time has to show it: two intervals.
    tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
    assert_eq!(story.gateway.looks(), looks);
    assert!(story.is_connected(), "it was disconnected without a look at its users");
    fs::rename(&away, &kubelet).unwrap();
    wait_for("the disconnect", async || !story.is_connected()).await;
}

#[tokio::test]
async fn what_was_attached_after_the_look_stays() {
    let story = staged(&rwx()).await;
    // The look hears of no attachment; the question before the act, of one.
    story.gateway.next_descriptions([Standing::NotAttached, Standing::Granted]);
    wait_for("both questions", async || story.gateway.descriptions_left() == 0).await;
    look_again(&story).await;
    assert!(story.is_connected(), "it was disconnected after it had been attached");
    assert_eq!(story.gateway.heard(), []);
}

#[tokio::test]
async fn what_was_published_after_the_look_stays() {
    let mut story = staged(&rwx()).await;
    look_again(&story).await;
    // The node has been looked at, and the ledger takes its time; meanwhile kubelet publishes.
    story.gateway.describe_turns.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let before = story.gateway.looks();
    wait_for("a question", async || story.gateway.looks() > before).await;
    story.gateway.ledger(VOLUME, Standing::Revoking);
    story.publish(&rwx()).await.unwrap();
    story.gateway.describe_turns.add_permits(1_000_000);
    look_again(&story).await;
    assert!(story.is_connected(), "it was disconnected under a pod");
    assert_eq!(story.gateway.heard(), []);
}

#[tokio::test]
async fn a_staging_mount_without_its_device_is_taken_away() {
    let mut story = staged(&ext4()).await;
    story.publish(&ext4()).await.unwrap();
    story.take_away("connected");
    wait_for_findings(&story, "dead_staging_mount", "1").await;
    wait_for_findings(&story, "dead_target_mount", "1").await;
    look_again(&story).await;
    assert_eq!(story.mounts(), 2, "the pod has it mounted");
    assert_eq!(count(&story, "rds_csi_stale_mounts_detected_total").await, "2");
    story.unpublish().await.unwrap();
    wait_for("the unmount", async || story.mounts() == 0).await;
    wait_for_findings(&story, "dead_staging_mount", "0").await;
    // The pod's, by its unpublish, and the staging mount.
    assert_eq!(count(&story, "rds_csi_stale_recoveries_total{status=\"success\"}").await, "2");
}

#[tokio::test]
async fn a_device_node_that_opens_another_volume_is_removed_and_a_dead_one_left() {
    let mut story = staged(&rwx()).await;
    story.publish(&rwx()).await.unwrap();
    let text = fs::read_to_string(&story.target).unwrap();
    story.take_away("connected");
    wait_for_findings(&story, "dead_device_node", "1").await;
    look_again(&story).await;
    assert!(story.target.exists(), "it opens nothing and harms nobody");

    // Its number has come to be another's.
    let connected = story.node.directory.join("machine/connected").join(OTHER);
    fs::write(&connected, "nqn = \"n\"\naddress = \"a\"\nsize_bytes = 4096\n").unwrap();
    fs::write(&story.target, text.replace(VOLUME, OTHER)).unwrap();
    wait_for("the removal", async || !story.target.exists()).await;
    wait_for_findings(&story, "other_device_node", "0").await;
    assert!(connected.exists(), "the other volume is attached");
}

#[tokio::test]
async fn links_of_what_is_neither_connected_nor_attached_are_removed() {
    let mut story = staged(&rwx()).await;
    story.publish(&rwx()).await.unwrap();
    story.unpublish().await.unwrap();
    story.take_away("connected");
    look_again(&story).await;
    assert_eq!(fs::read_dir(&story.staging).unwrap().count(), 1, "it is attached: kubelet may be at it");
    story.gateway.ledger(VOLUME, Standing::NotAttached);
    wait_for("the removal", async || fs::read_dir(&story.staging).unwrap().count() == 0).await;
}
