//! Stories that are played on a cluster of real processes. Each step is timed, each claim is checked against what
//! was answered, and the exit status is 0 only if every check held.
//!
//! - `migration`, `failover`: a migration that ends well, while the leader dies in the middle
//! - `stale`: one that is past its time, and one side is not in use any more: it is reaped
//! - `slow`: one that is past its time and in use on both sides: it is left alone
//! - `overdue`: what the last two have in common
//! - `actors`, `timeline`: who acts, and what is recorded

mod actors;
mod failover;
mod migration;
mod overdue;
mod slow;
mod stale;
mod timeline;

use clap::ValueEnum;

use super::cluster::ClusterBuilder;
use crate::failure::Failure;
use actors::Actors;
use timeline::{Stopped, Timeline};

/// A story to play.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// A VM's disk migrates between two nodes; the leading controller is killed in the middle.
    MigrationFailover,
    /// A migration outlives its timeout, its source is left behind: reaped once, though the leader is killed at the
    /// deadline and again during the reap.
    StaleMigration,
    /// A migration outlives its timeout three times over, both sides in use: reported and left alone.
    SlowMigration,
}

impl Scenario {
    /// How many nodes it needs.
    pub(crate) fn nodes(self) -> u32 {
        match self {
            Self::MigrationFailover | Self::StaleMigration | Self::SlowMigration => 3,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::MigrationFailover => "migration-failover",
            Self::StaleMigration => "stale-migration",
            Self::SlowMigration => "slow-migration",
        }
    }

    async fn tell(self, timeline: &mut Timeline, actors: &mut Actors) -> Result<(), Stopped> {
        match self {
            Self::MigrationFailover => migration_failover(timeline, actors).await,
            Self::StaleMigration => stale::tell(timeline, actors).await,
            Self::SlowMigration => slow::tell(timeline, actors).await,
        }
    }
}

/// Plays it, and prints a timeline, or one JSON document.
pub(crate) async fn play(scenario: Scenario, builder: ClusterBuilder, json: bool) -> Result<(), Failure> {
    let mut timeline = Timeline::new(scenario.name(), !json);
    // A story that stopped has recorded why.
    let _stopped = play_on(scenario, &mut timeline, builder).await;
    if json {
        let text = serde_json::to_string_pretty(&timeline.report())
            .map_err(|error| anyhow::Error::new(error).context("cannot print the report"))?;
        println!("{text}");
    } else {
        println!("{}", timeline.summary());
    }
    match timeline.failed_checks() {
        0 => Ok(()),
        count => Err(anyhow::anyhow!("{count} checks did not hold").into()),
    }
}

async fn play_on(
    scenario: Scenario,
    timeline: &mut Timeline,
    builder: ClusterBuilder,
) -> Result<(), Stopped> {
    let mut actors = timeline
        .step("start the simulated appliance, controllers and nodes", async |step| {
            Actors::start(builder, step).await
        })
        .await?;
    let told = scenario.tell(timeline, &mut actors).await;
    if told.is_err() {
        actors.explain();
    }
    let ended = migration::end_everything(timeline, actors).await;
    told.and(ended)
}

async fn migration_failover(timeline: &mut Timeline, actors: &mut Actors) -> Result<(), Stopped> {
    let mut disk = migration::create(timeline, actors, &[]).await?;
    migration::attach_source(timeline, actors, &mut disk).await?;
    migration::attach_target(timeline, actors, &mut disk).await?;
    let every_controller = actors.cluster.controllers();
    migration::third_node_is_refused(timeline, actors, &disk, &every_controller).await?;
    let failover = failover::kill_the_leader(timeline, actors, &disk).await?;
    migration::third_node_is_refused(timeline, actors, &disk, &failover.survivors).await?;
    failover::nothing_is_forgotten(timeline, actors, &disk, &failover).await?;
    migration::source_leaves(timeline, actors, &disk, &failover.survivors[0]).await?;
    failover::the_killed_one_returns(timeline, actors, &failover.killed).await?;
    // Through the replica that was away: it must know everything again.
    migration::clean_up(timeline, actors, &disk, &failover.killed.name).await
}
