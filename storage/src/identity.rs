//! Who this replica is.
//!
//! The id is drawn at the first use of a directory and lives as long as the directory: a replica that lost its
//! log must not come back under an id whose votes and acknowledgements others rely on.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::Rng;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::StorageError;
use crate::files::{self, Kind, SEAL_BYTES};
use crate::format::{decode, encode};

const KIND: Kind = *b"rdsident";
/// Largest encoded identity, in bytes.
const MAX_IDENTITY_BYTES: u64 = 1024;
/// Largest replica id: what JSON readers that know only doubles still read exactly.
const MAX_REPLICA_ID: u64 = (1 << 53) - 1;

/// Who this replica is. Each change is on disk before its method returns.
#[derive(Debug)]
pub struct Identity {
    /// The replica's Raft id: random, never zero, never used by another directory.
    pub replica_id: u64,
    /// The cluster it belongs to, once it does.
    pub cluster_id: Option<Uuid>,
    /// It was removed from its cluster, and must not start on this directory again.
    pub removed: bool,
    path: PathBuf,
    /// Keeps the directory to this process.
    _lock: Arc<File>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    replica_id: u64,
    cluster_id: Option<[u8; 16]>,
    removed: bool,
}

impl Identity {
    /// Reads the identity at `path`, if it is there.
    pub(crate) fn read(path: &Path, lock: &Arc<File>) -> Result<Option<Self>, StorageError> {
        let limit_bytes = MAX_IDENTITY_BYTES + SEAL_BYTES;
        let Some(sealed) = files::read_sealed(path, &KIND, limit_bytes)? else { return Ok(None) };
        let stored: Stored = decode("the identity", &sealed.record, MAX_IDENTITY_BYTES, path)?;
        if stored.replica_id == 0 {
            return Err(StorageError::damaged(path, "its replica id is 0"));
        }
        Ok(Some(Self {
            replica_id: stored.replica_id,
            cluster_id: stored.cluster_id.map(Uuid::from_bytes),
            removed: stored.removed,
            path: path.to_owned(),
            _lock: lock.clone(),
        }))
    }

    /// Draws a new identity and writes it to `path`.
    pub(crate) fn draw(path: &Path, lock: &Arc<File>) -> Result<Self, StorageError> {
        let replica_id = rand::rng().random_range(1..=MAX_REPLICA_ID);
        let identity =
            Self { replica_id, cluster_id: None, removed: false, path: path.to_owned(), _lock: lock.clone() };
        identity.write(None, false)?;
        Ok(identity)
    }

    /// Records the cluster. It is set once; the same one again is no change, another one is refused.
    pub fn set_cluster_id(&mut self, cluster_id: Uuid) -> Result<(), StorageError> {
        match self.cluster_id {
            Some(present) if present == cluster_id => Ok(()),
            Some(present) => Err(StorageError::OtherCluster { present, requested: cluster_id }),
            None => {
                self.write(Some(cluster_id), self.removed)?;
                self.cluster_id = Some(cluster_id);
                Ok(())
            }
        }
    }

    /// Records that the replica was removed from its cluster.
    pub fn mark_removed(&mut self) -> Result<(), StorageError> {
        self.write(self.cluster_id, true)?;
        self.removed = true;
        Ok(())
    }

    fn write(&self, cluster_id: Option<Uuid>, removed: bool) -> Result<(), StorageError> {
        let cluster_id = cluster_id.map(Uuid::into_bytes);
        let stored = Stored { replica_id: self.replica_id, cluster_id, removed };
        let record = encode("the identity", &stored, MAX_IDENTITY_BYTES)?;
        files::write_sealed(&self.path, &KIND, &record, &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf, Arc<File>) {
        let dir = tempfile::tempdir().unwrap();
        let lock = Arc::new(File::open(dir.path()).unwrap());
        let path = dir.path().join("identity");
        (dir, path, lock)
    }

    #[test]
    fn version_1_bytes() {
        let stored = Stored { replica_id: 0x0102_0304, cluster_id: Some([7; 16]), removed: true };
        let bytes = encode("the identity", &stored, MAX_IDENTITY_BYTES).unwrap();
        let mut expected = vec![0, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0, 1];
        expected.extend([7; 16]);
        expected.push(1);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn it_stays_the_same_and_keeps_what_was_set() {
        let (_dir, path, lock) = place();
        assert!(Identity::read(&path, &lock).unwrap().is_none());
        let mut identity = Identity::draw(&path, &lock).unwrap();
        let id = identity.replica_id;
        assert!((1..=MAX_REPLICA_ID).contains(&id));

        let cluster = Uuid::from_u128(9);
        identity.set_cluster_id(cluster).unwrap();
        identity.set_cluster_id(cluster).unwrap();
        let refused = identity.set_cluster_id(Uuid::from_u128(10));
        assert!(matches!(refused, Err(StorageError::OtherCluster { .. })));
        let again = Identity::read(&path, &lock).unwrap().unwrap();
        assert_eq!((again.replica_id, again.cluster_id, again.removed), (id, Some(cluster), false));

        identity.mark_removed().unwrap();
        let again = Identity::read(&path, &lock).unwrap().unwrap();
        assert_eq!((again.replica_id, again.cluster_id, again.removed), (id, Some(cluster), true));
    }
}
