//! The node's session: what it reports of a fake machine, and what it does with orders, against scripted controllers.

use std::fs;
use std::time::{Duration, Instant};

use crate::common::gateway::{Heard, Standing};
use crate::common::requests::{GENERATION, VOLUME, stage};
use crate::common::story::{Story, ext4, rwx};
use crate::common::{BOOT, get, wait_for};
use proto::node::v1::{Cut, LeaderOrder, NodeReport, VolumeReport};
use tonic::Code;

/// Well below the interval of reports, and above that of looks at the connections.
const SOON: Duration = Duration::from_secs(6);
const METRIC: &str = "rds_csi_node_session_connected ";

/// Waits for a report of which `condition` holds, and returns it with all that it left out.
async fn report(story: &Story, what: &str, condition: impl Fn(&NodeReport) -> bool) -> NodeReport {
    let mut found = None;
    wait_for(what, async || {
        found = complete(story.gateway.reports()).into_iter().rev().find(&condition);
        found.is_some()
    })
    .await;
    found.unwrap()
}

/// The reports, each with what an unchanged one leaves out.
fn complete(mut reports: Vec<NodeReport>) -> Vec<NodeReport> {
    for index in 1..reports.len() {
        if reports[index].unchanged {
            let (before, after) = reports.split_at_mut(index);
            after[0].volumes = before[index - 1].volumes.clone();
            after[0].incomplete = before[index - 1].incomplete.clone();
        }
    }
    reports
}

fn of_volume(report: &NodeReport) -> Option<&VolumeReport> {
    report.volumes.iter().find(|volume| volume.volume_id == VOLUME)
}

fn is_idle(report: &NodeReport) -> bool {
    of_volume(report).is_some_and(|volume| volume.connected && !volume.busy && volume.held_by.is_empty())
}

fn look_again(number: u64) -> LeaderOrder {
    LeaderOrder { number, cuts: Vec::new() }
}

fn cut(number: u64, generation: u64) -> LeaderOrder {
    LeaderOrder { number, cuts: vec![Cut { volume_id: VOLUME.to_owned(), generation }] }
}

/// Waits until an order has been dealt with.
async fn cut_ended(story: &Story, status: &str) {
    let line = format!("rds_csi_volume_operations_total{{operation=\"cut\",status=\"{status}\"}} 1");
    wait_for("the order to be over", async || get(&story.node.http, "/metrics").await.contains(&line)).await;
}

async fn begun() -> Story {
    let story = Story::begin().await;
    report(&story, "the first report", |_| true).await;
    story
}

async fn staged() -> Story {
    let mut story = begun().await;
    story.stage(&rwx()).await.unwrap();
    report(&story, "the connection", is_idle).await;
    story.gateway.heard();
    story
}

#[tokio::test]
async fn the_first_report_says_who_speaks_and_that_nothing_is_there() {
    let story = begun().await;
    let first = story.gateway.reports().remove(0);
    assert_eq!((first.node_id.as_str(), first.boot_id.as_str()), ("node-a", BOOT));
    assert_eq!(first.host_nqn, "nqn.2014-08.org.example:node-a");
    assert_eq!((first.echo, first.unchanged, first.incomplete.as_str()), (0, false, ""));
    assert_eq!(first.volumes, []);
    assert_eq!(story.metric(METRIC).await, 1.0);
    story.node.stop().await;
}

#[tokio::test]
async fn what_happens_to_a_volume_is_reported_at_once() {
    let mut story = begun().await;
    // A stage that waits for its permission is about to connect.
    story.gateway.turns.forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let (mut client, request) = (story.node.client.clone(), stage(&story.staging, ext4()));
    let staging = tokio::spawn(async move { client.node_stage_volume(request).await });
    wait_for("the question", async || !story.gateway.heard().is_empty()).await;
    story.gateway.order(look_again(3));
    let busy = report(&story, "the answer to the order", |report| report.echo == 3).await;
    assert!(of_volume(&busy).is_some_and(|volume| volume.busy && !volume.connected), "{busy:?}");
    story.gateway.turns.add_permits(1_000_000);
    staging.await.unwrap().unwrap();
    let is_staged = |report: &NodeReport| {
        of_volume(report).is_some_and(|volume| {
            volume.connected && !volume.busy && volume.held_by.iter().any(|who| who.contains("mounted at"))
        })
    };
    report(&story, "the staged file system", is_staged).await;
    story.unstage().await.unwrap();
    report(&story, "the disconnect", |report| of_volume(report).is_none() && report.echo == 3).await;

    let before = story.gateway.reports();
    story.gateway.order(look_again(4));
    let same = report(&story, "the look again", |report| report.echo == 4).await;
    assert!(same.unchanged && same.since_boot_ns > before.last().unwrap().since_boot_ns, "{same:?}");
    assert!(before.windows(2).all(|pair| pair[0].since_boot_ns < pair[1].since_boot_ns));
}

#[tokio::test]
async fn an_idle_volume_is_cut_as_ordered() {
    for (standing, generation) in [(Standing::Revoking, GENERATION), (Standing::NotAttached, 0)] {
        let story = staged().await;
        story.gateway.ledger(VOLUME, standing);
        story.gateway.order(cut(5, generation));
        wait_for("the cut", async || !story.is_connected()).await;
        report(&story, "its absence", |report| report.echo == 5 && report.volumes.is_empty()).await;
        assert!(matches!(story.gateway.heard().as_slice(), [Heard::Disconnected(_)]), "the ledger is told");
        story.node.stop().await;
    }
}

