//! The ledger: volumes, attachments, migrations and nodes, and the one function that changes them.
//!
//! [`State::apply`] takes a committed [`Entry`] and answers with a [`Response`]. It is total and deterministic:
//! no IO, clock, randomness or logging; a refusal is a response. [`plan()`] reads from a state what is left to
//! do outside; whoever is leader does it and proposes the outcome as another command. [`State::violations`]
//! lists every broken invariant, for tests and for the chaos suite.

mod access;
mod apply;
mod command;
mod history;
mod ids;
mod invariants;
mod migration;
mod mkfs;
mod observed;
mod plan;
mod response;
mod state;
#[cfg(test)]
mod testing;
mod volume;

pub use access::{AccessMode, AccessType, AttachmentMode, FsType};
pub use command::{CLUSTER_VERSION, Command, Entry};
pub use history::{Fact, HISTORY_KEPT, ORCHESTRATOR, PROVEN_OFF, Record};
pub use ids::{
    AppliancePath, BootId, ByteSize, HostAddress, IdError, MAX_NODE_ID_BYTES, MAX_NQN_BYTES, MAX_PATH_BYTES,
    MAX_VOLUME_ID_BYTES, NodeId, Nqn, VolumeId, VolumeName,
};
pub use migration::{
    DEFAULT_MIGRATION_TIMEOUT_SECONDS, ENDED_MIGRATIONS_KEPT, EndedMigration, MAX_MIGRATION_TIMEOUT_SECONDS,
    MIN_MIGRATION_TIMEOUT_SECONDS, Migration, MigrationId, MigrationOutcome, MigrationPhase, ReapDecision,
};
pub use mkfs::{MAX_MKFS_OPTIONS_BYTES, MAX_MKFS_WORDS, MkfsOptions};
pub use observed::{MAX_TEXT_CHARS, Observed, OffProof, VmiObservation, cut_text};
pub use plan::{Step, StepKind, plan};
pub use response::{Refusal, Response};
pub use state::{FAILURES_KEPT, Failure, Node, OperationStatus, State};
pub use volume::{
    Attachment, AttachmentPhase, Connection, Generation, LedgerTime, NodeMoment, Problem, ProblemKind,
    Volume, VolumeParameters, VolumePhase,
};
