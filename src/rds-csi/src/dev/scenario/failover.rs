//! The leader dies in the middle: how long nobody answers, and what the next one knows.

use std::time::Duration;

use anyhow::{Context as _, bail};
use proto::operator::v1::operator_client::OperatorClient;
use proto::operator::v1::{GetVolumeRequest, StatusReply, StatusRequest, Volume};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use super::actors::{Actors, Disk, LEADER_LIMIT_MS, SOURCE, TARGET, call_limit, course, holders};
use super::timeline::{Stopped, Timeline};
use crate::dev::clients::Leader;
use crate::dev::requests::{self, Context, within};

/// How long the survivors may take until they answer, in ms: a step that never ends proves nothing.
const FAILOVER_LIMIT_MS: u64 = 15_000;
/// How long the killed replica may take to catch up, in ms.
const CATCH_UP_LIMIT_MS: u64 = 30_000;
/// Pause before a refused question is put again, in ms.
const RETRY_PAUSE_MS: u64 = 1;

/// Who was killed, and who is left.
pub(crate) struct Failover {
    pub(crate) killed: Leader,
    pub(crate) survivors: Vec<String>,
    holders_before: String,
}

/// SIGKILL to the leader; the survivors are asked until they answer.
pub(crate) async fn kill_the_leader(
    timeline: &mut Timeline,
    actors: &mut Actors,
    disk: &Disk,
) -> Result<Failover, Stopped> {
    timeline
        .step("kill -9 the leader", async |step| {
            let limit = Duration::from_millis(LEADER_LIMIT_MS);
            let killed = actors.cluster.leader(limit).await?;
            let mut survivors = actors.cluster.controllers();
            survivors.retain(|name| *name != killed.name);
            let through = survivors.first().context("nobody would survive")?.clone();
            let before = actors.volume(&through, disk).await?.ok("GetVolume")?;
            // Connected before the kill, as a sidecar would be: what is measured is the election.
            let mut reader = actors.cluster.operator(&through)?;
            reader.status(StatusRequest {}).await.context("the survivor does not answer")?;
            let killed_at = Instant::now();
            actors.cluster.kill(&killed.name)?;
            let (read, published) = tokio::join!(
                first_read(&mut reader, disk, killed_at),
                first_publish(actors, disk, &through, killed_at),
            );
            let ((read_after, after), (published_after, context)) = (read?, published?);
            step.measure(format!("until {through} answered a linearizable read"), read_after);
            step.measure(format!("until {through} accepted a publish (node-a again)"), published_after);
            step.equal("who holds the volume", holders(&before), holders(&after));
            let told = disk.published.iter().find(|(node, _)| *node == SOURCE).map(|(_, context)| context);
            step.equal("publish again gives the same publish_context", true, told == Some(&context));
            let next = actors.cluster.leader(limit).await?;
            let came = format!("{} in term {}", next.name, next.term);
            let is_new = next.id != killed.id && next.term > killed.term;
            let expected = format!("another than {}, in a term after {}", killed.name, killed.term);
            step.check("the new leader", is_new, expected, came);
            Ok(Failover { killed, survivors, holders_before: holders(&before) })
        })
        .await
}

pub(crate) async fn first_read(
    reader: &mut OperatorClient<Channel>,
    disk: &Disk,
    killed_at: Instant,
) -> anyhow::Result<(Duration, Volume)> {
    let limit = Duration::from_millis(FAILOVER_LIMIT_MS);
    loop {
        let request = within(limit, GetVolumeRequest { id: disk.volume.clone(), ..Default::default() });
        match reader.get_volume(request).await {
            Ok(reply) => return Ok((killed_at.elapsed(), reply.into_inner())),
            Err(status) if killed_at.elapsed() > limit => bail!("no read was answered: {status}"),
            Err(_) => sleep(Duration::from_millis(RETRY_PAUSE_MS)).await,
        }
    }
}

