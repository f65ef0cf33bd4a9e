//! What Kubernetes shows decides who may have a volume, and people are told on the claim; the API server is simulated.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::operator::v1::{ListMigrationsRequest, Migration};
use rds_csi::dev::Cluster;
use serde_json::Value;
use tests::kubernetes::objects::{NAMESPACE, bound_claim, launcher, migration, vmi};
use tests::kubernetes::{SimulatedApiServer, watch_simulated};
use tests::requests::{MIB, create, eventually, insist, publish, unpublish, volume_id};
use tests::{Csi, Lab};
use tonic::{Code, Status};

use crate::sessions::wait_for_metric;

const SOURCE: &str = "node-a";
const TARGET: &str = "node-b";

/// Makes a volume whose class says this, bound to the claim of its name.
async fn volume(
    csi: &Csi,
    server: &SimulatedApiServer,
    claim: &str,
    class: &[(&str, &str)],
) -> Result<String> {
    let mut request = create(claim, MIB);
    request.parameters = class.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let id = volume_id(insist("create", || csi.create(request.clone())).await?);
    server.put(bound_claim(&id, claim));
    Ok(id)
}

/// The refusal of the target, once this replica has seen what it is refused for. Until then it is admitted, and the
/// target's own unpublish undoes that.
async fn refused_at_last(csi: &Csi, id: &str) -> Result<Status> {
    eventually("the refusal", async || match csi.publish(publish(id, TARGET)).await {
        Err(status) if status.code() == Code::FailedPrecondition => Ok(status),
        Err(status) => Err(status.into()),
        Ok(_) => {
            insist("unpublish", || csi.unpublish(unpublish(id, TARGET))).await?;
            anyhow::bail!("admitted")
        }
    })
    .await
}

/// The target is admitted, at the latest when this replica has seen that it may be.
async fn admitted_at_last(csi: &Csi, id: &str) -> Result<()> {
    eventually("the admission", async || Ok(csi.publish(publish(id, TARGET)).await.map(drop)?)).await
}

/// The events on the claim, by reason, in the order of the names that they have.
fn reasons(server: &SimulatedApiServer, claim: &str) -> Vec<String> {
    let of_claim = |event: &Value| event["involvedObject"]["name"] == claim;
    let events = server.events().into_iter().filter(of_claim);
    let mut reasons: Vec<_> =
        events.map(|event| event["reason"].as_str().unwrap_or_default().to_owned()).collect();
    reasons.sort();
    reasons
}

async fn running_migration(lab: &Lab, id: &str) -> Result<Migration> {
    let mut operator = lab.operator(&lab.leader_name().await?)?;
    let migrations = operator.list_migrations(ListMigrationsRequest {}).await?.into_inner().migrations;
    let running = migrations.into_iter().find(|found| found.volume_id == id && found.outcome.is_empty());
    running.with_context(|| format!("no migration of {id} runs"))
}

