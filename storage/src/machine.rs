//! The state machine: the ledger's state in memory, and its snapshots.
//!
//! Life: [`MachineStore::open`] installs the newest snapshot; openraft then replays the log up to the saved
//! commit, applies what is committed, and asks for a snapshot now and then. Nothing but snapshots is written.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bincode::Options;
use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{EntryPayload, OptionalSend};
use sha2::{Digest, Sha256};
use state_machine::{Command, Entry, LedgerTime, Response, State};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::error::StorageError;
use crate::format::{MAX_STATE_BYTES, decode, encode};
use crate::snapshot::SnapshotDir;
use crate::types::{LogId, SnapshotMeta, StoredMembership, TypeConfig};

/// How many entries are applied under one lock, so that readers never wait long.
const APPLY_BATCH_ENTRIES: usize = 64;

const POISONED: &str =
    "an entry's application panicked and may have left half a change: the replica must stop";

/// The state machine of one replica. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct MachineStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    applied: RwLock<Applied>,
    applied_index: watch::Sender<u64>,
    snapshots: SnapshotDir,
    /// Keeps the directory to this process.
    _lock: Arc<File>,
}

/// The state and which log produced it; they change together.
#[derive(Debug, Clone, Default)]
struct Applied {
    state: State,
    last: Option<LogId>,
    membership: StoredMembership,
}

impl Applied {
    fn index(&self) -> u64 {
        self.last.map_or(0, |id| id.index)
    }

    fn from_snapshot(meta: &SnapshotMeta, body: &[u8], origin: &Path) -> Result<Self, StorageError> {
        let state = decode("a snapshot's state", body, MAX_STATE_BYTES, origin)?;
        Ok(Self { state, last: meta.last_log_id, membership: meta.last_membership.clone() })
    }
}

impl MachineStore {
    /// Opens the snapshots in `dir` and installs the newest.
    pub(crate) fn open(dir: &Path, lock: &Arc<File>) -> Result<Self, StorageError> {
        let snapshots = SnapshotDir::open(dir)?;
        let applied = match snapshots.newest()? {
            Some((meta, body)) => Applied::from_snapshot(&meta, &body, dir)?,
            None => Applied::default(),
        };
        let applied_index = watch::Sender::new(applied.index());
        let inner = Inner { applied: RwLock::new(applied), applied_index, snapshots, _lock: lock.clone() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Reads the applied state under a short lock: `read` must be quick, and not wait for anything.
    pub fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.lock_shared().state)
    }

    /// The index of the last applied entry; 0 if there is none.
    pub fn applied_index(&self) -> u64 {
        self.lock_shared().index()
    }

    /// The term of the last applied entry; 0 if there is none.
    pub fn applied_term(&self) -> u64 {
        self.applied_log_id().map_or(0, |id| id.leader_id.term)
    }

    /// The id of the last applied entry.
    pub fn applied_log_id(&self) -> Option<LogId> {
        self.lock_shared().last
    }

    /// Wakes after each batch of applied entries and each installed snapshot, with the last applied index.
    pub fn watch_applied(&self) -> watch::Receiver<u64> {
        self.inner.applied_index.subscribe()
    }

    /// The applied index and the SHA-256 of the state there. Replicas with the same index have the same hash.
    /// It encodes the whole state: not for an async thread when the state is large.
    pub fn state_hash(&self) -> (u64, [u8; 32]) {
        let applied = self.lock_shared().clone();
        let mut hasher = Sha256::new();
        bincode::DefaultOptions::new()
            .with_fixint_encoding()
            .serialize_into(&mut hasher, &applied.state)
            .expect("a state always has an encoding, and a hasher takes every byte");
        (applied.index(), hasher.finalize().into())
    }

    fn lock_shared(&self) -> RwLockReadGuard<'_, Applied> {
        self.inner.applied.read().expect(POISONED)
    }

    fn lock_exclusive(&self) -> RwLockWriteGuard<'_, Applied> {
        self.inner.applied.write().expect(POISONED)
    }

    fn apply_batch(&self, batch: Vec<EntryResponder<TypeConfig>>) {
        planted::point("apply-before");
        let mut answers = Vec::with_capacity(batch.len());
        let mut applied = self.lock_exclusive();
        for (entry, responder) in batch {
            let response = match entry.payload {
                EntryPayload::Blank => Response::Done,
                EntryPayload::Normal(proposal) => applied.state.apply(proposal.0),
                EntryPayload::Membership(membership) => {
                    applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Response::Done
                }
            };
            applied.last = Some(entry.log_id);
            answers.extend(responder.map(|responder| (responder, response)));
        }
        let index = applied.index();
        drop(applied);
        planted::point("apply-after");
        self.inner.applied_index.send_replace(index);
        for (responder, response) in answers {
            responder.send(response);
        }
    }
}

impl RaftStateMachine<TypeConfig> for MachineStore {
    type SnapshotData = Vec<u8>;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let applied = self.lock_shared();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut batches = entries.try_ready_chunks(APPLY_BATCH_ENTRIES);
        while let Some(batch) = batches.try_next().await.map_err(|failed| failed.1)? {
            self.apply_batch(batch);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Vec<u8>) -> io::Result<()> {
        let inner = self.inner.clone();
        let meta = meta.clone();
        let applied = blocking(move || {
            let applied = Applied::from_snapshot(&meta, &snapshot, Path::new("the leader's snapshot"))?;
            inner.snapshots.write(&meta, &snapshot)?;
            Ok(applied)
        })
        .await?;
        let index = applied.index();
        *self.lock_exclusive() = applied;
        self.inner.applied_index.send_replace(index);
        tracing::info!(index, "installed a snapshot");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf>> {
        let inner = self.inner.clone();
        let newest = blocking(move || inner.snapshots.newest()).await?;
        Ok(newest.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

type SnapshotOf = openraft::alias::SnapshotOf<TypeConfig, Vec<u8>>;

impl RaftSnapshotBuilder<TypeConfig> for MachineStore {
    type SnapshotData = Vec<u8>;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf> {
        let store = self.clone();
        blocking(move || {
            let mut applied = store.lock_shared().clone();
            if planted::is(planted::Bug::SnapshotWithoutTombstones) {
                forget_tombstones(&mut applied.state);
            }
            let snapshot = encode("the state", &applied.state, MAX_STATE_BYTES)?;
            let meta = SnapshotMeta { last_log_id: applied.last, last_membership: applied.membership };
            store.inner.snapshots.write(&meta, &snapshot)?;
            tracing::info!(
                index = applied.last.map(|id| id.index),
                bytes = snapshot.len(),
                "built a snapshot"
            );
            Ok(Snapshot { meta, snapshot })
        })
        .await
    }
}

/// Forgets which nodes were cut off and not unpublished since. Only with the bug of that name planted.
fn forget_tombstones(state: &mut State) {
    let volumes = state.volumes().values();
    let gone = volumes.flat_map(|volume| {
        let nodes = volume.cut_off.iter().filter(|node| !volume.attachments.contains_key(*node));
        nodes.map(|node| (volume.id.clone(), Some(node.clone())))
    });
    for (volume, node) in gone.collect::<Vec<_>>() {
        let command = Command::Unpublish { volume, node, require_proof: true };
        state.apply(Entry { at: LedgerTime::default(), command });
    }
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> io::Result<T> {
    let done = spawn_blocking(work).await.map_err(io::Error::other)?;
    Ok(done?)
}
