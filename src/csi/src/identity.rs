//! The Identity service: CSI 1.12, "Identity Service RPC".

use proto::csi::v1;
use proto::csi::v1::identity_server::Identity;
use proto::csi::v1::plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion};
use tonic::{Request, Response, Status};

/// The driver's name in `CSIDriver`, in storage classes and in persistent volumes.
pub const DRIVER_NAME: &str = "rds.csi.srvlab.io";

/// Says who the plugin is. It needs nothing to answer: neither a quorum nor the appliance nor Kubernetes.
///
/// The controller's and the node's socket claim the same: they are two parts of one plugin, and `Probe` is
/// asked by whoever restarts the process, so it is ready as soon as the process serves the socket.
#[derive(Debug, Clone, Copy, Default)]
pub struct PluginIdentity {
    /// Whether volumes are reachable from a part of the cluster only.
    pub has_topology: bool,
}

#[tonic::async_trait]
impl Identity for PluginIdentity {
    async fn get_plugin_info(
        &self,
        _: Request<v1::GetPluginInfoRequest>,
    ) -> Result<Response<v1::GetPluginInfoResponse>, Status> {
        Ok(Response::new(v1::GetPluginInfoResponse {
            name: DRIVER_NAME.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: Default::default(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<v1::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<v1::GetPluginCapabilitiesResponse>, Status> {
        let service = |kind: service::Type| Type::Service(Service { r#type: kind.into() });
        let mut kinds = vec![
            service(service::Type::ControllerService),
            Type::VolumeExpansion(VolumeExpansion { r#type: volume_expansion::Type::Online.into() }),
        ];
        if self.has_topology {
            kinds.push(service(service::Type::VolumeAccessibilityConstraints));
        }
        let capabilities =
            kinds.into_iter().map(|kind| v1::PluginCapability { r#type: Some(kind) }).collect();
        Ok(Response::new(v1::GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<v1::ProbeRequest>) -> Result<Response<v1::ProbeResponse>, Status> {
        Ok(Response::new(v1::ProbeResponse { ready: Some(true) }))
    }
}