async fn attached_nodes(lab: &Lab, id: &str) -> Result<Vec<String>> {
    let ledger = lab.ledger().await?;
    let found = ledger.into_iter().find(|volume| volume.id == id).context("the volume")?;
    Ok(found.attachments.into_iter().map(|attachment| attachment.node_id).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_is_for_one_vm_that_migrates() -> Result<()> {
    Lab::tell(async |lab| {
        for name in lab.controllers() {
            let log = fs::read_to_string(lab.log_path(&name))?;
            ensure!(log.contains("Kubernetes is not watched"), "{name} does not say that it is without");
        }
        let server = SimulatedApiServer::start([]).await?;
        watch_simulated(lab, &server, "").await?;
        let csi = lab.csi(&lab.follower_name().await?)?;

        let shared = volume(&csi, &server, "shared", &[]).await?;
        server.put([
            launcher("virt-launcher-one", "one", SOURCE, &["shared"]),
            launcher("virt-launcher-two", "two", TARGET, &["shared"]),
        ]);
        let unchecked = volume(&csi, &server, "unchecked", &[("sameVmCheck", "false")]).await?;
        server.put([
            launcher("virt-launcher-three", "three", SOURCE, &["unchecked"]),
            launcher("virt-launcher-four", "four", TARGET, &["unchecked"]),
        ]);
        let long = volume(&csi, &server, "long", &[("migrationTimeoutSeconds", "900")]).await?;
        let large = volume(&csi, &server, "large", &[]).await?;
        server.put([
            launcher("virt-launcher-large-1", "large", SOURCE, &["large"]),
            launcher("virt-launcher-large-2", "large", TARGET, &["large"]),
            migration("large-vm", "Running"),
            vmi("large-vm", SOURCE, "16Gi", &["large"]),
            vmi("long-vm", SOURCE, "1Gi", &["long"]),
        ]);
        for id in [&shared, &unchecked, &long, &large] {
            insist("publish to the source", || csi.publish(publish(id, SOURCE))).await?;
        }

        let refused = refused_at_last(&csi, &shared).await?;
        for part in ["virt-launcher-one (VM one)", "virt-launcher-two (VM two)", SOURCE] {
            ensure!(refused.message().contains(part), "{part} is not in {refused}");
        }
        csi.publish(publish(&unchecked, TARGET)).await.context("the class wants no check")?;

        // A VM that was restarted elsewhere does not migrate.
        let refused = refused_at_last(&csi, &long).await?;
        ensure!(refused.message().contains("migrat"), "{refused}");
        csi.publish(publish(&large, TARGET)).await.context("one VM that migrates")?;
        server.put([migration("long-vm", "Pending")]);
        admitted_at_last(&csi, &long).await?;

        // 16 GiB are 18 of KubeVirt's units, 150 s each; 1 GiB are two, and the class allows more.
        for (id, timeout_ms) in [(&large, 2_700_000), (&long, 900_000)] {
            let migration = running_migration(lab, id).await?;
            ensure!(migration.timeout_ms == timeout_ms, "{migration:?}");
        }

        server.set_away(true);
        admitted_at_last(&csi, &shared).await.context("the API server is away")?;
        for id in [&large, &long] {
            csi.publish(publish(id, TARGET)).await.context("decided before")?;
            ensure!(attached_nodes(lab, id).await? == [SOURCE, TARGET], "changed by an outage");
            running_migration(lab, id).await.context("ended by an outage")?;
        }
        server.set_away(false);
        running_migration(lab, &shared).await?;
        insist("unpublish", || csi.unpublish(unpublish(&shared, TARGET))).await?;
        refused_at_last(&csi, &shared).await.context("the API server is back")?;

        // Refused many times, and by another replica.
        let other = lab.csi(&lab.leader_name().await?)?;
        refused_at_last(&other, &shared).await?;
        eventually("the event", async || {
            let found = reasons(&server, "shared");
            let conflicts = found.iter().filter(|reason| *reason == "AttachmentConflict").count();
            ensure!(conflicts == 1 && server.repeated_events() > 0, "{found:?}");
            Ok(())
        })
        .await
    })
    .await
}

/// How long after the publish the pod shows for which it is made.
const LATE: Duration = Duration::from_millis(400);

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_seen_late_is_waited_for() -> Result<()> {
    Lab::tell(async |lab| {
        let server = SimulatedApiServer::start([]).await?;
        watch_simulated(lab, &server, "").await?;
        let csi = lab.csi(&lab.follower_name().await?)?;
        let id = volume(&csi, &server, "late", &[]).await?;
        server.put([launcher("virt-launcher-one", "one", SOURCE, &["late"])]);
        insist("publish to the source", || csi.publish(publish(&id, SOURCE))).await?;

        let shows = async {
            tokio::time::sleep(LATE).await;
            server.put([launcher("virt-launcher-two", "two", TARGET, &["late"])]);
        };
        let (answer, ()) = tokio::join!(csi.publish(publish(&id, TARGET)), shows);
        let refused = answer.err().context("admitted beside another VM")?;
        ensure!(refused.message().contains("virt-launcher-two (VM two)"), "{refused}");
        ensure!(attached_nodes(lab, &id).await? == [SOURCE]);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_is_there_once_whoever_leads() -> Result<()> {
    Lab::tell_on(Cluster::builder().nodes(3), async |lab| {
        let server = SimulatedApiServer::start([]).await?;
        watch_simulated(lab, &server, "").await?;
        let csi = lab.csi(&lab.follower_name().await?)?;
        let id = volume(&csi, &server, "told", &[]).await?;

        insist("publish to the source", || csi.publish(publish(&id, SOURCE))).await?;
        kill_the_leader(lab).await?;
        eventually("VolumeAttached", async || {
            ensure!(reasons(&server, "told") == ["VolumeAttached"], "{:?}", reasons(&server, "told"));
            Ok(())
        })
        .await?;
        let csi = lab.csi(&lab.follower_name().await?)?;
        insist("publish to the target", || csi.publish(publish(&id, TARGET))).await?;
        eventually("the count", async || {
            let text = lab.metrics(&lab.leader_name().await?).await?;
            let line = "rds_csi_events_posted_total{reason=\"MigrationStarted\"} 1";
            ensure!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
            Ok(())
        })
        .await?;
        kill_the_leader(lab).await?;
        let csi = lab.csi(&lab.follower_name().await?)?;
        let third = eventually("the refusal of a third", async || {
            csi.publish(publish(&id, "node-c")).await.err().context("a third node")
        });
        let third = third.await?;
        ensure!(third.code() == Code::FailedPrecondition, "{third}");
        insist("unpublish from the source", || csi.unpublish(unpublish(&id, SOURCE))).await?;
        kill_the_leader(lab).await?;

        let mut expected = [
            "AttachmentConflict",
            "MigrationCompleted",
            "MigrationStarted",
            "VolumeAttached",
            "VolumeAttached",
            "VolumeDetached",
        ];
        expected.sort_unstable();
        eventually("all events", async || {
            ensure!(reasons(&server, "told") == expected, "{:?}", reasons(&server, "told"));
            Ok(())
        })
        .await?;
        let before = server.repeated_events();
        kill_the_leader(lab).await?;
        eventually("the next leader's telling", async || {
            ensure!(server.repeated_events() >= before + 5, "it told nothing");
            Ok(())
        })
        .await?;
        ensure!(reasons(&server, "told") == expected, "told twice: {:?}", reasons(&server, "told"));
        for event in server.events() {
            ensure!(event["metadata"]["namespace"] == NAMESPACE, "{event}");
            ensure!(event["involvedObject"]["uid"] == "uid-of-told", "{event}");
        }
        Ok(())
    })
    .await
}

async fn kill_the_leader(lab: &mut Lab) -> Result<()> {
    let leader = lab.leader_name().await?;
    lab.kill(&leader)?;
    eventually("the next leader", async || {
        ensure!(lab.leader_name().await? != leader, "still {leader}");
        Ok(())
    })
    .await?;
    lab.start_again(&leader).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_volumes_of_one_vm_are_attached_one_after_the_other() -> Result<()> {
    const DISKS: [&str; 4] = ["disk-0", "disk-1", "disk-2", "disk-3"];
    Lab::tell(async |lab| {
        let server = SimulatedApiServer::start([vmi("many", SOURCE, "1Gi", &DISKS)]).await?;
        watch_simulated(lab, &server, "one_publish_per_vm = true").await?;
        let name = lab.follower_name().await?;
        let csi = lab.csi(&name)?;
        let mut ids = Vec::new();
        for disk in DISKS {
            ids.push(volume(&csi, &server, disk, &[]).await?);
        }
        // Then it knows the last volume's VM, and so those of the others.
        let last = ids.last().context("no volume")?;
        insist("publish", || csi.publish(publish(last, SOURCE))).await?;
        refused_at_last(&csi, last).await?;
        insist("unpublish", || csi.unpublish(unpublish(last, SOURCE))).await?;

        let calls = ids.iter().map(|id| {
            let (csi, id) = (csi.clone(), id.clone());
            tokio::spawn(async move { csi.publish(publish(&id, SOURCE)).await })
        });
        for call in calls.collect::<Vec<_>>() {
            // One attempt each: whoever has to wait waits within it.
            call.await?.context("published at once with the others")?;
        }
        let log = fs::read_to_string(lab.log_path(&name))?;
        let waited = log.lines().filter(|line| line.contains("waits for another volume of its VM")).count();
        ensure!(waited >= DISKS.len() - 1, "only {waited} waits");
        wait_for_metric(lab, &lab.leader_name().await?, "rds_csi_sessions_active 2").await
    })
    .await
}
