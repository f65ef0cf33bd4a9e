//! How long after its deadline a stale side is gone, with the leader killed at the deadline.
//!
//! Each round is a cluster of its own: many migrations that are to be overdue at nearly the same moment, all with a
//! source that nobody uses any more. At the first deadline the leader dies. What counts is when the stale side's
//! attachment ended: on the ledger's clock, which does not count the time without a leader, and on this machine's.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use proto::csi::v1::CreateVolumeRequest;
use proto::operator::v1::operator_client::OperatorClient;
use proto::operator::v1::{GetVolumeRequest, ListMigrationsRequest, Migration};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::transport::Channel;

use super::samples::Samples;
use crate::dev::Cluster;
use crate::dev::requests::{Context as CsiContext, create, publish, stage, within};
use crate::table::Table;

/// The least timeout that a class may have.
const CLASS: (&str, &str) = ("migrationTimeoutSeconds", "30");
/// How long any one call may take.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// How long an election may take before the run is given up.
const LEADER_LIMIT: Duration = Duration::from_secs(30);
/// How long after the deadline all have to be reaped before the run is given up.
const REAP_LIMIT: Duration = Duration::from_secs(120);
/// How often it is looked whether they are: the error of what this machine's clock says.
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// Each volume's size; the appliance is simulated and stores nothing.
const VOLUME_BYTES: i64 = 1 << 30;
const SOURCE: &str = "node-a";
const TARGET: &str = "node-b";

/// Measures how long after its deadline a migration's stale side is gone, if the leader is killed at the deadline
#[derive(Debug, Args)]
pub(super) struct ReapArguments {
    /// Clusters, one after the other; in each the leader is killed once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Migrations in each cluster; the ledger remembers a hundred that ended
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=100))]
    migrations: u32,
}

/// One reap, in ms after its deadline.
struct Reap {
    overdue_ms: u64,
    decided_ms: u64,
    detached_ms: u64,
    /// By this machine's clock.
    seen_detached: Duration,
}

/// Runs all rounds and prints the table.
pub(super) async fn measure(arguments: &ReapArguments) -> anyhow::Result<()> {
    let mut reaps = Vec::new();
    for round in 1..=arguments.rounds {
        let found = play_round(arguments.migrations).await.with_context(|| format!("round {round}"))?;
        let slowest = found.iter().map(|reap| reap.seen_detached.as_millis()).max().unwrap_or(0);
        eprintln!("round {round} of {}: {} reaps, the slowest {slowest} ms", arguments.rounds, found.len());
        reaps.extend(found);
    }
    print!("{}", table(&reaps));
    Ok(())
}

fn table(reaps: &[Reap]) -> String {
    let ledger = |of: fn(&Reap) -> u64| reaps.iter().map(of).map(Duration::from_millis).collect();
    let rows: [(&str, Vec<Duration>); 4] = [
        ("deadline to overdue, ledger's clock", ledger(|reap| reap.overdue_ms)),
        ("deadline to decided, ledger's clock", ledger(|reap| reap.decided_ms)),
        ("deadline to detached, ledger's clock", ledger(|reap| reap.detached_ms)),
        ("deadline to detached, this machine's clock", reaps.iter().map(|reap| reap.seen_detached).collect()),
    ];
    let mut table = Table::new(["WHAT", "REAPS", "MIN MS", "MEDIAN MS", "MAX MS"]);
    for (what, durations) in rows {
        let samples = Samples::new(durations);
        let ms = |share| samples.quantile_ms(share).map(|ms| format!("{ms:.0}")).unwrap_or_default();
        table.row([what.to_owned(), samples.len().to_string(), ms(0.0), ms(0.5), ms(1.0)]);
    }
    table.render()
}

/// A volume, and what the controllers said of it.
#[derive(Clone)]
struct Volume {
    id: String,
    context: CsiContext,
}

async fn play_round(migrations: u32) -> anyhow::Result<Vec<Reap>> {
    let mut cluster = Cluster::builder().nodes(2).log_filter("warn").instant_appliance().start().await?;
    let leader = cluster.leader(LEADER_LIMIT).await?;
    let survivor = cluster.controllers().into_iter().find(|name| *name != leader.name);
    let survivor = survivor.context("nobody would survive")?;
    let mut volumes = Vec::new();
    for _ in 0..migrations {
        let volume = create_volume(&cluster, &leader.name).await?;
        bring(&cluster, &leader.name, &volume, SOURCE).await?;
        volumes.push(volume);
    }
    begin_together(&cluster, &leader.name, &volumes).await?;

    // The survivor's connection is there before the leader goes.
    let mut reader = cluster.operator(&survivor)?;
    list(&mut reader).await?;
    let asked_at = Instant::now();
    let reply = cluster.operator(&leader.name)?.list_migrations(ListMigrationsRequest {}).await?.into_inner();
    let told_at = asked_at + asked_at.elapsed() / 2;
    ensure!(reply.by_leader, "{} leads no more", leader.name);
    ensure!(reply.migrations.len() == volumes.len(), "{} migrations run", reply.migrations.len());
    let at = |migration: &Migration| {
        told_at + Duration::from_millis(migration.deadline_ms.saturating_sub(reply.ledger_time_ms))
    };
    let first = reply.migrations.iter().map(at).min().context("there is no migration")?;
    ensure!(
        Instant::now() < first,
        "the first is overdue before the last has begun: fewer migrations, please"
    );
    sleep_until(first).await;
    cluster.kill(&leader.name)?;
    let mut reaps = Vec::new();
    let ended = wait_for_ends(&mut reader, reply.migrations.len()).await?;
    for (migration, seen_at) in ended {
        let seen_detached = seen_at.checked_duration_since(at(&migration)).context("reaped early")?;
        reaps.push(reap(&cluster, &mut reader, &migration, seen_detached).await?);
    }
    for (name, outcome) in cluster.stop().await {
        let status = outcome.with_context(|| format!("{name} did not end"))?;
        ensure!(status.success(), "{name} ended: {status}");
    }
    Ok(reaps)
}

