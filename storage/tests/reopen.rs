//! What was acknowledged is there when the store is opened again, and what is not as written is an error.

// A step that fails here fails the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{
    append, append_and_wait, apply, blank, largest, log_id, longest_message_bytes, open, proposal, register,
    vote,
};
use openraft::entry::EntryPayload;
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine};
use storage::{LogEntry, MAX_ENTRY_BYTES, StorageError, Store, check_entry_size};
use tempfile::tempdir;
use uuid::Uuid;

#[tokio::test]
async fn vote_log_marker_commit_snapshot_and_identity_are_kept() {
    let dir = tempdir().unwrap();
    let mut store = open(dir.path());
    let replica_id = store.identity.replica_id;
    store.identity.set_cluster_id(Uuid::from_u128(1)).unwrap();
    store.log.save_vote(&vote(3)).await.unwrap();
    let entries: Vec<LogEntry> = (0..100).map(register).collect();
    append_and_wait(&mut store.log, entries.clone()).await.unwrap();
    apply(&mut store.machine, entries[..60].to_vec()).await;
    store.machine.build_snapshot().await.unwrap();
    let hash = store.machine.state_hash();
    assert_eq!(hash.0, 59);
    assert_eq!(fs::read_to_string(dir.path().join("FORMAT")).unwrap(), "rds-csi storage format 1\n");
    store.log.purge(log_id(49)).await.unwrap();
    store.log.truncate_after(Some(log_id(89))).await.unwrap();
    store.log.save_committed(Some(log_id(70))).await.unwrap();
    drop(store);

    let mut store = open(dir.path());
    assert_eq!(store.identity.replica_id, replica_id);
    assert_eq!(store.identity.cluster_id, Some(Uuid::from_u128(1)));
    assert_eq!(store.log.read_vote().await.unwrap(), Some(vote(3)));
    assert_eq!(store.log.read_committed().await.unwrap(), Some(log_id(70)));
    let state = store.log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(49)), Some(log_id(89))));
    assert_eq!(store.log.try_get_log_entries(0..1000).await.unwrap(), entries[50..90]);
    assert_eq!(store.machine.state_hash(), hash);
    assert_eq!(store.machine.applied_log_id(), Some(log_id(59)));
    assert_eq!(store.machine.applied_term(), common::TERM);
    let snapshot = store.machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(snapshot.meta.last_log_id, Some(log_id(59)));
    apply(&mut store.machine, entries[60..].to_vec()).await;
    assert_eq!(store.machine.read(|state| state.nodes().len()), 100);
}

#[tokio::test]
async fn an_installed_snapshot_makes_the_state_of_its_builder_and_wakes_the_watchers() {
    let dirs = (tempdir().unwrap(), tempdir().unwrap());
    let (mut from, mut to) = (open(dirs.0.path()), open(dirs.1.path()));
    apply(&mut from.machine, (0..20).map(register).collect()).await;
    let snapshot = from.machine.build_snapshot().await.unwrap();

    let mut watch = to.machine.watch_applied();
    watch.mark_unchanged();
    to.machine.install_snapshot(&snapshot.meta, snapshot.snapshot.clone()).await.unwrap();
    assert!(watch.has_changed().unwrap());
    assert_eq!(*watch.borrow_and_update(), 19);
    assert_eq!(to.machine.state_hash(), from.machine.state_hash());
    apply(&mut to.machine, vec![register(20)]).await;
    assert_eq!(*watch.borrow_and_update(), 20);

    let cut = snapshot.snapshot[..snapshot.snapshot.len() - 1].to_vec();
    assert!(to.machine.install_snapshot(&snapshot.meta, cut).await.is_err());
    assert_eq!(to.machine.applied_index(), 20);
}

#[tokio::test]
async fn only_the_newest_snapshot_is_kept() {
    let dir = tempdir().unwrap();
    let mut store = open(dir.path());
    for index in 0..5 {
        apply(&mut store.machine, vec![register(index)]).await;
        store.machine.build_snapshot().await.unwrap();
    }
    assert_eq!(names(&dir.path().join("snapshots")), ["3-4.snap"]);
}

