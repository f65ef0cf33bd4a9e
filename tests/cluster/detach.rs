//! A person takes a volume from a node that is off, with `rds-csi ctl` as people type it.

use std::process::{Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tests::requests::{MIB, create, insist, publish, unpublish, volume_id};
use tests::{Lab, tools};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tonic::Code;

const NODE: &str = "node-a";

/// `rds-csi ctl`, with `typed` at its standard input.
async fn ctl(lab: &Lab, arguments: &[&str], typed: &str) -> Result<Output> {
    let mut child = Command::new(tools::rds_csi()?)
        .arg("ctl")
        .arg("--config")
        .arg(lab.operator_access())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("start ctl")?;
    let mut stdin = child.stdin.take().context("its standard input")?;
    // It may have ended without reading.
    let _ = stdin.write_all(typed.as_bytes()).await;
    drop(stdin);
    child.wait_with_output().await.context("ctl")
}

async fn holders(lab: &Lab) -> Result<Vec<String>> {
    let volumes = lab.ledger().await?;
    let attachments = volumes.iter().flat_map(|volume| &volume.attachments);
    Ok(attachments.map(|attachment| attachment.node_id.clone()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_taken_from_a_node_only_on_a_confirmed_word_that_is_recorded() -> Result<()> {
    Lab::tell(async |lab| {
        let csi = lab.csi("controller-1")?;
        let id = volume_id(insist("create", || csi.create(create("detached", MIB))).await?);
        insist("publish", || csi.publish(publish(&id, NODE))).await?;

        let refused = ctl(lab, &["detach", &id, NODE], "").await?;
        let said = String::from_utf8_lossy(&refused.stderr);
        ensure!(refused.status.code() == Some(1) && said.contains("--node-is-off"), "{refused:?}");
        for typed in ["", "yes\n", "node-b\n"] {
            let refused = ctl(lab, &["detach", &id, NODE, "--node-is-off"], typed).await?;
            let said = String::from_utf8_lossy(&refused.stderr);
            ensure!(refused.status.code() == Some(2) && said.contains("still runs"), "{refused:?}");
        }
        ensure!(holders(lab).await? == [NODE], "a refusal took it");

        let done = ctl(lab, &["detach", &id, NODE, "--node-is-off"], "node-a\n").await?;
        ensure!(done.status.success() && holders(lab).await?.is_empty(), "{done:?}");
        let again = ctl(lab, &["detach", &id, NODE, "--node-is-off", "--yes"], "").await?;
        let said = String::from_utf8_lossy(&again.stdout);
        ensure!(again.status.success() && said.contains("nothing was changed"), "{again:?}");

        let Err(status) = csi.publish(publish(&id, NODE)).await else {
            bail!("attached before an unpublish")
        };
        ensure!(status.code() == Code::FailedPrecondition, "{status:?}");
        insist("publish elsewhere", || csi.publish(publish(&id, "node-b"))).await?;
        insist("unpublish", || csi.unpublish(unpublish(&id, NODE))).await?;
        insist("publish once more", || csi.publish(publish(&id, NODE))).await?;

        let shown = ctl(lab, &["volume", &id, "--history", "-o", "json"], "").await?;
        let shown: Value = serde_json::from_slice(&shown.stdout).context("JSON")?;
        let history = shown["history"].as_array().context("a history")?;
        let detached = history.iter().find(|record| record["fact"] == "Detached").context("Detached")?;
        let detail = detached["detail"].as_str().unwrap_or_default();
        ensure!(detached["node_id"] == NODE && detail.starts_with("operator "), "{history:?}");
        let table = ctl(lab, &["volume", &id, "--history"], "").await?;
        let table = String::from_utf8_lossy(&table.stdout).into_owned();
        ensure!(table.contains("MigrationStarted") && table.contains("says that the node is off"), "{table}");
        println!("{table}");
        let migrations = ctl(lab, &["migrations"], "").await?;
        println!("{}", String::from_utf8_lossy(&migrations.stdout));
        Ok(())
    })
    .await
}
