//! Certificates and their authority are replaced under a running cluster: nobody restarts, nobody is lost.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use proto::operator::v1::StatusRequest;
use proto::operator::v1::operator_client::OperatorClient;
use rds_csi::certificates::{Authority, Owner};
use tests::requests::{MIB, create, eventually, insist, publish, unpublish, volume_id};
use tests::{Lab, tls_channel};

use crate::sessions::wait_for_metric;

/// What a process logs once it uses other files than before.
const TAKEN: &str = "certificates were replaced";

/// How often each process has taken new files.
fn taken(lab: &Lab, name: &str) -> Result<usize> {
    Ok(fs::read_to_string(lab.log_path(name))?.matches(TAKEN).count())
}

/// Waits until every process has taken new files so many times.
async fn until_all_took(lab: &Lab, times: usize) -> Result<()> {
    for name in lab.controllers().into_iter().chain(lab.nodes()) {
        eventually("new certificates are taken", async || {
            let taken = taken(lab, &name)?;
            ensure!(taken >= times, "{name} has taken {taken} times, expected {times}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

fn replace(made: &Path, used: &Path) -> Result<()> {
    // As a whole, so that nobody reads half of it.
    let beside = used.with_extension("new");
    fs::copy(made, &beside)?;
    fs::rename(&beside, used).with_context(|| format!("replace {}", used.display()))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_is_replaced_under_a_running_cluster() -> Result<()> {
    Lab::tell(async |lab| {
        let csi = lab.csi(&lab.follower_name().await?)?;
        let id = volume_id(insist("create", || csi.create(create("rotated", MIB))).await?);
        let used = lab.certificates();
        let old = Authority::open_or_create(&used)?;
        let old_ca = fs::read_to_string(old.certificate())?;
        let early = old.files(&Owner::Operator("early".to_owned()), "early")?;
        let elsewhere = tempfile::tempdir()?;
        let new = Authority::open_or_create(elsewhere.path())?;
        let new_ca = fs::read_to_string(new.certificate())?;
        let ca = used.join("ca.pem");

        fs::write(&ca, format!("{old_ca}{new_ca}"))?;
        until_all_took(lab, 1).await?;
        let mut owners: Vec<(String, Owner)> =
            lab.controllers().into_iter().map(|name| (name.clone(), Owner::Replica(name))).collect();
        owners.extend(lab.nodes().into_iter().map(|name| (name.clone(), Owner::Node(name))));
        owners.push(("operator".to_owned(), Owner::Operator("dev".to_owned())));
        for (stem, owner) in &owners {
            let made = new.files(owner, stem)?;
            replace(&made.cert, &used.join(format!("{stem}.pem")))?;
            replace(&made.key, &used.join(format!("{stem}.key")))?;
        }
        until_all_took(lab, 2).await?;
        fs::write(&ca, &new_ca)?;
        until_all_took(lab, 3).await?;

        // Nobody is let in any more whom the old one signed, and nobody is lost whom the new one signed.
        for name in lab.controllers() {
            let line = tls_channel(&lab.address(&name)?, &ca, Some(&early))?;
            let mut asked = OperatorClient::new(line);
            let answer = asked.status(StatusRequest {}).await;
            ensure!(answer.is_err(), "{name} still believes the old authority");
            lab.status(&name).await?;
        }
        insist("publish", || csi.publish(publish(&id, "node-a"))).await?;
        // Every line is made anew: between replicas, and from the nodes to the next leader.
        let leader = lab.leader_name().await?;
        lab.kill(&leader)?;
        lab.start_again(&leader).await?;
        for node in lab.nodes() {
            wait_for_metric(lab, &node, "rds_csi_node_session_connected 1").await?;
        }
        insist("unpublish", || csi.unpublish(unpublish(&id, "node-a"))).await?;
        let metrics = lab.metrics(&leader).await?;
        for role in ["replica", "ca"] {
            let line = format!("rds_csi_certificate_expiry_timestamp_seconds{{role=\"{role}\"}} ");
            ensure!(metrics.contains(&line), "{line} is not in {metrics}");
        }
        Ok(())
    })
    .await
}
