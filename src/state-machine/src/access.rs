//! How a volume may be used: CSI 1.12, "VolumeCapability".

use std::fmt;

use serde::{Deserialize, Serialize};

/// The access modes that the driver supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum AccessMode {
    /// Read and write, any number of targets by the specification's older reading, one node.
    SingleNodeWriter,
    /// Read and write at one target on one node.
    SingleNodeSingleWriter,
    /// Read and write at several targets on one node.
    SingleNodeMultiWriter,
    /// Read only, one node.
    SingleNodeReaderOnly,
    /// Read and write on two nodes while a VM migrates between them; block only.
    MultiNodeMultiWriter,
}

impl AccessMode {
    /// Whether the mode holds the volume to one node.
    pub fn is_single_node(self) -> bool {
        match self {
            Self::SingleNodeWriter
            | Self::SingleNodeSingleWriter
            | Self::SingleNodeMultiWriter
            | Self::SingleNodeReaderOnly => true,
            Self::MultiNodeMultiWriter => false,
        }
    }

    /// The mode's name in `csi.proto`.
    pub fn csi_name(self) -> &'static str {
        match self {
            Self::SingleNodeWriter => "SINGLE_NODE_WRITER",
            Self::SingleNodeSingleWriter => "SINGLE_NODE_SINGLE_WRITER",
            Self::SingleNodeMultiWriter => "SINGLE_NODE_MULTI_WRITER",
            Self::SingleNodeReaderOnly => "SINGLE_NODE_READER_ONLY",
            Self::MultiNodeMultiWriter => "MULTI_NODE_MULTI_WRITER",
        }
    }
}

/// The file systems that the node plugin makes and mounts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FsType {
    /// ext4, the default.
    #[default]
    Ext4,
    /// XFS.
    Xfs,
}

impl FsType {
    /// Parses the name that a class or a capability gives; an empty one is the default.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "ext4" => Some(Self::Ext4),
            "xfs" => Some(Self::Xfs),
            _ => None,
        }
    }

    /// The file system's name as `mount(8)` knows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// Whether a pod sees a device or a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum AccessType {
    /// A raw block device.
    Block,
    /// A mounted file system.
    Mount {
        /// Which one.
        fs_type: FsType,
    },
}

/// All that makes two publishes to one node the same publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentMode {
    /// How many nodes and writers.
    pub access_mode: AccessMode,
    /// Device or directory.
    pub access_type: AccessType,
    /// `ControllerPublishVolumeRequest.readonly`.
    pub read_only: bool,
}

impl fmt::Display for AttachmentMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.access_mode.csi_name())?;
        match self.access_type {
            AccessType::Block => f.write_str(" block")?,
            AccessType::Mount { fs_type } => write!(f, " {}", fs_type.as_str())?,
        }
        if self.read_only { f.write_str(" read-only") } else { Ok(()) }
    }
}
