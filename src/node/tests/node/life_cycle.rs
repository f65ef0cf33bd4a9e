//! A volume's life on a node with the fake fabric: through the real socket, against scripted controllers.

use std::fs;

use crate::common::gateway::{Answer, Gateway, Heard};
use crate::common::requests::{GENERATION, VOLUME, block, expand, file_system, stage, stats, unstage};
use crate::common::story::{Story, ext4, rwx};
use crate::common::{BOOT, TestNode, config, directory, free_address, get, refused, wait_for};
use proto::csi::v1::VolumeCapability;
use proto::csi::v1::volume_capability::access_mode::Mode;
use proto::csi::v1::volume_usage::Unit;
use tonic::Code;

#[tokio::test]
async fn a_file_systems_life_each_step_twice() {
    let mut story = Story::begin().await;
    for _ in 0..2 {
        story.stage(&ext4()).await.unwrap();
    }
    let heard = story.gateway.heard();
    let [Heard::Permit(permit), Heard::Permit(_)] = heard.as_slice() else {
        panic!("each stage asks: {heard:?}")
    };
    assert_eq!((permit.node_id.as_str(), permit.boot_id.as_str()), ("node-a", BOOT));
    assert_eq!((permit.volume_id.as_str(), permit.generation), (VOLUME, GENERATION));
    for _ in 0..2 {
        story.publish(&ext4()).await.unwrap();
    }
    assert!(story.target.is_dir());

    let usage =
        story.node.client.node_get_volume_stats(stats(&story.target)).await.unwrap().into_inner().usage;
    let units: Vec<_> = usage.iter().map(|usage| usage.unit()).collect();
    assert_eq!(units, [Unit::Bytes, Unit::Inodes]);
    assert!(usage.iter().all(|usage| usage.total > 0 && usage.available <= usage.total));
    let grown = story.node.client.node_expand_volume(expand(&story.target, 5 << 30)).await.unwrap();
    assert_eq!(grown.into_inner().capacity_bytes, 5 << 30);

    for _ in 0..2 {
        story.unpublish().await.unwrap();
    }
    assert!(!story.target.exists());
    assert_eq!(story.gateway.heard(), []);
    for _ in 0..2 {
        story.unstage().await.unwrap();
    }
    assert!(!story.node.is_connected(VOLUME));
    let heard = story.gateway.heard();
    let [Heard::Disconnected(first), Heard::Disconnected(second)] = heard.as_slice() else {
        panic!("each unstage reports: {heard:?}")
    };
    assert!(permit.since_boot_ns < first.since_boot_ns && first.since_boot_ns < second.since_boot_ns);
    assert_eq!((first.volume_id.as_str(), first.boot_id.as_str()), (VOLUME, BOOT));
    story.node.stop().await;
}

#[tokio::test]
async fn a_block_volumes_life_each_step_twice() {
    let mut story = Story::begin().await;
    for _ in 0..2 {
        story.stage(&rwx()).await.unwrap();
    }
    for _ in 0..2 {
        story.publish(&rwx()).await.unwrap();
    }
    assert!(fs::read_to_string(&story.target).unwrap().starts_with("# fake block device"));
    let usage =
        story.node.client.node_get_volume_stats(stats(&story.target)).await.unwrap().into_inner().usage;
    assert_eq!(
        usage.iter().map(|usage| (usage.unit(), usage.total)).collect::<Vec<_>>(),
        [(Unit::Bytes, 1 << 30)]
    );
    for _ in 0..2 {
        story.unpublish().await.unwrap();
    }
    assert!(!story.target.exists());
    for _ in 0..2 {
        story.unstage().await.unwrap();
    }
    assert_eq!(fs::read_dir(&story.staging).unwrap().count(), 0, "nothing of ours is left behind");
}

#[tokio::test]
async fn without_a_decision_nothing_is_connected() {
    let mut story = Story::begin().await;
    story.gateway.always(Some(Answer::Error(Code::Unavailable, "no leader")));
    let mut request = tonic::Request::new(stage(&story.staging, rwx()));
    request.set_timeout(std::time::Duration::from_millis(700));
    let answer = story.node.client.node_stage_volume(request).await;
    refused(answer, Code::Unavailable, &["no controller answered in time", "no leader"]);
    assert!(!story.node.is_connected(VOLUME));
}

