//! What nodes have connected and hold, told to the leader: an unpublish that waits for nobody's unstage, and never takes
//! a volume from under its holder. Connections and holders are simulated: files in the fake machine's directory.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::node::v1::NodeReport;
use proto::node::v1::node_gateway_client::NodeGatewayClient;
use rds_csi::certificates::{Authority, Owner};
use rds_csi::dev::requests::{Context as CsiContext, publish, stage, within};
use tests::requests::{MIB, create, delete, eventually, expect_unavailable, insist, unpublish};
use tests::{Csi, Lab, tls_channel};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

const NODE: &str = "node-a";
const HOLDER: &str = "4711 (qemu-kvm)";

/// How long a call to a node plugin may take, in milliseconds.
const NODE_MS: u64 = 10_000;

/// A volume, and what the node is told of it.
struct Volume {
    id: String,
    context: CsiContext,
}

async fn volume(csi: &Csi, name: &str) -> Result<Volume> {
    let made = insist("create", || csi.create(create(name, MIB))).await?.volume.context("a volume")?;
    Ok(Volume { id: made.volume_id, context: made.volume_context })
}

/// Publishes the volume to the node and stages it there.
async fn connect(lab: &Lab, csi: &Csi, volume: &Volume) -> Result<()> {
    let request = || publish(&volume.id, NODE, &volume.context);
    let published = insist("publish", || csi.publish(request())).await?.publish_context;
    let staging = lab.state_directory(NODE).join("kubelet").join(&volume.id);
    fs::create_dir_all(&staging)?;
    let node = lab.csi_node(NODE)?;
    let limit = Duration::from_millis(NODE_MS);
    insist("stage", || {
        let (mut node, request) = (node.clone(), stage(&volume.id, &staging, &published, &volume.context));
        async move { node.node_stage_volume(within(limit, request)).await }
    })
    .await?;
    ensure!(is_connected(lab, volume), "staged, and not connected");
    Ok(())
}

fn file(lab: &Lab, kind: &str, volume: &Volume) -> PathBuf {
    lab.state_directory(NODE).join(kind).join(&volume.id)
}

fn is_connected(lab: &Lab, volume: &Volume) -> bool {
    file(lab, "connected", volume).exists()
}

fn hold(lab: &Lab, volume: &Volume) -> Result<()> {
    Ok(fs::write(file(lab, "held", volume), HOLDER)?)
}

fn release(lab: &Lab, volume: &Volume) -> Result<()> {
    Ok(fs::remove_file(file(lab, "held", volume))?)
}

fn expect_held<T: std::fmt::Debug>(answer: Result<T, Status>) -> Result<()> {
    let names = |status: &Status| {
        status.code() == Code::FailedPrecondition
            && status.message().contains(HOLDER)
            && status.message().contains(NODE)
    };
    ensure!(answer.as_ref().is_err_and(names), "its holder was to be named: {answer:?}");
    Ok(())
}

/// The phase of the volume's attachment to the node; empty if there is none.
async fn phase(lab: &Lab, volume: &Volume) -> Result<String> {
    let ledger = lab.ledger().await?;
    let found = ledger.into_iter().find(|known| known.id == volume.id).context("the volume")?;
    Ok(found.attachments.into_iter().find(|has| has.node_id == NODE).map(|has| has.phase).unwrap_or_default())
}

pub(crate) async fn wait_for_metric(lab: &Lab, name: &str, line: &str) -> Result<()> {
    eventually(line, async || {
        let text = lab.metrics(name).await?;
        ensure!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        Ok(())
    })
    .await
}

