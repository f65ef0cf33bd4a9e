//! The Raft log: vote, entries, purge marker and commit, on sled (Raft, section 5.2: what must be durable before a
//! replica answers).
//!
//! Life of an entry: it is put into the mirror, where it can be read at once; the writer makes it durable and tells
//! openraft; a snapshot covers it; it is purged, first from the mirror, then from disk. Reads never touch the disk.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use openraft::OptionalSend;
use openraft::entry::EntryPayload;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use state_machine::Entry;
use tokio::sync::{mpsc, oneshot};

use crate::error::StorageError;
use crate::format::{MAX_ENTRY_BYTES, encode};
use crate::identity::Identity;
use crate::recover::{Mirror, Recovered, recover};
use crate::types::{LogEntry, LogId, Membership, Proposal, ReplicaNode, TypeConfig, Vote};
use crate::writer::{LogStats, Operation, QUEUE_OPERATIONS, Shared, Slot, Writer};

/// What openraft adds to a proposal in the log, generously: ids and tags.
const ENTRY_OVERHEAD_BYTES: u64 = 128;

/// Whether `entry` is small enough for the log. Ask before proposing it: openraft stops a replica whose log refuses.
pub fn check_entry_size(entry: &Entry) -> Result<(), StorageError> {
    encode("an entry", entry, MAX_ENTRY_BYTES - ENTRY_OVERHEAD_BYTES).map(drop)
}

/// Whether `membership` is small enough for the log. Ask before proposing it, as with [`check_entry_size`].
pub fn check_membership_size(membership: Membership) -> Result<(), StorageError> {
    let payload = EntryPayload::<Proposal, u64, ReplicaNode>::Membership(membership);
    encode("a membership", &payload, MAX_ENTRY_BYTES - ENTRY_OVERHEAD_BYTES).map(drop)
}

/// The log of one replica. Clones are handles to the same one; only one of them writes, which is openraft's.
///
/// After an error on the way to the disk every call fails, and the replica has to end and recover.
#[derive(Debug, Clone)]
pub struct LogStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    mirror: Mutex<Mirror>,
    shared: Arc<Shared>,
    /// Whose log it is.
    owner: u64,
    /// Both are there until the drop.
    queue: Option<mpsc::Sender<Operation>>,
    writer: Option<JoinHandle<()>>,
    /// Keeps the directory to this process.
    _lock: Arc<File>,
}

/// Waits for the writer, so that the directory can be opened again at once.
impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the log's writer panicked");
        }
    }
}

impl LogStore {
    /// Opens the log in `dir`, which belongs to `owner`.
    pub(crate) fn open(dir: &Path, owner: &Identity, lock: &Arc<File>) -> Result<Self, StorageError> {
        let Recovered { db, file, mirror, purged } = recover(dir, owner)?;
        let shared = Arc::new(Shared::default());
        let (queue, operations) = mpsc::channel(QUEUE_OPERATIONS);
        let writer = Writer { db, file, queue: operations, purged, shared: shared.clone() };
        let writer = thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(StorageError::io("start the writer of", dir))?;
        let inner = Inner {
            mirror: Mutex::new(mirror),
            shared,
            owner: owner.replica_id,
            queue: Some(queue),
            writer: Some(writer),
            _lock: lock.clone(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What the log has done since it was opened.
    pub fn stats(&self) -> LogStats {
        self.inner.shared.stats()
    }

    /// The last purged entry.
    pub(crate) fn purged(&self) -> Option<LogId> {
        self.mirror().purged
    }

    fn mirror(&self) -> MutexGuard<'_, Mirror> {
        self.inner.mirror.lock().expect("a change of the log panicked half-way: the replica must stop")
    }

    async fn send(&self, operation: Operation) -> io::Result<()> {
        self.inner.shared.check()?;
        let gone = || io::Error::other("the log's writer is gone");
        self.inner.queue.as_ref().ok_or_else(gone)?.send(operation).await.map_err(|_| gone())
    }

    /// Sends the operation and waits until it is on disk.
    async fn send_and_wait(
        &self,
        operation: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Operation,
    ) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        self.send(operation(done)).await?;
        answer.await.map_err(io::Error::other)?
    }

    /// Encodes the entries and adds them to the mirror, all or none.
    fn mirror_appended(&self, entries: Vec<LogEntry>) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let mut encoded = Vec::with_capacity(entries.len());
        let mut mirror = self.mirror();
        let mut expected = mirror.next_index();
        for entry in &entries {
            let index = entry.log_id.index;
            if expected.is_some_and(|expected| expected != index) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("entry {index} does not follow the log, whose next one is {expected:?}"),
                ));
            }
            expected = Some(index + 1);
            encoded.push((index, encode("an entry", entry, MAX_ENTRY_BYTES)?));
        }
        mirror.entries.extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)));
        Ok(encoded)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<LogEntry>> {
        self.inner.shared.check()?;
        // The map panics on a range that ends before it starts.
        if is_inverted(&range) {
            return Ok(Vec::new());
        }
        Ok(self.mirror().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.inner.shared.check()?;
        Ok(self.mirror().vote)
    }
}

fn is_inverted(range: &impl RangeBounds<u64>) -> bool {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    match range.end_bound() {
        Bound::Included(end) => *end < start,
        Bound::Excluded(end) => *end <= start,
        Bound::Unbounded => false,
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        self.inner.shared.check()?;
        let mirror = self.mirror();
        Ok(LogState { last_purged_log_id: mirror.purged, last_log_id: mirror.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let value = encode("a vote", vote, MAX_ENTRY_BYTES)?;
        planted::point("vote-before");
        if !planted::is(planted::Bug::VoteNotPersisted) {
            self.send_and_wait(|done| Operation::Put { slot: Slot::Vote, value, done }).await?;
        }
        planted::point("vote-after");
        self.mirror().vote = Some(*vote);
        let (term, candidate) = (vote.leader_id.term, vote.leader_id.voted_for);
        tracing::info!(
            replica = self.inner.owner,
            term,
            candidate,
            accepted = vote.committed,
            "vote on disk"
        );
        Ok(())
    }

    /// It may lag behind after a crash: then fewer entries are applied at the start, and the rest once the leader
    /// says again that they are committed.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let value = encode("a log id", &committed, MAX_ENTRY_BYTES)?;
        self.mirror().committed = committed;
        self.send(Operation::PutLazily { slot: Slot::Committed, value }).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        self.inner.shared.check()?;
        Ok(self.mirror().committed)
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.inner.shared.check()?;
        let entries = self.mirror_appended(entries.into_iter().collect())?;
        self.send(Operation::Append { entries, flushed }).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let start = last.map_or(0, |id| id.index + 1);
        let end = {
            let mut mirror = self.mirror();
            let end = mirror.next_index().unwrap_or(0).max(start);
            mirror.entries.split_off(&start);
            end
        };
        self.send_and_wait(|done| Operation::Truncate { entries: start..end, done }).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let marker = encode("a log id", &upto, MAX_ENTRY_BYTES)?;
        let entries = {
            let mut mirror = self.mirror();
            if mirror.purged >= Some(upto) {
                return Ok(());
            }
            mirror.purged = Some(upto);
            let kept = mirror.entries.split_off(&(upto.index + 1));
            let purged = std::mem::replace(&mut mirror.entries, kept);
            let first = purged.first_key_value().map_or(0, |(index, _)| *index);
            let end = purged.last_key_value().map_or(0, |(index, _)| index + 1);
            first..end
        };
        self.send(Operation::Purge { marker, entries }).await
    }
}