#[tokio::test]
async fn leftovers_of_a_purge_are_removed_after_the_next_start() {
    let dir = tempdir().unwrap();
    let mut store = open(dir.path());
    append_and_wait(&mut store.log, (0..500).map(register).collect()).await.unwrap();
    apply(&mut store.machine, (0..500).map(register).collect()).await;
    store.machine.build_snapshot().await.unwrap();
    store.log.purge(log_id(399)).await.unwrap();
    drop(store);

    // As if the process had ended right after the marker was written: the entries below it are back.
    with_sled(dir.path(), |db| {
        let value = db.get(key(450)).unwrap().unwrap();
        for index in 0..400 {
            db.insert(key(index), value.clone()).unwrap();
        }
    });
    let mut store = open(dir.path());
    assert_eq!(store.log.try_get_log_entries(..).await.unwrap().len(), 100);
    append_and_wait(&mut store.log, vec![register(500)]).await.unwrap();
    drop(store);
    // They go 64 a commit while there is nothing else to do; closing does not wait for them.
    let left = with_sled(dir.path(), |db| db.range(key(0)..key(400)).count());
    assert!(left <= 400 - 64, "{left} of 400 are left");
}

#[tokio::test]
async fn a_hole_in_the_log_is_an_error() {
    let dir = tempdir().unwrap();
    let mut store = open(dir.path());
    append_and_wait(&mut store.log, (0..10).map(register).collect()).await.unwrap();
    drop(store);
    with_sled(dir.path(), |db| db.remove(key(4)).unwrap().unwrap());
    assert_damaged(dir.path(), "entry 4 is missing");
}

#[tokio::test]
async fn entries_that_do_not_follow_the_log_are_refused() {
    let dir = tempdir().unwrap();
    let mut store = open(dir.path());
    append_and_wait(&mut store.log, vec![blank(0), blank(1)]).await.unwrap();
    for wrong in [vec![blank(3)], vec![blank(1)], vec![blank(2), blank(4)]] {
        assert!(append_and_wait(&mut store.log, wrong).await.is_err());
    }
    append_and_wait(&mut store.log, vec![blank(2)]).await.unwrap();
    assert_eq!(store.log.try_get_log_entries(..).await.unwrap().len(), 3);
}

#[tokio::test]
async fn an_entry_that_is_too_large_is_refused_and_the_log_goes_on() {
    let dir = tempdir().unwrap();
    let mut store = open(dir.path());
    append_and_wait(&mut store.log, vec![blank(0)]).await.unwrap();
    let entry = proposal(1, MAX_ENTRY_BYTES as usize);
    let large = LogEntry { log_id: log_id(1), payload: EntryPayload::Normal(entry.into()) };
    let refused = append_and_wait(&mut store.log, vec![large]).await.unwrap_err();
    assert!(refused.to_string().contains("more than the 6144 that may be stored"), "{refused}");

    // Whatever passes the check passes the log.
    let most = longest_message_bytes();
    check_entry_size(&proposal(1, most)).unwrap();
    assert!(check_entry_size(&proposal(1, most + 1)).is_err());
    append_and_wait(&mut store.log, vec![largest(1)]).await.unwrap();
    drop(store);
    let mut store = open(dir.path());
    assert_eq!(store.log.try_get_log_entries(1..).await.unwrap(), [largest(1)]);
}

#[tokio::test]
async fn entries_that_arrive_together_share_a_sync() {
    let dir = tempdir().unwrap();
    let mut store = open(dir.path());
    let before = store.log.stats();
    let mut waiting = Vec::new();
    for index in 0..2000 {
        waiting.push(append(&mut store.log, vec![register(index)]).await.unwrap());
    }
    for flushed in waiting {
        flushed.await.unwrap();
    }
    let after = store.log.stats();
    let (entries, syncs) = (after.entries - before.entries, after.syncs - before.syncs);
    assert_eq!(entries, 2000);
    assert!(syncs * 4 < entries, "{syncs} syncs for {entries} entries");
}

#[tokio::test]
async fn a_directory_belongs_to_one_store_at_a_time() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    assert!(matches!(Store::open(dir.path()), Err(StorageError::Locked { .. })));
    let Store { log, machine, identity } = store;
    drop((log, identity));
    assert!(matches!(Store::open(dir.path()), Err(StorageError::Locked { .. })));
    drop(machine);
    open(dir.path());
}

