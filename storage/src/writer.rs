//! The log's writer: one thread, which alone writes to sled.
//!
//! Everything that changes the log on disk arrives in one queue and is carried out in its order: the vote too,
//! since a vote that overtook an append, or fell behind one, would be another history. What is queued together is
//! committed together: one sled batch, one flush, then the answers.
//!
//! The fdatasync within sled's flush ([`crate::sync`]) is what makes an answer true. The first error is final: the
//! kernel may drop dirty pages after a failed sync and report the next one as good, so nothing is written or synced
//! after it, and every later operation gets an error.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use openraft::storage::IOFlushed;
use tokio::sync::{mpsc, oneshot};

use crate::sync;
use crate::types::TypeConfig;

/// How many operations may wait for the writer; more wait at the door.
pub(crate) const QUEUE_OPERATIONS: usize = 1024;
/// No more is added to a commit once it has this many entries.
const COMMIT_ENTRIES: usize = 4096;
/// No more is added to a commit once it has this many bytes of entries.
const COMMIT_BYTES: usize = 4 * 1024 * 1024;
/// How many purged entries are removed a commit: thousands at once would hold up the appends for 100 ms.
const REMOVALS_PER_COMMIT: usize = 64;
/// How many are removed for each entry that comes in, where that is more: removal has to keep up with the load.
const REMOVALS_PER_ENTRY: usize = 2;

/// How long sled may take to let go of its file.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often that is looked at.
const RELEASE_POLL: Duration = Duration::from_millis(1);

/// The key of the entry `index`: in the order of the indexes.
pub(crate) fn entry_key(index: u64) -> [u8; 9] {
    let mut key = [b'e'; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

/// The values beside the entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    Vote,
    Purged,
    Committed,
    /// Which replica's log it is.
    Owner,
}

impl Slot {
    pub(crate) fn key(self) -> &'static [u8] {
        match self {
            Self::Vote => b"m/vote",
            Self::Purged => b"m/purged",
            Self::Committed => b"m/committed",
            Self::Owner => b"m/owner",
        }
    }
}

/// Answers an operation once it is on disk, or cannot be.
pub(crate) type Done = oneshot::Sender<io::Result<()>>;

/// What the writer is asked to do.
pub(crate) enum Operation {
    /// Writes encoded entries.
    Append { entries: Vec<(u64, Vec<u8>)>, flushed: IOFlushed<TypeConfig> },
    /// Writes a value and answers when it is on disk.
    Put { slot: Slot, value: Vec<u8>, done: Done },
    /// Writes a value that may be lost: it gets to disk with the next commit that is synced.
    PutLazily { slot: Slot, value: Vec<u8> },
    /// Removes the end of the log, all of it or nothing.
    Truncate { entries: Range<u64>, done: Done },
    /// Writes the purge marker, and after that is on disk removes the entries, bit by bit.
    Purge { marker: Vec<u8>, entries: Range<u64> },
}

/// What the writer has done since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Commits that were synced.
    pub syncs: u64,
    /// Entries appended.
    pub entries: u64,
}

/// What the writer and the log's handles share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    failure: OnceLock<(io::ErrorKind, String)>,
    syncs: AtomicU64,
    entries: AtomicU64,
}

impl Shared {
    /// The error that ended the log, if one did.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.failure.get() {
            Some((kind, problem)) => Err(io::Error::new(*kind, format!("the log has failed: {problem}"))),
            None => Ok(()),
        }
    }

    pub(crate) fn stats(&self) -> LogStats {
        LogStats { syncs: self.syncs.load(Ordering::Relaxed), entries: self.entries.load(Ordering::Relaxed) }
    }
}

/// One commit in the making.
#[derive(Default)]
struct Commit {
    batch: sled::Batch,
    answers: Vec<Answer>,
    purged: Vec<Range<u64>>,
    operations: usize,
    appended: usize,
    truncated: usize,
    bytes: usize,
    must_sync: bool,
}

enum Answer {
    Appended(IOFlushed<TypeConfig>),
    Done(Done),
}

impl Answer {
    fn send(self, result: io::Result<()>) {
        match self {
            Self::Appended(flushed) => flushed.io_completed(result),
            // Nobody waits when the caller was cancelled; what was done stays done.
            Self::Done(done) => drop(done.send(result)),
        }
    }
}

impl Commit {
    fn is_full(&self) -> bool {
        self.appended + self.truncated >= COMMIT_ENTRIES || self.bytes >= COMMIT_BYTES
    }

    fn add(&mut self, operation: Operation) {
        self.operations += 1;
        match operation {
            Operation::Append { entries, flushed } => {
                self.appended += entries.len();
                for (index, value) in entries {
                    self.bytes += value.len();
                    self.batch.insert(&entry_key(index), value);
                }
                self.answers.push(Answer::Appended(flushed));
                self.must_sync = true;
            }
            Operation::Put { slot, value, done } => {
                self.batch.insert(slot.key(), value);
                self.answers.push(Answer::Done(done));
                self.must_sync = true;
            }
            Operation::PutLazily { slot, value } => self.batch.insert(slot.key(), value),
            Operation::Truncate { entries, done } => {
                self.truncated += entries.clone().count();
                for index in entries.clone() {
                    self.batch.remove(&entry_key(index));
                }
                self.answers.push(Answer::Done(done));
                self.must_sync |= !entries.is_empty();
            }
            Operation::Purge { marker, entries } => {
                self.batch.insert(Slot::Purged.key(), marker);
                self.purged.push(entries);
                self.must_sync = true;
            }
        }
    }
}

