//! Opens everything that a replica has on disk.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::sync::Arc;

use crate::error::StorageError;
use crate::files;
use crate::format::FORMAT;
use crate::identity::Identity;
use crate::log::LogStore;
use crate::machine::MachineStore;

const FORMAT_FILE: &str = "FORMAT";
const IDENTITY_FILE: &str = "identity";
const LOG_DIR: &str = "log";
const SNAPSHOTS_DIR: &str = "snapshots";
/// Longest `FORMAT` file that is looked at, in bytes.
const MAX_FORMAT_BYTES: u64 = 4096;
/// How much of an unknown `FORMAT` file is shown, in characters.
const SHOWN_FORMAT_CHARS: usize = 80;

/// Everything of one replica on disk. The directory belongs to this process until all three parts are dropped.
#[derive(Debug)]
pub struct Store {
    /// The Raft log.
    pub log: LogStore,
    /// The state machine and its snapshots.
    pub machine: MachineStore,
    /// Who the replica is.
    pub identity: Identity,
}

impl Store {
    /// Opens the directory, which is created if it is not there. It blocks: not for an async thread.
    pub fn open(dir: &Path) -> Result<Self, StorageError> {
        files::create_dir(dir)?;
        let lock = Arc::new(lock(dir)?);
        files::remove_unfinished(dir)?;
        check_format(dir)?;
        let identity = open_identity(dir, &lock)?;
        let machine = MachineStore::open(&dir.join(SNAPSHOTS_DIR), &lock)?;
        let log = LogStore::open(&dir.join(LOG_DIR), &identity, &lock)?;
        if log.purged() > machine.applied_log_id() {
            let problem = "the log is purged beyond the newest snapshot: a snapshot is missing";
            return Err(StorageError::damaged(dir, problem));
        }
        tracing::info!(
            dir = %dir.display(), replica = identity.replica_id, snapshot = machine.applied_index(), "opened the store"
        );
        Ok(Self { log, machine, identity })
    }
}

/// The lock is on the directory itself and ends with the process, however it ends.
fn lock(dir: &Path) -> Result<File, StorageError> {
    let opened = File::open(dir).map_err(StorageError::io("open", dir))?;
    match opened.try_lock() {
        Ok(()) => Ok(opened),
        Err(TryLockError::WouldBlock) => Err(StorageError::Locked { path: dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(StorageError::io("lock", dir)(error)),
    }
}

/// Marks an unused directory as ours, or checks the mark.
fn check_format(dir: &Path) -> Result<(), StorageError> {
    let path = dir.join(FORMAT_FILE);
    let Some(found) = files::read(&path, MAX_FORMAT_BYTES)? else {
        if is_used(dir)? {
            return Err(StorageError::damaged(dir, "it has data but no FORMAT file"));
        }
        return files::write(&path, &[FORMAT.as_bytes()]);
    };
    if found == FORMAT.as_bytes() {
        return Ok(());
    }
    let found = String::from_utf8_lossy(&found).trim_end().chars().take(SHOWN_FORMAT_CHARS).collect();
    Err(StorageError::UnknownFormat { path, found, supported: FORMAT.trim_end() })
}

/// Whether a replica wrote to the directory. Others' files do not matter: a new ext4 has `lost+found`.
fn is_used(dir: &Path) -> Result<bool, StorageError> {
    for name in [IDENTITY_FILE, LOG_DIR, SNAPSHOTS_DIR] {
        let path = dir.join(name);
        if fs::exists(&path).map_err(StorageError::io("look for", &path))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The identity comes first, and a log without it, or a member without its log, is no replica: to draw another id
/// or to begin another log in that place would take back what was promised.
fn open_identity(dir: &Path, lock: &Arc<File>) -> Result<Identity, StorageError> {
    let path = dir.join(IDENTITY_FILE);
    let log_dir = dir.join(LOG_DIR);
    let has_log = fs::exists(&log_dir).map_err(StorageError::io("look for", &log_dir))?;
    match Identity::read(&path, lock)? {
        Some(identity) if identity.cluster_id.is_some() && !has_log => {
            Err(StorageError::damaged(dir, "it belongs to a cluster and its log is missing"))
        }
        Some(identity) => Ok(identity),
        None if has_log => Err(StorageError::damaged(dir, "it has a log but no identity")),
        None => Identity::draw(&path, lock),
    }
}
