//! Rows that are measured on a cluster of ours, through CSI's sockets, as the sidecars would.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use proto::csi::v1::ControllerGetVolumeRequest;
use proto::csi::v1::controller_client::ControllerClient;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::CLIENTS;
use super::samples::Samples;
use crate::dev::Cluster;
use crate::dev::requests::{Context as CsiContext, create, publish, unpublish, within};

/// How long any one call may take.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// How long an election may take before the run is given up.
const LEADER_LIMIT: Duration = Duration::from_secs(30);
/// Each volume's size; the appliance is simulated and stores nothing.
const VOLUME_BYTES: i64 = 1 << 30;
/// The node that volumes are published to; nothing is staged, so they leave it at once.
const NODE: &str = "node-a";

/// A cluster with a volume for each client.
pub(super) struct Bench {
    cluster: Cluster,
    volumes: Vec<Volume>,
}

#[derive(Clone)]
struct Volume {
    id: String,
    context: CsiContext,
}

impl Bench {
    pub(super) async fn start(directory: Option<PathBuf>) -> anyhow::Result<Self> {
        let mut builder = Cluster::builder().nodes(1).log_filter("warn").instant_appliance();
        if let Some(directory) = directory {
            builder = builder.directory(directory);
        }
        let mut bench = Self { cluster: builder.start().await?, volumes: Vec::new() };
        let mut client = bench.leaders_client().await?;
        for _ in 0..CLIENTS.into_iter().max().unwrap_or(1) {
            let name = format!("pvc-{}", uuid::Uuid::new_v4());
            let answer = client.create_volume(within(CALL_LIMIT, create(&name, VOLUME_BYTES))).await;
            let volume = answer
                .context("cannot create a volume")?
                .into_inner()
                .volume
                .context("no volume came back")?;
            bench.volumes.push(Volume { id: volume.volume_id, context: volume.volume_context });
        }
        Ok(bench)
    }

    pub(super) fn directory(&self) -> PathBuf {
        self.cluster.directory().to_owned()
    }

    async fn leaders_client(&self) -> anyhow::Result<ControllerClient<Channel>> {
        let leader = self.cluster.leader(LEADER_LIMIT).await?;
        self.cluster.csi_controller(&leader.name)
    }

    /// Each client publishes and unpublishes its own volume for `seconds`.
    pub(super) async fn publishes(&self, clients: usize, seconds: u64) -> anyhow::Result<[Samples; 2]> {
        let until = Instant::now() + Duration::from_secs(seconds);
        let (begun, mut tasks) = (Instant::now(), JoinSet::new());
        for volume in self.volumes.iter().take(clients).cloned() {
            tasks.spawn(publish_until(self.leaders_client().await?, volume, until));
        }
        let (mut published, mut unpublished) = (Vec::new(), Vec::new());
        while let Some(ended) = tasks.join_next().await {
            let (some, others) = ended??;
            published.extend(some);
            unpublished.extend(others);
        }
        let elapsed = begun.elapsed();
        Ok([Samples::within(published, elapsed), Samples::within(unpublished, elapsed)])
    }

    /// Each client reads its volume for `seconds`.
    pub(super) async fn reads(&self, clients: usize, seconds: u64) -> anyhow::Result<Samples> {
        let until = Instant::now() + Duration::from_secs(seconds);
        let (begun, mut tasks) = (Instant::now(), JoinSet::new());
        for volume in self.volumes.iter().take(clients).cloned() {
            tasks.spawn(read_until(self.leaders_client().await?, volume, until));
        }
        let mut durations = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            durations.extend(ended??);
        }
        Ok(Samples::within(durations, begun.elapsed()))
    }

    /// Kills the leader and publishes a volume through a survivor, which answers once a new leader has committed
    /// the attachment, written its term on the appliance and confirmed the export.
    pub(super) async fn failovers(&mut self, kills: u32) -> anyhow::Result<Samples> {
        let mut durations = Vec::new();
        for kill in 0..kills {
            let leader = self.cluster.leader(LEADER_LIMIT).await?;
            let survivors: Vec<_> =
                self.cluster.controllers().into_iter().filter(|name| *name != leader.name).collect();
            let survivor = &survivors[kill as usize % survivors.len()];
            let mut client = self.cluster.csi_controller(survivor)?;
            let volume = self.volumes[kill as usize % self.volumes.len()].clone();
            // The survivor's connection is there before the leader goes, as a sidecar's is.
            unpublish_once(&mut client, &volume).await?;
            self.cluster.kill(&leader.name)?;
            let begun = Instant::now();
            publish_insisting(&mut client, &volume, begun).await?;
            durations.push(begun.elapsed());
            unpublish_once(&mut client, &volume).await?;
            self.cluster.start(&leader.name)?;
            self.cluster.wait_until_ready(&leader.name).await?;
            eprintln!(
                "kill {} of {kills}: {:.0} ms",
                kill + 1,
                durations[kill as usize].as_secs_f64() * 1000.0
            );
        }
        Ok(Samples::new(durations))
    }
}

async fn publish_until(
    mut client: ControllerClient<Channel>,
    volume: Volume,
    until: Instant,
) -> anyhow::Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut published, mut unpublished) = (Vec::new(), Vec::new());
    while Instant::now() < until {
        let begun = Instant::now();
        let request = within(CALL_LIMIT, publish(&volume.id, NODE, &volume.context));
        client.controller_publish_volume(request).await.context("a publish failed")?;
        published.push(begun.elapsed());
        let begun = Instant::now();
        unpublish_once(&mut client, &volume).await?;
        unpublished.push(begun.elapsed());
    }
    Ok((published, unpublished))
}

async fn read_until(
    mut client: ControllerClient<Channel>,
    volume: Volume,
    until: Instant,
) -> anyhow::Result<Vec<Duration>> {
    let mut durations = Vec::new();
    while Instant::now() < until {
        let begun = Instant::now();
        let request = within(CALL_LIMIT, ControllerGetVolumeRequest { volume_id: volume.id.clone() });
        client.controller_get_volume(request).await.context("a read failed")?;
        durations.push(begun.elapsed());
    }
    Ok(durations)
}

async fn unpublish_once(client: &mut ControllerClient<Channel>, volume: &Volume) -> anyhow::Result<()> {
    let request = within(CALL_LIMIT, unpublish(&volume.id, NODE));
    client.controller_unpublish_volume(request).await.context("an unpublish failed")?;
    Ok(())
}

/// Publishes again and again, as the sidecar would, but without its pauses.
async fn publish_insisting(
    client: &mut ControllerClient<Channel>,
    volume: &Volume,
    begun: Instant,
) -> anyhow::Result<()> {
    loop {
        let request = within(CALL_LIMIT, publish(&volume.id, NODE, &volume.context));
        match client.controller_publish_volume(request).await {
            Ok(_) => return Ok(()),
            Err(status) if begun.elapsed() > CALL_LIMIT => bail!("no publish was accepted: {status}"),
            Err(status) => eprintln!("  tried again after {}: {}", status.code(), status.message()),
        }
    }
}