async fn wait_for_session(lab: &Lab) -> Result<()> {
    wait_for_metric(lab, NODE, "rds_csi_node_session_connected 1").await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpublish_names_the_holder_and_needs_no_unstage() -> Result<()> {
    Lab::tell(async |lab| {
        let csi = lab.csi(&lab.follower_name().await?)?;
        let volume = volume(&csi, "held").await?;
        connect(lab, &csi, &volume).await?;
        wait_for_metric(lab, &lab.leader_name().await?, "rds_csi_sessions_active 2").await?;
        wait_for_metric(lab, &lab.follower_name().await?, "rds_csi_sessions_active 0").await?;

        hold(lab, &volume)?;
        expect_held(csi.unpublish(unpublish(&volume.id, NODE)).await)?;
        expect_held(csi.unpublish(unpublish(&volume.id, "")).await)?;
        ensure!(phase(lab, &volume).await? == "Granted", "something was revoked");
        ensure!(is_connected(lab, &volume), "it was cut under its holder");

        release(lab, &volume)?;
        csi.unpublish(unpublish(&volume.id, NODE)).await.context("idle")?;
        ensure!(!is_connected(lab, &volume), "OK, and still connected");
        ensure!(phase(lab, &volume).await?.is_empty(), "OK, and still attached");
        csi.delete(delete(&volume.id)).await.context("delete right after the unpublish")?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_node_nothing_is_known() -> Result<()> {
    Lab::tell(async |lab| {
        let csi = lab.csi(&lab.leader_name().await?)?;
        let volume = volume(&csi, "unknown").await?;
        connect(lab, &csi, &volume).await?;
        wait_for_session(lab).await?;
        lab.kill(NODE)?;
        expect_unavailable("no node", csi.unpublish(unpublish(&volume.id, NODE)).await)?;
        ensure!(phase(lab, &volume).await? == "Revoking", "the revocation was to be recorded");
        ensure!(is_connected(lab, &volume), "nobody was there to cut it");

        // Held when its plugin is back: then the session says so, and it stays.
        hold(lab, &volume)?;
        lab.start_again(NODE).await?;
        wait_for_session(lab).await?;
        expect_held(csi.unpublish(unpublish(&volume.id, NODE)).await)?;
        ensure!(is_connected(lab, &volume), "it was cut under its holder");
        release(lab, &volume)?;
        csi.unpublish(unpublish(&volume.id, NODE)).await.context("idle")?;
        ensure!(!is_connected(lab, &volume), "OK, and still connected");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_leader_goes_on() -> Result<()> {
    Lab::tell(async |lab| {
        let leader = lab.leader_name().await?;
        let csi = lab.csi(&lab.follower_name().await?)?;
        let volume = volume(&csi, "handed-over").await?;
        connect(lab, &csi, &volume).await?;
        wait_for_session(lab).await?;
        hold(lab, &volume)?;
        expect_held(csi.unpublish(unpublish(&volume.id, NODE)).await)?;

        lab.kill(&leader)?;
        // The next leader knows nothing at first, and then of the holder.
        eventually("the holder's name", async || {
            expect_held(csi.unpublish(unpublish(&volume.id, NODE)).await)
        })
        .await?;
        ensure!(is_connected(lab, &volume), "it was cut under its holder");
        lab.start_again(&leader).await?;

        // Killed again, with the order or the proof under way.
        release(lab, &volume)?;
        let asked = {
            let (csi, id) = (csi.clone(), volume.id.clone());
            tokio::spawn(async move { csi.unpublish(unpublish(&id, NODE)).await })
        };
        let leader = lab.leader_name().await?;
        lab.kill(&leader)?;
        // Whatever it answered, it may have been the one before the end.
        let _ = asked.await?;
        eventually("the detach", async || {
            let csi = lab.csi(&lab.leader_name().await?)?;
            csi.unpublish(unpublish(&volume.id, NODE)).await.context("not yet").map(drop)
        })
        .await?;
        ensure!(!is_connected(lab, &volume), "OK, and still connected");
        lab.start_again(&leader).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_the_ledger_does_not_have_keeps_its_volume() -> Result<()> {
    Lab::tell(async |lab| {
        let csi = lab.csi(&lab.leader_name().await?)?;
        let volume = volume(&csi, "stray").await?;
        wait_for_session(lab).await?;
        hold(lab, &volume)?;
        fs::write(file(lab, "connected", &volume), "nqn = \"n\"\naddress = \"a\"\nsize_bytes = 4096\n")?;
        let leader = lab.leader_name().await?;
        eventually("the leader to hear of it", async || {
            let log = fs::read_to_string(lab.log_path(&leader))?;
            ensure!(log.contains("connected on a node that has no attachment to it"), "not said");
            Ok(())
        })
        .await?;
        let refused = csi.delete(delete(&volume.id)).await;
        let names =
            |status: &Status| status.code() == Code::FailedPrecondition && status.message().contains(NODE);
        ensure!(refused.as_ref().is_err_and(names), "deleted while it is connected: {refused:?}");
        ensure!(is_connected(lab, &volume), "it was cut under its holder");

        release(lab, &volume)?;
        eventually("the cut", async || {
            ensure!(!is_connected(lab, &volume), "still connected");
            Ok(())
        })
        .await?;
        insist("delete", || csi.delete(delete(&volume.id))).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_speaks_for_itself_in_every_report() -> Result<()> {
    Lab::tell(async |lab| {
        wait_for_session(lab).await?;
        // Its plugin would take the session back.
        lab.kill(NODE)?;
        let settings: toml::Table = fs::read_to_string(lab.config_path(NODE))?.parse()?;
        let host_nqn = settings.get("host_nqn").and_then(toml::Value::as_str).context("a host NQN")?;
        let report = |node: &str, since_boot_ns| NodeReport {
            node_id: node.to_owned(),
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            host_nqn: host_nqn.to_owned(),
            since_boot_ns,
            ..Default::default()
        };
        let authority = Authority::open_or_create(&lab.certificates())?;
        let files = authority.files(&Owner::Node(NODE.to_owned()), NODE)?;
        let address = lab.address(&lab.leader_name().await?)?;
        let channel = tls_channel(&address, &authority.certificate(), Some(&files))?;
        let (sender, reports) = mpsc::channel(2);
        sender.send(report(NODE, u64::MAX - 1)).await?;
        let session = NodeGatewayClient::new(channel).session(ReceiverStream::new(reports)).await;
        let mut orders = session.context("as itself")?.into_inner();
        sender.send(report("node-b", u64::MAX)).await?;
        let answer = tokio::time::timeout(Duration::from_millis(NODE_MS), orders.message()).await?;
        let code = answer.as_ref().err().map(Status::code);
        ensure!(code == Some(Code::PermissionDenied), "it spoke for another: {answer:?}");
        lab.start_again(NODE).await
    })
    .await
}
