//! An error on the way to the disk is final: it is answered, and so is everything after it.
//!
//! The disk is a small tmpfs. Root is needed, for the mount.

mod common;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use common::{append_and_wait, log_id, open, register, vote};
use openraft::storage::{RaftLogReader, RaftLogStorage};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// An upper bound for how many entries fit on the disk.
const TOO_MANY_ENTRIES: u64 = 1_000_000;
const BATCH_ENTRIES: u64 = 64;

struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Result<Self> {
        let is_root = rustix::process::geteuid().is_root();
        ensure!(is_root, "the full-disk test mounts a file system: run it as root");
        let dir = tempfile::tempdir()?;
        mount(c"tmpfs", dir.path(), c"tmpfs", MountFlags::empty(), c"size=4m").context("cannot mount")?;
        Ok(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn enlarge(&self) -> Result<()> {
        let flags = MountFlags::empty();
        rustix::mount::mount_remount(self.path(), flags, c"size=64m").context("cannot remount")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = unmount(self.path(), UnmountFlags::DETACH) {
            eprintln!("cannot unmount {}: {error}", self.path().display());
        }
    }
}

#[tokio::test]
async fn a_full_disk_ends_the_log_and_loses_nothing_that_was_acknowledged() {
    let disk = SmallDisk::mount().expect("a small disk");
    let dir = disk.path().join("store");
    let mut store = open(&dir);
    store.log.save_vote(&vote(1)).await.unwrap();
    let mut acknowledged = 0;
    let refused = loop {
        assert!(acknowledged < TOO_MANY_ENTRIES, "the disk does not get full");
        let batch = (acknowledged..acknowledged + BATCH_ENTRIES).map(register).collect();
        match append_and_wait(&mut store.log, batch).await {
            Ok(()) => acknowledged += BATCH_ENTRIES,
            Err(error) => break error,
        }
    };
    println!("after {acknowledged} entries: {refused}");

    // There is room again, and still nothing is written: what the kernel dropped, no later sync brings back.
    disk.enlarge().unwrap();
    let syncs = store.log.stats().syncs;
    assert!(append_and_wait(&mut store.log, vec![register(acknowledged + BATCH_ENTRIES)]).await.is_err());
    assert!(store.log.save_vote(&vote(2)).await.is_err());
    assert!(store.log.save_committed(Some(log_id(1))).await.is_err());
    assert!(store.log.truncate_after(Some(log_id(1))).await.is_err());
    assert!(store.log.purge(log_id(1)).await.is_err());
    assert!(store.log.try_get_log_entries(..).await.is_err());
    assert!(store.log.read_vote().await.is_err());
    assert!(store.log.read_committed().await.is_err());
    assert!(store.log.get_log_state().await.is_err());
    assert_eq!(store.log.stats().syncs, syncs);
    drop(store);

    let mut store = open(&dir);
    assert_eq!(store.log.read_vote().await.unwrap(), Some(vote(1)));
    let entries = store.log.try_get_log_entries(..).await.unwrap();
    assert!(entries.len() as u64 >= acknowledged, "{} of {acknowledged} are there", entries.len());
    assert!(entries.iter().zip(0..).all(|(entry, index)| *entry == register(index)));
    let next = entries.len() as u64;
    append_and_wait(&mut store.log, vec![register(next)]).await.unwrap();
}
