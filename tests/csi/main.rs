//! csi-sanity against a cluster of real processes, with real loop devices, file systems and mounts: as root.
//!
//! The Controller service is reached once through the leader's socket and once through a follower's, the Node
//! service at a node's own; each for file systems and for block volumes. No spec is skipped by us: the report is
//! read, and a spec that was skipped for another reason than a capability that the driver does not claim fails
//! the test. Afterwards nothing may be left: no disk, no file, no loop device, no mount.

mod leftovers;
mod report;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::csi::v1::controller_service_capability::Type as ControllerCapability;
use proto::csi::v1::node_service_capability::Type as NodeCapability;
use proto::csi::v1::plugin_capability::Type as PluginCapability;
use proto::csi::v1::{
    ControllerGetCapabilitiesRequest, GetPluginCapabilitiesRequest, NodeGetCapabilitiesRequest,
};
use rds_csi::dev::{Cluster, Fabric};
use tests::{Lab, tools};
use tokio::process::Command;
use tokio::time::timeout;

use leftovers::Leftovers;
use report::{Capability, Report};

/// The node whose socket is used.
const NODE: &str = "node-a";

/// How many volumes that node takes: small, since csi-sanity fills it up.
const MAX_VOLUMES: u32 = 6;

/// Size of csi-sanity's volumes, in bytes.
const VOLUME_BYTES: u64 = 64 << 20;

/// Size of its grown volumes, in bytes.
const EXPANDED_BYTES: u64 = 96 << 20;

/// How long one run may take, in seconds.
const RUN_LIMIT_S: u64 = 300;

/// Whose controller socket csi-sanity talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Through {
    Leader,
    Follower,
}

#[tokio::test(flavor = "multi_thread")]
async fn mount_through_the_leader() -> Result<()> {
    run("mount", Through::Leader).await
}

#[tokio::test(flavor = "multi_thread")]
async fn mount_through_a_follower() -> Result<()> {
    run("mount", Through::Follower).await
}

#[tokio::test(flavor = "multi_thread")]
async fn block_through_the_leader() -> Result<()> {
    run("block", Through::Leader).await
}

#[tokio::test(flavor = "multi_thread")]
async fn block_through_a_follower() -> Result<()> {
    run("block", Through::Follower).await
}

async fn run(access_type: &str, through: Through) -> Result<()> {
    // What is mounted and attached belongs to the processes' own user.
    ensure!(
        fs::metadata("/proc/self")?.uid() == 0,
        "loop devices and mounts need root: run tests/all as root"
    );
    let sanity = tools::csi_sanity()?;
    Lab::tell_on(Cluster::builder().fabric(Fabric::Loop), async |lab| {
        limit_volumes(lab).await?;
        let leftovers = Leftovers::below(lab.directory());
        let controller = match through {
            Through::Leader => lab.leader_name().await?,
            Through::Follower => lab.follower_name().await?,
        };
        let advertised = advertised(lab, &controller).await?;
        let report = run_sanity(&sanity, lab, &controller, access_type).await?;
        println!(
            "csi-sanity, {access_type} through the {through:?}: {} passed, {} failed, skipped: {:?}",
            report.passed.len(),
            report.failed.len(),
            report.skipped
        );
        ensure!(report.failed.is_empty(), "failed:\n{}", report.failed.join("\n"));
        let wrong = report::wrongly_skipped(&report.skipped, &advertised);
        ensure!(wrong.is_empty(), "skipped although no capability says so: {wrong:?}");
        ensure!(lab.appliance()?.is_empty(), "left on the appliance: {:?}", lab.appliance()?);
        leftovers.expect_none()
    })
    .await
}

/// Gives the node a limit of volumes, which csi-sanity then tries out.
async fn limit_volumes(lab: &mut Lab) -> Result<()> {
    let path = lab.config_path(NODE);
    let settings = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    fs::write(&path, format!("max_volumes = {MAX_VOLUMES}\n{settings}"))
        .with_context(|| format!("write {}", path.display()))?;
    lab.terminate(NODE).await?;
    lab.start_again(NODE).await
}

/// Every capability that the driver claims.
async fn advertised(lab: &Lab, controller: &str) -> Result<BTreeSet<Capability>> {
    let mut found = BTreeSet::new();
    let plugin =
        lab.csi_identity(controller)?.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await?;
    for capability in plugin.into_inner().capabilities {
        if let Some(PluginCapability::Service(service)) = capability.r#type {
            found.insert(Capability::Plugin(service.r#type));
        }
    }
    let request = ControllerGetCapabilitiesRequest {};
    let controller = lab.csi_controller(controller)?.controller_get_capabilities(request).await?;
    for capability in controller.into_inner().capabilities {
        if let Some(ControllerCapability::Rpc(rpc)) = capability.r#type {
            found.insert(Capability::Controller(rpc.r#type));
        }
    }
    let node = lab.csi_node(NODE)?.node_get_capabilities(NodeGetCapabilitiesRequest {}).await?;
    for capability in node.into_inner().capabilities {
        if let Some(NodeCapability::Rpc(rpc)) = capability.r#type {
            found.insert(Capability::Node(rpc.r#type));
        }
    }
    ensure!(found.len() > 10, "the driver claims only {found:?}");
    Ok(found)
}

async fn run_sanity(sanity: &Path, lab: &Lab, controller: &str, access_type: &str) -> Result<Report> {
    let directory = lab.directory();
    let report = directory.join("csi-sanity.json");
    let endpoint = |name: &str| format!("unix://{}", lab.csi_socket(name).display());
    let child = Command::new(sanity)
        .arg("--csi.endpoint")
        .arg(endpoint(NODE))
        .arg("--csi.controllerendpoint")
        .arg(endpoint(controller))
        .arg("--csi.mountdir")
        .arg(directory.join("mount"))
        .arg("--csi.stagingdir")
        .arg(directory.join("staging"))
        .arg("--csi.testvolumeaccesstype")
        .arg(access_type)
        .arg("--csi.testvolumesize")
        .arg(VOLUME_BYTES.to_string())
        .arg("--csi.testvolumeexpandsize")
        .arg(EXPANDED_BYTES.to_string())
        .arg("--csi.testnodevolumeattachlimit")
        .arg("--ginkgo.json-report")
        .arg(&report)
        .arg("--ginkgo.no-color")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .context("start csi-sanity")?;
    let output = timeout(Duration::from_secs(RUN_LIMIT_S), child.wait_with_output())
        .await
        .with_context(|| format!("csi-sanity ran for more than {RUN_LIMIT_S} s"))?
        .context("wait for csi-sanity")?;
    // The summary, and above it what failed and why.
    println!("{}", String::from_utf8_lossy(&output.stdout));
    let text = fs::read_to_string(&report)
        .with_context(|| format!("csi-sanity ({}) wrote no report", output.status))?;
    let report = Report::parse(&text)?;
    ensure!(
        output.status.success() == report.failed.is_empty(),
        "csi-sanity: {}, {:?}",
        output.status,
        report.failed
    );
    Ok(report)
}
