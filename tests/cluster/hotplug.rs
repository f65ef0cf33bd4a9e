//! The hotplug webhook of real controllers: a denial at one replica is to be seen at all; the API server is simulated.

use std::fs;

use anyhow::{Context, Result, ensure};
use proto::operator::v1::{HotplugHold, ListHotplugHoldsRequest};
use rds_csi::http::Line;
use serde_json::Value;
use tests::kubernetes::{SimulatedApiServer, watch_simulated};
use tests::requests::eventually;
use tests::{Lab, SERVER_NAME};
use tonic::Code;

use crate::sessions::wait_for_metric;

const OBJECTS: [&str; 2] = [
    include_str!("../../src/kube/tests/recorded/nodes.json"),
    include_str!("../../src/kube/tests/recorded/hotplug.json"),
];
const REVIEW: &str = include_str!("../../src/kube/tests/recorded/review-delete.json");
const POD: &str = "hp-volume-4mzxk";

/// Where the controller's webhook is, as its log says.
fn webhook_address(lab: &Lab, name: &str) -> Result<String> {
    let log = fs::read_to_string(lab.log_path(name))?;
    let line =
        log.lines().rfind(|line| line.contains("the hotplug webhook is served")).context("no webhook")?;
    let port = line.rsplit("127.0.0.1:").next().context("no address")?;
    let port: String = port.chars().take_while(char::is_ascii_digit).collect();
    Ok(format!("127.0.0.1:{port}"))
}

/// The review of the old pod's deletion, with the pod as the API server has it.
fn review(server: &SimulatedApiServer) -> Result<Value> {
    let mut review: Value = serde_json::from_str(REVIEW)?;
    let mut pods = server.pods().into_iter();
    let pod = pods.find(|pod| pod["metadata"]["name"] == POD);
    review["request"]["oldObject"] = pod.context("the pod is gone")?;
    Ok(review)
}

/// The response of the controller's webhook.
async fn ask(lab: &Lab, name: &str, review: &Value) -> Result<Value> {
    let authority = lab.certificates().join("ca.pem");
    let address = webhook_address(lab, name)?;
    let mut line = Line::open_with_tls(&address, &authority, SERVER_NAME).await?;
    let answer = line.post("/hotplug/delete", review.to_string().as_bytes()).await?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    Ok(serde_json::from_slice::<Value>(&answer.body)?["response"].clone())
}

async fn holds(lab: &Lab, name: &str) -> Result<Vec<HotplugHold>> {
    let answer = lab.operator(name)?.list_hotplug_holds(ListHotplugHoldsRequest {}).await?;
    Ok(answer.into_inner().holds)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_is_seen_at_every_replica() -> Result<()> {
    Lab::tell(async |lab| {
        let names = lab.controllers();
        let off = lab.operator(&names[0])?.list_hotplug_holds(ListHotplugHoldsRequest {}).await;
        let off = off.err().context("listed, and there is no webhook")?;
        ensure!(off.code() == Code::FailedPrecondition && off.message().contains("[hotplug]"), "{off}");

        let mut objects = Vec::new();
        for text in OBJECTS {
            objects.extend(serde_json::from_str::<Vec<Value>>(text)?);
        }
        let server = SimulatedApiServer::start(objects).await?;
        watch_simulated(lab, &server, "[hotplug]\nlisten = \"127.0.0.1:0\"\n").await?;

        let first = lab.follower_name().await?;
        // Until its watches are complete it allows.
        let denied = eventually("the denial", async || {
            let answer = ask(lab, &first, &review(&server)?).await?;
            ensure!(answer["allowed"] == false, "{answer}");
            Ok(answer)
        })
        .await?;
        ensure!(denied["status"]["code"] == 409, "{denied}");
        let message = denied["status"]["message"].as_str().unwrap_or_default();
        ensure!(message.contains("data, logs") && !message.contains("alone"), "{message}");

        let mut seen = Vec::new();
        for name in &names {
            let hold = eventually("the hold", async || {
                let holds = holds(lab, name).await?;
                ensure!(holds.len() == 1, "{holds:?}");
                holds.into_iter().next().context("none")
            });
            let hold = hold.await?;
            ensure!(hold.pod == POD && hold.vmi == "db" && hold.reason == "LastHolder", "{hold:?}");
            seen.push(hold.since_unix_ms);
        }
        ensure!(seen.windows(2).all(|pair| pair.first() == pair.last()), "since {seen:?}");
        wait_for_metric(lab, &lab.leader_name().await?, "rds_csi_hotplug_held_pods 1").await?;
        wait_for_metric(lab, &first, "rds_csi_hotplug_held_pods 0").await?;
        wait_for_metric(lab, &first, "rds_csi_hotplug_longest_hold_seconds 0").await?;
        wait_for_metric(lab, &first, "rds_csi_hotplug_decisions_total{reason=\"HoldExpired\"} 0").await?;
        wait_for_metric(lab, &first, "rds_csi_hotplug_decisions_total{reason=\"LastHolder\"} 1").await
    })
    .await
}
