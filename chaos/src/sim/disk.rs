//! A replica's simulated disk: what is durable, what is written only, and the log that openraft keeps on it.
//!
//! As in production (`storage/src/log.rs`): an entry can be read when `append` returns and is told to be there when it
//! is durable; one writer, in order, a flush a batch; an error on the way is final for the process. At a crash what is
//! not durable is there as a prefix of any length, and the last entry of an append may be torn off.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use planted::Bug;
use storage::{LogEntry, LogId, SnapshotMeta, Vote};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::faults::{Disk as Trouble, Kind};
use super::play::Flaw;
use super::runtime::{die, random, sleep};
use super::types::SimTypeConfig;
use super::world::{Point, World};

/// How long a flush takes on a healthy disk, in microseconds.
const FLUSH_US: (u64, u64) = (50, 400);
/// How long one takes while the disk is slow, in microseconds.
const SLOW_FLUSH_US: (u64, u64) = (20_000, 700_000);

/// What is on a disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Content {
    pub(crate) vote: Option<Vote>,
    pub(crate) entries: BTreeMap<u64, LogEntry>,
    pub(crate) purged: Option<LogId>,
    pub(crate) committed: Option<LogId>,
    pub(crate) snapshot: Option<(SnapshotMeta, Arc<Vec<u8>>)>,
}

impl Content {
    fn last(&self) -> Option<LogId> {
        self.entries.last_key_value().map(|(_, entry)| entry.log_id).or(self.purged)
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Vote(vote) => self.vote = Some(*vote),
            Change::Append(entries) => {
                self.entries.extend(entries.iter().map(|entry| (entry.log_id.index, entry.clone())));
            }
            Change::Truncate { from } => drop(self.entries.split_off(from)),
            Change::Purge(upto) => {
                self.entries = self.entries.split_off(&(upto.index + 1));
                self.purged = Some(*upto);
            }
            Change::Committed(committed) => self.committed = *committed,
            Change::Snapshot(meta, body) => self.snapshot = Some((meta.clone(), body.clone())),
        }
    }
}

#[derive(Debug, Clone)]
enum Change {
    Vote(Vote),
    Append(Vec<LogEntry>),
    Truncate { from: u64 },
    Purge(LogId),
    Committed(Option<LogId>),
    Snapshot(SnapshotMeta, Arc<Vec<u8>>),
}

/// A disk, which outlives the replicas on it.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// Who lives on it; another one after it was lost.
    pub(crate) id: u64,
    /// The cluster that the replica belongs to, or was promised to.
    pub(crate) cluster: Option<Uuid>,
    /// The replica was removed: it does not run on this any more.
    pub(crate) is_removed: bool,
    durable: Content,
    /// Written, not known to be durable.
    written: VecDeque<Change>,
    trouble: Option<Trouble>,
    /// The fault's number, once the trouble was met.
    struck: Option<usize>,
    pub(crate) flaw: Flaw,
}

/// How many entries a disk that forgets loses at most.
const FORGOTTEN_ENTRIES: u64 = 6;

impl Disk {
    /// From now on there is this trouble: of IO errors, one. False if there is another one.
    pub(crate) fn begin(&mut self, trouble: Trouble) -> bool {
        let is_well = self.trouble.is_none() && self.struck.is_none();
        if is_well {
            self.trouble = Some(trouble);
        }
        is_well
    }

    /// It is over. What there still was, and the fault's number if that was met.
    pub(crate) fn end(&mut self) -> (Option<Trouble>, Option<usize>) {
        (self.trouble.take(), self.struck.take())
    }

    /// Everything on it is lost; who comes back is `id`.
    pub(crate) fn wipe(&mut self, id: u64) {
        *self = Self { id, flaw: self.flaw, ..Self::default() };
    }

    /// The process ended, or the power failed. Whether something that was not durable is lost.
    pub(crate) fn crash(&mut self, power_failed: bool) -> bool {
        // What the kernel has survives its process; what was not even written is not here.
        let kept = if power_failed || !planted::is(Bug::NoFsync) {
            random(|rng| usize::try_from(rng.below(self.written.len() as u64 + 1)).unwrap_or(0))
        } else {
            self.written.len()
        };
        for _ in 0..kept {
            if let Some(change) = self.written.pop_front() {
                self.durable.apply(&change);
            }
        }
        let torn = self.written.pop_front();
        if let Some(Change::Append(mut entries)) = torn.clone() {
            // A record that is not whole is not one: recovery cuts the log there.
            entries.truncate(random(|rng| usize::try_from(rng.below(entries.len() as u64)).unwrap_or(0)));
            self.durable.apply(&Change::Append(entries));
        }
        self.written.clear();
        if self.flaw == Flaw::DiskForgets {
            for _ in 0..random(|rng| rng.below(FORGOTTEN_ENTRIES + 1)) {
                self.durable.entries.pop_last();
            }
        }
        torn.is_some()
    }

    /// What a process finds that starts on it.
    pub(crate) fn content(&self) -> Content {
        self.durable.clone()
    }

    fn make_durable(&mut self) {
        for change in std::mem::take(&mut self.written) {
            self.durable.apply(&change);
        }
    }
}

enum Done {
    Nobody,
    Told(oneshot::Sender<io::Result<()>>),
    Flushed(IOFlushed<SimTypeConfig>),
}

impl Done {
    fn tell(self, result: io::Result<()>) {
        match self {
            Self::Nobody => {}
            Self::Told(sender) => drop(sender.send(result)),
            Self::Flushed(callback) => callback.io_completed(result),
        }
    }
}

/// The log of one process on a disk. Clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct LogStore {
    mirror: Arc<Mutex<Content>>,
    queue: mpsc::UnboundedSender<(Change, Done)>,
}

