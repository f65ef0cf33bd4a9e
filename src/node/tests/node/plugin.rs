//! The node plugin as a process: what it says of itself, bad input, restarts, health and metrics.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::common::gateway::{Answer, Gateway, Heard};
use crate::common::requests::{self, VOLUME, block, expand, publish, stage, stats, unpublish, unstage};
use crate::common::{TestNode, config, directory, get, wait_for};
use node::{NodeConfig, RunError, Step};
use proto::csi::v1;
use proto::csi::v1::node_service_capability::{Type, rpc};
use proto::csi::v1::volume_capability::access_mode::Mode;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

fn topology() -> BTreeMap<String, String> {
    BTreeMap::from([("topology.kubernetes.io/zone".to_owned(), "rack-1".to_owned())])
}

#[tokio::test]
async fn without_a_word_its_limit_is_computed_and_it_is_everywhere() {
    let (_guard, directory) = directory();
    let gateway = Gateway::start().await;
    let mut node = TestNode::fake(&directory, &gateway).await;
    let info = node.client.node_get_info(requests::info()).await.unwrap().into_inner();
    assert!(info.max_volumes_per_node >= 8 && info.accessible_topology.is_none(), "{info:?}");
    let registered = |heard: &Heard| matches!(heard, Heard::Register(node) if i64::from(node.max_volumes) == info.max_volumes_per_node);
    wait_for("the registration with this limit", async || gateway.heard_all().iter().any(registered)).await;
}

