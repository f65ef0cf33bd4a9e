//! Why a store cannot be opened or written.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use uuid::Uuid;

/// Why the store refuses. None of them is worth a second try on the same directory.
#[derive(Debug, Error)]
pub enum StorageError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has the directory.
    #[error("{} is in use by another process; a replica's directory belongs to one process at a time", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The directory was written in a format that this program does not know.
    #[error(
        "{} says {found:?}, this program reads {supported:?}; start the version that wrote it, \
         or empty the directory and let the replica come back as a new one", path.display()
    )]
    UnknownFormat {
        /// The FORMAT file.
        path: PathBuf,
        /// What it says, shortened.
        found: String,
        /// What this program reads.
        supported: &'static str,
    },
    /// What is there is not what was written.
    #[error(
        "{} is damaged: {problem}; empty the replica's directory and let it come back as a new one, \
         as long as a quorum of the others is well", path.display()
    )]
    Damaged {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A value is larger than what may be stored.
    #[error("{what} has {size_bytes} bytes, more than the {limit_bytes} that may be stored")]
    TooLarge {
        /// What it is.
        what: &'static str,
        /// Its encoded size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// A value has no encoding; a mistake in its type.
    #[error("cannot encode {what}: {problem}")]
    Encoding {
        /// What it is.
        what: &'static str,
        /// What the encoder says.
        problem: String,
    },
    /// The replica belongs to one cluster for good.
    #[error("this replica belongs to cluster {present} and cannot join {requested}")]
    OtherCluster {
        /// Its cluster.
        present: Uuid,
        /// The other one.
        requested: Uuid,
    },
}

impl StorageError {
    /// For `map_err` on what the operating system refused.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// For what fails a check.
    pub(crate) fn damaged(path: &Path, problem: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), problem: problem.into() }
    }
}

/// openraft's storage traits speak `io::Error`.
impl From<StorageError> for io::Error {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Io { ref source, .. } => Self::new(source.kind(), error.to_string()),
            StorageError::TooLarge { .. } => Self::new(io::ErrorKind::InvalidInput, error),
            StorageError::Damaged { .. } => Self::new(io::ErrorKind::InvalidData, error),
            StorageError::Locked { .. }
            | StorageError::UnknownFormat { .. }
            | StorageError::Encoding { .. }
            | StorageError::OtherCluster { .. } => Self::other(error),
        }
    }
}
