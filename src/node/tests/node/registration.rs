//! Registering: ordered by the boot that each registration replaces, and tried again for as long as it takes.

use crate::common::gateway::{Answer, Gateway, Heard};
use crate::common::requests::{block, stage};
use crate::common::{BOOT, TestNode, config, directory, get, refused, wait_for};
use node::NodeConfig;
use proto::csi::v1::volume_capability::access_mode::Mode;
use tonic::Code;

/// The boot that registered and the boot that it wanted to replace, for each registration that was heard.
fn replacements(heard: &[Heard]) -> Vec<(&str, &str)> {
    let mut replacements = Vec::new();
    for what in heard {
        if let Heard::Register(node) = what {
            replacements.push((node.boot_id.as_str(), node.replaces_boot_id.as_str()));
        }
    }
    replacements
}

async fn is_ready(node: &TestNode) -> bool {
    get(&node.http, "/readyz").await.starts_with("HTTP/1.1 200")
}

#[tokio::test]
async fn a_registration_names_the_boot_that_it_replaces() {
    let (_guard, directory) = directory();
    let gateway = Gateway::start().await;
    let node = TestNode::fake(&directory, &gateway).await;
    wait_for("the first registration", async || is_ready(&node).await).await;
    assert_eq!(replacements(&gateway.heard_all()), [(BOOT, "")]);
    node.stop().await;

    let boot_2 = NodeConfig { boot_id: Some("boot-2".to_owned()), ..config(&directory, &gateway) };
    let node = TestNode::start(boot_2.clone()).await;
    wait_for("the registration after a reboot", async || is_ready(&node).await).await;
    assert_eq!(replacements(&gateway.heard_all()), [("boot-2", ""), ("boot-2", BOOT)]);
    node.stop().await;

    let node = TestNode::start(boot_2).await;
    wait_for("the registration after a restart", async || is_ready(&node).await).await;
    assert_eq!(replacements(&gateway.heard_all()), [("boot-2", "")]);
    node.stop().await;
}

#[tokio::test]
async fn another_boot_on_record_is_no_registration() {
    let (_guard, directory) = directory();
    let gateway = Gateway::start().await;
    gateway.record_boot("boot-a");
    // Whatever the node wants to replace, another one has come first; in the second round it is not so.
    gateway.next_registrations(["boot-b", "boot-c", "boot-d"].map(Answer::OtherBoot));
    let node = TestNode::fake(&directory, &gateway).await;
    wait_for("readiness", async || is_ready(&node).await).await;
    let expected = [(BOOT, ""), (BOOT, "boot-b"), (BOOT, "boot-c"), (BOOT, ""), (BOOT, "boot-d")];
    assert_eq!(replacements(&gateway.heard_all()), expected);
    node.stop().await;
}

#[tokio::test]
async fn a_registration_that_was_lost_is_made_again() {
    let (_guard, directory) = directory();
    let gateway = Gateway::start().await;
    let mut node = TestNode::fake(&directory, &gateway).await;
    wait_for("readiness", async || get(&node.http, "/readyz").await.starts_with("HTTP/1.1 200")).await;
    gateway.heard_all();
    gateway.next([Answer::Error(Code::NotFound, "not registered")]);
    gateway.next_registrations([Answer::Error(Code::FailedPrecondition, "not now")]);
    let staging = directory.join("staging");
    let answer = node.client.node_stage_volume(stage(&staging, block(Mode::MultiNodeMultiWriter))).await;
    refused(answer, Code::FailedPrecondition, &["not now"]);
    let mut heard = Vec::new();
    wait_for("the registration after the refused one", async || {
        heard.extend(gateway.heard_all());
        heard.iter().filter(|heard| matches!(heard, Heard::Register(_))).count() == 2
    })
    .await;
    wait_for("readiness", async || get(&node.http, "/readyz").await.starts_with("HTTP/1.1 200")).await;
}
