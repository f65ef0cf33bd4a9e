//! What is left of a device that was lost: told from what is not, taken away, and staged anew.

use std::fs;

use crate::common::gateway::{Answer, Heard};
use crate::common::refused;
use crate::common::requests::VOLUME;
use crate::common::story::{Story, ext4, rwx};
use tonic::Code;

/// Another volume, connected only where a test says so.
const OTHER: &str = "pvc-0b4fb0c0-5f5a-4a53-a6d8-2f6f4b1ff002";
/// Makes a mount one of a device of which nothing is left.
const LOST: &[(&str, &str)] = &[(VOLUME, OTHER)];
/// Makes a mount one of an earlier device that had the same number.
const EARLIER: (&str, &str) = ("of_earlier_device = false", "of_earlier_device = true");
/// Makes a mount one that the kernel has made read-only.
const STOPPED: &[(&str, &str)] =
    &[("options = [\"rw\",", "options = [\"rw\", \"ro\","), ("read_only = false", "read_only = true")];

fn connect_other(story: &Story) {
    let connected = story.node.directory.join("machine/connected");
    fs::copy(connected.join(VOLUME), connected.join(OTHER)).unwrap();
}

async fn stale_and_recovered(story: &Story) -> (f64, f64) {
    let recovered = story.metric("rds_csi_stale_recoveries_total{status=\"success\"}").await;
    (story.metric("rds_csi_stale_mounts_detected_total").await, recovered)
}

#[tokio::test]
async fn a_mount_of_a_lost_device_is_staged_anew() {
    let (another, earlier) = ([(VOLUME, OTHER), EARLIER], [EARLIER]);
    let rows: [(&[(&str, &str)], bool); 3] = [(LOST, false), (&another, true), (&earlier, false)];
    for (changes, is_others_number) in rows {
        let mut story = Story::begin().await;
        story.stage(&ext4()).await.unwrap();
        if is_others_number {
            connect_other(&story);
        }
        story.change_mount(&story.staging, changes);
        story.stage(&ext4()).await.unwrap();
        let mount = story.mount_at(&story.staging);
        assert!(mount.contains(VOLUME) && mount.contains(EARLIER.0), "{changes:?}: {mount}");
        assert_eq!((story.mounts(), stale_and_recovered(&story).await), (1, (1.0, 1.0)));
        story.publish(&ext4()).await.unwrap();
    }
}

#[tokio::test]
async fn a_mount_of_another_volumes_device_is_left_alone() {
    let mut story = Story::begin().await;
    story.stage(&ext4()).await.unwrap();
    connect_other(&story);
    story.change_mount(&story.staging, LOST);
    let mount = story.mount_at(&story.staging);
    refused(story.stage(&ext4()).await, Code::FailedPrecondition, &["another device", OTHER]);
    refused(story.unstage().await, Code::FailedPrecondition, &["another device", OTHER]);
    assert_eq!(story.mount_at(&story.staging), mount);
    assert_eq!(story.metric("rds_csi_stale_mounts_detected_total").await, 0.0);
}

#[tokio::test]
async fn unstaging_takes_away_what_is_left() {
    let mut story = Story::begin().await;
    story.stage(&ext4()).await.unwrap();
    story.change_mount(&story.staging, LOST);
    story.take_away("connected");
    story.unstage().await.unwrap();
    assert_eq!((story.mounts(), stale_and_recovered(&story).await), (0, (1.0, 1.0)));
}

#[tokio::test]
async fn publishing_stages_anew_what_has_lost_its_device() {
    let mut story = Story::begin().await;
    story.stage(&ext4()).await.unwrap();
    story.publish(&ext4()).await.unwrap();
    for connection_is_gone in [false, true] {
        story.change_mount(&story.staging, LOST);
        story.change_mount(&story.target, LOST);
        if connection_is_gone {
            story.take_away("connected");
        }
        story.gateway.heard();
        // The first pod's target, and then another's: kubelet stages for neither.
        story.publish(&ext4()).await.unwrap();
        assert!(matches!(story.gateway.heard().as_slice(), [Heard::Permit(_)]), "it has to ask");
        assert!(story.is_connected());
        for path in [&story.staging, &story.target] {
            assert!(story.mount_at(path).contains(VOLUME), "{}", path.display());
        }
        assert_eq!(story.mounts(), 2);
    }
    assert_eq!(stale_and_recovered(&story).await, (4.0, 4.0));
}