#[tokio::test]
async fn a_node_without_controllers_lives_and_says_unavailable() {
    let (_guard, directory) = directory();
    let gateway = Gateway::start().await;
    let mut config = config(&directory, &gateway);
    config.controllers = vec![free_address()];
    config.deadlines.controllers_ms = 300;
    let mut node = TestNode::start(config).await;
    let staging = directory.join("staging");
    fs::create_dir(&staging).unwrap();
    let answer = node.client.node_stage_volume(stage(&staging, rwx())).await;
    refused(answer, Code::Unavailable, &["no controller answered in time"]);
    node.stop().await;
}

#[tokio::test]
async fn a_dead_replica_is_passed_over() {
    let (_guard, directory) = directory();
    let gateway = Gateway::start().await;
    let mut config = config(&directory, &gateway);
    config.controllers = vec![free_address(), gateway.address()];
    let mut node = TestNode::start(config).await;
    let staging = directory.join("staging");
    fs::create_dir(&staging).unwrap();
    node.client.node_stage_volume(stage(&staging, rwx())).await.unwrap();
}

#[tokio::test]
async fn an_unstage_is_done_only_when_the_controllers_know() {
    let mut story = Story::begin().await;
    story.stage(&rwx()).await.unwrap();
    story.gateway.always(Some(Answer::Error(Code::Unavailable, "no leader")));
    let mut request = tonic::Request::new(unstage(&story.staging));
    request.set_timeout(std::time::Duration::from_millis(700));
    refused(story.node.client.node_unstage_volume(request).await, Code::Unavailable, &["no leader"]);
    assert!(!story.node.is_connected(VOLUME));
    story.gateway.always(None);
    story.gateway.heard();
    story.unstage().await.unwrap();
    assert!(matches!(story.gateway.heard().as_slice(), [Heard::Disconnected(_)]));
}

#[tokio::test]
async fn asked_to_look_again_it_registers_and_speaks_of_a_later_moment() {
    let mut story = Story::begin().await;
    let asked = || [Answer::Error(Code::Aborted, "past"), Answer::Error(Code::NotFound, "unknown")];
    wait_for("the first registration", async || {
        get(&story.node.http, "/readyz").await.starts_with("HTTP/1.1 200")
    })
    .await;
    story.gateway.heard_all();
    story.gateway.next(asked());
    story.stage(&rwx()).await.unwrap();
    let heard = story.gateway.heard_all();
    let [Heard::Permit(a), Heard::Register(node), Heard::Permit(b), Heard::Register(_), Heard::Permit(c)] =
        heard.as_slice()
    else {
        panic!("{heard:?}")
    };
    assert!(a.since_boot_ns < b.since_boot_ns && b.since_boot_ns < c.since_boot_ns);
    assert_eq!((node.boot_id.as_str(), node.host_nqn.as_str()), (BOOT, "nqn.2014-08.org.example:node-a"));
    story.gateway.next(asked());
    story.unstage().await.unwrap();
    let heard = story.gateway.heard();
    let [Heard::Disconnected(a), Heard::Disconnected(b), Heard::Disconnected(c)] = heard.as_slice() else {
        panic!("{heard:?}")
    };
    assert!(a.since_boot_ns < b.since_boot_ns && b.since_boot_ns < c.since_boot_ns);
}

#[tokio::test]
async fn who_has_it_open_keeps_it_connected() {
    let mut story = Story::begin().await;
    story.stage(&rwx()).await.unwrap();
    story.gateway.heard();
    story.play("held", "4711 (qemu-kvm)");
    refused(story.unstage().await, Code::FailedPrecondition, &["stays connected", "4711 (qemu-kvm)"]);
    assert!(story.node.is_connected(VOLUME));
    assert_eq!(story.gateway.heard(), [], "nothing is reported that is not so");
    fs::remove_file(story.node.directory.join("machine/held").join(VOLUME)).unwrap();
    story.unstage().await.unwrap();
}

#[tokio::test]
async fn what_is_published_is_not_unstaged() {
    for capability in [ext4(), rwx()] {
        let mut story = Story::begin().await;
        story.stage(&capability).await.unwrap();
        story.publish(&capability).await.unwrap();
        let target = story.target.to_str().unwrap().to_owned();
        refused(story.unstage().await, Code::FailedPrecondition, &["in use", &target]);
        story.publish(&capability).await.expect("it is still staged");
        story.unpublish().await.unwrap();
        story.unstage().await.unwrap();
    }
}

