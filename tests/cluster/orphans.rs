//! What is on the appliance and nobody's: shown, aged, and removed only where it is this installation's.
//!
//! The appliance is the simulator; another installation, with a fence of its own, makes volumes on it beside ours.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use backend::{Backend, DiskSpec, RouterOs, RouterOsConfig};
use serde_json::Value;
use state_machine::{AppliancePath, ByteSize, Nqn, VolumeId, VolumeName};
use tests::kubernetes::objects::bound_claim;
use tests::kubernetes::{SimulatedApiServer, watch_simulated};
use tests::requests::{MIB, create, eventually, insist};
use tests::{Lab, tools};
use tokio::process::Command;
use tonic::Code;

/// Where volumes are whose class does not say.
const SHARED: &str = "/storage-pool/rds-csi";
/// Where nobody else has any.
const EXCLUSIVE: &str = "/storage-pool/only-ours";
/// More than the simulated pool has, in bytes.
const TOO_LARGE: i64 = 9 << 40;
const SETTINGS: &str = "
[orphans]
enabled = true
dry_run = true
interval_seconds = 1
grace_seconds = 1
exclusive_volume_paths = [\"/storage-pool/only-ours\"]
";

const THEIRS: &str = "pvc-00000000-0000-4000-8000-000000000001";
const LOST: &str = "pvc-00000000-0000-4000-8000-000000000002";
const BOUND: &str = "pvc-00000000-0000-4000-8000-000000000003";
const CONNECTED: &str = "pvc-00000000-0000-4000-8000-000000000004";
const NODE: &str = "node-a";

/// Another installation on the same appliance.
async fn another_installation(lab: &Lab) -> Result<RouterOs> {
    let settings: toml::Table = fs::read_to_string(lab.config_path("controller-1"))?.parse()?;
    let section = settings.get("appliance").context("the appliance")?.clone();
    let config = RouterOsConfig { fence_name: "another-installation".to_owned(), ..section.try_into()? };
    let backend = RouterOs::new(config)?;
    backend.begin_term(1).await?;
    Ok(backend)
}

async fn make(backend: &RouterOs, id: &str, directory: &str) -> Result<()> {
    let volume = VolumeId::parse(id)?;
    let spec = DiskSpec {
        nqn: Nqn::of_volume(&Nqn::parse("nqn.2000-02.com.mikrotik")?, &volume)?,
        volume,
        directory: AppliancePath::parse(directory)?,
        size: ByteSize::exactly(1 << 20).context("a size")?,
        nvme_port: 4420,
    };
    Ok(backend.create(&spec).await?)
}

/// What `ctl orphans` says of each: the verdict and its reason.
async fn shown(lab: &Lab) -> Result<BTreeMap<String, (String, String)>> {
    let mut command = Command::new(tools::rds_csi()?);
    command.arg("ctl").arg("--config").arg(lab.operator_access()).args(["orphans", "-o", "json"]);
    let output = command.kill_on_drop(true).output().await.context("ctl")?;
    ensure!(output.status.success(), "{output:?}");
    let reply: Value = serde_json::from_slice(&output.stdout).context("JSON")?;
    let text = |orphan: &Value, key: &str| orphan[key].as_str().unwrap_or_default().to_owned();
    let orphans = reply["orphans"].as_array().context("orphans")?.iter();
    let row = |orphan| (text(orphan, "volume_id"), (text(orphan, "verdict"), text(orphan, "reason")));
    Ok(orphans.map(row).collect())
}

/// Has all controllers remove what they only spoke of.
async fn end_the_dry_run(lab: &mut Lab) -> Result<()> {
    for name in lab.controllers() {
        lab.terminate(&name).await?;
        let path = lab.config_path(&name);
        let settings = fs::read_to_string(&path)?;
        fs::write(&path, settings.replace("dry_run = true", "dry_run = false"))?;
    }
    for name in lab.controllers() {
        lab.start(&name)?;
    }
    for name in lab.controllers() {
        lab.wait_until_ready(&name).await?;
    }
    Ok(())
}

async fn slots(backend: &RouterOs) -> Result<Vec<String>> {
    Ok(backend.list().await?.into_iter().map(|disk| disk.volume.to_string()).collect())
}

/// How many orphans all controllers have removed, by their own counting.
async fn cleaned(lab: &Lab) -> Result<u64> {
    let mut sum = 0;
    for name in lab.controllers() {
        let text = lab.metrics(&name).await?;
        let value = text.lines().find_map(|line| line.strip_prefix("rds_csi_orphans_cleaned_total "));
        sum += value.context("the counter")?.parse::<u64>()?;
    }
    Ok(sum)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_our_own_orphans_are_removed_and_only_after_a_dry_run() -> Result<()> {
    Lab::tell(async |lab| {
        let server = SimulatedApiServer::start(bound_claim(BOUND, "bound")).await?;
        watch_simulated(lab, &server, SETTINGS).await?;
        let csi = lab.csi(&lab.follower_name().await?)?;
        for number in 0..4 {
            insist("create", || csi.create(create(&format!("live-{number}"), MIB))).await?;
        }
        let full = csi.create(create("given-up", TOO_LARGE)).await;
        ensure!(full.as_ref().is_err_and(|status| status.code() == Code::ResourceExhausted), "{full:?}");
        let given_up = VolumeId::for_name(&VolumeName::parse("given-up")?).to_string();

        let other = another_installation(lab).await?;
        for (id, directory) in [
            (given_up.as_str(), SHARED),
            (THEIRS, SHARED),
            (LOST, EXCLUSIVE),
            (BOUND, EXCLUSIVE),
            (CONNECTED, EXCLUSIVE),
        ] {
            make(&other, id, directory).await?;
        }
        let connection = format!(
            "nqn = \"nqn.2000-02.com.mikrotik:{CONNECTED}\"\naddress = \"127.0.0.1:4420\"\nsize_bytes = {MIB}\n"
        );
        fs::write(lab.state_directory(NODE).join("connected").join(CONNECTED), connection)?;
        let before = slots(&other).await?;
        eventually("the verdicts", async || {
            let shown = shown(lab).await?;
            ensure!(shown.keys().all(|id| id != BOUND) && shown.len() == 4, "{shown:?}");
            for (id, verdict, reason) in [
                (given_up.as_str(), "removable", "this ledger recorded its making"),
                (LOST, "removable", "declared exclusive"),
                (THEIRS, "kept", "another installation"),
                (CONNECTED, "kept", "connected on node-a"),
            ] {
                let (said, why) = shown.get(id).with_context(|| format!("{id} is not shown"))?;
                ensure!(said == verdict && why.contains(reason), "{id}: {said}, {why}");
            }
            Ok(())
        })
        .await?;
        eventually("the dry run", async || {
            let log = fs::read_to_string(lab.log_path(&lab.leader_name().await?))?;
            ensure!(log.contains("would be removed (dry run)"), "it says nothing");
            Ok(())
        })
        .await?;
        ensure!(slots(&other).await? == before && cleaned(lab).await? == 0, "the dry run touched something");

        end_the_dry_run(lab).await?;
        let expected: Vec<_> =
            before.iter().filter(|id| **id != given_up && id.as_str() != LOST).cloned().collect();
        eventually("the removal", async || {
            let left = slots(&other).await?;
            ensure!(left == expected, "{left:?}");
            ensure!(cleaned(lab).await? == 2, "{} counted", cleaned(lab).await?);
            Ok(())
        })
        .await?;
        let lone = other.lone_files(&AppliancePath::parse(EXCLUSIVE)?).await?;
        ensure!(lone.is_empty(), "files are left: {lone:?}");
        let shown = shown(lab).await?;
        ensure!(shown.len() == 2 && shown.contains_key(THEIRS) && shown.contains_key(CONNECTED), "{shown:?}");
        Ok(())
    })
    .await
}
