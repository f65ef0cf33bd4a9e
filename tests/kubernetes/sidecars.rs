//! The sidecars' leader election beside the driver's own: each of them is killed while it has work to do.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::cluster::{Cluster, NODES, RELEASE, path, took};
use crate::objects;

/// Longer than the chart's lease duration may a change of leader not take, in seconds: it, two retries, and a start.
const TAKE_OVER_S: f64 = 12.0;
const CLAIM: &str = "sidecars";

/// Tells it: of the attacher, the provisioner, the resizer.
pub(crate) async fn story(cluster: &mut Cluster) -> Result<()> {
    let volume = cluster.claim(&objects::disk(CLAIM)).await?;
    let dead = kill_leader(cluster, "attacher").await?;
    let begun = Instant::now();
    cluster.run_pod(&objects::pod("waits", NODES[2], &[CLAIM])).await?;
    cluster
        .eventually("the VolumeAttachment is there", async || cluster.attachment(&volume, NODES[2]).await)
        .await?;
    let pending = cluster.attachment(&volume, NODES[2]).await?;
    ensure!(pending["status"]["attached"] != true, "attached by nobody: {pending}");
    taken_over(cluster, "attacher", &dead, begun).await?;
    cluster.attached(&volume, NODES[2]).await?;
    cluster.say(&format!("the pending VolumeAttachment is attached {} after the kill", took(begun)));
    revive(cluster, &dead, "attacher").await?;

    let dead = kill_leader(cluster, "resizer").await?;
    let begun = Instant::now();
    let more = json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}});
    cluster.api.patch(&format!("{}/{CLAIM}", path("persistentvolumeclaims")), &more).await?;
    taken_over(cluster, "resizer", &dead, begun).await?;
    cluster
        .eventually("the claim grows", async || {
            let found = cluster.api.get(&format!("/api/v1/persistentvolumes/{volume}")).await?;
            ensure!(found["spec"]["capacity"]["storage"] == "3Gi", "{}", found["spec"]["capacity"]);
            Ok(())
        })
        .await?;
    cluster.say(&format!("the claim is grown {} after the kill", took(begun)));
    revive(cluster, &dead, "resizer").await?;

    cluster.api.delete(&format!("{}/waits", path("pods"))).await?;
    cluster.detached(&volume, NODES[2]).await?;
    let dead = kill_leader(cluster, "provisioner").await?;
    let begun = Instant::now();
    cluster.api.create(&objects::disk("made-later"), false).await?.accepted()?;
    taken_over(cluster, "provisioner", &dead, begun).await?;
    let other = cluster.bound("made-later").await?;
    cluster.say(&format!("a claim is bound {} after the kill", took(begun)));
    revive(cluster, &dead, "provisioner").await?;
    cluster.delete_claim("made-later", &other).await?;
    cluster.delete_claim(CLAIM, &volume).await
}

/// Who holds the sidecar's lease: the name of a pod, as its host name.
async fn holder(cluster: &Cluster, sidecar: &str) -> Result<String> {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{RELEASE}/leases");
    let leases = cluster.api.list(&path).await?;
    // The provisioner's lease has the driver's name alone.
    let prefix = match sidecar {
        "provisioner" => "rds-csi-".to_owned(),
        other => format!("external-{other}-"),
    };
    let is_it = |name: &str| name.starts_with(&prefix);
    let lease = leases.iter().find(|lease| lease["metadata"]["name"].as_str().is_some_and(is_it));
    let names = || leases.iter().map(|lease| lease["metadata"]["name"].to_string()).collect::<Vec<_>>();
    let lease = lease.with_context(|| format!("no lease of the {sidecar} among {:?}", names()))?;
    let holder = lease["spec"]["holderIdentity"].as_str().context("nobody holds it")?;
    let pod = Cluster::controllers().into_iter().find(|pod| holder.contains(pod.as_str()));
    pod.with_context(|| format!("{holder} is no pod"))
}

/// SIGKILL to the sidecar that leads; its pod.
async fn kill_leader(cluster: &mut Cluster, sidecar: &str) -> Result<String> {
    let pod = holder(cluster, sidecar).await?;
    cluster.kubelet.kill(&pod, sidecar)?;
    cluster.say(&format!("kill -9 of the {sidecar} that leads, in {pod}"));
    Ok(pod)
}

/// Waits until another one leads; fails if that took too long.
async fn taken_over(cluster: &Cluster, sidecar: &str, dead: &str, begun: Instant) -> Result<()> {
    let next = cluster
        .eventually(&format!("another {sidecar} leads"), async || {
            let next = holder(cluster, sidecar).await?;
            ensure!(next != dead, "still {dead}");
            Ok(next)
        })
        .await?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(seconds < TAKE_OVER_S, "the {sidecar}'s lease was taken after {seconds:.1} s");
    cluster.say(&format!("the {sidecar} in {next} leads {} after the kill", took(begun)));
    Ok(())
}

async fn revive(cluster: &mut Cluster, pod: &str, sidecar: &str) -> Result<()> {
    cluster.kubelet.start_again(pod, sidecar)?;
    cluster.wait_for_probe(pod, sidecar, "livenessProbe").await
}
