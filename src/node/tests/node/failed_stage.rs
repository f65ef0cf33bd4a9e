//! What a stage that failed leaves: no code on which kubelet forgets the volume, unless the volume is not connected
//! and the controllers know, or its users keep it.

use std::fs;

use crate::common::gateway::{Answer, Heard};
use crate::common::refused;
use crate::common::requests::VOLUME;
use crate::common::story::{Story, ext4, rwx};
use proto::csi::v1::VolumeCapability;
use tonic::Code;

const REVOKED: Answer = Answer::DoesNotStand("it is being revoked");
const REVOKED_WORDS: [&str; 2] = ["must not be connected under generation 42", "it is being revoked"];

/// Asserts that the node asked, and then reported a later moment, once each.
#[track_caller]
fn asked_then_reported(heard: &[Heard]) {
    let [Heard::Permit(permit), Heard::Disconnected(report)] = heard else { panic!("{heard:?}") };
    assert!(permit.since_boot_ns < report.since_boot_ns);
    assert_eq!(permit.volume_id, report.volume_id);
}

#[tokio::test]
async fn content_that_is_refused_is_disconnected_and_reported() {
    let mut story = Story::begin().await;
    for content in ["damaged", "xfs"] {
        story.play("formatted", content);
        refused(story.stage(&ext4()).await, Code::FailedPrecondition, &[content]);
        assert!(!story.is_connected(), "kubelet does not unstage what it believes is not staged");
        asked_then_reported(&story.gateway.heard());
    }
}

