//! The Node service's requests: CSI 1.12, "Node Service RPC".

use proto::csi::v1;
use state_machine::{AccessType, VolumeId};

use super::controller::volume_id;
use super::{Capability, NodePath, RequestError, SizeRange};
use crate::context::{PublishContext, VolumeContext};

/// `NodeStageVolumeRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStage {
    /// The volume.
    pub volume: VolumeId,
    /// Where it is to be staged.
    pub staging_path: NodePath,
    /// How it will be used.
    pub capability: Capability,
    /// Where to connect, and under which generation.
    pub publish: PublishContext,
    /// What was fixed at creation.
    pub context: VolumeContext,
}

impl NodeStage {
    /// Parses the request.
    pub fn parse(request: &v1::NodeStageVolumeRequest) -> Result<Self, RequestError> {
        let volume = volume_id(&request.volume_id)?;
        let staging_path = NodePath::parse("staging_target_path", &request.staging_target_path)?;
        let capability = Capability::parse_required("volume_capability", request.volume_capability.as_ref())?;
        let publish = PublishContext::parse("publish_context", &request.publish_context, &volume)?;
        let context = VolumeContext::parse("volume_context", &request.volume_context, &volume)?;
        let stage = Self { volume, staging_path, capability, publish, context };
        if let AccessType::Mount { fs_type } = stage.access_type() {
            // Checked at creation already, but a persistent volume can be written by hand.
            stage.context.parameters.check_mkfs_options("volume_context", fs_type)?;
        }
        Ok(stage)
    }

    /// Device or directory, with its file system.
    pub fn access_type(&self) -> AccessType {
        self.capability.access_type(self.publish.fs_type)
    }
}

/// `NodeUnstageVolumeRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeUnstage {
    /// The volume.
    pub volume: VolumeId,
    /// Where it was staged.
    pub staging_path: NodePath,
}

impl NodeUnstage {
    /// Parses the request.
    pub fn parse(request: &v1::NodeUnstageVolumeRequest) -> Result<Self, RequestError> {
        let volume = volume_id(&request.volume_id)?;
        Ok(Self {
            volume,
            staging_path: NodePath::parse("staging_target_path", &request.staging_target_path)?,
        })
    }
}

/// `NodePublishVolumeRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePublish {
    /// The volume.
    pub volume: VolumeId,
    /// Where it was staged.
    pub staging_path: NodePath,
    /// Where a pod is to find it.
    pub target_path: NodePath,
    /// How it will be used.
    pub capability: Capability,
    /// Whether only to read.
    pub read_only: bool,
    /// Where the volume is connected, and under which generation.
    pub publish: PublishContext,
    /// What was fixed at creation.
    pub context: VolumeContext,
}

impl NodePublish {
    /// Parses the request.
    pub fn parse(request: &v1::NodePublishVolumeRequest) -> Result<Self, RequestError> {
        let volume = volume_id(&request.volume_id)?;
        let target_path = NodePath::parse("target_path", &request.target_path)?;
        let capability = Capability::parse_required("volume_capability", request.volume_capability.as_ref())?;
        let staging_path = NodePath::parse("staging_target_path", &request.staging_target_path)?;
        let publish = PublishContext::parse("publish_context", &request.publish_context, &volume)?;
        let context = VolumeContext::parse("volume_context", &request.volume_context, &volume)?;
        let read_only = request.readonly;
        let publish = Self { volume, staging_path, target_path, capability, read_only, publish, context };
        if let AccessType::Mount { fs_type } = publish.access_type() {
            // What has lost its device is staged once more by this request.
            publish.context.parameters.check_mkfs_options("volume_context", fs_type)?;
        }
        Ok(publish)
    }

    /// Device or directory, with its file system.
    pub fn access_type(&self) -> AccessType {
        self.capability.access_type(self.publish.fs_type)
    }
}

/// `NodeUnpublishVolumeRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeUnpublish {
    /// The volume.
    pub volume: VolumeId,
    /// Where a pod found it.
    pub target_path: NodePath,
}

impl NodeUnpublish {
    /// Parses the request.
    pub fn parse(request: &v1::NodeUnpublishVolumeRequest) -> Result<Self, RequestError> {
        let volume = volume_id(&request.volume_id)?;
        Ok(Self { volume, target_path: NodePath::parse("target_path", &request.target_path)? })
    }
}

/// `NodeGetVolumeStatsRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStats {
    /// The volume.
    pub volume: VolumeId,
    /// Where it is published or staged.
    pub volume_path: NodePath,
    /// Where it is staged, if the caller says so.
    pub staging_path: Option<NodePath>,
}

impl NodeStats {
    /// Parses the request.
    pub fn parse(request: &v1::NodeGetVolumeStatsRequest) -> Result<Self, RequestError> {
        let volume = volume_id(&request.volume_id)?;
        let staging_path = NodePath::parse_optional("staging_target_path", &request.staging_target_path)?;
        let volume_path = NodePath::parse_existing("volume_path", &request.volume_path)?;
        Ok(Self { volume, volume_path, staging_path })
    }
}

/// `NodeExpandVolumeRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeExpand {
    /// The volume.
    pub volume: VolumeId,
    /// Where it is published or staged.
    pub volume_path: NodePath,
    /// Where it is staged, if the caller says so.
    pub staging_path: Option<NodePath>,
    /// How large it is to be at least, if the caller says so; else as large as the device.
    pub size: Option<SizeRange>,
    /// How it is used, if the caller says so.
    pub capability: Option<Capability>,
}

impl NodeExpand {
    /// Parses the request.
    pub fn parse(request: &v1::NodeExpandVolumeRequest) -> Result<Self, RequestError> {
        let volume = volume_id(&request.volume_id)?;
        let size = match &request.capacity_range {
            None => None,
            Some(range) if range.required_bytes == 0 && range.limit_bytes == 0 => None,
            Some(range) => Some(SizeRange::to_expand("capacity_range", Some(range))?),
        };
        let capability = Capability::parse_optional("volume_capability", request.volume_capability.as_ref())?;
        let staging_path = NodePath::parse_optional("staging_target_path", &request.staging_target_path)?;
        let volume_path = NodePath::parse_existing("volume_path", &request.volume_path)?;
        Ok(Self { volume, volume_path, staging_path, size, capability })
    }
}
