//! csi-sanity against a cluster of real processes, with real loop devices, file systems and mounts: as root.
//!
//! The Controller service is reached once through the leader's socket and once through a follower's, the Node
//! service at a node's own; each for file systems and for block volumes. No spec is skipped by us: the report is
//! read, and a spec that was skipped for another reason than a capability that the driver does not claim fails
//! the test. Afterwards nothing may be left: no disk, no file, no loop device, no mount.

mod leftovers;

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use rds_csi::dev::{Cluster, Fabric};
use tests::sanity::{self, Sanity};
use tests::{Lab, tools};

use leftovers::Leftovers;

/// The node whose socket is used.
const NODE: &str = "node-a";

/// How many volumes that node takes: small, since csi-sanity fills it up.
const MAX_VOLUMES: u32 = 6;

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

async fn run(access_type: &'static str, through: Through) -> Result<()> {
    // What is mounted and attached belongs to the processes' own user.
    ensure!(
        fs::metadata("/proc/self")?.uid() == 0,
        "loop devices and mounts need root: run tests/all as root"
    );
    let program = tools::csi_sanity()?;
    Lab::tell_on(Cluster::builder().fabric(Fabric::Loop), async |lab| {
        limit_volumes(lab).await?;
        let leftovers = Leftovers::below(lab.directory());
        let controller = match through {
            Through::Leader => lab.leader_name().await?,
            Through::Follower => lab.follower_name().await?,
        };
        let advertised = sanity::advertised(
            lab.csi_identity(&controller)?,
            lab.csi_controller(&controller)?,
            lab.csi_node(NODE)?,
        )
        .await?;
        let endpoint = |name: &str| format!("unix://{}", lab.csi_socket(name).display());
        let sanity = Sanity {
            program,
            node: endpoint(NODE),
            controller: endpoint(&controller),
            access_type,
            paths: lab.directory().to_owned(),
            directory: lab.directory().to_owned(),
            path_commands: None,
            limit_s: RUN_LIMIT_S,
        };
        let report = sanity.run().await?;
        println!(
            "csi-sanity, {access_type} through the {through:?}: {} passed, {} failed, skipped: {:?}",
            report.passed.len(),
            report.failed.len(),
            report.skipped
        );
        report.expect_good(&advertised)?;
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
