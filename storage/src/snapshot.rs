//! Snapshots: one sealed file each, `snapshots/<term>-<index>.snap`.
//!
//! Life: built from the applied state or received from the leader, written, and superseded by the next, whose
//! arrival on disk removes it. The log is purged only up to a snapshot that is on disk, so a damaged newest one
//! cannot be replaced by an older one: the replica has to come back empty.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::StorageError;
use crate::files::{self, Kind, SEAL_BYTES};
use crate::format::{MAX_STATE_BYTES, decode, encode};
use crate::types::SnapshotMeta;

const KIND: Kind = *b"rdssnaps";
const EXTENSION: &str = "snap";
/// Largest encoded header, in bytes: the membership is in it.
pub(crate) const MAX_HEADER_BYTES: u64 = 64 * 1024;

/// The record of a snapshot's file; the body is the encoded state.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) meta: SnapshotMeta,
    pub(crate) body_bytes: u64,
}

/// The snapshots of one replica.
#[derive(Debug)]
pub(crate) struct SnapshotDir {
    dir: PathBuf,
    /// One writer at a time: a snapshot may arrive from the leader while another one is being built.
    writing: Mutex<()>,
}

impl SnapshotDir {
    /// Creates `dir` if need be and removes unfinished files.
    pub(crate) fn open(dir: &Path) -> Result<Self, StorageError> {
        files::create_dir(dir)?;
        files::remove_unfinished(dir)?;
        Ok(Self { dir: dir.to_owned(), writing: Mutex::new(()) })
    }

    /// Writes a snapshot durably and removes those that are older than the newest.
    pub(crate) fn write(&self, meta: &SnapshotMeta, body: &[u8]) -> Result<(), StorageError> {
        // The lock guards no data: what a panic left behind is an unfinished file.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let header = Header { meta: meta.clone(), body_bytes: body.len() as u64 };
        let header = encode("a snapshot's header", &header, MAX_HEADER_BYTES)?;
        let (term, index) = position(meta);
        files::write_sealed(&self.path(term, index), &KIND, &header, body)?;
        let mut present = self.list()?;
        present.pop();
        for (index, term) in present {
            let superseded = self.path(term, index);
            fs::remove_file(&superseded).map_err(StorageError::io("remove", &superseded))?;
        }
        Ok(())
    }

    /// The newest snapshot, if there is one. A damaged one is an error.
    pub(crate) fn newest(&self) -> Result<Option<(SnapshotMeta, Vec<u8>)>, StorageError> {
        // Without the lock the file could be superseded between the listing and the reading.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((index, term)) = self.list()?.pop() else { return Ok(None) };
        let path = self.path(term, index);
        let limit_bytes = MAX_HEADER_BYTES + MAX_STATE_BYTES + SEAL_BYTES;
        let Some(sealed) = files::read_sealed(&path, &KIND, limit_bytes)? else {
            return Err(StorageError::damaged(&path, "it vanished while it was read"));
        };
        let header: Header = decode("its header", &sealed.record, MAX_HEADER_BYTES, &path)?;
        if header.body_bytes != sealed.body.len() as u64 || position(&header.meta) != (term, index) {
            return Err(StorageError::damaged(&path, "its header does not fit its name or its size"));
        }
        Ok(Some((header.meta, sealed.body)))
    }

    /// Index and term of the snapshots present, oldest first.
    fn list(&self) -> Result<Vec<(u64, u64)>, StorageError> {
        let entries = fs::read_dir(&self.dir).map_err(StorageError::io("list", &self.dir))?;
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(StorageError::io("list", &self.dir))?.file_name();
            found.extend(name.to_str().and_then(parse_name));
        }
        found.sort_unstable();
        Ok(found)
    }

    fn path(&self, term: u64, index: u64) -> PathBuf {
        self.dir.join(format!("{term}-{index}.{EXTENSION}"))
    }
}

/// Index and term from a file's name.
fn parse_name(name: &str) -> Option<(u64, u64)> {
    let (stem, extension) = name.rsplit_once('.')?;
    let (term, index) = stem.split_once('-')?;
    (extension == EXTENSION).then_some(())?;
    Some((index.parse().ok()?, term.parse().ok()?))
}

/// Term and index of the last entry in a snapshot; zeros for one of nothing.
fn position(meta: &SnapshotMeta) -> (u64, u64) {
    meta.last_log_id.map_or((0, 0), |id| (id.leader_id.term, id.index))
}

#[cfg(test)]
mod tests {
    use openraft::alias::LeaderIdOf;
    use openraft::vote::RaftLeaderId;

    use super::*;
    use crate::types::{LogId, StoredMembership, TypeConfig};

    fn meta(term: u64, index: u64) -> SnapshotMeta {
        let leader_id = LeaderIdOf::<TypeConfig>::new(term, 1).to_committed();
        SnapshotMeta {
            last_log_id: Some(LogId { leader_id, index }),
            last_membership: StoredMembership::default(),
        }
    }

    #[test]
    fn one_that_was_built_while_a_newer_one_arrived_does_not_replace_it() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = SnapshotDir::open(dir.path()).unwrap();
        assert!(snapshots.newest().unwrap().is_none());
        snapshots.write(&meta(2, 10), b"newer").unwrap();
        snapshots.write(&meta(2, 9), b"older").unwrap();
        assert_eq!(snapshots.newest().unwrap(), Some((meta(2, 10), b"newer".to_vec())));
        assert_eq!(snapshots.list().unwrap(), [(10, 2)]);
        snapshots.write(&meta(3, 11), b"newest").unwrap();
        assert_eq!(snapshots.newest().unwrap(), Some((meta(3, 11), b"newest".to_vec())));
    }

    #[test]
    fn other_names_are_no_snapshots() {
        for name in ["3-9.tmp", "3.snap", "3-x.snap", "-9.snap", "3-9", ".snap"] {
            assert_eq!(parse_name(name), None, "{name}");
        }
        assert_eq!(parse_name("3-9.snap"), Some((9, 3)));
    }
}
