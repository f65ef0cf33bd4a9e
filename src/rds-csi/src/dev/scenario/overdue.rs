//! What stories of migrations past their time have in common: a class with the least timeout, the deadline as a
//! moment of this process's own clock, leaders that are killed at a given moment, and what they said.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use proto::operator::v1::{Migration, Record, StatusRequest, Volume};
use tokio::time::{Instant, sleep, sleep_until};

use super::actors::{Actors, Disk, LEADER_LIMIT_MS, SOURCE, TARGET, holders};
use super::failover::first_read;
use super::timeline::{Step, Stopped, Timeline};
use crate::dev::clients::Leader;

/// The least timeout that a class may have, in seconds.
pub(crate) const TIMEOUT_SECONDS: u64 = 30;
/// The class.
pub(crate) const CLASS: [(&str, &str); 1] = [("migrationTimeoutSeconds", "30")];
/// How long anything may take that needs no deadline to pass, in ms.
pub(crate) const PATIENCE_MS: u64 = 30_000;
/// Pause between two looks, in ms.
const POLL_MS: u64 = 10;
/// What lateness is allowed beside the time without a leader, in ms: a second for the change, one for the tick, and
/// one for a busy machine.
const LATENESS_MS: u64 = 3_000;

/// When a migration is overdue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    pub(crate) migration: u64,
    /// On the ledger's clock.
    pub(crate) ledger_ms: u64,
    /// On this process's clock, if no leader is lost before.
    pub(crate) at: Instant,
}

/// Looks until `look` finds what it is to find, or `limit` is over; then its last word is the error.
pub(crate) async fn until<T>(
    limit: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let give_up = Instant::now() + limit;
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() >= give_up => {
                return Err(error.context(format!("{what}: not within {} ms", limit.as_millis())));
            }
            Err(_) => sleep(Duration::from_millis(POLL_MS)).await,
        }
    }
}

/// The limit of what needs no deadline to pass.
pub(crate) fn patience() -> Duration {
    Duration::from_millis(PATIENCE_MS)
}

/// The running migration's deadline, as its leader tells it.
pub(crate) async fn deadline(
    timeline: &mut Timeline,
    actors: &Actors,
    disk: &Disk,
) -> Result<Deadline, Stopped> {
    timeline
        .step("the VM runs; the migration has 30 s", async |step| {
            let leader = actors.cluster.leader(Duration::from_millis(LEADER_LIMIT_MS)).await?;
            let asked_at = Instant::now();
            let volume = actors.history(&leader.name, disk).await?;
            ensure!(volume.by_leader, "{} leads no more", leader.name);
            let migration = volume.migration.context("there is no migration")?;
            step.equal("its timeout", TIMEOUT_SECONDS * 1_000, migration.timeout_ms);
            let left = migration.deadline_ms.saturating_sub(volume.ledger_time_ms);
            step.measure("until it is overdue", Duration::from_millis(left));
            // The leader told its time a little later: the moment is early by some milliseconds, and never late.
            let at = asked_at + Duration::from_millis(left);
            Ok(Deadline { migration: migration.id, ledger_ms: migration.deadline_ms, at })
        })
        .await
}

/// SIGKILL to the leader at the moment `at`, or now, right after `before`. Returns who it was, and how long it took until
/// a survivor read linearizably.
pub(crate) async fn kill_leader(
    step: &mut Step,
    actors: &mut Actors,
    disk: &Disk,
    at: Option<Instant>,
    before: impl FnOnce(&mut Actors) -> anyhow::Result<()>,
) -> anyhow::Result<(Leader, Duration)> {
    let limit = Duration::from_millis(LEADER_LIMIT_MS);
    let killed = actors.cluster.leader(limit).await?;
    let through = survivors(actors, &killed).into_iter().next().context("nobody would survive")?;
    // Connected before the kill: what is measured is the election.
    let mut reader = actors.cluster.operator(&through)?;
    reader.status(StatusRequest {}).await.context("the survivor does not answer")?;
    if let Some(at) = at {
        sleep_until(at).await;
    }
    before(actors)?;
    let killed_at = Instant::now();
    actors.cluster.kill(&killed.name)?;
    let (without_leader, _) = first_read(&mut reader, disk, killed_at).await?;
    step.measure(format!("from the kill until {through} answered a linearizable read"), without_leader);
    let next = actors.cluster.leader(limit).await?;
    let is_new = next.id != killed.id && next.term > killed.term;
    let expected = format!("another than {}, in a term after {}", killed.name, killed.term);
    step.check("the new leader", is_new, expected, format!("{} in term {}", next.name, next.term));
    Ok((killed, without_leader))
}

