//! Opens the log: sled's directory as a crash left it, turned into what was acknowledged.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use openraft::entry::RaftEntry;
use serde::de::DeserializeOwned;

use crate::error::StorageError;
use crate::files;
use crate::format::{MAX_ENTRY_BYTES, decode, encode};
use crate::identity::Identity;
use crate::types::{LogEntry, LogId, Vote};
use crate::writer::{Slot, entry_key};

/// Memory for sled's cache, in bytes. The log is read from its mirror, so it serves the recovery only.
const SLED_CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// sled's data file.
const DATA_FILE: &str = "db";

/// What the log contains, in memory.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    pub(crate) vote: Option<Vote>,
    pub(crate) purged: Option<LogId>,
    pub(crate) committed: Option<LogId>,
    /// The entries after `purged`, without a hole.
    pub(crate) entries: BTreeMap<u64, LogEntry>,
}

impl Mirror {
    /// The id of the last entry, or of the last that was there.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.entries.last_key_value().map(|(_, entry)| entry.log_id()).or(self.purged)
    }

    /// The index that the next entry has, if the log has ever had one.
    pub(crate) fn next_index(&self) -> Option<u64> {
        self.last().map(|id| id.index + 1)
    }
}

/// An opened log.
pub(crate) struct Recovered {
    pub(crate) db: sled::Db,
    pub(crate) file: File,
    pub(crate) mirror: Mirror,
    /// Entries that a purge did not get to remove.
    pub(crate) purged: VecDeque<Range<u64>>,
}

/// Opens the log in `dir`, which belongs to `owner`.
pub(crate) fn recover(dir: &Path, owner: &Identity) -> Result<Recovered, StorageError> {
    files::create_dir(dir)?;
    // sled refuses to open over a half-written snapshot of its own, which it does not need.
    files::remove_where(dir, |name| name.starts_with("snap.") && name.ends_with(".generating"))?;
    let db = sled::Config::new()
        .path(dir)
        .cache_capacity(SLED_CACHE_BYTES)
        .flush_every_ms(None)
        .open()
        .map_err(|error| sled_failed(dir, error))?;
    check_owner(&db, dir, owner)?;
    let (mirror, leftover) = load(&db, dir)?;
    check_no_hole(&mirror, dir)?;

    // sled creates its files without making their names durable.
    db.flush().map_err(|error| sled_failed(dir, error))?;
    let data = dir.join(DATA_FILE);
    let file = File::open(&data).map_err(StorageError::io("open", &data))?;
    file.sync_data().map_err(StorageError::io("sync", &data))?;
    files::sync_dir(dir)?;
    Ok(Recovered { db, file, mirror, purged: leftover.into_iter().collect() })
}

/// Sets the owner's mark in a new log. Where a member's log does not have it, sled found its file damaged at the
/// beginning and began anew, and the vote and the entries that others rely on are lost.
fn check_owner(db: &sled::Db, dir: &Path, owner: &Identity) -> Result<(), StorageError> {
    let id = owner.replica_id;
    match slot::<u64>(db, Slot::Owner, dir)? {
        Some(found) if found == id => Ok(()),
        Some(found) => {
            Err(StorageError::damaged(dir, format!("it is the log of replica {found}, not of {id}")))
        }
        None if owner.cluster_id.is_some() => Err(StorageError::damaged(dir, "its content is lost")),
        None => {
            let mark = encode("a replica's id", &id, MAX_ENTRY_BYTES)?;
            db.insert(Slot::Owner.key(), mark).map(drop).map_err(|error| sled_failed(dir, error))
        }
    }
}

fn sled_failed(dir: &Path, error: sled::Error) -> StorageError {
    match error {
        sled::Error::Io(source) => {
            StorageError::Io { action: "use the log in", path: dir.to_owned(), source }
        }
        other @ (sled::Error::CollectionNotFound(_)
        | sled::Error::Unsupported(_)
        | sled::Error::ReportableBug(_)
        | sled::Error::Corruption { .. }) => StorageError::damaged(dir, other.to_string()),
    }
}

/// The content, and the range of entries that a purge did not get to remove.
fn load(db: &sled::Db, dir: &Path) -> Result<(Mirror, Option<Range<u64>>), StorageError> {
    let mut mirror = Mirror {
        vote: slot(db, Slot::Vote, dir)?,
        purged: slot(db, Slot::Purged, dir)?,
        committed: slot::<Option<LogId>>(db, Slot::Committed, dir)?.flatten(),
        entries: BTreeMap::new(),
    };
    let first_kept = mirror.purged.map_or(0, |id| id.index + 1);
    let mut leftover: Option<Range<u64>> = None;
    for pair in db.range(entry_key(0)..=entry_key(u64::MAX)) {
        let (key, value) = pair.map_err(|error| sled_failed(dir, error))?;
        let index = key.get(1..).and_then(|index| index.try_into().ok()).map(u64::from_be_bytes);
        let index =
            index.ok_or_else(|| StorageError::damaged(dir, format!("it has a strange key {key:?}")))?;
        if index < first_kept {
            let start = leftover.map_or(index, |range| range.start);
            leftover = Some(start..index + 1);
            continue;
        }
        let entry: LogEntry = decode("an entry", &value, MAX_ENTRY_BYTES, dir)?;
        if entry.log_id.index != index {
            let problem = format!("entry {index} says that it is entry {}", entry.log_id.index);
            return Err(StorageError::damaged(dir, problem));
        }
        mirror.entries.insert(index, entry);
    }
    Ok((mirror, leftover))
}

fn slot<T: DeserializeOwned>(db: &sled::Db, slot: Slot, dir: &Path) -> Result<Option<T>, StorageError> {
    let value = db.get(slot.key()).map_err(|error| sled_failed(dir, error))?;
    value.map(|value| decode("a value of the log", &value, MAX_ENTRY_BYTES, dir)).transpose()
}

fn check_no_hole(mirror: &Mirror, dir: &Path) -> Result<(), StorageError> {
    let first = mirror.purged.map_or(0, |id| id.index + 1);
    for (expected, index) in (first..).zip(mirror.entries.keys()) {
        if *index != expected {
            let problem = format!("entry {expected} is missing, the next one is {index}");
            return Err(StorageError::damaged(dir, problem));
        }
    }
    Ok(())
}