#[tokio::test]
async fn unknown_is_not_absent() {
    let mut story = Story::begin().await;
    let connection = story.node.directory.join("machine/connected").join(VOLUME);
    story.play("connected", "no connection's text");
    for _ in 0..2 {
        for answer in [story.stage(&rwx()).await, story.unpublish().await, story.unstage().await] {
            refused(answer, Code::Unavailable, &["cannot see whether"]);
        }
        // Now it cannot even be read.
        fs::remove_file(&connection).ok();
        fs::create_dir_all(&connection).unwrap();
    }
    assert_eq!(story.gateway.heard(), [], "neither connecting nor disconnected is claimed");
}

#[tokio::test]
async fn what_was_never_here_is_gone_and_reported() {
    let mut story = Story::begin().await;
    story.unpublish().await.unwrap();
    fs::remove_dir(&story.staging).unwrap();
    story.unstage().await.unwrap();
    assert!(matches!(story.gateway.heard().as_slice(), [Heard::Disconnected(_)]));
}

#[tokio::test]
async fn doubtful_content_is_never_formatted() {
    let mut story = Story::begin().await;
    for content in ["ntfs", "damaged"] {
        story.play("formatted", content);
        refused(story.stage(&ext4()).await, Code::FailedPrecondition, &["not formatted", content]);
    }
    story.play("formatted", "xfs");
    refused(story.stage(&ext4()).await, Code::FailedPrecondition, &["it has xfs, ext4 is asked for"]);
    fs::remove_file(story.node.directory.join("machine/formatted").join(VOLUME)).unwrap();
    let reader = file_system("ext4", &[], Mode::SingleNodeReaderOnly);
    refused(story.stage(&reader).await, Code::FailedPrecondition, &["a reader does not format"]);
    story.stage(&ext4()).await.unwrap();
}

#[tokio::test]
async fn another_way_at_the_same_path_exists_already() {
    let mut story = Story::begin().await;
    story.stage(&ext4()).await.unwrap();
    let target = story.target.clone();
    story.publish_at(&target, &ext4(), true).await.unwrap();
    let others =
        [file_system("ext4", &[], Mode::SingleNodeWriter), file_system("xfs", &[], Mode::SingleNodeWriter)];
    for other in others {
        refused(story.stage(&other).await, Code::AlreadyExists, &["as ext4 with [rw,noatime]"]);
    }
    refused(story.stage(&rwx()).await, Code::AlreadyExists, &["not a block device"]);
    refused(story.publish(&rwx()).await, Code::AlreadyExists, &["not a block device"]);
    refused(
        story.publish_at(&target, &ext4(), false).await,
        Code::AlreadyExists,
        &["read-only, not writable"],
    );
    story.unpublish().await.unwrap();
    story.unstage().await.unwrap();

    story.stage(&rwx()).await.unwrap();
    story.publish_at(&target, &rwx(), true).await.unwrap();
    refused(
        story.publish_at(&target, &rwx(), false).await,
        Code::AlreadyExists,
        &["read-only, not writable"],
    );
    refused(story.stage(&ext4()).await, Code::AlreadyExists, &["published at"]);
}

#[tokio::test]
async fn a_publish_that_fails_leaves_nothing_that_kubelet_would_not_take_away() {
    let mut story = Story::begin().await;
    story.stage(&ext4()).await.unwrap();
    // Broken off between the two steps of a read-only publish, of which the second one now fails.
    story.publish(&ext4()).await.unwrap();
    let target = story.target.clone();
    let frozen = story.freeze_mount(&target);
    refused(story.publish_at(&target, &ext4(), true).await, Code::Internal, &["fake-mount"]);
    fs::remove_dir(frozen).unwrap();
    assert_eq!((story.mounts(), target.exists()), (1, false));

    // Where that fails as well, kubelet is to come back.
    let mut story = Story::begin().await;
    story.stage(&ext4()).await.unwrap();
    story.publish(&ext4()).await.unwrap();
    let target = story.target.clone();
    story.freeze_mount(&target);
    fs::write(target.join("written past the volume"), "").unwrap();
    let words = ["fake-mount", "could not be taken away", "try again"];
    refused(story.publish_at(&target, &ext4(), true).await, Code::Unavailable, &words);
}