#[tokio::test]
async fn an_order_that_came_late_does_nothing() {
    for (standing, generation) in [
        (Standing::Granted, GENERATION),
        (Standing::Granted, 0),
        (Standing::Revoking, GENERATION - 1),
        (Standing::Revoking, 0),
        (Standing::NotAttached, GENERATION),
        (Standing::Unknown, 0),
    ] {
        let story = staged().await;
        story.gateway.ledger(VOLUME, standing);
        story.gateway.order(cut(5, generation));
        cut_ended(&story, "success").await;
        assert!(story.is_connected(), "cut: {standing:?}, ordered under {generation}");
        assert_eq!(story.gateway.heard(), []);
        story.node.stop().await;
    }
}

#[tokio::test]
async fn what_is_held_stays_and_its_holder_is_named() {
    let story = staged().await;
    story.gateway.ledger(VOLUME, Standing::Revoking);
    story.play("held", "4711 (qemu-kvm)");
    story.gateway.order(cut(5, GENERATION));
    let is_held = |report: &NodeReport| {
        let names = |volume: &VolumeReport| volume.held_by == ["simulated process 4711 (qemu-kvm)"];
        report.echo == 5 && of_volume(report).is_some_and(|volume| !volume.busy && names(volume))
    };
    report(&story, "the holder's name", is_held).await;
    assert!(story.is_connected(), "it was cut under its holder");
    assert_eq!(story.gateway.heard(), []);
    story.take_away("held");
    story.gateway.order(cut(6, GENERATION));
    wait_for("the cut", async || !story.is_connected()).await;
}

#[tokio::test]
async fn without_the_ledgers_word_nothing_is_cut() {
    let story = staged().await;
    story.gateway.undescribed(Some(Code::FailedPrecondition));
    story.gateway.order(cut(5, GENERATION));
    cut_ended(&story, "failure").await;
    assert!(story.is_connected() && story.gateway.heard().is_empty());
}

#[tokio::test]
async fn what_cannot_be_seen_is_not_absent() {
    let story = staged().await;
    let kubelet = story.node.directory.join("kubelet");
    let away = story.node.directory.join("kubelet is not mounted");
    fs::rename(&kubelet, &away).unwrap();
    story.gateway.order(look_again(5));
    let unseen = report(&story, "a report", |report| report.echo == 5).await;
    let volume = of_volume(&unseen).expect("it is connected");
    assert!(volume.connected && volume.unseen.contains("kubelet"), "{unseen:?}");
    fs::rename(&away, &kubelet).unwrap();

    let connected = story.node.directory.join("machine/connected");
    fs::rename(&connected, &away).unwrap();
    story.gateway.order(look_again(6));
    let unseen = report(&story, "a report", |report| report.echo == 6).await;
    assert!(!unseen.incomplete.is_empty() && unseen.volumes.is_empty(), "{unseen:?}");
    fs::rename(&away, &connected).unwrap();
    report(&story, "another look by itself", |report| report.echo == 6 && report.incomplete.is_empty()).await;
}

#[tokio::test]
async fn what_changes_is_reported_long_before_the_next_report_is_due() {
    let mut story = begun().await;
    story.stage(&ext4()).await.unwrap();
    story.gateway.order(look_again(5));
    let users = |report: &NodeReport| of_volume(report).map_or(0, |volume| volume.held_by.len());
    report(&story, "the staged file system", |report| report.echo == 5 && users(report) == 1).await;
    // Nothing is connected or disconnected, so only the operation's end says so.
    let begun = Instant::now();
    story.publish(&ext4()).await.unwrap();
    report(&story, "the target", |report| users(report) == 2).await;
    // A connection that goes by itself.
    story.take_away("connected");
    report(&story, "its absence", |report| report.volumes.is_empty() && report.echo == 5).await;
    assert!(begun.elapsed() < SOON, "after {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_lost_session_is_begun_again_from_the_beginning() {
    let story = staged().await;
    story.gateway.order(look_again(5));
    report(&story, "the echo", |report| report.echo == 5).await;
    story.gateway.no_session(Some(Code::Unavailable));
    story.gateway.end_session();
    wait_for("the end", async || story.metric(METRIC).await == 0.0).await;
    story.gateway.no_session(None);
    wait_for("another session", async || story.gateway.sessions() == 2).await;
    let is_first = |report: &NodeReport| !report.host_nqn.is_empty() && is_idle(report) && report.echo == 0;
    report(&story, "its first report", is_first).await;

    // One that the node may mend by registering.
    story.gateway.heard_all();
    story.gateway.no_session(Some(Code::Aborted));
    story.gateway.end_session();
    let is_registration = |heard: &Heard| matches!(heard, Heard::Register(_));
    wait_for("a registration", async || story.gateway.heard_all().iter().any(is_registration)).await;
    story.gateway.no_session(None);
    wait_for("a third session", async || story.gateway.sessions() == 3).await;
}