/// All controllers but this one.
pub(crate) fn survivors(actors: &Actors, killed: &Leader) -> Vec<String> {
    let mut names = actors.cluster.controllers();
    names.retain(|name| *name != killed.name);
    names
}

/// Waits until the ledger says that the migration is overdue; it may not say so early, or later than it may.
pub(crate) async fn becomes_overdue(
    step: &mut Step,
    actors: &Actors,
    disk: &Disk,
    through: &str,
    deadline: Deadline,
    without_leader: Duration,
) -> anyhow::Result<()> {
    let limit = patience() + deadline.at.saturating_duration_since(Instant::now());
    let volume = until(limit, "overdue", async || {
        let volume = actors.history(through, disk).await?;
        let phase = &running(&volume)?.phase;
        ensure!(phase == "Overdue", "it is {phase}");
        Ok(volume)
    })
    .await?;
    let seen_at = Instant::now();
    let late = seen_at.saturating_duration_since(deadline.at);
    step.check(
        "overdue, by this machine's clock",
        seen_at >= deadline.at && late <= without_leader + Duration::from_millis(LATENESS_MS),
        format!("not early, and late by the time without a leader and {LATENESS_MS} ms at most"),
        format!("{} ms late", late.as_millis()),
    );
    step.measure("from the deadline until it was overdue, this machine's clock", late);
    let record = only(&volume, "MigrationOverdue", deadline.migration)?;
    let late = record.at_ms.checked_sub(deadline.ledger_ms);
    step.check(
        "overdue, by the ledger's clock",
        late.is_some(),
        "not early".to_owned(),
        format!("at {} ms, the deadline is {} ms", record.at_ms, deadline.ledger_ms),
    );
    step.measure("the same, the ledger's clock", Duration::from_millis(late.unwrap_or(0)));
    let expected = [SOURCE, TARGET].map(|node| format!("{node} Granted")).join(", ");
    step.equal("who holds the volume", expected, phases(&volume));
    Ok(())
}

/// The VM's process on the target ends, so that its disk can go.
pub(crate) async fn vm_ends(timeline: &mut Timeline, actors: &Actors, disk: &Disk) -> Result<(), Stopped> {
    let ends = async |_: &mut Step| actors.cluster.release(TARGET, &disk.volume);
    timeline.step("the VM on node-b ends", ends).await
}

/// The running migration.
pub(crate) fn running(volume: &Volume) -> anyhow::Result<&Migration> {
    volume.migration.as_ref().with_context(|| format!("no migration runs; held by {}", holders(volume)))
}

/// Which node holds it in which phase.
pub(crate) fn phases(volume: &Volume) -> String {
    let of = |one: &proto::operator::v1::Attachment| format!("{} {}", one.node_id, one.phase);
    volume.attachments.iter().map(of).collect::<Vec<_>>().join(", ")
}

/// The records of this kind about the migration.
pub(crate) fn records<'a>(volume: &'a Volume, fact: &str, migration: u64) -> Vec<&'a Record> {
    let is_meant = |record: &&Record| record.fact == fact && record.migration_id == Some(migration);
    volume.history.iter().filter(is_meant).collect()
}

/// The one record of this kind about the migration.
pub(crate) fn only<'a>(volume: &'a Volume, fact: &str, migration: u64) -> anyhow::Result<&'a Record> {
    match records(volume, fact, migration)[..] {
        [record] => Ok(record),
        ref found => bail!("{} records {fact} of migration {migration}", found.len()),
    }
}

/// The ledger's own account of the volume, with times from the migration's start on.
pub(crate) fn tell_history(step: &mut Step, volume: &Volume, migration: u64) -> anyhow::Result<()> {
    let start = only(volume, "MigrationStarted", migration)?.at_ms;
    for Record { number, at_ms, fact, node_id, detail, .. } in &volume.history {
        let since = i128::from(*at_ms) - i128::from(start);
        step.tell(format!("ledger {number:>3} {since:>7} ms  {fact} {node_id} {detail}"));
    }
    Ok(())
}

/// The lines of a process's log that have all these words.
pub(crate) fn lines_said(actors: &Actors, name: &str, words: &[&str]) -> anyhow::Result<Vec<String>> {
    let path = actors.cluster.log_path(name);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
    Ok(text.lines().filter(has_all).map(str::to_owned).collect())
}

/// Waits until a process has logged a line with all these words; returns the last one.
pub(crate) async fn wait_for_line(actors: &Actors, name: &str, words: &[&str]) -> anyhow::Result<String> {
    until(patience(), "a line in the log (is --log at info?)", async || {
        let line = lines_said(actors, name, words)?.pop();
        line.with_context(|| format!("{name} has not logged {words:?}"))
    })
    .await
}