#[tokio::test]
async fn publishing_asks_before_it_stages_anew() {
    let mut story = Story::begin().await;
    for capability in [ext4(), rwx()] {
        story.gateway.next([Answer::DoesNotStand("it is being revoked")]);
        refused(story.publish(&capability).await, Code::FailedPrecondition, &["it is being revoked"]);
        assert!(!story.is_connected());
    }
}

#[tokio::test]
async fn staging_anew_is_resumed_after_whatever_cut_it_short() {
    // The appliance was not there yet; nothing of the earlier device was left by then.
    for capability in [ext4(), rwx()] {
        let mut story = Story::begin().await;
        story.stage(&capability).await.unwrap();
        story.publish(&capability).await.unwrap();
        if capability == ext4() {
            story.change_mount(&story.staging, LOST);
            story.change_mount(&story.target, LOST);
        }
        story.take_away("connected");
        let unreachable = story.node.directory.join("machine/connected").join(format!("{VOLUME}~"));
        fs::create_dir(&unreachable).unwrap();
        for _ in 0..2 {
            refused(story.publish(&capability).await, Code::Unavailable, &["cannot connect"]);
        }
        fs::remove_dir(&unreachable).unwrap();
        story.publish(&capability).await.unwrap();
        assert!(story.is_connected());
    }

    // Its file system was damaged, and has been repaired by hand.
    let mut story = Story::begin().await;
    story.stage(&ext4()).await.unwrap();
    story.change_mount(&story.staging, LOST);
    story.take_away("connected");
    story.play("formatted", "damaged");
    refused(story.publish(&ext4()).await, Code::FailedPrecondition, &["repair it"]);
    story.play("formatted", "ext4");
    story.publish(&ext4()).await.unwrap();

    // The plugin was killed once the dead mount was gone: connected already, or not yet.
    for is_connected in [true, false] {
        let mut story = Story::begin().await;
        story.stage(&ext4()).await.unwrap();
        story.forget_mounts();
        if !is_connected {
            story.take_away("connected");
        }
        story.publish(&ext4()).await.unwrap();
    }
}

#[tokio::test]
async fn a_block_volume_that_has_lost_its_device_is_connected_anew() {
    let mut story = Story::begin().await;
    story.stage(&rwx()).await.unwrap();
    story.publish(&rwx()).await.unwrap();
    // The target has the lost device's number: nobody's, and then another volume's.
    for number_is_reused in [false, true] {
        if number_is_reused {
            connect_other(&story);
        }
        story.take_away("connected");
        let target = fs::read_to_string(&story.target).unwrap();
        fs::write(&story.target, target.replace(VOLUME, OTHER)).unwrap();
        story.publish(&rwx()).await.unwrap();
        assert!(story.is_connected());
        assert!(fs::read_to_string(&story.target).unwrap().contains(VOLUME));
    }
    story.unpublish().await.unwrap();
    story.unstage().await.unwrap();
}

#[tokio::test]
async fn a_file_system_that_has_stopped_is_mounted_anew_once_nobody_uses_it() {
    let mut story = Story::begin().await;
    story.stage(&ext4()).await.unwrap();
    story.publish(&ext4()).await.unwrap();
    for path in [story.staging.clone(), story.target.clone()] {
        story.change_mount(&path, STOPPED);
    }
    let target = story.target.to_str().unwrap().to_owned();
    let second = story.node.directory.join("second");
    for answer in [story.stage(&ext4()).await, story.publish_at(&second, &ext4(), false).await] {
        refused(answer, Code::FailedPrecondition, &["has stopped", "read-only after an error", &target]);
    }
    assert_eq!(story.mounts(), 2, "it was unmounted under its user");

    story.unpublish().await.unwrap();
    story.publish_at(&second, &ext4(), false).await.unwrap();
    assert!(story.mount_at(&second).contains("read_only = false"));
    assert_eq!(stale_and_recovered(&story).await, (1.0, 1.0));
}

#[tokio::test]
async fn a_damaged_file_system_is_for_people_to_repair() {
    let mut story = Story::begin().await;
    story.play("formatted", "ext4\nits root is gone");
    refused(
        story.stage(&ext4()).await,
        Code::FailedPrecondition,
        &["its root is gone", "repair it by hand with e2fsck", "not formatted"],
    );
    assert!(!story.is_connected());
    assert_eq!(
        story.metric("rds_csi_mount_operations_total{operation=\"check\",status=\"failure\"}").await,
        1.0
    );
}
