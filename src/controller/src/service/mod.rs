//! The CSI Controller service: CSI 1.12, "Controller Service RPC".
//!
//! Any replica answers: a request is parsed, what must be decided is proposed to the ledger, and the answer is read
//! from the replicated state, wherever the leader that carries it out may be. The service itself decides nothing.

mod attachments;
mod observed;
mod queries;
mod volumes;
mod wait;

use std::sync::Arc;
use std::time::{Duration, Instant};

use backend::Backend;
use csi::Topology;
use csi::parse::ClassDefaults;
use proto::csi::v1;
use proto::csi::v1::controller_server::Controller;
use proto::csi::v1::controller_service_capability::{Rpc, Type, rpc};
use replica::Replica;
use state_machine::{HostAddress, Nqn, Volume, VolumeId};
use tonic::{Request, Response, Status};

use crate::kubernetes::Kubernetes;
use crate::metrics::Metrics;
use crate::sessions::AskLeader;

/// The service's ground, shared by all requests.
#[derive(Clone)]
pub(crate) struct ControllerService {
    pub(crate) replica: Replica,
    /// What the leader knows of the nodes.
    pub(crate) leader: AskLeader,
    pub(crate) kubernetes: Kubernetes,
    /// Whether the volumes of one VM are attached one after the other.
    pub(crate) one_publish_per_vm: bool,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) defaults: ClassDefaults,
    /// From where volumes are reached.
    pub(crate) topology: Topology,
    pub(crate) nqn_prefix: Nqn,
    /// The appliance's management address, for the volume context.
    pub(crate) appliance: HostAddress,
    pub(crate) require_detach_proof: bool,
    pub(crate) call_timeout: Duration,
    pub(crate) metrics: Metrics,
}

impl ControllerService {
    fn nqn(&self, volume: &VolumeId) -> Result<Nqn, Status> {
        Nqn::of_volume(&self.nqn_prefix, volume)
            .map_err(|error| Status::failed_precondition(format!("volume {volume}: its NQN {error}")))
    }

    fn volume_message(&self, volume: &Volume) -> Result<v1::Volume, Status> {
        Ok(v1::Volume {
            volume_id: volume.id.to_string(),
            capacity_bytes: i64::try_from(volume.size.bytes()).unwrap_or(i64::MAX),
            volume_context: csi::context::volume_context(
                &volume.parameters,
                &self.nqn(&volume.id)?,
                &self.appliance,
            ),
            accessible_topology: self.topology.to_proto().into_iter().collect(),
            ..Default::default()
        })
    }
}

/// What this service is asked for, beside what every controller has to answer.
const CAPABILITIES: [rpc::Type; 8] = [
    rpc::Type::CreateDeleteVolume,
    rpc::Type::PublishUnpublishVolume,
    rpc::Type::ListVolumes,
    rpc::Type::ListVolumesPublishedNodes,
    rpc::Type::GetVolume,
    rpc::Type::GetCapacity,
    rpc::Type::ExpandVolume,
    rpc::Type::SingleNodeMultiWriter,
];

macro_rules! rpc {
    ($service:expr, $operation:literal, $method:ident, $request:expr) => {{
        let deadline = crate::deadline::of(&$request, $service.call_timeout);
        let begun = Instant::now();
        let result = $service.$method($request.into_inner(), deadline).await;
        $service.metrics.operation($operation, begun.elapsed(), result.is_ok());
        result.map(Response::new)
    }};
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<v1::CreateVolumeRequest>,
    ) -> Result<Response<v1::CreateVolumeResponse>, Status> {
        rpc!(self, "create_volume", do_create_volume, request)
    }

    async fn delete_volume(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Result<Response<v1::DeleteVolumeResponse>, Status> {
        rpc!(self, "delete_volume", do_delete_volume, request)
    }

    async fn controller_publish_volume(
        &self,
        request: Request<v1::ControllerPublishVolumeRequest>,
    ) -> Result<Response<v1::ControllerPublishVolumeResponse>, Status> {
        rpc!(self, "controller_publish_volume", do_publish, request)
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<v1::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<v1::ControllerUnpublishVolumeResponse>, Status> {
        rpc!(self, "controller_unpublish_volume", do_unpublish, request)
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<v1::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<v1::ValidateVolumeCapabilitiesResponse>, Status> {
        rpc!(self, "validate_volume_capabilities", do_validate, request)
    }

    async fn list_volumes(
        &self,
        request: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>, Status> {
        rpc!(self, "list_volumes", do_list_volumes, request)
    }

    async fn get_capacity(
        &self,
        request: Request<v1::GetCapacityRequest>,
    ) -> Result<Response<v1::GetCapacityResponse>, Status> {
        rpc!(self, "get_capacity", do_capacity, request)
    }

    async fn controller_expand_volume(
        &self,
        request: Request<v1::ControllerExpandVolumeRequest>,
    ) -> Result<Response<v1::ControllerExpandVolumeResponse>, Status> {
        rpc!(self, "controller_expand_volume", do_expand_volume, request)
    }

    async fn controller_get_volume(
        &self,
        request: Request<v1::ControllerGetVolumeRequest>,
    ) -> Result<Response<v1::ControllerGetVolumeResponse>, Status> {
        rpc!(self, "controller_get_volume", do_get_volume, request)
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<v1::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<v1::ControllerGetCapabilitiesResponse>, Status> {
        let capability = |kind: rpc::Type| v1::ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
        };
        let capabilities = CAPABILITIES.map(capability).into();
        Ok(Response::new(v1::ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_snapshot(
        &self,
        _: Request<v1::CreateSnapshotRequest>,
    ) -> Result<Response<v1::CreateSnapshotResponse>, Status> {
        Err(unsupported("CreateSnapshot"))
    }

    async fn delete_snapshot(
        &self,
        _: Request<v1::DeleteSnapshotRequest>,
    ) -> Result<Response<v1::DeleteSnapshotResponse>, Status> {
        Err(unsupported("DeleteSnapshot"))
    }

    async fn list_snapshots(
        &self,
        _: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        Err(unsupported("ListSnapshots"))
    }

    async fn get_snapshot(
        &self,
        _: Request<v1::GetSnapshotRequest>,
    ) -> Result<Response<v1::GetSnapshotResponse>, Status> {
        Err(unsupported("GetSnapshot"))
    }

    async fn controller_modify_volume(
        &self,
        _: Request<v1::ControllerModifyVolumeRequest>,
    ) -> Result<Response<v1::ControllerModifyVolumeResponse>, Status> {
        Err(unsupported("ControllerModifyVolume"))
    }
}

fn unsupported(method: &str) -> Status {
    Status::unimplemented(format!("{method} is not supported by this driver"))
}