async fn first_publish(
    actors: &Actors,
    disk: &Disk,
    through: &str,
    killed_at: Instant,
) -> anyhow::Result<(Duration, Context)> {
    let limit = Duration::from_millis(FAILOVER_LIMIT_MS);
    let mut sidecar = actors.cluster.csi_controller(through)?;
    loop {
        let request = within(limit, requests::publish(&disk.volume, SOURCE, &disk.volume_context));
        match sidecar.controller_publish_volume(request).await {
            Ok(reply) => return Ok((killed_at.elapsed(), reply.into_inner().publish_context)),
            Err(status) if killed_at.elapsed() > limit => bail!("no publish was accepted: {status}"),
            Err(_) => sleep(Duration::from_millis(RETRY_PAUSE_MS)).await,
        }
    }
}

/// The migration and both attachments, as every survivor tells them.
pub(crate) async fn nothing_is_forgotten(
    timeline: &mut Timeline,
    actors: &Actors,
    disk: &Disk,
    failover: &Failover,
) -> Result<(), Stopped> {
    timeline
        .step("the survivors still know the migration", async |step| {
            let id = disk.migration.context("there is no migration")?;
            let expected = format!("{id} from {SOURCE} to {TARGET}: Active");
            for through in &failover.survivors {
                let migrations = actors.migrations(through, disk).await?;
                step.equal(format!("migrations through {through}"), &expected, course(&migrations));
                let volume = actors.volume(through, disk).await?.ok("GetVolume")?;
                let what = format!("who holds the volume through {through}");
                step.equal(what, &failover.holders_before, holders(&volume));
            }
            Ok(())
        })
        .await
}

/// The killed replica starts again on its data and catches up with the others.
pub(crate) async fn the_killed_one_returns(
    timeline: &mut Timeline,
    actors: &mut Actors,
    killed: &Leader,
) -> Result<(), Stopped> {
    timeline
        .step("start the killed replica again: it catches up", async |step| {
            let name = &killed.name;
            let leader = actors.cluster.leader(call_limit()).await?;
            let goal = actors.cluster.status(&leader.name).await?.applied_index.unwrap_or(0);
            let started_at = Instant::now();
            actors.cluster.start(name)?;
            let caught_up = wait_for_status(actors, name, |status| {
                status.leader_id.is_some() && status.applied_index >= Some(goal)
            });
            let status = caught_up.await?;
            step.measure("from its start until it had caught up", started_at.elapsed());
            step.equal("its id is the one before", killed.id, status.responder_id);
            let is_voter = status.replicas.iter().any(|one| one.id == status.responder_id && one.voter);
            step.equal("it votes", true, is_voter);
            let all = same_everywhere(actors).await?;
            let expected = vec![all[0].clone(); all.len()].join(", ");
            step.equal("index and hash of the state on each replica", expected, all.join(", "));
            actors.cluster.wait_until_ready(name).await
        })
        .await
}

async fn wait_for_status(
    actors: &Actors,
    name: &str,
    is_reached: impl Fn(&StatusReply) -> bool,
) -> anyhow::Result<StatusReply> {
    let deadline = Instant::now() + Duration::from_millis(CATCH_UP_LIMIT_MS);
    loop {
        match actors.cluster.status(name).await {
            Ok(status) if is_reached(&status) => return Ok(status),
            Ok(status) if Instant::now() >= deadline => {
                bail!(
                    "{name} has not caught up: applied {:?}, leader {:?}",
                    status.applied_index,
                    status.leader_id
                )
            }
            Err(error) if Instant::now() >= deadline => return Err(error),
            Ok(_) | Err(_) => sleep(Duration::from_millis(RETRY_PAUSE_MS)).await,
        }
    }
}

/// What each replica has applied, once that is equal, or at the deadline.
async fn same_everywhere(actors: &Actors) -> anyhow::Result<Vec<String>> {
    let deadline = Instant::now() + Duration::from_millis(CATCH_UP_LIMIT_MS);
    loop {
        let mut states = Vec::new();
        for name in actors.cluster.controllers() {
            let status = actors.cluster.status(&name).await?;
            let index = status.applied_index.context("nothing is applied")?;
            states.push(format!("{index} {}", status.state_hash));
        }
        let is_equal = states.windows(2).all(|pair| pair[0] == pair[1]);
        if is_equal || Instant::now() >= deadline {
            return Ok(states);
        }
        sleep(Duration::from_millis(RETRY_PAUSE_MS)).await;
    }
}
