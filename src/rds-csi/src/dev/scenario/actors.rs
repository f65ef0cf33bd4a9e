//! Everybody who acts in a story: sidecars, kubelet, the person on call, and who looks into the appliance.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use backend::{Backend, RouterOs};
use controller::ControllerConfig;
use proto::operator::v1::{GetVolumeRequest, ListMigrationsRequest, Migration, Volume};
use tonic::{Code, Response, Status};

use super::timeline::Step;
use crate::ctl::{code_name, describe};
use crate::dev::cluster::{Cluster, ClusterBuilder};
use crate::dev::requests::{self, Context, within};

/// How long any one call may take, with elections and the appliance's latencies in it, in ms.
const CALL_LIMIT_MS: u64 = 20_000;
/// How long the cluster may take to have a leader, in ms.
pub(crate) const LEADER_LIMIT_MS: u64 = 15_000;

pub(crate) const SOURCE: &str = "node-a";
pub(crate) const TARGET: &str = "node-b";
pub(crate) const THIRD: &str = "node-c";

/// A limit for one call.
pub(crate) fn call_limit() -> Duration {
    Duration::from_millis(CALL_LIMIT_MS)
}

/// The volume that the story is about.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) volume: String,
    pub(crate) volume_context: Context,
    /// What each node was told, in order of publishing.
    pub(crate) published: Vec<(&'static str, Context)>,
    /// The migration's number, once it runs.
    pub(crate) migration: Option<u64>,
    /// Disks on the appliance before the story.
    pub(crate) disks_before: usize,
}

/// Who acts.
pub(crate) struct Actors {
    pub(crate) cluster: Cluster,
    pub(crate) appliance: RouterOs,
}

impl Actors {
    /// Starts the cluster and finds its leader.
    pub(crate) async fn start(builder: ClusterBuilder, step: &mut Step) -> anyhow::Result<Self> {
        let cluster = builder.start().await?;
        let leader = cluster.leader(Duration::from_millis(LEADER_LIMIT_MS)).await?;
        let came = format!("{} in term {}", leader.name, leader.term);
        step.check("a controller leads", leader.term > 0, "one, in a term".to_owned(), came);
        let first = cluster.controllers().into_iter().next().context("there is no controller")?;
        let text = fs::read_to_string(cluster.config_path(&first)).context("cannot read a config")?;
        let config =
            ControllerConfig::parse(&text).map_err(|mistakes| anyhow::anyhow!(mistakes.join("; ")))?;
        let appliance = RouterOs::new(config.appliance).context("cannot look into the appliance")?;
        Ok(Self { cluster, appliance })
    }

    /// Says where to look, after a story that stopped.
    pub(crate) fn explain(&self) {
        tracing::error!(
            directory = %self.cluster.directory().display(),
            "the story stopped; with --data-dir the logs stay"
        );
    }

    /// How many disks the appliance has.
    pub(crate) async fn disks_on_appliance(&self) -> anyhow::Result<usize> {
        Ok(self.appliance.list().await.context("cannot look into the appliance")?.len())
    }

    /// ControllerPublishVolume through the controller `through`.
    pub(crate) async fn publish(
        &self,
        through: &str,
        disk: &Disk,
        node: &str,
    ) -> anyhow::Result<Answer<Context>> {
        let request = within(call_limit(), requests::publish(&disk.volume, node, &disk.volume_context));
        let answer = self.cluster.csi_controller(through)?.controller_publish_volume(request).await;
        Ok(Answer(answer.map(|reply| reply.into_inner().publish_context)))
    }

    /// ControllerUnpublishVolume through the controller `through`.
    pub(crate) async fn unpublish(
        &self,
        through: &str,
        disk: &Disk,
        node: &str,
    ) -> anyhow::Result<Answer<()>> {
        let request = within(call_limit(), requests::unpublish(&disk.volume, node));
        let answer = self.cluster.csi_controller(through)?.controller_unpublish_volume(request).await;
        Ok(Answer(answer.map(discard)))
    }

