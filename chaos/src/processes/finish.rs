//! The end of a run: everything is healed, and in bounded time all replicas are in one state, nothing is left to do,
//! and the appliance has what the ledger says. Then everything is read once more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::operator::v1::{ListVolumesRequest, Volume};
use rds_csi::dev::requests::within;
use tokio::time::{Instant, sleep};

use super::lab::Lab;
use super::ledger;
use crate::history::{Connection, ConnectionChange, FinalRead, History, VolumeRead};

/// How long convergence may take once everything is healed and nobody asks for anything.
const CONVERGENCE_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// How long one read may take.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// Waits until the healed cluster is quiet and of one mind; if it does not come to that, the last difference is a
/// trouble. Returns how long it took.
pub(super) async fn converge(lab: &Lab) -> Duration {
    let began = Instant::now();
    loop {
        match is_converged(lab).await {
            Ok(()) => return began.elapsed(),
            Err(difference) if began.elapsed() > CONVERGENCE_LIMIT => {
                let limit = CONVERGENCE_LIMIT.as_secs();
                lab.recorder
                    .trouble(format!("not converged {limit} s after everything was healed: {difference:#}"));
                return began.elapsed();
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn is_converged(lab: &Lab) -> Result<()> {
    let statuses = lab.watch.statuses();
    ensure!(statuses.len() == lab.doors.controllers().len(), "only {:?} answer", statuses.keys());
    let states: BTreeSet<_> =
        statuses.values().map(|status| (status.applied_index, status.state_hash.clone())).collect();
    ensure!(states.len() == 1, "replicas are in states {states:?}");
    let mut views = BTreeMap::new();
    for name in lab.doors.controllers() {
        let volumes = volumes(lab, &name).await?;
        for volume in &volumes {
            ensure!(volume.phase == "Ready", "{} is {}: {}", volume.id, volume.phase, volume.problem);
            let unfinished = volume.attachments.iter().find(|one| one.phase != "Granted");
            ensure!(unfinished.is_none(), "{}: {unfinished:?}", volume.id);
        }
        views.insert(name, read_of(volumes));
    }
    let ledger = views.values().next().context("nobody answers")?;
    ensure!(views.values().all(|view| view == ledger), "replicas read {views:?}");
    let sizes: BTreeMap<_, _> =
        ledger.iter().map(|(id, volume)| (id.clone(), (volume.size_bytes, true))).collect();
    let appliance = lab.appliance.volumes();
    ensure!(sizes == appliance, "the ledger has {sizes:?}, the appliance {appliance:?}");
    Ok(())
}

async fn volumes(lab: &Lab, through: &str) -> Result<Vec<Volume>> {
    let request = within(READ_LIMIT, ListVolumesRequest {});
    let reply =
        lab.doors.operator(through)?.list_volumes(request).await.context("cannot list the volumes")?;
    Ok(reply.into_inner().volumes)
}

fn read_of(volumes: Vec<Volume>) -> BTreeMap<String, VolumeRead> {
    let one = |volume: Volume| {
        let nodes = volume.attachments.into_iter().map(|attachment| attachment.node_id).collect();
        (volume.id, VolumeRead { size_bytes: volume.size_bytes, nodes })
    };
    volumes.into_iter().map(one).collect()
}

/// Everything that was recorded, with the final read and the logs of the appliance and the nodes.
pub(super) async fn history(lab: &Lab) -> Result<History> {
    for volume in lab.follower.names() {
        ledger::look(lab, &volume).await;
    }
    let leader = lab.watch.leader().context("nobody leads at the end")?;
    let end = FinalRead {
        at: lab.recorder.now(),
        ledger: read_of(volumes(lab, &leader.name).await?),
        appliance: lab.appliance.volumes(),
        connected: connected(lab)?,
        clusters: lab.watch.clusters(),
    };
    let mut history = lab.recorder.finish(|ledger_ms| lab.watch.applied_by(ledger_ms));
    for vote in &mut history.votes {
        let unknown = || format!("nobody knows the cluster of replica {}", vote.replica);
        vote.cluster = lab.watch.cluster_of(vote.replica).with_context(unknown)?;
    }
    history.appliance = lab.appliance.mutations();
    for node in lab.doors.nodes() {
        history.connections.extend(journal(lab, &node)?);
    }
    history.connections.sort_by_key(|change| change.at);
    history.end = Some(end);
    Ok(history)
}

/// What is connected now: (node, volume).
fn connected(lab: &Lab) -> Result<BTreeSet<(String, String)>> {
    let mut found = BTreeSet::new();
    for node in lab.doors.nodes() {
        let directory = lab.cluster().state_directory(&node).join("connected");
        for entry in
            fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?
        {
            let volume = entry?.file_name().to_string_lossy().into_owned();
            found.insert((node.clone(), volume));
        }
    }
    Ok(found)
}

/// What a node's fake fabric has noted.
fn journal(lab: &Lab, node: &str) -> Result<Vec<ConnectionChange>> {
    let path = lab.cluster().state_directory(node).join("journal");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let change = |line: &str| {
        let [at_ns, change, volume] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
        Some(ConnectionChange {
            at: lab.recorder.epoch.of(at_ns.parse().ok()?),
            node: node.to_owned(),
            volume: volume.to_owned(),
            change: match change {
                "connected" => Connection::Connected,
                "disconnected" => Connection::Disconnected,
                _ => return None,
            },
        })
    };
    text.lines().map(|line| change(line).with_context(|| format!("{node}'s journal says {line:?}"))).collect()
}
