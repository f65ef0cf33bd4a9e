//! What statistics say of a volume that is not well, and that they say it.

use proto::csi::v1::{NodeGetVolumeStatsResponse, VolumeCondition};
use tonic::{Code, Status};

use crate::common::refused;
use crate::common::requests::{VOLUME, expand, stats};
use crate::common::story::{Story, ext4, rwx};

const GONE: &str = "pvc-0b4fb0c0-5f5a-4a53-a6d8-2f6f4b1ff002";

async fn ask(story: &mut Story) -> Result<NodeGetVolumeStatsResponse, Status> {
    let request = stats(&story.target);
    story.node.client.node_get_volume_stats(request).await.map(|answer| answer.into_inner())
}

/// Asserts that the volume is said to be abnormal in these words; answers how many usages there are. Without any,
/// kubelet would not look at the condition.
async fn abnormal(story: &mut Story, words: &[&str]) -> usize {
    let answer = ask(story).await.unwrap();
    let VolumeCondition { abnormal, message } = answer.volume_condition.unwrap();
    assert!(abnormal, "{message}");
    assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
    answer.usage.len()
}

async fn published() -> Story {
    let mut story = Story::begin().await;
    story.stage(&ext4()).await.unwrap();
    story.publish(&ext4()).await.unwrap();
    let condition = ask(&mut story).await.unwrap().volume_condition.unwrap();
    assert!(!condition.abnormal, "{}", condition.message);
    story
}

#[tokio::test]
async fn a_file_system_that_is_not_well_says_why() {
    type Changes = &'static [(&'static str, &'static str)];
    let rows: [(Changes, &[&str], usize); 4] = [
        (&[("logged_errors = 0", "logged_errors = 3")], &["logged 3 errors", "backup"], 2),
        (&[("options = [\"rw\",", "options = [\"rw\", \"ro\",")], &["has stopped", "end the pods"], 2),
        (&[("hangs = false", "hangs = true")], &["did not answer"], 1),
        (&[(VOLUME, GONE)], &["gone for good", "delete the pods"], 1),
    ];
    for (changes, words, usages) in rows {
        let mut story = published().await;
        story.change_mount(&story.target, changes);
        assert_eq!(abnormal(&mut story, words).await, usages, "{words:?}");
    }
}

#[tokio::test]
async fn a_lost_connection_is_said_of_both_kinds() {
    for capability in [ext4(), rwx()] {
        let mut story = Story::begin().await;
        story.stage(&capability).await.unwrap();
        story.publish(&capability).await.unwrap();
        let connection = story.node.directory.join("machine/connected").join(VOLUME);
        let text = std::fs::read_to_string(&connection).unwrap();
        std::fs::write(&connection, format!("lost = \"connecting\"\n{text}")).unwrap();
        assert!(abnormal(&mut story, &["is connecting", "look after the appliance"]).await > 0);
        // And then it is lost for good.
        std::fs::remove_file(&connection).unwrap();
        assert_eq!(abnormal(&mut story, &["gone for good"]).await, 1);
        let answer = story.node.client.node_expand_volume(expand(&story.target, 5 << 30)).await;
        refused(answer, Code::FailedPrecondition, &["gone"]);
    }
}

#[tokio::test]
async fn what_is_not_the_volume_has_no_condition() {
    let mut story = published().await;
    story.unpublish().await.unwrap();
    refused(ask(&mut story).await, Code::NotFound, &["is not at"]);
}
