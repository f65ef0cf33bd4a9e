//! What a replica's callers can be told.

use std::path::PathBuf;

use storage::StorageError;
use thiserror::Error;

use tls::TlsError;

/// Why a replica does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The configuration cannot be used.
    #[error("replica configuration: {0}")]
    Config(String),
    /// A certificate or key cannot be used.
    #[error("replica certificates: {0}")]
    Tls(String),
    /// The directory cannot be opened.
    #[error("replica storage: {0}")]
    Storage(#[from] StorageError),
    /// The replica was removed from its cluster.
    #[error(
        "replica {replica_id} ({name}) was removed from its cluster and must not start on {} again; \
         empty that directory to let it come back as a new replica, and if {name} is no longer a member, \
         add it with `rds-csi ctl replicas add`", data_dir.display()
    )]
    Removed {
        /// Its id.
        replica_id: u64,
        /// Its name.
        name: String,
        /// Its directory.
        data_dir: PathBuf,
    },
    /// Consensus could not be started on the directory's content.
    #[error("cannot start consensus: {0}")]
    Raft(String),
}

impl From<TlsError> for StartError {
    fn from(error: TlsError) -> Self {
        Self::Tls(error.to_string())
    }
}

/// Why the replica can do nothing more: the process has to end.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Failure {
    /// Consensus or the disk failed. The process recovers by starting again.
    #[error("consensus stopped: {0}")]
    Raft(String),
    /// A bug: what keeps this panicked, and the log says where. The process recovers by starting again.
    #[error("what keeps {0} panicked")]
    Panicked(&'static str),
    /// The replica is not a member of its cluster any more. It will refuse to start on its data.
    #[error("this replica was removed from its cluster: {0}")]
    Removed(String),
}

/// Why a command was not decided.
#[derive(Debug, Error)]
pub enum ProposeError {
    /// Nobody decided in time. Whether the command will still be applied is unknown.
    #[error("not decided in time: {0}")]
    Deadline(String),
    /// This replica does not lead in that term. Whether a command in flight will be applied is unknown.
    #[error("this replica does not lead in term {term}")]
    NotLeader {
        /// The term that was asked for.
        term: u64,
    },
    /// The command is larger than the log takes.
    #[error("{0}")]
    TooLarge(String),
    /// The replica has stopped.
    #[error("the replica has stopped")]
    Fatal,
}

/// Why a linearizable read was not answered.
#[derive(Debug, Error)]
pub enum ReadError {
    /// No leader confirmed in time that it leads, or this replica did not catch up.
    #[error("cannot read in time: {0}")]
    Deadline(String),
    /// The replica has stopped.
    #[error("the replica has stopped")]
    Fatal,
}

/// Why the membership was not changed.
#[derive(Debug, Error)]
pub enum MembershipError {
    /// It will not be done as asked.
    #[error("{0}")]
    Refused(String),
    /// Nobody decided in time. Whether it will still happen is unknown.
    #[error("not decided in time: {0}")]
    Deadline(String),
    /// The replica has stopped.
    #[error("the replica has stopped")]
    Fatal,
}
