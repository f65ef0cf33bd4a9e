//! The directory stays small however long the log has been running.

// A step that fails here fails the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use common::{append, apply, log_id, open, register};
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftSnapshotBuilder};

const ENTRIES: u64 = 1_000_000;
const BATCH_ENTRIES: u64 = 128;
/// How many batches are under way at once.
const BATCHES_UNDER_WAY: usize = 8;
/// How often a snapshot is made, the log purged up to it, and the directory measured.
const SNAPSHOT_EVERY_BATCHES: u64 = 128;
/// How many entries before the snapshot stay in the log.
const KEPT_ENTRIES: u64 = 1000;
/// A quarter of the 256 MiB that are allowed, so that removals which do not keep up with the appends are seen.
const LIMIT_BYTES: u64 = 64 * 1024 * 1024;

#[tokio::test]
async fn a_million_entries_stay_under_256_mib() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let started = Instant::now();
    let mut under_way = VecDeque::new();
    let mut largest_bytes = 0;
    for (number, first) in (0..ENTRIES).step_by(BATCH_ENTRIES as usize).enumerate() {
        let end = ENTRIES.min(first + BATCH_ENTRIES);
        under_way.push_back(append(&mut store.log, (first..end).map(register).collect()).await.unwrap());
        if under_way.len() == BATCHES_UNDER_WAY {
            under_way.pop_front().unwrap().await.unwrap();
        }
        apply(&mut store.machine, (first..end).map(register).collect()).await;
        if (number as u64 + 1).is_multiple_of(SNAPSHOT_EVERY_BATCHES) {
            store.machine.build_snapshot().await.unwrap();
            store.log.purge(log_id(end - 1 - KEPT_ENTRIES)).await.unwrap();
            largest_bytes = largest_bytes.max(check_size(dir.path(), end));
        }
    }
    for flushed in under_way {
        flushed.await.unwrap();
    }
    let (took, stats) = (started.elapsed(), store.log.stats());
    drop(store);
    let left_bytes = check_size(dir.path(), ENTRIES);
    println!(
        "{ENTRIES} entries in {took:.1?}: {:.0} a second, {:.0} a sync; {} MiB at most, {} MiB at the end",
        ENTRIES as f64 / took.as_secs_f64(),
        stats.entries as f64 / stats.syncs as f64,
        largest_bytes >> 20,
        left_bytes >> 20,
    );

    let mut store = open(dir.path());
    assert_eq!(store.log.get_log_state().await.unwrap().last_log_id, Some(log_id(ENTRIES - 1)));
    let kept = store.log.try_get_log_entries(..).await.unwrap();
    assert!(
        kept.len() as u64 <= KEPT_ENTRIES + SNAPSHOT_EVERY_BATCHES * BATCH_ENTRIES,
        "{} are kept",
        kept.len()
    );
}

fn check_size(dir: &Path, entries: u64) -> u64 {
    let bytes = disk_bytes(dir).unwrap();
    assert!(bytes < LIMIT_BYTES, "{bytes} bytes after {entries} entries");
    bytes
}

/// What `du` says. Files may come and go meanwhile.
fn disk_bytes(path: &Path) -> io::Result<u64> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        found => found?,
    };
    let mut bytes = found.blocks() * 512;
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            bytes += disk_bytes(&entry?.path())?;
        }
    }
    Ok(bytes)
}
