//! The persistent store of one replica: Raft log, vote, snapshots, identity.
//!
//! Acknowledged means on disk: what openraft is told to be done survives a power cut at any later moment. Only this
//! crate knows sled; another engine could take its place without anyone else noticing.
//!
//! | in the directory | what |
//! |---|---|
//! | `FORMAT` | the layout's version, as text |
//! | `identity` | replica id, cluster id, whether it was removed ([`Identity`]) |
//! | `log/` | sled: entries, vote, purge marker, commit ([`LogStore`]) |
//! | `snapshots/` | one file each ([`MachineStore`]) |

mod error;
mod files;
mod format;
#[cfg(test)]
mod golden;
mod identity;
mod log;
mod machine;
mod recover;
mod snapshot;
mod store;
mod sync;
mod types;
mod writer;

pub use error::StorageError;
pub use format::{MAX_ENTRY_BYTES, MAX_STATE_BYTES};
pub use identity::Identity;
pub use log::{LogStore, check_entry_size, check_membership_size};
pub use machine::MachineStore;
pub use store::Store;
#[doc(hidden)]
pub use sync::leave_writes_to_the_kernel;
pub use types::{
    LogEntry, LogId, Membership, Proposal, ReplicaNode, SnapshotMeta, StoredMembership, TypeConfig, Vote,
};
pub use writer::LogStats;
