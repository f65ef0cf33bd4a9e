//! CSI requests as the sidecars and kubelet make them for a VM's disk: RWX, block.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use proto::csi::v1::volume_capability::access_mode::Mode;
use proto::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume};
use proto::csi::v1::{
    CapacityRange, ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest, CreateVolumeRequest,
    DeleteVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability,
};
use tonic::Request;

/// What a volume context or a publish context is.
pub type Context = BTreeMap<String, String>;

/// A request that is given up after `limit`, at both ends.
pub fn within<T>(limit: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

/// Read and write as a block device, on two nodes while a VM migrates.
pub fn rwx_block() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::MultiNodeMultiWriter as i32 }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    }
}

/// Asks for an RWX block volume of `size_bytes`.
pub fn create(name: &str, size_bytes: i64) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(CapacityRange { required_bytes: size_bytes, limit_bytes: 0 }),
        volume_capabilities: vec![rwx_block()],
        ..CreateVolumeRequest::default()
    }
}

/// Asks that the volume goes.
pub fn delete(volume: &str) -> DeleteVolumeRequest {
    DeleteVolumeRequest { volume_id: volume.to_owned(), ..DeleteVolumeRequest::default() }
}

/// Asks that `node` may use the RWX block volume.
pub fn publish(volume: &str, node: &str, volume_context: &Context) -> ControllerPublishVolumeRequest {
    ControllerPublishVolumeRequest {
        volume_id: volume.to_owned(),
        node_id: node.to_owned(),
        volume_capability: Some(rwx_block()),
        volume_context: volume_context.clone(),
        ..ControllerPublishVolumeRequest::default()
    }
}

/// Takes the volume from `node`.
pub fn unpublish(volume: &str, node: &str) -> ControllerUnpublishVolumeRequest {
    ControllerUnpublishVolumeRequest {
        volume_id: volume.to_owned(),
        node_id: node.to_owned(),
        ..ControllerUnpublishVolumeRequest::default()
    }
}

/// Brings the RWX block volume to a node.
pub fn stage(
    volume: &str,
    staging: &Path,
    publish_context: &Context,
    volume_context: &Context,
) -> NodeStageVolumeRequest {
    NodeStageVolumeRequest {
        volume_id: volume.to_owned(),
        publish_context: publish_context.clone(),
        staging_target_path: staging.display().to_string(),
        volume_capability: Some(rwx_block()),
        volume_context: volume_context.clone(),
        ..NodeStageVolumeRequest::default()
    }
}

/// Shows the staged RWX block volume to a pod at `target`.
pub fn node_publish(
    volume: &str,
    staging: &Path,
    target: &Path,
    publish_context: &Context,
    volume_context: &Context,
) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: volume.to_owned(),
        publish_context: publish_context.clone(),
        staging_target_path: staging.display().to_string(),
        target_path: target.display().to_string(),
        volume_capability: Some(rwx_block()),
        volume_context: volume_context.clone(),
        ..NodePublishVolumeRequest::default()
    }
}

/// Takes the volume from a pod.
pub fn node_unpublish(volume: &str, target: &Path) -> NodeUnpublishVolumeRequest {
    NodeUnpublishVolumeRequest { volume_id: volume.to_owned(), target_path: target.display().to_string() }
}

/// Takes the volume from a node.
pub fn unstage(volume: &str, staging: &Path) -> NodeUnstageVolumeRequest {
    NodeUnstageVolumeRequest {
        volume_id: volume.to_owned(),
        staging_target_path: staging.display().to_string(),
    }
}