async fn create_volume(cluster: &Cluster, through: &str) -> anyhow::Result<Volume> {
    let name = format!("pvc-{}", uuid::Uuid::new_v4());
    let parameters = [(CLASS.0.to_owned(), CLASS.1.to_owned())].into();
    let request = CreateVolumeRequest { parameters, ..create(&name, VOLUME_BYTES) };
    let answer = cluster.csi_controller(through)?.create_volume(within(CALL_LIMIT, request)).await;
    let made =
        answer.context("cannot create a volume")?.into_inner().volume.context("no volume came back")?;
    Ok(Volume { id: made.volume_id, context: made.volume_context })
}

/// Publishes and stages; nobody uses it there.
async fn bring(cluster: &Cluster, through: &str, volume: &Volume, node: &str) -> anyhow::Result<()> {
    let request = within(CALL_LIMIT, publish(&volume.id, node, &volume.context));
    let answer = cluster.csi_controller(through)?.controller_publish_volume(request).await;
    let context = answer.with_context(|| format!("cannot publish on {node}"))?.into_inner().publish_context;
    let staging = cluster.directory().join("kubelet").join(node).join(&volume.id);
    std::fs::create_dir_all(&staging).with_context(|| format!("cannot make {}", staging.display()))?;
    let request = within(CALL_LIMIT, stage(&volume.id, &staging, &context, &volume.context));
    let answer = cluster.csi_node(node)?.node_stage_volume(request).await;
    answer.with_context(|| format!("cannot stage on {node}")).map(drop)
}

/// All migrations begin, each in its own task, and the targets are in use.
async fn begin_together(cluster: &Cluster, through: &str, volumes: &[Volume]) -> anyhow::Result<()> {
    let mut begun = JoinSet::new();
    for volume in volumes {
        let mut sidecar = cluster.csi_controller(through)?;
        let request = within(CALL_LIMIT, publish(&volume.id, TARGET, &volume.context));
        begun.spawn(async move { sidecar.controller_publish_volume(request).await });
    }
    while let Some(answer) = begun.join_next().await {
        answer?.context("a migration does not begin")?;
    }
    for volume in volumes {
        bring(cluster, through, volume, TARGET).await?;
        cluster.hold(TARGET, &volume.id)?;
    }
    Ok(())
}

async fn list(reader: &mut OperatorClient<Channel>) -> anyhow::Result<Vec<Migration>> {
    let reply = reader.list_migrations(within(CALL_LIMIT, ListMigrationsRequest {})).await?;
    Ok(reply.into_inner().migrations)
}

/// The migrations that ended, each with the moment when that was first seen.
async fn wait_for_ends(
    reader: &mut OperatorClient<Channel>,
    count: usize,
) -> anyhow::Result<Vec<(Migration, Instant)>> {
    let give_up = Instant::now() + REAP_LIMIT;
    let mut ended: Vec<(Migration, Instant)> = Vec::new();
    while ended.len() < count {
        if Instant::now() >= give_up {
            bail!("only {} of {count} migrations were reaped in {} s", ended.len(), REAP_LIMIT.as_secs());
        }
        sleep(LOOK_PAUSE).await;
        // Without a leader there is no answer.
        let Ok(migrations) = list(reader).await else { continue };
        let seen_at = Instant::now();
        for migration in migrations.into_iter().filter(|migration| migration.ended_ms.is_some()) {
            if ended.iter().all(|(known, _)| known.id != migration.id) {
                ended.push((migration, seen_at));
            }
        }
    }
    Ok(ended)
}

/// What the ledger has of one reap; anything but exactly one of the source is an error.
async fn reap(
    cluster: &Cluster,
    reader: &mut OperatorClient<Channel>,
    migration: &Migration,
    seen_detached: Duration,
) -> anyhow::Result<Reap> {
    let id = migration.volume_id.clone();
    ensure!(migration.outcome == "timeout", "{id} ended as {}", migration.outcome);
    ensure!(!cluster.is_connected(SOURCE, &id), "{id} is connected on its stale side");
    ensure!(cluster.is_connected(TARGET, &id), "{id} is not connected where it is used");
    let request = within(CALL_LIMIT, GetVolumeRequest { id: id.clone(), with_history: true });
    let volume = reader.get_volume(request).await.context("cannot read a history")?.into_inner();
    let holders: Vec<&str> = volume.attachments.iter().map(|one| one.node_id.as_str()).collect();
    ensure!(holders == [TARGET], "{id} is held by {holders:?}");
    let after_deadline = |fact: &str, node: &str| {
        let meant = volume.history.iter().filter(|record| record.fact == fact && record.node_id == node);
        match meant.collect::<Vec<_>>()[..] {
            [record] => record
                .at_ms
                .checked_sub(migration.deadline_ms)
                .with_context(|| format!("{id}: {fact} is early")),
            ref found => bail!("{id} has {} records {fact} of {node:?}", found.len()),
        }
    };
    Ok(Reap {
        overdue_ms: after_deadline("MigrationOverdue", "")?,
        decided_ms: after_deadline("ReapDecided", SOURCE)?,
        detached_ms: after_deadline("Detached", SOURCE)?,
        seen_detached,
    })
}