/// A directory with a bit of everything, and its parts.
async fn filled() -> tempfile::TempDir {
    let dir = tempdir().unwrap();
    let mut store = open(dir.path());
    store.identity.set_cluster_id(Uuid::from_u128(1)).unwrap();
    store.log.save_vote(&vote(3)).await.unwrap();
    append_and_wait(&mut store.log, (0..10).map(register).collect()).await.unwrap();
    apply(&mut store.machine, (0..10).map(register).collect()).await;
    store.machine.build_snapshot().await.unwrap();
    store.log.purge(log_id(5)).await.unwrap();
    dir
}

#[tokio::test]
async fn missing_parts_and_foreign_formats_are_errors() {
    let table: [(&str, Change); 6] = [
        ("no FORMAT file", |dir| fs::remove_file(dir.join("FORMAT")).unwrap()),
        ("start the version that wrote it", |dir| {
            fs::write(dir.join("FORMAT"), "rds-csi storage format 2\n").unwrap()
        }),
        ("this program reads", |dir| fs::write(dir.join("FORMAT"), [0xff; 100]).unwrap()),
        ("a log but no identity", |dir| fs::remove_file(dir.join("identity")).unwrap()),
        ("its log is missing", |dir| fs::remove_dir_all(dir.join("log")).unwrap()),
        ("a snapshot is missing", |dir| fs::remove_dir_all(dir.join("snapshots")).unwrap()),
    ];
    for (expected, change) in table {
        let dir = filled().await;
        change(dir.path());
        assert_damaged(dir.path(), expected);
    }
}

type Change = fn(&Path);

const EMPTY: Change = |file| fs::write(file, []).unwrap();
const HALVE: Change = |file| {
    let bytes = fs::read(file).unwrap();
    fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
};
const OVERWRITE: Change = |file| {
    let bytes = fs::read(file).unwrap();
    fs::write(file, vec![0xa5; bytes.len()]).unwrap();
};

#[tokio::test]
async fn cut_and_overwritten_files_are_errors_and_never_panics() {
    for name in ["FORMAT", "identity", "snapshots/3-9.snap"] {
        for (number, change) in [EMPTY, HALVE, OVERWRITE].into_iter().enumerate() {
            let dir = filled().await;
            change(&dir.path().join(name));
            assert!(Store::open(dir.path()).is_err(), "{name}, change {number}: opened");
        }
    }
}

/// sled takes a damaged end of its file for one that a crash cut off; what is left must be a log, and the member's.
#[tokio::test]
async fn a_damaged_log_is_an_error_or_a_shorter_log_and_never_an_empty_one() {
    for name in ["log/db", "log/conf"] {
        for (number, change) in [EMPTY, HALVE, OVERWRITE].into_iter().enumerate() {
            let dir = filled().await;
            change(&dir.path().join(name));
            match Store::open(dir.path()) {
                Err(error) => println!("{name}, change {number}: {error}"),
                Ok(mut store) => {
                    let state = store.log.get_log_state().await.unwrap();
                    println!("{name}, change {number}: {state:?}");
                    assert_eq!(
                        store.log.read_vote().await.unwrap(),
                        Some(vote(3)),
                        "{name}, change {number}"
                    );
                }
            }
        }
    }
}

fn assert_damaged(dir: &Path, expected: &str) {
    match Store::open(dir) {
        Err(error) => assert!(error.to_string().contains(expected), "{error}"),
        Ok(_) => panic!("opened, expected: {expected}"),
    }
}

/// Changes the log behind the store's back.
fn with_sled<T>(dir: &Path, change: impl FnOnce(&sled::Db) -> T) -> T {
    let db = sled::open(dir.join("log")).unwrap();
    let changed = change(&db);
    drop(db);
    // sled lets go of its lock a moment later.
    fs::File::open(dir.join("log/db")).unwrap().lock().unwrap();
    changed
}

fn key(index: u64) -> Vec<u8> {
    [b"e".as_slice(), &index.to_be_bytes()].concat()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
