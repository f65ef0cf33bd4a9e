//! The CSI services of one replica, as a sidecar beside it calls them.

use std::time::Duration;

use proto::csi::v1::controller_client::ControllerClient;
use proto::csi::v1::identity_client::IdentityClient;
use proto::csi::v1::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetVolumeRequest,
    ControllerGetVolumeResponse, ControllerPublishVolumeRequest, ControllerPublishVolumeResponse,
    ControllerUnpublishVolumeRequest, ControllerUnpublishVolumeResponse, CreateVolumeRequest,
    CreateVolumeResponse, DeleteVolumeRequest, DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse,
    ListVolumesRequest, ListVolumesResponse, ProbeRequest, ProbeResponse, ValidateVolumeCapabilitiesRequest,
    ValidateVolumeCapabilitiesResponse,
};
use tonic::transport::Channel;
use tonic::{IntoRequest, Request, Response, Status};

/// How long a call may take if its request does not say, in milliseconds. The sidecars' own limit is 15 s.
const ATTEMPT_MS: u64 = 10_000;

/// Where a request says how long it may take.
const LIMIT_KEY: &str = "grpc-timeout";

/// The services at one socket. A call is one attempt.
#[derive(Debug, Clone)]
pub struct Csi {
    controller: ControllerClient<Channel>,
    identity: IdentityClient<Channel>,
}

impl Csi {
    /// The services that these clients reach.
    pub fn new(controller: ControllerClient<Channel>, identity: IdentityClient<Channel>) -> Self {
        Self { controller, identity }
    }

    /// `Probe`.
    pub async fn probe(&self, request: impl IntoRequest<ProbeRequest>) -> Result<ProbeResponse, Status> {
        self.identity.clone().probe(limited(request)).await.map(Response::into_inner)
    }

    /// `CreateVolume`.
    pub async fn create(
        &self,
        request: impl IntoRequest<CreateVolumeRequest>,
    ) -> Result<CreateVolumeResponse, Status> {
        self.controller.clone().create_volume(limited(request)).await.map(Response::into_inner)
    }

    /// `DeleteVolume`.
    pub async fn delete(
        &self,
        request: impl IntoRequest<DeleteVolumeRequest>,
    ) -> Result<DeleteVolumeResponse, Status> {
        self.controller.clone().delete_volume(limited(request)).await.map(Response::into_inner)
    }

    /// `ControllerPublishVolume`.
    pub async fn publish(
        &self,
        request: impl IntoRequest<ControllerPublishVolumeRequest>,
    ) -> Result<ControllerPublishVolumeResponse, Status> {
        self.controller.clone().controller_publish_volume(limited(request)).await.map(Response::into_inner)
    }

    /// `ControllerUnpublishVolume`.
    pub async fn unpublish(
        &self,
        request: impl IntoRequest<ControllerUnpublishVolumeRequest>,
    ) -> Result<ControllerUnpublishVolumeResponse, Status> {
        self.controller.clone().controller_unpublish_volume(limited(request)).await.map(Response::into_inner)
    }

    /// `ControllerExpandVolume`.
    pub async fn expand(
        &self,
        request: impl IntoRequest<ControllerExpandVolumeRequest>,
    ) -> Result<ControllerExpandVolumeResponse, Status> {
        self.controller.clone().controller_expand_volume(limited(request)).await.map(Response::into_inner)
    }

    /// `ControllerGetVolume`.
    pub async fn get(
        &self,
        request: impl IntoRequest<ControllerGetVolumeRequest>,
    ) -> Result<ControllerGetVolumeResponse, Status> {
        self.controller.clone().controller_get_volume(limited(request)).await.map(Response::into_inner)
    }

    /// `ValidateVolumeCapabilities`.
    pub async fn validate(
        &self,
        request: impl IntoRequest<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<ValidateVolumeCapabilitiesResponse, Status> {
        self.controller.clone().validate_volume_capabilities(limited(request)).await.map(Response::into_inner)
    }

    /// `ListVolumes`.
    pub async fn list(
        &self,
        request: impl IntoRequest<ListVolumesRequest>,
    ) -> Result<ListVolumesResponse, Status> {
        self.controller.clone().list_volumes(limited(request)).await.map(Response::into_inner)
    }

    /// `GetCapacity`.
    pub async fn capacity(
        &self,
        request: impl IntoRequest<GetCapacityRequest>,
    ) -> Result<GetCapacityResponse, Status> {
        self.controller.clone().get_capacity(limited(request)).await.map(Response::into_inner)
    }
}

/// The request with a limit, its own or the usual one.
fn limited<T>(request: impl IntoRequest<T>) -> Request<T> {
    let mut request = request.into_request();
    if !request.metadata().contains_key(LIMIT_KEY) {
        request.set_timeout(Duration::from_millis(ATTEMPT_MS));
    }
    request
}
