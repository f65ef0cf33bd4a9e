//! Requests turned into types that cannot be wrong: CSI 1.12, "Size Limits" and each RPC's required fields.
//!
//! Every string of a request is checked here, once, also those that the driver does not use; the services behind
//! see types only. An error names its field as `csi.proto` does, with indices and keys in brackets. Secrets are
//! the exception: they are neither read nor checked nor logged, as the driver asks for none.

mod capability;
mod capacity;
mod controller;
mod field;
mod mount_flag;
mod node;
mod node_path;
mod parameters;

use thiserror::Error;

pub use capability::{Access, Capability};
pub use capacity::{DEFAULT_VOLUME_BYTES, SizeRange};
pub use controller::{
    ControllerExpand, ControllerGet, ControllerPublish, ControllerUnpublish, CreateVolume, DeleteVolume,
    GetCapacity, ListVolumes, ValidateCapabilities, list_token,
};
pub(crate) use field::{check_ignored_value, check_key, id, number};
pub use mount_flag::{MAX_MOUNT_FLAGS, MountFlag};
pub use node::{NodeExpand, NodePublish, NodeStage, NodeStats, NodeUnpublish, NodeUnstage};
pub use node_path::NodePath;
pub(crate) use parameters::keys as parameter_keys;
pub use parameters::{ClassDefaults, ClassParameters};

/// Why a request is not carried out at all. [`crate::status`] says which code each has.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RequestError {
    /// A field is missing, malformed, or asks for what the driver does not do.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field, as `csi.proto` names it.
        field: String,
        /// What is wrong with it, and what to write instead.
        problem: String,
    },
    /// No volume can have such a size.
    #[error("{field}: {problem}")]
    OutOfRange {
        /// The field.
        field: String,
        /// Why not.
        problem: String,
    },
    /// A path where no volume can ever be.
    #[error("{field}: {problem}")]
    NothingThere {
        /// The field.
        field: String,
        /// Why not.
        problem: String,
    },
    /// A place where the appliance cannot be reached.
    #[error("{field}: {problem}")]
    OutOfReach {
        /// The field.
        field: String,
        /// Why not.
        problem: String,
    },
    /// A page token that the driver did not give out.
    #[error("{field}: is not a token that this driver gave out; list from the start")]
    ForeignToken {
        /// The field.
        field: String,
    },
}

impl RequestError {
    pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }

    pub(crate) fn required(field: impl Into<String>) -> Self {
        Self::invalid(field, "is required")
    }
}
