//! What an entry answers.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{BootId, ByteSize, NodeId, Nqn, VolumeId};
use crate::volume::Generation;

/// The answer to an [`crate::Entry`]; a refusal is an answer like any other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// Done, or there was nothing to do.
    Done,
    /// The volume's intent stands under this generation; follow it with [`crate::State::operation`].
    Pending {
        /// The operation's generation.
        generation: Generation,
    },
    /// The volume is there, as asked for.
    Exists {
        /// Its size.
        size: ByteSize,
    },
    /// The attachment is recorded under this generation; it stands once it is `Granted`.
    Attached {
        /// The attachment's generation.
        generation: Generation,
    },
    /// These nodes are not proven off yet; their attachments are `Revoking` and still count.
    Revoking {
        /// The nodes.
        nodes: Vec<NodeId>,
    },
    /// Nothing was changed.
    Refused(Refusal),
}

/// Why an entry changed nothing. The texts are for people: they say what is so and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum Refusal {
    /// The volume is not in the ledger.
    #[error("volume {volume} is not known")]
    VolumeNotFound {
        /// The volume.
        volume: VolumeId,
    },
    /// The node is not in the ledger.
    #[error("node {node} is not known: its node plugin has not registered yet")]
    NodeNotFound {
        /// The node.
        node: NodeId,
    },
    /// Another operation on the volume has to end first.
    #[error("volume {volume} is {phase}; try again when that is done")]
    VolumeBusy {
        /// The volume.
        volume: VolumeId,
        /// Its phase's name.
        phase: String,
    },
    /// A volume of this name exists and differs.
    #[error("volume {volume} exists with another {difference}; choose another name, or ask for what exists")]
    VolumeDiffers {
        /// The volume.
        volume: VolumeId,
        /// What differs, with both values.
        difference: String,
    },
    /// The volume's size does not fit the requested range.
    #[error("volume {volume} has {size} bytes, more than the limit of {limit_bytes}; a volume cannot shrink")]
    LimitExceeded {
        /// The volume.
        volume: VolumeId,
        /// Its size.
        size: ByteSize,
        /// The request's limit.
        limit_bytes: u64,
    },
    /// Deletion of a volume that somebody has.
    #[error("volume {volume} is attached to {}; unpublish it first", join(nodes))]
    StillAttached {
        /// The volume.
        volume: VolumeId,
        /// Who has it, revoking ones included.
        nodes: Vec<NodeId>,
    },
    /// More than one node would write to a file system.
    #[error(
        "volume {volume}: MULTI_NODE_MULTI_WRITER needs a block volume, a file system on two nodes is destroyed; \
         write `volumeMode: Block` with `ReadWriteMany`, or `ReadWriteOnce` for a file system"
    )]
    FilesystemOnManyNodes {
        /// The volume.
        volume: VolumeId,
    },
    /// The same attachment is being revoked.
    #[error("volume {volume} is being revoked from node {node}; try again when that is done")]
    BeingRevoked {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
    },
    /// The volume is on this node in another way.
    #[error("volume {volume} is on node {node} as {existing}, not as {requested}; unpublish it first")]
    OtherMode {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// How it is attached.
        existing: String,
        /// How it was asked for.
        requested: String,
    },
    /// The node lost the volume without being asked, and was not unpublished since.
    #[error(
        "volume {volume} was taken from node {node}, because a migration timed out or the node was off; \
         it can be published there again once it was unpublished from there"
    )]
    CutOff {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
    },
    /// The node has as many volumes as it can take.
    #[error(
        "node {node} has {max_volumes} volumes, which is its limit; use another node, or raise the limit"
    )]
    NodeFull {
        /// The node.
        node: NodeId,
        /// Its limit.
        max_volumes: u32,
    },
    /// A single-node volume is on another node.
    #[error("volume {volume} is on node {node} as {mode}; it must be unpublished from there first")]
    AttachedElsewhere {
        /// The volume.
        volume: VolumeId,
        /// The node that has it.
        node: NodeId,
        /// How that node has it, or how it was asked for: the one that is a single-node mode.
        mode: String,
    },
    /// A VM that was restarted elsewhere, not one that migrates.
    #[error(
        "volume {volume} is still on node {node}, and KubeVirt has no unfinished migration of its VM: \
         the VM was restarted elsewhere; node {node} must be proven off first"
    )]
    NotMigrating {
        /// The volume.
        volume: VolumeId,
        /// The node that has it.
        node: NodeId,
    },
    /// Pods of more than one VM use the volume.
    #[error(
        "volume {volume} is on node {node}, and more than one VM uses it: {users}; \
         two VMs that write to one volume destroy it, so leave it to one of them"
    )]
    SeveralVms {
        /// The volume.
        volume: VolumeId,
        /// The node that has it.
        node: NodeId,
        /// Their pods.
        users: String,
    },
    /// Another volume of the same VM is being attached.
    #[error("VM {vm} waits for its volume {other} to be attached, then volume {volume} is next; try again")]
    VmBusy {
        /// The volume.
        volume: VolumeId,
        /// The VM.
        vm: String,
        /// The volume that is being attached.
        other: VolumeId,
    },
    /// Two other nodes have the volume.
    #[error(
        "volume {volume} is on its two nodes already: {holders}; the migration is {migration_age_ms} ms old; \
         unpublish one of them first"
    )]
    TwoNodesAlready {
        /// The volume.
        volume: VolumeId,
        /// Both nodes with their phases.
        holders: String,
        /// The migration's age in ledger time.
        migration_age_ms: u64,
    },
    /// The attachment of that generation is gone, or being revoked, or not granted yet.
    #[error("attachment {generation} of volume {volume} to node {node} does not stand: {reason}")]
    AttachmentGone {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// The generation that was asked for.
        generation: Generation,
        /// What is so instead.
        reason: String,
    },
    /// The node speaks for a boot that is not its present one, or of an earlier moment than it did before.
    #[error("node {node} spoke of a moment that has passed; register again, then look again")]
    PastMoment {
        /// The node.
        node: NodeId,
    },
    /// A node that was to be taken for off.
    #[error("node {node} spoke in the meantime: it is not off; if it is to be, shut it down first")]
    NodeSpoke {
        /// The node.
        node: NodeId,
    },
    /// Another boot of the node is recorded than the one that the registration replaces.
    #[error("node {node} is registered with boot {present}; only who knows that may replace it")]
    OtherBoot {
        /// The node.
        node: NodeId,
        /// The recorded boot.
        present: BootId,
    },
    /// Another machine has the node's name, while the first one may still be connected.
    #[error(
        "node {node} is registered as {host_nqn}, which may still be connected to volumes; \
         another machine cannot take its name until they are proven off"
    )]
    OtherMachine {
        /// The node.
        node: NodeId,
        /// The first machine's host NQN.
        host_nqn: Nqn,
    },
    /// The migration is not overdue, or not there, or the decision does not fit it.
    #[error("volume {volume}: nothing to reap: {reason}")]
    NothingToReap {
        /// The volume.
        volume: VolumeId,
        /// What is so instead.
        reason: String,
    },
    /// An outcome for an operation that is no longer the volume's.
    #[error("operation {generation} of volume {volume} is not the running one")]
    StaleOperation {
        /// The volume.
        volume: VolumeId,
        /// The operation's generation.
        generation: Generation,
    },
    /// Everything waits for the end of a restore.
    #[error("a backup is being restored; `rds-csi ctl restore` with the same file finishes it")]
    Restoring,
    /// What should be taken in does not fit.
    #[error("it cannot be taken in: {reason}")]
    Unsound {
        /// Why.
        reason: String,
    },
    /// Not every replica knows the command.
    #[error(
        "the command needs cluster version {needed}, the cluster is at {current}; upgrade every replica first"
    )]
    VersionTooLow {
        /// The command's version.
        needed: u32,
        /// The cluster's.
        current: u32,
    },
}

fn join(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}
