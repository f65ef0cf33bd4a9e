//! csi-sanity while the leader is killed, again and again.
//!
//! csi-sanity puts no question twice, so it talks to a replica that is never killed; any replica answers for the
//! leader, through elections and within the caller's time. Leaders that are another replica are killed; where that
//! replica leads itself, it is stopped until another one does.

use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use rds_csi::dev::{Cluster, Fabric};
use tests::appliance::Appliance;
use tests::sanity::{self, Report, Sanity};
use tests::tools;
use tokio::time::{Instant, sleep};

use super::ProcessArguments;

/// The node whose socket is used.
const NODE: &str = "node-a";
/// Pause after each kill, from the next leader's election on.
const PAUSE: Duration = Duration::from_secs(2);
/// How long a killed replica is away.
const AWAY: Duration = Duration::from_millis(500);
/// How long an election may take.
const LEADER_LIMIT: Duration = Duration::from_secs(15);
/// How long one look for another leader may take.
const STEP_LIMIT: Duration = Duration::from_secs(1);
/// How many volumes the node takes: few, since csi-sanity fills it up.
const MAX_VOLUMES: u32 = 6;
/// How long csi-sanity may take, in seconds.
const RUN_LIMIT_S: u64 = 600;

/// What csi-sanity tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AccessType {
    /// File systems; root.
    Mount,
    /// Block devices; root.
    Block,
}

/// `chaos sanity`.
#[derive(Debug, Args)]
pub struct SanityArguments {
    #[command(flatten)]
    processes: ProcessArguments,
    /// What it tries [default: both, one after the other]
    #[arg(long, value_enum)]
    access: Option<AccessType>,
    /// csi-sanity itself [default: the one that tests/all has built]
    #[arg(long, value_name = "PATH")]
    csi_sanity: Option<PathBuf>,
    /// Fewer kills of a leader, for each access type, fail the run
    #[arg(long, default_value_t = 5)]
    min_kills: usize,
}

impl AccessType {
    fn name(self) -> &'static str {
        match self {
            Self::Mount => "mount",
            Self::Block => "block",
        }
    }
}

/// Runs csi-sanity; an error if a spec fails, something is left over, or too few leaders were killed.
pub async fn sanity(arguments: SanityArguments) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "loop devices and mounts need root");
    let csi_sanity = arguments.csi_sanity.map_or_else(tools::csi_sanity, Ok)?;
    let program = arguments.processes.program()?;
    let both = [AccessType::Mount, AccessType::Block];
    let chosen = both.into_iter().filter(|access| arguments.access.is_none_or(|wanted| wanted == *access));
    for access in chosen {
        run_once(access, &program, &csi_sanity, arguments.min_kills)
            .await
            .with_context(|| format!("csi-sanity, {}", access.name()))?;
    }
    Ok(())
}

/// Runs it once, on a cluster of its own.
async fn run_once(access: AccessType, program: &Path, csi_sanity: &Path, min_kills: usize) -> Result<()> {
    let mut cluster = Cluster::builder().fabric(Fabric::Loop).binary(program).start().await?;
    limit_volumes(&mut cluster).await?;
    let spared = cluster.controllers().into_iter().next().context("there is no controller")?;
    let advertised = sanity::advertised(
        cluster.csi_identity(&spared)?,
        cluster.csi_controller(&spared)?,
        cluster.csi_node(NODE)?,
    )
    .await?;
    let endpoint = |name: &str| format!("unix://{}", cluster.csi_socket(name).display());
    let run = Sanity {
        program: csi_sanity.to_owned(),
        node: endpoint(NODE),
        controller: endpoint(&spared),
        access_type: access.name(),
        paths: cluster.directory().to_owned(),
        directory: cluster.directory().to_owned(),
        path_commands: None,
        limit_s: RUN_LIMIT_S,
    };
    let mut kills = 0;
    let report: Report = super::until_signal(async {
        tokio::select! {
            report = run.run() => report,
            never = kill_leaders(&mut cluster, &spared, &mut kills) => match never? {},
        }
    })
    .await?;
    println!(
        "csi-sanity, {}: {} passed, {} failed, {kills} leaders killed meanwhile",
        run.access_type,
        report.passed.len(),
        report.failed.len()
    );
    report.expect_good(&advertised)?;
    let left = Appliance::read(&cluster.state_directory(cluster.simulator()).join("state.json"))?;
    ensure!(left.is_empty(), "left on the appliance: {left:?}");
    ensure!(kills >= min_kills, "only {kills} of {min_kills} leaders were killed");
    Ok(())
}

async fn kill_leaders(cluster: &mut Cluster, spared: &str, kills: &mut usize) -> Result<Infallible> {
    loop {
        let leader = cluster.leader(LEADER_LIMIT).await?;
        if leader.name == spared {
            let until = Instant::now() + LEADER_LIMIT;
            cluster.suspend(spared)?;
            while cluster.leader(STEP_LIMIT).await.map_or(true, |found| found.name == spared) {
                ensure!(Instant::now() < until, "nobody leads while {spared} is stopped");
            }
            cluster.resume(spared)?;
        } else {
            cluster.kill(&leader.name)?;
            *kills += 1;
            sleep(AWAY).await;
            cluster.start(&leader.name)?;
            cluster.wait_until_ready(&leader.name).await?;
        }
        sleep(PAUSE).await;
    }
}

/// Gives the node a limit of volumes, which csi-sanity then tries out.
async fn limit_volumes(cluster: &mut Cluster) -> Result<()> {
    let path = cluster.config_path(NODE);
    let settings = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    fs::write(&path, format!("max_volumes = {MAX_VOLUMES}\n{settings}"))
        .with_context(|| format!("cannot write {}", path.display()))?;
    cluster.terminate(NODE).await?;
    cluster.start(NODE)?;
    cluster.wait_until_ready(NODE).await
}
