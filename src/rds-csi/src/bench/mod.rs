//! Measurements, as a table: what a publish costs, what a read costs, how long a failover takes.
//!
//! All of it in one run on one machine, beside the disk's own fdatasync, because machines are noisy: compare rows,
//! not runs. The cluster is a real one (`dev`); its appliance is simulated and answers at once, so the numbers are
//! the driver's own.

mod cluster;
mod disk;
#[cfg(feature = "etcd")]
mod etcd;
mod hotplug_cluster;
mod reap;
mod samples;
mod sessions;
mod webhook;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::table::Table;
use samples::Samples;

/// Measures publish, unpublish, linearizable reads and failover on a cluster of real processes
///
/// The appliance is simulated and answers at once. Use a release build: cargo run --release -- bench
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_long_help = "Examples:
  cargo run --release -- bench
  cargo run --release -- bench reap
  cargo run --release -- bench --kills 100
  cargo run --release -- bench sessions
  cargo run --release -- bench webhook
  cargo run --release --features etcd -- bench --etcd http://127.0.0.1:2379"
)]
pub struct BenchArguments {
    /// How long each row of publishes and reads is measured, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// How many times the leader is killed with SIGKILL
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    kills: u32,
    /// Keeps the cluster's directory; its file system is what is measured
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Runs the same compare-and-set attach on an etcd cluster, and prints it beside ours
    #[cfg(feature = "etcd")]
    #[arg(long, value_name = "ENDPOINT,...", value_delimiter = ',')]
    etcd: Vec<String>,
    #[command(subcommand)]
    only: Option<Only>,
}

/// What is measured by itself, as it takes minutes.
#[derive(Debug, Subcommand)]
enum Only {
    /// How long after its deadline a migration's stale side is gone, with the leader killed at the deadline
    Reap(reap::ReapArguments),
    Sessions(sessions::SessionsArguments),
    Webhook(webhook::WebhookArguments),
}

/// How many clients each row is measured with.
const CLIENTS: [usize; 2] = [1, 64];

/// Runs all measurements and prints the table.
pub async fn run(arguments: BenchArguments, stop: CancellationToken) -> Result<(), Failure> {
    let work = async {
        match &arguments.only {
            Some(Only::Reap(reaps)) => reap::measure(reaps).await,
            Some(Only::Sessions(sessions)) => sessions::measure(sessions).await,
            Some(Only::Webhook(webhook)) => webhook::measure(webhook).await,
            None => measure(&arguments).await,
        }
    };
    tokio::select! {
        outcome = work => Ok(outcome?),
        // Dropping the measurement ends its processes.
        () = stop.cancelled() => Err(anyhow::anyhow!("interrupted").into()),
    }
}

async fn measure(arguments: &BenchArguments) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let mut bench = cluster::Bench::start(arguments.data_dir.clone()).await?;
    let directory = bench.directory();
    eprintln!("fdatasync of the disk under {}", directory.display());
    rows.push(("disk: append 4 KiB and fdatasync".to_owned(), disk::fdatasync(&directory)?));
    for clients in CLIENTS {
        eprintln!("publish and unpublish, {clients} clients, {} s", arguments.seconds);
        let [publish, unpublish] = bench.publishes(clients, arguments.seconds).await?;
        rows.push((format!("publish, {clients} clients"), publish));
        rows.push((format!("unpublish, {clients} clients"), unpublish));
    }
    for clients in CLIENTS {
        eprintln!("linearizable reads, {clients} clients, {} s", arguments.seconds);
        rows.push((
            format!("linearizable read, {clients} clients"),
            bench.reads(clients, arguments.seconds).await?,
        ));
    }
    #[cfg(feature = "etcd")]
    if !arguments.etcd.is_empty() {
        for clients in CLIENTS {
            eprintln!("etcd: compare-and-set attach and detach, {clients} clients, {} s", arguments.seconds);
            let [attach, detach] = etcd::attaches(&arguments.etcd, clients, arguments.seconds).await?;
            rows.push((format!("etcd attach (compare and set), {clients} clients"), attach));
            rows.push((format!("etcd detach, {clients} clients"), detach));
        }
    }
    if arguments.kills > 0 {
        let failovers = bench.failovers(arguments.kills).await?;
        rows.push((
            format!("SIGKILL of the leader to the next publish, {} kills", arguments.kills),
            failovers,
        ));
    }
    print!("{}", table(rows));
    Ok(())
}

fn table(rows: Vec<(String, Samples)>) -> String {
    let mut table = Table::new(["WHAT", "SAMPLES", "PER SECOND", "P50 MS", "P99 MS", "MAX MS"]);
    for (name, samples) in rows {
        let ms =
            |quantile: f64| samples.quantile_ms(quantile).map(|ms| format!("{ms:.2}")).unwrap_or_default();
        let rate = samples.per_second().map(|rate| format!("{rate:.0}")).unwrap_or_default();
        table.row([name, samples.len().to_string(), rate, ms(0.5), ms(0.99), ms(1.0)]);
    }
    table.render()
}
