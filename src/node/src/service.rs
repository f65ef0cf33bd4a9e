//! The CSI Node service: CSI 1.12, "Node Service RPC". Requests are parsed, operations run, outcomes answered.

use std::sync::Arc;
use std::time::Duration;

use csi::Topology;
use csi::parse::{NodeExpand, NodePublish, NodeStage, NodeStats, NodeUnpublish, NodeUnstage};
use proto::csi::v1;
use proto::csi::v1::node_server::Node;
use proto::csi::v1::node_service_capability::{Rpc, Type, rpc};
use proto::csi::v1::volume_usage::Unit;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::condition::Condition;
use crate::measure::VolumeUsage;
use crate::mounts::Filled;
use crate::operations::Operations;
use crate::volumes::NodeVolumes;

/// What the node plugin offers besides publishing.
const CAPABILITIES: [rpc::Type; 5] = [
    rpc::Type::StageUnstageVolume,
    rpc::Type::GetVolumeStats,
    rpc::Type::ExpandVolume,
    rpc::Type::VolumeCondition,
    rpc::Type::SingleNodeMultiWriter,
];
/// How long before the caller's time is up it is answered with a reason, in ms.
const ANSWER_MARGIN_MS: u64 = 200;

/// Answers kubelet.
pub(crate) struct NodeService {
    pub(crate) volumes: NodeVolumes,
    pub(crate) operations: Arc<Operations>,
    /// How long the controllers may be asked when the caller sets no shorter limit.
    pub(crate) controllers_limit: Duration,
    /// From where in the cluster this node reaches volumes.
    pub(crate) topology: Topology,
}

impl NodeService {
    /// Until when the controllers may be asked.
    fn until(&self, metadata: &MetadataMap) -> Instant {
        let margin = Duration::from_millis(ANSWER_MARGIN_MS);
        let caller = csi::caller_timeout(metadata).map(|limit| limit.saturating_sub(margin));
        Instant::now() + caller.map_or(self.controllers_limit, |limit| limit.min(self.controllers_limit))
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<v1::NodeStageVolumeRequest>,
    ) -> Result<Response<v1::NodeStageVolumeResponse>, Status> {
        let until = self.until(request.metadata());
        let stage = NodeStage::parse(request.get_ref())?;
        let (volumes, volume) = (self.volumes.clone(), stage.volume.clone());
        self.operations.run("stage", &volume, async move { volumes.stage(stage, until).await }).await?;
        Ok(Response::new(v1::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<v1::NodeUnstageVolumeRequest>,
    ) -> Result<Response<v1::NodeUnstageVolumeResponse>, Status> {
        let until = self.until(request.metadata());
        let unstage = NodeUnstage::parse(request.get_ref())?;
        let (volumes, volume) = (self.volumes.clone(), unstage.volume.clone());
        self.operations.run("unstage", &volume, async move { volumes.unstage(unstage, until).await }).await?;
        Ok(Response::new(v1::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<v1::NodePublishVolumeRequest>,
    ) -> Result<Response<v1::NodePublishVolumeResponse>, Status> {
        let until = self.until(request.metadata());
        let publish = NodePublish::parse(request.get_ref())?;
        let (volumes, volume) = (self.volumes.clone(), publish.volume.clone());
        self.operations.run("publish", &volume, async move { volumes.publish(publish, until).await }).await?;
        Ok(Response::new(v1::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<v1::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<v1::NodeUnpublishVolumeResponse>, Status> {
        let unpublish = NodeUnpublish::parse(request.get_ref())?;
        let (volumes, volume) = (self.volumes.clone(), unpublish.volume.clone());
        self.operations.run("unpublish", &volume, async move { volumes.unpublish(unpublish).await }).await?;
        Ok(Response::new(v1::NodeUnpublishVolumeResponse {}))
    }

    /// Looks only, so it needs no turn: kubelet asks while other operations run.
    async fn node_get_volume_stats(
        &self,
        request: Request<v1::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<v1::NodeGetVolumeStatsResponse>, Status> {
        let report = self.volumes.stats(NodeStats::parse(request.get_ref())?).await?;
        let usage = match report.usage {
            // kubelet looks at the condition only if there is some usage.
            None => vec![v1::VolumeUsage { unit: Unit::Bytes.into(), ..Default::default() }],
            Some(VolumeUsage::FileSystem(usage)) => {
                vec![filled(usage.bytes, Unit::Bytes), filled(usage.inodes, Unit::Inodes)]
            }
            Some(VolumeUsage::Block { size_bytes }) => {
                let total = clamp(size_bytes);
                vec![v1::VolumeUsage { total, unit: Unit::Bytes.into(), ..Default::default() }]
            }
        };
        let Condition { abnormal, message } = report.condition;
        let volume_condition = Some(v1::VolumeCondition { abnormal, message });
        Ok(Response::new(v1::NodeGetVolumeStatsResponse { usage, volume_condition }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<v1::NodeExpandVolumeRequest>,
    ) -> Result<Response<v1::NodeExpandVolumeResponse>, Status> {
        let expand = NodeExpand::parse(request.get_ref())?;
        let (volumes, volume) = (self.volumes.clone(), expand.volume.clone());
        let size_bytes =
            self.operations.run("expand", &volume, async move { volumes.expand(expand).await }).await?;
        Ok(Response::new(v1::NodeExpandVolumeResponse { capacity_bytes: clamp(size_bytes) }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<v1::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<v1::NodeGetCapabilitiesResponse>, Status> {
        let capability = |kind: rpc::Type| v1::NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
        };
        let capabilities = CAPABILITIES.map(capability).into();
        Ok(Response::new(v1::NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<v1::NodeGetInfoRequest>,
    ) -> Result<Response<v1::NodeGetInfoResponse>, Status> {
        let identity = &self.volumes.identity;
        Ok(Response::new(v1::NodeGetInfoResponse {
            node_id: identity.node.to_string(),
            max_volumes_per_node: i64::from(identity.max_volumes),
            accessible_topology: self.topology.to_proto(),
        }))
    }
}

fn filled(what: Filled, unit: Unit) -> v1::VolumeUsage {
    v1::VolumeUsage {
        total: clamp(what.total),
        used: clamp(what.used),
        available: clamp(what.available),
        unit: unit.into(),
    }
}

/// CSI counts in `int64`.
fn clamp(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