#[tokio::test]
async fn it_says_who_it_is_and_what_it_can() {
    let (_guard, directory) = directory();
    let gateway = Gateway::start().await;
    let mut node =
        TestNode::start(NodeConfig { max_volumes: 32, topology: topology(), ..config(&directory, &gateway) })
            .await;
    let info = node.client.node_get_info(requests::info()).await.unwrap().into_inner();
    assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), ("node-a", 32));
    assert_eq!(info.accessible_topology.unwrap().segments, topology());
    let answer =
        node.client.node_get_capabilities(v1::NodeGetCapabilitiesRequest {}).await.unwrap().into_inner();
    let offered: Vec<_> = answer
        .capabilities
        .into_iter()
        .filter_map(|capability| capability.r#type)
        .map(|Type::Rpc(rpc)| rpc.r#type())
        .collect();
    let expected = [
        rpc::Type::StageUnstageVolume,
        rpc::Type::GetVolumeStats,
        rpc::Type::ExpandVolume,
        rpc::Type::VolumeCondition,
        rpc::Type::SingleNodeMultiWriter,
    ];
    assert_eq!(offered, expected);
    wait_for("the registration", async || {
        gateway
            .heard_all()
            .iter()
            .any(|heard| matches!(heard, Heard::Register(node) if node.max_volumes == 32))
    })
    .await;
}

#[tokio::test]
async fn bad_input_is_refused_by_name_before_anything_happens() {
    let (_guard, directory) = directory();
    let gateway = Gateway::start().await;
    let mut node = TestNode::fake(&directory, &gateway).await;
    let (staging, target) = (directory.join("staging"), directory.join("target"));
    let rwx = || block(Mode::MultiNodeMultiWriter);
    let long = "a".repeat(300);
    for hostile in ["", "a b", "a\"b", "a[b", "a;b", "a\nb", "../a", long.as_str()] {
        let volume_id = || hostile.to_owned();
        let request = v1::NodeStageVolumeRequest { volume_id: volume_id(), ..stage(&staging, rwx()) };
        names(node.client.node_stage_volume(request).await, "volume_id");
        let request = v1::NodeUnstageVolumeRequest { volume_id: volume_id(), ..unstage(&staging) };
        names(node.client.node_unstage_volume(request).await, "volume_id");
        let request = v1::NodePublishVolumeRequest {
            volume_id: volume_id(),
            ..publish(&staging, &target, rwx(), false)
        };
        names(node.client.node_publish_volume(request).await, "volume_id");
        let request = v1::NodeUnpublishVolumeRequest { volume_id: volume_id(), ..unpublish(&target) };
        names(node.client.node_unpublish_volume(request).await, "volume_id");
        let request = v1::NodeGetVolumeStatsRequest { volume_id: volume_id(), ..stats(&target) };
        names(node.client.node_get_volume_stats(request).await, "volume_id");
        let request = v1::NodeExpandVolumeRequest { volume_id: volume_id(), ..expand(&target, 0) };
        names(node.client.node_expand_volume(request).await, "volume_id");
    }
    let request =
        v1::NodeStageVolumeRequest { publish_context: Default::default(), ..stage(&staging, rwx()) };
    names(node.client.node_stage_volume(request).await, "publish_context[");
    let request = v1::NodeStageVolumeRequest { volume_capability: None, ..stage(&staging, rwx()) };
    names(node.client.node_stage_volume(request).await, "volume_capability");
    for path in ["relative", "/a/../b", "/a b", "/"] {
        names(node.client.node_unstage_volume(unstage(Path::new(path))).await, "staging_target_path");
        names(node.client.node_unpublish_volume(unpublish(Path::new(path))).await, "target_path");
    }
    assert_eq!(gateway.heard(), []);
    assert_eq!(fs::read_dir(directory.join("machine/connected")).unwrap().count(), 0);

    for path in ["some/path", "/nowhere"] {
        let answer = node.client.node_get_volume_stats(stats(Path::new(path))).await;
        assert_eq!(answer.unwrap_err().code(), Code::NotFound);
        let answer = node.client.node_expand_volume(expand(Path::new(path), 0)).await;
        assert_eq!(answer.unwrap_err().code(), Code::NotFound);
    }
}

#[track_caller]
fn names<T: std::fmt::Debug>(answer: Result<T, Status>, field: &str) {
    let status = answer.expect_err("this had to be refused");
    assert_eq!(status.code(), Code::InvalidArgument, "{}", status.message());
    assert!(status.message().starts_with(field), "{field} is not named by {:?}", status.message());
}

#[tokio::test]
async fn all_mistakes_of_a_configuration_come_together() {
    let (_guard, directory) = directory();
    let gateway = Gateway::start().await;
    let wrong = NodeConfig {
        node_id: "node a".to_owned(),
        controllers: Vec::new(),
        metrics_address: "nowhere".to_owned(),
        ..config(&directory, &gateway)
    };
    let Err(RunError::Config(mistakes)) = node::run(wrong, CancellationToken::new()).await else {
        panic!("it had to be refused")
    };
    assert_eq!(mistakes.len(), 3, "{mistakes:?}");
}

#[tokio::test]
async fn a_restarted_plugin_finds_what_is_connected() {
    let (_guard, directory) = directory();
    let gateway = Gateway::start().await;
    let staging = directory.join("staging");
    fs::create_dir(&staging).unwrap();
    let request = || stage(&staging, block(Mode::MultiNodeMultiWriter));
    let mut node = TestNode::fake(&directory, &gateway).await;
    node.client.node_stage_volume(request()).await.unwrap();
    node.stop().await;
    gateway.heard();

    let mut node = TestNode::fake(&directory, &gateway).await;
    node.client.node_stage_volume(request()).await.unwrap();
    let heard = gateway.heard();
    assert!(matches!(heard.as_slice(), [Heard::Permit(_)]), "it asks also of what is connected: {heard:?}");
    assert!(node.is_connected(VOLUME));
    node.stop().await;

    let mut node =
        TestNode::start(NodeConfig { boot_id: Some("boot-2".to_owned()), ..config(&directory, &gateway) })
            .await;
    assert!(!node.is_connected(VOLUME), "no connection survives a reboot");
    node.client.node_stage_volume(request()).await.unwrap();
    let heard = gateway.heard();
    assert!(matches!(heard.as_slice(), [Heard::Permit(permit)] if permit.boot_id == "boot-2"), "{heard:?}");
}

#[tokio::test]
async fn a_successor_waits_for_the_operations_of_its_predecessor() {
    let (_guard, directory) = directory();
    let gateway = Gateway::start().await;
    let staging = directory.join("staging");
    fs::create_dir(&staging).unwrap();
    let old = TestNode::fake(&directory, &gateway).await;
    gateway.turns.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let mut client = old.client.clone();
    let request = stage(&staging, block(Mode::MultiNodeMultiWriter));
    tokio::spawn(async move { client.node_stage_volume(request).await });
    let mut heard = Vec::new();
    wait_for("the question to arrive", async || {
        heard.extend(gateway.heard());
        !heard.is_empty()
    })
    .await;

    // The old plugin is told to stop while it connects; its socket is gone before its operation is.
    let stopped = tokio::spawn(old.stop());
    let mut new = TestNode::launch(config(&directory, &gateway));
    let unstaged = tokio::time::timeout(Duration::from_millis(500), async {
        wait_for("an answer", async || {
            new.client.clone().node_unstage_volume(unstage(&staging)).await.is_ok()
        })
        .await;
    });
    assert!(unstaged.await.is_err(), "the successor spoke while its predecessor was connecting");
    assert_eq!(gateway.heard(), []);
    gateway.turns.add_permits(1);
    stopped.await.unwrap();
    wait_for("the successor", async || new.client.node_unstage_volume(unstage(&staging)).await.is_ok()).await;
    assert!(!new.is_connected(VOLUME));
    assert!(matches!(gateway.heard().as_slice(), [Heard::Disconnected(_)]));
}

#[tokio::test]
async fn health_readiness_and_metrics_can_be_asked() {
    let (_guard, directory) = directory();
    let gateway = Gateway::start().await;
    gateway.next_registrations(vec![Answer::Error(Code::Unavailable, "no leader"); 3]);
    gateway.next_registrations([Answer::Error(Code::FailedPrecondition, "not yet")]);
    let mut node = TestNode::fake(&directory, &gateway).await;
    assert!(get(&node.http, "/healthz").await.starts_with("HTTP/1.1 200"), "alive without controllers");
    assert!(get(&node.http, "/readyz").await.starts_with("HTTP/1.1 503"), "not registered yet");
    wait_for("readiness", async || get(&node.http, "/readyz").await.starts_with("HTTP/1.1 200")).await;

    let staging = directory.join("staging");
    fs::create_dir(&staging).unwrap();
    let ext4 = requests::file_system("ext4", &[], Mode::SingleNodeWriter);
    node.client.node_stage_volume(stage(&staging, ext4)).await.unwrap();
    let metrics = get(&node.http, "/metrics").await;
    for line in [
        "rds_csi_volume_operations_total{operation=\"stage\",status=\"success\"} 1",
        "rds_csi_operation_duration_seconds_count{operation=\"stage\"} 1",
        "rds_csi_mount_operations_total{operation=\"format\",status=\"success\"} 1",
        "rds_csi_mount_operations_total{operation=\"mount\",status=\"success\"} 1",
        "rds_csi_nvme_connects_total{status=\"success\"} 1",
        "rds_csi_nvme_connect_duration_seconds_count 1",
        "rds_csi_nvme_connections_active 1",
        "rds_csi_stale_mounts_detected_total 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    node.client.node_unstage_volume(unstage(&staging)).await.unwrap();
    let metrics = get(&node.http, "/metrics").await;
    for step in Step::ALL.map(Step::name) {
        let line = format!("rds_csi_node_step_duration_seconds_count{{step=\"{step}\"}} 1");
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    node.stop().await;
}