/// The thread's state. It ends when the last handle to its queue is dropped and the queue is empty.
pub(crate) struct Writer {
    pub(crate) db: sled::Db,
    /// sled's data file.
    pub(crate) file: File,
    pub(crate) queue: mpsc::Receiver<Operation>,
    /// Entries below the durable purge marker that are still to be removed.
    pub(crate) purged: VecDeque<Range<u64>>,
    pub(crate) shared: Arc<Shared>,
}

/// sled's own threads may hold its file, and the lock on it, for a moment after sled was dropped. Whoever opens the
/// directory next must not find it locked.
fn wait_for_release(file: &File) {
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    while file.try_lock().is_err() {
        if Instant::now() >= deadline {
            tracing::warn!("sled still holds its file");
            return;
        }
        thread::sleep(RELEASE_POLL);
    }
}

impl Writer {
    pub(crate) fn run(mut self) {
        while let Some(mut commit) = self.gather() {
            self.add_removals(&mut commit);
            self.carry_out(&mut commit);
            self.purged.extend(commit.purged);
            for answer in commit.answers {
                answer.send(self.shared.check());
            }
        }
        drop(self.db);
        // After a failure the process has to end, and sled may hold its file until then.
        if self.shared.failure.get().is_none() {
            wait_for_release(&self.file);
        }
    }

    /// Waits for an operation and takes what else is queued; none when the log is closed. While there is something
    /// to remove it does not wait, and the commit may be empty.
    fn gather(&mut self) -> Option<Commit> {
        let mut commit = Commit::default();
        if self.purged.is_empty() {
            commit.add(self.queue.blocking_recv()?);
        }
        while !commit.is_full() {
            match self.queue.try_recv() {
                Ok(operation) => commit.add(operation),
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) if commit.operations == 0 => return None,
                Err(mpsc::error::TryRecvError::Disconnected) => break,
            }
        }
        Some(commit)
    }

    fn add_removals(&mut self, commit: &mut Commit) {
        let mut room = REMOVALS_PER_COMMIT.max(REMOVALS_PER_ENTRY * commit.appended) as u64;
        while let Some(range) = self.purged.front_mut() {
            let end = range.end.min(range.start.saturating_add(room));
            for index in range.start..end {
                commit.batch.remove(&entry_key(index));
            }
            room -= end.saturating_sub(range.start);
            range.start = end;
            if range.start < range.end {
                break;
            }
            self.purged.pop_front();
        }
    }

    /// Commits, unless the log has failed; a failure is recorded before anybody is answered.
    fn carry_out(&self, commit: &mut Commit) {
        if self.shared.failure.get().is_some() {
            return;
        }
        let batch = std::mem::take(&mut commit.batch);
        let must_sync = commit.must_sync;
        // sled panics where it meets what it did not expect; whoever waits for an answer gets one all the same.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.write(batch, must_sync)));
        let error = match outcome {
            Ok(Ok(())) => {
                self.shared.entries.fetch_add(commit.appended as u64, Ordering::Relaxed);
                return;
            }
            Ok(Err(error)) => error,
            Err(_) => io::Error::other("sled panicked"),
        };
        tracing::error!(%error, "writing the log failed; this replica has to stop");
        // Only this thread sets it, and only once.
        let _ = self.shared.failure.set((error.kind(), error.to_string()));
    }

    fn write(&self, batch: sled::Batch, must_sync: bool) -> io::Result<()> {
        let syncs = sync::syncs();
        planted::point("append-before");
        self.db.apply_batch(batch)?;
        if !must_sync {
            return Ok(());
        }
        self.db.flush()?;
        // Whatever sled or the linker may do one day: without this, nothing would show until a power cut.
        if sync::syncs() == syncs {
            return Err(io::Error::other("sled wrote without a sync"));
        }
        self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        planted::point("append-after");
        Ok(())
    }
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::path::Path;

    use super::*;

    /// Puts what takes every write, and cannot be synced, in place of the open file `path`.
    fn make_unsyncable(path: &Path) {
        let null = File::create("/dev/null").unwrap();
        for entry in fs::read_dir("/proc/self/fd").unwrap() {
            let opened = entry.unwrap().path();
            if fs::read_link(&opened).is_ok_and(|target| target == path) {
                let fd = opened.file_name().unwrap().to_str().unwrap().parse().unwrap();
                // SAFETY: `fd` is the open file of a sled that this test owns, and stays open.
                assert_eq!(unsafe { libc::dup2(null.as_raw_fd(), fd) }, fd);
            }
        }
    }

    #[test]
    fn after_a_failed_sync_nothing_is_written_and_everything_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let db = sled::open(dir.path()).unwrap();
        db.flush().unwrap();
        make_unsyncable(&dir.path().join("db"));
        let (queue, operations) = mpsc::channel(QUEUE_OPERATIONS);
        let shared = Arc::new(Shared::default());
        let writer = Writer {
            db: db.clone(),
            file: File::open(dir.path()).unwrap(),
            queue: operations,
            purged: VecDeque::new(),
            shared: shared.clone(),
        };
        let writer = thread::spawn(move || writer.run());
        let put = |slot, value| {
            let (done, answer) = oneshot::channel();
            queue.blocking_send(Operation::Put { slot, value, done }).unwrap();
            answer.blocking_recv().unwrap()
        };

        assert!(put(Slot::Vote, vec![1]).is_err());
        assert!(shared.check().is_err());
        assert!(put(Slot::Vote, vec![2]).is_err());
        queue.blocking_send(Operation::PutLazily { slot: Slot::Committed, value: vec![3] }).unwrap();
        drop(queue);
        writer.join().unwrap();
        assert_eq!(db.get(Slot::Vote.key()).unwrap().unwrap().as_ref(), [1]);
        assert_eq!(db.get(Slot::Committed.key()).unwrap(), None);
        assert_eq!(shared.stats().syncs, 0);
    }
}
