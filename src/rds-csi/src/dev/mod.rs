//! `rds-csi dev`: a whole cluster on this machine, as real processes against a simulated appliance.
//!
//! Life cycle of the command: start everything, print what runs where, wait for Ctrl-C, end everything; or play a
//! scenario on it and say whether every check held. Tests use [`Cluster`] directly.

mod clients;
mod cluster;
mod elsewhere;
mod fake_devices;
mod files;
mod layout;
mod overview;
mod ports;
mod process;
mod readiness;
pub mod requests;
mod scenario;
mod surroundings;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

pub use clients::Leader;
pub use cluster::{Cluster, ClusterBuilder};
pub use elsewhere::ApplianceElsewhere;
pub use layout::Fabric;
pub use scenario::Scenario;
pub use surroundings::Surroundings;

use crate::failure::Failure;
use layout::Wishes;

/// How often a running cluster is looked at for processes that ended, in ms.
const WATCH_INTERVAL_MS: u64 = 250;

/// What the cluster is to be, and what to play on it.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  rds-csi dev                                   two nodes; prints what runs where; Ctrl-C ends it
  rds-csi dev --data-dir /tmp/rds               the same cluster comes back at the next start
  rds-csi dev --scenario migration-failover     plays a story, exit status 0 if every check held
  rds-csi dev --scenario stale-migration        one that is past its time: reaped once, across two leaders' deaths
  rds-csi dev --scenario slow-migration         one that is past its time and in use: left alone, and reported
  rds-csi dev --scenario migration-failover --json

While it runs, in another terminal:
  rds-csi ctl --config DIR/ctl.toml status
  kill -9 PID                                   of a controller: the others go on")]
pub struct DevArguments {
    /// Keeps everything in this directory; without it, a temporary one that goes at the end
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// How many controller replicas, an odd number [default: 3]
    #[arg(long, value_name = "N")]
    controllers: Option<u32>,
    /// How many nodes [default: 2; scenarios have as many as they need]
    #[arg(long, value_name = "N")]
    nodes: Option<u32>,
    /// How nodes connect to volumes [default: fake]
    #[arg(long, value_enum)]
    fabric: Option<Fabric>,
    /// Plays a story on the cluster, prints a timeline, and ends
    #[arg(long, value_enum)]
    scenario: Option<Scenario>,
    /// Prints the story as one JSON document
    #[arg(long, requires = "scenario")]
    json: bool,
}

/// Runs the command until it is done or `stop` is cancelled.
pub async fn run(
    arguments: DevArguments,
    log_filter: Option<&str>,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let builder = arguments.builder(log_filter)?;
    let work = async {
        match arguments.scenario {
            Some(scenario) => scenario::play(scenario, builder, arguments.json).await,
            None => Ok(run_until_stopped(builder, &stop).await?),
        }
    };
    if arguments.scenario.is_none() {
        return work.await;
    }
    tokio::select! {
        outcome = work => outcome,
        // Dropping the story kills its processes.
        () = stop.cancelled() => Err(anyhow::anyhow!("interrupted").into()),
    }
}

impl DevArguments {
    fn builder(&self, log_filter: Option<&str>) -> Result<ClusterBuilder, Failure> {
        let nodes = self.nodes.or_else(|| self.scenario.map(Scenario::nodes));
        let wishes =
            Wishes { controllers: self.controllers, nodes, fabric: self.fabric, ..Wishes::default() };
        let mut mistakes = wishes.mistakes();
        if let (Some(scenario), Some(count)) = (self.scenario, nodes)
            && count < scenario.nodes()
        {
            mistakes.push(format!("--nodes {count}: the scenario needs {}", scenario.nodes()));
        }
        if let (Some(_), Some(1)) = (self.scenario, self.controllers) {
            mistakes.push("--controllers 1: a scenario that kills a controller needs three".to_owned());
        }
        if let (Some(Fabric::Loop), Some(Scenario::StaleMigration | Scenario::SlowMigration)) =
            (self.fabric, self.scenario)
        {
            mistakes
                .push("--fabric loop: the scenario's processes open devices of the fake fabric".to_owned());
        }
        if !mistakes.is_empty() {
            return Err(Failure::Usage(mistakes));
        }
        let mut builder = Cluster::builder();
        if let Some(filter) = log_filter {
            builder = builder.log_filter(filter);
        }
        if let Some(directory) = &self.data_dir {
            builder = builder.directory(directory);
        }
        Ok(builder.wishes(wishes))
    }
}

async fn run_until_stopped(builder: ClusterBuilder, stop: &CancellationToken) -> anyhow::Result<()> {
    let started = tokio::select! {
        started = builder.start() => Some(started?),
        () = stop.cancelled() => None,
    };
    let Some(mut cluster) = started else { return Ok(()) };
    print!("{}", overview::of(&mut cluster));
    let mut reported = Vec::new();
    let mut watch = interval(Duration::from_millis(WATCH_INTERVAL_MS));
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = watch.tick() => {}
        }
        for (name, status) in cluster.ended() {
            if !reported.contains(&name) {
                println!("{name} ended: {status}; its log: {}", cluster.log_path(&name).display());
                reported.push(name);
            }
        }
    }
    for (name, outcome) in cluster.stop().await {
        match outcome {
            Ok(status) if status.success() => {}
            Ok(status) => println!("{name} ended: {status}"),
            Err(error) => println!("{name} was killed: {error:#}"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Program};

    fn parse(line: &[&str]) -> DevArguments {
        let line = ["rds-csi", "dev"].iter().chain(line);
        let program = Arguments::try_parse_from(line).unwrap().program;
        let Program::Dev(arguments) = program else { panic!("parsed as {program:?}") };
        arguments
    }

    #[test]
    fn all_wishes_that_cannot_be_are_named_at_once() {
        let arguments = parse(&["--controllers", "2", "--nodes", "40"]);
        let Err(Failure::Usage(mistakes)) = arguments.builder(None) else { panic!("accepted") };
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    }

    #[test]
    fn a_scenario_has_the_nodes_that_it_needs() {
        assert!(parse(&["--scenario", "migration-failover"]).builder(None).is_ok());
        let few = parse(&["--scenario", "migration-failover", "--nodes", "2", "--controllers", "1"]);
        let Err(Failure::Usage(mistakes)) = few.builder(None) else { panic!("accepted") };
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        assert!(parse(&["--scenario", "stale-migration", "--fabric", "loop"]).builder(None).is_err());
    }
}