    /// What kubelet does for a pod: stage, then publish. Returns the pod's path.
    pub(crate) async fn bring_to_pod(
        &self,
        disk: &Disk,
        node: &str,
        context: &Context,
    ) -> anyhow::Result<PathBuf> {
        let (staging, target) = (self.staging(disk, node), self.target(disk, node));
        let pods = target.parent().context("the target has no directory")?;
        for directory in [staging.as_path(), pods] {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let mut kubelet = self.cluster.csi_node(node)?;
        let request = requests::stage(&disk.volume, &staging, context, &disk.volume_context);
        Answer(kubelet.node_stage_volume(within(call_limit(), request)).await).ok("NodeStageVolume")?;
        let request = requests::node_publish(&disk.volume, &staging, &target, context, &disk.volume_context);
        Answer(kubelet.node_publish_volume(within(call_limit(), request)).await).ok("NodePublishVolume")?;
        Ok(target)
    }

    /// What kubelet does when the pod has ended: unpublish, then unstage. Returns the pod's path.
    pub(crate) async fn take_from_pod(&self, disk: &Disk, node: &str) -> anyhow::Result<PathBuf> {
        let (staging, target) = (self.staging(disk, node), self.target(disk, node));
        let mut kubelet = self.cluster.csi_node(node)?;
        let request = within(call_limit(), requests::node_unpublish(&disk.volume, &target));
        Answer(kubelet.node_unpublish_volume(request).await).ok("NodeUnpublishVolume")?;
        let request = within(call_limit(), requests::unstage(&disk.volume, &staging));
        Answer(kubelet.node_unstage_volume(request).await).ok("NodeUnstageVolume")?;
        Ok(target)
    }

    /// What kubelet does when the pod has ended, and it then dies: unpublish only.
    pub(crate) async fn leave_staged(&self, disk: &Disk, node: &str) -> anyhow::Result<()> {
        let request = requests::node_unpublish(&disk.volume, &self.target(disk, node));
        let answer = self.cluster.csi_node(node)?.node_unpublish_volume(within(call_limit(), request)).await;
        Answer(answer).ok("NodeUnpublishVolume").map(discard)
    }

    fn kubelet_directory(&self, node: &str) -> PathBuf {
        self.cluster.directory().join("kubelet").join(node)
    }

    fn staging(&self, disk: &Disk, node: &str) -> PathBuf {
        self.kubelet_directory(node).join("staging").join(&disk.volume)
    }

    fn target(&self, disk: &Disk, node: &str) -> PathBuf {
        self.kubelet_directory(node).join("pods").join(&disk.volume)
    }

    /// The volume in the ledger, read linearizably through `through`.
    pub(crate) async fn volume(&self, through: &str, disk: &Disk) -> anyhow::Result<Answer<Volume>> {
        let request =
            within(call_limit(), GetVolumeRequest { id: disk.volume.clone(), ..Default::default() });
        let answer = self.cluster.operator(through)?.get_volume(request).await;
        Ok(Answer(answer.map(Response::into_inner)))
    }

    /// The volume with its history, read linearizably through `through`.
    pub(crate) async fn history(&self, through: &str, disk: &Disk) -> anyhow::Result<Volume> {
        let request = GetVolumeRequest { id: disk.volume.clone(), with_history: true };
        let answer = self.cluster.operator(through)?.get_volume(within(call_limit(), request)).await;
        Answer(answer.map(Response::into_inner)).ok("GetVolume")
    }

    /// The volume's migrations in the ledger, read linearizably through `through`.
    pub(crate) async fn migrations(&self, through: &str, disk: &Disk) -> anyhow::Result<Vec<Migration>> {
        let request = within(call_limit(), ListMigrationsRequest {});
        let answer = self.cluster.operator(through)?.list_migrations(request).await;
        let mut all = Answer(answer).ok("ListMigrations")?.into_inner().migrations;
        all.retain(|migration| migration.volume_id == disk.volume);
        Ok(all)
    }
}

fn discard<T>(_: Response<T>) {}

/// A gRPC answer.
pub(crate) struct Answer<T>(pub(crate) Result<T, Status>);

impl<T> Answer<T> {
    /// The answer's code, and its words if it is a refusal.
    pub(crate) fn words(&self) -> String {
        self.0.as_ref().err().map_or_else(|| code_name(Code::Ok).to_owned(), describe)
    }

    /// The answer's code.
    pub(crate) fn code(&self) -> &'static str {
        code_name(self.0.as_ref().err().map_or(Code::Ok, Status::code))
    }

    /// What was asked for; a refusal ends the step.
    pub(crate) fn ok(self, call: &str) -> anyhow::Result<T> {
        self.0.map_err(|status| anyhow::anyhow!("{call}: {}", describe(&status)))
    }
}

/// Who holds a volume, in a line that can be compared.
pub(crate) fn holders(volume: &Volume) -> String {
    let holder = |attachment: &proto::operator::v1::Attachment| {
        format!("{} {} generation {}", attachment.node_id, attachment.phase, attachment.generation)
    };
    let holders: Vec<String> = volume.attachments.iter().map(holder).collect();
    if holders.is_empty() { "nobody".to_owned() } else { holders.join(", ") }
}

/// A volume's migrations, in a line that can be compared.
pub(crate) fn course(migrations: &[Migration]) -> String {
    let one = |migration: &Migration| {
        let (source, target) = (&migration.source_node_id, &migration.target_node_id);
        let end = if migration.outcome.is_empty() { &migration.phase } else { &migration.outcome };
        format!("{} from {source} to {target}: {end}", migration.id)
    };
    let all: Vec<String> = migrations.iter().map(one).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}
