//! Why a CSI request to the node was not carried out, and the one map from that to gRPC codes.
//!
//! CSI 1.12, "Error Scheme" and the errors of each Node RPC. What the request itself is wrong in is `csi::parse`'s.

use std::path::PathBuf;

use state_machine::{Generation, VolumeId};
use thiserror::Error;
use tonic::{Code, Status};

use crate::fabric::FabricError;
use crate::gateway::GatewayError;
use crate::mounts::MountError;
use crate::tool::ToolError;

/// Why not. The texts are for people: they say what is so and what to do next.
#[derive(Debug, Error)]
pub(crate) enum NodeError {
    /// One operation a volume at a time.
    #[error("another operation on volume {volume} is running; try again when it is done")]
    Busy { volume: VolumeId },
    /// The plugin is being stopped.
    #[error("the node plugin is stopping; try again")]
    Stopping,
    /// The operation's task died.
    #[error("the operation on volume {volume} was broken off; try again")]
    BrokenOff { volume: VolumeId },
    /// The path has the volume, in another way than asked for.
    #[error("volume {volume} is at {} {existing}, not {wanted}; undo that first", path.display())]
    Differs { volume: VolumeId, path: PathBuf, existing: String, wanted: String },
    /// The volume, or the path, is not there.
    #[error("volume {volume} is not at {}", path.display())]
    NotThere { volume: VolumeId, path: PathBuf },
    /// The attachment does not stand.
    #[error("volume {volume} must not be connected under generation {generation}: {reason}")]
    DoesNotStand { volume: VolumeId, generation: Generation, reason: String },
    /// Something has to be done, or to end, first.
    #[error("volume {volume}: {reason}")]
    NotNow { volume: VolumeId, reason: String },
    /// The device is in use.
    #[error("volume {volume} is in use and stays connected: {}", holders.join(", "))]
    InUse { volume: VolumeId, holders: Vec<String> },
    /// No device of the wanted size.
    #[error("volume {volume} has {size_bytes} bytes on this node, more than the limit of {limit_bytes}")]
    TooLarge { volume: VolumeId, size_bytes: u64, limit_bytes: u64 },
    /// The appliance's new size has not arrived.
    #[error("volume {volume} has {size_bytes} bytes on this node, {required_bytes} are wanted; try again")]
    NotGrownYet { volume: VolumeId, size_bytes: u64, required_bytes: u64 },
    /// Staging or publishing failed, and what it left could not be taken away, or the controllers do not know it.
    #[error("{failure}; and what is left of it could not be taken away: {undo}; try again")]
    NotUndone { failure: Box<NodeError>, undo: Box<NodeError> },
    /// The controllers did not say.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// The connection could not be made, seen or ended.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// Mounting, unmounting or looking failed.
    #[error(transparent)]
    Mount(#[from] MountError),
}

impl NodeError {
    fn code(&self) -> Code {
        match self {
            Self::Busy { .. } => Code::Aborted,
            // Nothing is known of how far it came, so kubelet has to come back.
            Self::BrokenOff { .. } | Self::NotUndone { .. } => Code::Unavailable,
            Self::Stopping | Self::NotGrownYet { .. } => Code::Unavailable,
            Self::Differs { .. } => Code::AlreadyExists,
            Self::NotThere { .. } => Code::NotFound,
            Self::DoesNotStand { .. } | Self::NotNow { .. } | Self::InUse { .. } => Code::FailedPrecondition,
            Self::TooLarge { .. } => Code::OutOfRange,
            Self::Gateway(
                GatewayError::NoAnswer { .. }
                | GatewayError::LookAgain { .. }
                | GatewayError::OtherBoot { .. },
            ) => Code::Unavailable,
            Self::Gateway(GatewayError::Refused { .. }) => Code::FailedPrecondition,
            // Unknown is never NOT_FOUND, and is tried again.
            Self::Fabric(FabricError::Unreachable { .. } | FabricError::Unknown { .. }) => Code::Unavailable,
            Self::Fabric(
                FabricError::StillThere { .. }
                | FabricError::HoldersUnseen { .. }
                | FabricError::Refused { .. },
            ) => Code::FailedPrecondition,
            Self::Fabric(FabricError::Tool(ToolError::OutOfTime { .. } | ToolError::StillRuns { .. })) => {
                Code::Unavailable
            }
            Self::Fabric(
                FabricError::Unseen(_)
                | FabricError::Tool(ToolError::Start { .. } | ToolError::Failed { .. }),
            ) => Code::Internal,
            // Tried again, neither changes by itself, or not soon.
            Self::Mount(
                MountError::Foreign { .. } | MountError::Damaged { .. } | MountError::Held { .. },
            ) => Code::FailedPrecondition,
            // How far it came is not known.
            Self::Mount(
                MountError::OutOfTime { .. }
                | MountError::Tool(ToolError::OutOfTime { .. } | ToolError::StillRuns { .. }),
            ) => Code::Unavailable,
            Self::Mount(
                MountError::Tool(ToolError::Start { .. } | ToolError::Failed { .. }) | MountError::Io { .. },
            ) => Code::Internal,
        }
    }
}

impl From<NodeError> for Status {
    fn from(error: NodeError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