/// Carries out what the log asks for, in order.
pub(crate) struct Writer {
    world: Arc<World>,
    place: usize,
    id: u64,
    queue: mpsc::UnboundedReceiver<(Change, Done)>,
}

fn failed(why: &'static str) -> io::Error {
    io::Error::other(why)
}

/// Opens the log of replica `id` in a place; the writer is to be run in its process.
pub(crate) fn open(world: &Arc<World>, place: usize, id: u64) -> (LogStore, Writer) {
    let content = world.places[place].disk().content();
    let (sender, queue) = mpsc::unbounded_channel();
    let log = LogStore { mirror: Arc::new(Mutex::new(content)), queue: sender };
    (log, Writer { world: world.clone(), place, id, queue })
}

impl Writer {
    /// Writes until there is an error or the process ends.
    pub(crate) async fn run(mut self) {
        while let Some(first) = self.queue.recv().await {
            let mut batch = vec![first];
            while let Ok(next) = self.queue.try_recv() {
                batch.push(next);
            }
            let has_vote = batch.iter().any(|(change, _)| matches!(change, Change::Vote(_)));
            let has_entries = batch.iter().any(|(change, _)| matches!(change, Change::Append(_)));
            if has_vote && self.world.reach(self.place, Point::BeforeVote)
                || has_entries && self.world.reach(self.place, Point::BeforeAppend)
            {
                return die().await;
            }
            let trouble = self.write(&batch).await;
            if let Err(why) = trouble {
                // What waits is never answered twice: the process ends.
                batch.into_iter().for_each(|(_, done)| done.tell(Err(failed(why))));
                return;
            }
            if has_vote && self.world.reach(self.place, Point::AfterVote)
                || has_entries && self.world.reach(self.place, Point::AfterAppend)
            {
                return die().await;
            }
            for (change, done) in batch {
                if let Change::Vote(vote) = change {
                    self.world.record_vote(self.place, self.id, &vote);
                }
                done.tell(Ok(()));
            }
        }
    }

    async fn write(&self, batch: &[(Change, Done)]) -> Result<(), &'static str> {
        let trouble = {
            let mut disk = self.world.places[self.place].disk();
            if disk.trouble != Some(Trouble::Full) {
                disk.written.extend(batch.iter().map(|(change, _)| change.clone()));
            }
            disk.trouble
        };
        if trouble == Some(Trouble::Full) {
            self.strikes(Trouble::Full);
            return Err("no space left on device");
        }
        if planted::is(Bug::NoFsync) {
            return Ok(());
        }
        let (least, most) = if trouble == Some(Trouble::Slow) { SLOW_FLUSH_US } else { FLUSH_US };
        if trouble == Some(Trouble::Slow) {
            self.strikes(Trouble::Slow);
        }
        sleep(Duration::from_micros(random(|rng| rng.between(least, most)))).await;
        let trouble = self.world.places[self.place].disk().trouble;
        if trouble == Some(Trouble::IoError) {
            self.strikes(Trouble::IoError);
            self.world.places[self.place].disk().trouble = None;
            return Err("input/output error");
        }
        self.world.places[self.place].disk().make_durable();
        Ok(())
    }

    /// The disk's trouble is met: the first time, that is the fault.
    fn strikes(&self, trouble: Trouble) {
        let disk = || self.world.places[self.place].disk();
        if disk().struck.is_none() {
            let fault = self.world.record_disk_fault(Kind::Disk(trouble).name(), self.place);
            disk().struck = Some(fault);
        }
    }
}

impl LogStore {
    fn mirror(&self) -> MutexGuard<'_, Content> {
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, change: Change, done: Done) -> io::Result<()> {
        self.queue.send((change, done)).map_err(|_| failed("the log's writer is gone"))
    }

    async fn send_and_wait(&self, change: Change) -> io::Result<()> {
        let (sender, answer) = oneshot::channel();
        self.send(change, Done::Told(sender))?;
        answer.await.map_err(|_| failed("the log's writer is gone"))?
    }

    /// Keeps a snapshot, which replaces the one before.
    pub(crate) async fn save_snapshot(&self, meta: SnapshotMeta, body: Arc<Vec<u8>>) -> io::Result<()> {
        self.mirror().snapshot = Some((meta.clone(), body.clone()));
        self.send_and_wait(Change::Snapshot(meta, body)).await
    }

    /// The newest snapshot.
    pub(crate) fn snapshot(&self) -> Option<(SnapshotMeta, Arc<Vec<u8>>)> {
        self.mirror().snapshot.clone()
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

impl RaftLogReader<SimTypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<LogEntry>> {
        if is_inverted(&range) {
            return Ok(Vec::new());
        }
        Ok(self.mirror().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.mirror().vote)
    }
}

impl RaftLogStorage<SimTypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<SimTypeConfig>> {
        let mirror = self.mirror();
        Ok(LogState { last_purged_log_id: mirror.purged, last_log_id: mirror.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        if !planted::is(Bug::VoteNotPersisted) {
            self.send_and_wait(Change::Vote(*vote)).await?;
        }
        self.mirror().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.mirror().committed = committed;
        self.send(Change::Committed(committed), Done::Nobody)
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.mirror().committed)
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<SimTypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let change = Change::Append(entries.into_iter().collect());
        self.mirror().apply(&change);
        self.send(change, Done::Flushed(flushed))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let change = Change::Truncate { from: last.map_or(0, |id| id.index + 1) };
        self.mirror().apply(&change);
        self.send_and_wait(change).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let change = Change::Purge(upto);
        self.mirror().apply(&change);
        self.send(change, Done::Nobody)
    }
}