#[tokio::test]
async fn a_file_system_that_cannot_be_made_is_disconnected_and_reported() {
    let mut story = Story::begin().await;
    // The fake mkfs has nowhere to write to.
    let formatted = story.node.directory.join("machine/formatted");
    fs::remove_dir(&formatted).unwrap();
    refused(story.stage(&ext4()).await, Code::Internal, &["cannot write"]);
    assert!(!story.is_connected());
    asked_then_reported(&story.gateway.heard());
    fs::create_dir(&formatted).unwrap();
    story.stage(&ext4()).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_cannot_be_made_is_reported() {
    let mut story = Story::begin().await;
    let unfinished = story.node.directory.join("machine/connected").join(format!("{}~", VOLUME));
    fs::create_dir(&unfinished).unwrap();
    refused(story.stage(&rwx()).await, Code::Unavailable, &["cannot connect"]);
    asked_then_reported(&story.gateway.heard());
    fs::remove_dir(&unfinished).unwrap();
    story.stage(&rwx()).await.unwrap();
}

#[tokio::test]
async fn a_refused_permission_is_reported_as_not_connected() {
    let mut story = Story::begin().await;
    story.gateway.next([REVOKED]);
    refused(story.stage(&rwx()).await, Code::FailedPrecondition, &REVOKED_WORDS);
    assert!(!story.is_connected());
    asked_then_reported(&story.gateway.heard());
    story.stage(&rwx()).await.unwrap();
}

#[tokio::test]
async fn without_the_report_no_failure_is_final() {
    let first = |story: &Story, permission: &Answer| {
        story.gateway.next([permission.clone()]);
        story.gateway.always(Some(Answer::Error(Code::Unavailable, "no leader")));
    };
    for (permission, words) in
        [(Answer::Yes, ["fake content \"damaged\""]), (REVOKED, ["it is being revoked"])]
    {
        let mut story = Story::begin_with(|config| config.deadlines.controllers_ms = 300).await;
        story.play("formatted", "damaged");
        first(&story, &permission);
        refused(story.stage(&ext4()).await, Code::Unavailable, &[words[0], "no leader", "try again"]);
        assert!(!story.is_connected());

        // The controllers refuse the report.
        story.gateway.always(Some(Answer::Error(Code::FailedPrecondition, "not from you")));
        story.gateway.next([permission]);
        refused(story.stage(&ext4()).await, Code::Unavailable, &[words[0], "not from you"]);

        // kubelet comes back, and then it is told for good.
        story.gateway.always(None);
        story.gateway.heard();
        refused(story.stage(&ext4()).await, Code::FailedPrecondition, &["not formatted"]);
        asked_then_reported(&story.gateway.heard());
    }
}

#[tokio::test]
async fn what_is_held_stays_connected_and_no_failure_is_final() {
    let mut story = Story::begin().await;
    story.play("formatted", "damaged");
    // Somebody opens the device as soon as it is there.
    story.play("held", "4711 (mkfs.ext4)");
    for _ in 0..2 {
        let words = ["not formatted", "stays connected", "4711 (mkfs.ext4)", "try again"];
        refused(story.stage(&ext4()).await, Code::Unavailable, &words);
        assert!(story.is_connected(), "it was disconnected under its holder");
        let heard = story.gateway.heard();
        assert!(
            matches!(heard.as_slice(), [Heard::Permit(_)]),
            "nothing is reported that is not so: {heard:?}"
        );
    }
    // Gone, and found connected by the next try, whoever connected it.
    story.take_away("held");
    refused(story.stage(&ext4()).await, Code::FailedPrecondition, &["not formatted"]);
    assert!(!story.is_connected());
    asked_then_reported(&story.gateway.heard());
}

#[tokio::test]
async fn what_is_connected_is_asked_about_and_refused() {
    for capability in [ext4(), rwx()] {
        let mut story = Story::begin().await;
        story.stage(&capability).await.unwrap();
        story.gateway.heard();

        // In use by a pod: refused, and left alone.
        story.publish(&capability).await.unwrap();
        refuse(&mut story, &capability, Code::FailedPrecondition, &[]).await;
        assert!(story.is_connected(), "it was disconnected under a pod");
        assert!(matches!(story.gateway.heard().as_slice(), [Heard::Permit(_)]));
        story.publish(&capability).await.expect("it is still staged and published");
        story.unpublish().await.unwrap();

        // Held by a process only: left alone, but not forgotten.
        story.play("held", "4711 (qemu-kvm)");
        refuse(&mut story, &capability, Code::Unavailable, &["4711 (qemu-kvm)"]).await;
        assert!(story.is_connected(), "it was disconnected under its holder");
        assert!(matches!(story.gateway.heard().as_slice(), [Heard::Permit(_)]));
        story.take_away("held");

        // Used by nobody: undone.
        refuse(&mut story, &capability, Code::FailedPrecondition, &[]).await;
        assert!(!story.is_connected());
        assert_eq!(story.mounts(), 0);
        asked_then_reported(&story.gateway.heard());
    }
}

async fn refuse(story: &mut Story, capability: &VolumeCapability, code: Code, words: &[&str]) {
    story.gateway.next([REVOKED]);
    refused(story.stage(capability).await, code, &[&REVOKED_WORDS, words].concat());
}

#[tokio::test]
async fn an_earlier_stage_in_another_way_stays_as_long_as_it_is_published() {
    let mut story = Story::begin().await;
    story.stage(&ext4()).await.unwrap();
    story.publish(&ext4()).await.unwrap();
    story.gateway.heard();
    refused(story.stage(&rwx()).await, Code::AlreadyExists, &["not a block device"]);
    assert!(story.is_connected());
    assert!(matches!(story.gateway.heard().as_slice(), [Heard::Permit(_)]));
    story.publish(&ext4()).await.unwrap();

    // kubelet takes the code for "not staged", so nothing is left that it would have to unstage.
    story.unpublish().await.unwrap();
    refused(story.stage(&rwx()).await, Code::AlreadyExists, &["not a block device"]);
    assert!(!story.is_connected());
    assert_eq!(story.mounts(), 0);
    asked_then_reported(&story.gateway.heard());
    story.stage(&rwx()).await.unwrap();
}
