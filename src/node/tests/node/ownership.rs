//! Only what the ledger knows is ever disconnected, also when kubelet asks for it.

use crate::common::gateway::{Answer, Heard, Standing};
use crate::common::refused;
use crate::common::requests::{VOLUME, unstage};
use crate::common::story::{Story, ext4, rwx};
use tonic::Code;

#[tokio::test]
async fn what_the_ledger_does_not_know_is_unstaged_and_stays_connected() {
    for capability in [ext4(), rwx()] {
        let mut story = Story::begin().await;
        story.stage(&capability).await.unwrap();
        story.gateway.heard();
        story.gateway.ledger(VOLUME, Standing::Unknown);
        for _ in 0..2 {
            story.unstage().await.expect("kubelet has no more to do about it");
            assert!(story.is_connected(), "a connection that is not ours was ended");
            assert_eq!(story.mounts(), 0);
            assert_eq!(story.gateway.heard(), [], "it is connected, so nothing is reported");
        }
        // Found to be ours after all.
        story.gateway.ledger(VOLUME, Standing::NotAttached);
        story.unstage().await.unwrap();
        assert!(!story.is_connected());
        assert!(matches!(story.gateway.heard().as_slice(), [Heard::Disconnected(_)]));
    }
}

#[tokio::test]
async fn without_an_answer_an_unstage_touches_nothing() {
    let mut story = Story::begin().await;
    story.stage(&ext4()).await.unwrap();
    story.gateway.heard();
    for code in [Code::Unavailable, Code::PermissionDenied] {
        story.gateway.undescribed(Some(code));
        let mut request = tonic::Request::new(unstage(&story.staging));
        request.set_timeout(std::time::Duration::from_millis(700));
        let answer = story.node.client.node_unstage_volume(request).await;
        refused(answer, Code::Unavailable, &["no controller answered in time", "no description"]);
        assert!(story.is_connected());
        assert_eq!((story.mounts(), story.gateway.heard()), (1, Vec::new()));
    }
    story.gateway.undescribed(None);
    story.unstage().await.unwrap();
    assert!(!story.is_connected());
}

#[tokio::test]
async fn what_is_not_connected_needs_no_answer() {
    let mut story = Story::begin().await;
    story.gateway.undescribed(Some(Code::Unavailable));
    story.unstage().await.unwrap();
    assert!(matches!(story.gateway.heard().as_slice(), [Heard::Disconnected(_)]));
}

#[tokio::test]
async fn a_failed_stage_ends_no_connection_that_is_not_ours() {
    let mut story = Story::begin().await;
    story.stage(&rwx()).await.unwrap();
    story.gateway.ledger(VOLUME, Standing::Unknown);
    story.gateway.next([Answer::DoesNotStand("volume is not known")]);
    story.gateway.heard();
    refused(story.stage(&rwx()).await, Code::FailedPrecondition, &["volume is not known"]);
    assert!(story.is_connected(), "a connection that is not ours was ended");
    assert!(matches!(story.gateway.heard().as_slice(), [Heard::Permit(_)]));
}