#[tokio::test]
async fn a_second_target_is_for_modes_that_say_so() {
    let rows = [
        (Mode::SingleNodeWriter, false),
        (Mode::SingleNodeSingleWriter, false),
        (Mode::SingleNodeReaderOnly, false),
        (Mode::SingleNodeMultiWriter, true),
    ];
    for (mode, allowed) in rows {
        for capability in [file_system("ext4", &[], mode), block(mode)] {
            two_targets(&capability, allowed).await;
        }
    }
    two_targets(&rwx(), true).await;
}

async fn two_targets(capability: &VolumeCapability, allowed: bool) {
    let mut story = Story::begin().await;
    // So that a reader finds something.
    story.play("formatted", "ext4");
    story.stage(capability).await.unwrap();
    story.publish(capability).await.unwrap();
    let second = story.node.directory.join("second");
    let answer = story.publish_at(&second, capability, false).await;
    if allowed {
        answer.unwrap();
        assert!(second.exists());
    } else {
        let first = story.target.to_str().unwrap().to_owned();
        refused(answer, Code::FailedPrecondition, &["allows one target path", &first]);
        assert!(!second.exists());
        story.unpublish().await.unwrap();
        story.publish_at(&second, capability, false).await.expect("the first target is gone");
    }
}

#[tokio::test]
async fn one_operation_a_volume_at_a_time() {
    let mut story = Story::begin().await;
    story.gateway.turns.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let mut client = story.node.client.clone();
    let request = stage(&story.staging, rwx());
    let first = tokio::spawn(async move { client.node_stage_volume(request).await });
    let mut heard = Vec::new();
    wait_for("the question to arrive", async || {
        heard.extend(story.gateway.heard());
        !heard.is_empty()
    })
    .await;
    refused(story.stage(&rwx()).await, Code::Aborted, &["another operation"]);
    refused(story.unstage().await, Code::Aborted, &["another operation"]);
    story.gateway.turns.add_permits(1);
    first.await.unwrap().unwrap();
    story.unstage().await.unwrap();
}

#[tokio::test]
async fn what_is_in_a_targets_directory_is_left_alone() {
    let mut story = Story::begin().await;
    fs::create_dir(&story.target).unwrap();
    fs::write(story.target.join("file"), "somebody's").unwrap();
    refused(story.unpublish().await, Code::FailedPrecondition, &["cannot be removed"]);
    fs::remove_dir_all(&story.target).unwrap();
    fs::write(&story.target, "somebody's").unwrap();
    refused(story.unpublish().await, Code::FailedPrecondition, &["left alone"]);
    assert_eq!(fs::read_to_string(&story.target).unwrap(), "somebody's");
}

#[tokio::test]
async fn flags_of_the_capability_are_the_targets_too() {
    let mut story = Story::begin().await;
    let capability = |flags: &[&str]| file_system("ext4", flags, Mode::SingleNodeMultiWriter);
    story.stage(&capability(&["nosuid", "noatime"])).await.unwrap();
    story.publish(&capability(&["nosuid", "noatime", "noexec", "ro"])).await.unwrap();
    let mount = story.mount_at(&story.target);
    assert!(
        ["\"nosuid\"", "\"noexec\"", "read_only = true"].iter().all(|flag| mount.contains(flag)),
        "{mount}"
    );
    let second = story.node.directory.join("second");
    story.publish_at(&second, &capability(&[]), false).await.unwrap();
    let mount = story.mount_at(&second);
    assert!(mount.contains("\"nosuid\"") && !mount.contains("noexec"), "{mount}");

    // One that was interrupted before it had all of them.
    story.publish_at(&second, &capability(&["noexec"]), false).await.unwrap();
    assert!(story.mount_at(&second).contains("\"noexec\""));
    fs::write(story.node.directory.join("file"), "somebody's").unwrap();
    let file = story.node.directory.join("file");
    refused(
        story.publish_at(&file, &capability(&[]), false).await,
        Code::FailedPrecondition,
        &["no directory", "left alone"],
    );
}
