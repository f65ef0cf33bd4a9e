//! `rds-csi certificates` against a simulated API server, and a cluster that lives on what it made.

use std::fs;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rds_csi::dev::Cluster;
use serde_json::{Value, json};
use tests::kubernetes::SimulatedApiServer;
use tests::requests::{MIB, create, insist};
use tests::{Lab, tools};
use tokio::process::Command;

const CA: &str = "rds-csi-ca";
const CONTROLLERS: &str = "rds-csi-controller-tls";
const OPERATOR: &str = "rds-csi-operator-tls";
const NODES: &str = "rds-csi-node-ca";

/// How long after the program's start a webhook configuration comes that it waits for.
const COMES_LATER: Duration = Duration::from_secs(2);

/// Runs it; `controller` is the StatefulSet of the cluster's `controller-0` to `controller-2`.
async fn run(server: &SimulatedApiServer, more: &[&str]) -> Result<Output> {
    let mut command = Command::new(tools::rds_csi()?);
    command.args(["certificates", "--simulated-api-server", &server.url(), "--namespace", "storage"]);
    command.args(["--ca-secret", CA, "--controller-secret", CONTROLLERS, "--operator-secret", OPERATOR]);
    command
        .args(["--node-secret", NODES, "--replicas", "controller", "--dns", "rds-csi.storage.svc"])
        .args(more);
    let output = command.kill_on_drop(true).output().await.context("start rds-csi")?;
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

fn secret(server: &SimulatedApiServer, name: &str) -> Result<Value> {
    server.object("/api/v1/secrets", "storage", name).with_context(|| format!("no Secret {name}"))
}

fn file(secret: &Value, key: &str) -> Result<String> {
    let text = secret["data"][key].as_str().with_context(|| format!("no {key}"))?;
    Ok(String::from_utf8(BASE64_STANDARD.decode(text)?)?)
}

/// Fails if the lines of a key are in what was printed.
fn expect_no_key(server: &SimulatedApiServer, output: &Output) -> Result<()> {
    let said = [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy).concat();
    for name in [CA, CONTROLLERS, OPERATOR] {
        for line in file(&secret(server, name)?, "tls.key")?.lines() {
            ensure!(!said.contains(line), "a key of {name} was printed");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_made_once_and_kept() -> Result<()> {
    let server = SimulatedApiServer::start([]).await?;
    // Somebody else is there in between, once.
    server.refuse_writes(1);
    let first = run(&server, &[]).await?;
    ensure!(first.status.success(), "{}", first.status);
    expect_no_key(&server, &first)?;
    let all = || -> Result<Vec<Value>> {
        [CA, CONTROLLERS, OPERATOR, NODES].map(|name| secret(&server, name)).into_iter().collect()
    };
    let made = all()?;
    for secret in &made {
        ensure!(secret["type"] == "kubernetes.io/tls", "{}", secret["type"]);
        ensure!(file(secret, "ca.crt")? == file(&made[0], "tls.crt")?, "all believe the authority");
    }
    ensure!(file(&made[3], "tls.key")?.is_empty(), "nodes have a key that is not theirs");
    ensure!(run(&server, &[]).await?.status.success() && all()? == made, "a second run changes nothing");

    // Other names: the controllers' certificate alone is made anew.
    let other = run(&server, &["--dns", "another.storage.svc"]).await?;
    let after = all()?;
    ensure!(
        other.status.success() && after[0] == made[0] && after[2..] == made[2..],
        "only one had to change"
    );
    ensure!(file(&after[1], "tls.key")? != file(&made[1], "tls.key")?, "the same key");
    expect_no_key(&server, &other)?;

    // What is no authority of ours is left as it is, and nothing is made without one.
    let mut foreign = secret(&server, CA)?;
    foreign["data"]["tls.key"] = secret(&server, OPERATOR)?["data"]["tls.key"].clone();
    server.put([foreign.clone()]);
    let refused = run(&server, &["--dns", "third.storage.svc"]).await?;
    ensure!(refused.status.code() == Some(1), "{}", refused.status);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(said.contains("Secret rds-csi-ca") && said.contains("not the key of tls.crt"), "{said}");
    ensure!(
        secret(&server, CA)?["data"] == foreign["data"] && secret(&server, CONTROLLERS)? == after[1],
        "written"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_are_told_whom_to_believe() -> Result<()> {
    let webhook = |name: &str| {
        json!({"name": name, "clientConfig": {"service": {"namespace": "storage", "name": "rds-csi"}},
               "sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": "Ignore"})
    };
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "rds-csi-hotplug"}, "webhooks": [webhook("a.example"), webhook("b.example")]
    });
    let server = SimulatedApiServer::start([]).await?;
    let missing = run(&server, &["--webhook", "rds-csi-hotplug", "--wait", "1"]).await?;
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    ensure!(
        missing.status.code() == Some(1) && said.contains("no webhook configuration rds-csi-hotplug"),
        "{said}"
    );
    // It comes while it is waited for.
    let (told, ()) = tokio::join!(run(&server, &["--webhook", "rds-csi-hotplug", "--wait", "5"]), async {
        tokio::time::sleep(COMES_LATER).await;
        server.put([configuration]);
    });
    let output = told?;
    ensure!(output.status.success(), "{}", output.status);
    ensure!(String::from_utf8_lossy(&output.stdout).contains("rds-csi-hotplug: 2 webhooks"), "{output:?}");
    let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    let told = || server.object(path, "", "rds-csi-hotplug").context("it is gone");
    let after = told()?;
    for (index, name) in ["a.example", "b.example"].into_iter().enumerate() {
        let mut expected = webhook(name);
        expected["clientConfig"]["caBundle"] = secret(&server, CA)?["data"]["tls.crt"].clone();
        ensure!(after["webhooks"][index] == expected, "{after}");
    }
    run(&server, &["--webhook", "rds-csi-hotplug", "--wait", "1"]).await?;
    ensure!(told()? == after, "written again without need");
    Ok(())
}

/// Three pods share one Secret, as a StatefulSet's do; one of them has lost its disk and joins under its own name.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_lives_on_them() -> Result<()> {
    let server = SimulatedApiServer::start([]).await?;
    ensure!(run(&server, &[]).await?.status.success());
    Lab::tell_on(Cluster::builder().nodes(0), async |lab| {
        let names = lab.controllers();
        for name in &names {
            lab.terminate(name).await?;
        }
        let directory = lab.certificates();
        let (controllers, operator) = (secret(&server, CONTROLLERS)?, secret(&server, OPERATOR)?);
        fs::write(directory.join("ca.pem"), file(&controllers, "ca.crt")?)?;
        let stems = names.iter().map(|name| (name.as_str(), &controllers)).chain([("operator", &operator)]);
        for (stem, secret) in stems {
            fs::write(directory.join(format!("{stem}.pem")), file(secret, "tls.crt")?)?;
            fs::write(directory.join(format!("{stem}.key")), file(secret, "tls.key")?)?;
        }
        lab.wipe(&names[0])?;
        for name in &names {
            lab.start(name)?;
        }
        for name in &names {
            lab.wait_until_ready(name).await?;
        }
        let csi = lab.csi(&names[0])?;
        insist("create", || csi.create(create("signed", MIB))).await?;
        Ok(())
    })
    .await
}
