//! The state machine of a simulated replica: the ledger's own state, applied as `storage/src/machine.rs` does it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use bincode::Options;
use futures::{Stream, TryStreamExt};
use openraft::async_runtime::{Watch, WatchSender};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{EntryPayload, OptionalSend};
use planted::Bug;
use state_machine::{Response, State};
use storage::{LogId, SnapshotMeta, StoredMembership};

use super::disk::LogStore;
use super::runtime::{SimRuntime, die};
use super::types::SimTypeConfig;
use super::world::{Point, World};

/// How many entries are applied at once.
const APPLY_BATCH_ENTRIES: usize = 64;

type WatchOf = <SimRuntime as openraft::AsyncRuntime>::Watch;
/// Wakes with the last applied index.
pub(crate) type AppliedReceiver = <WatchOf as Watch>::Receiver<u64>;
type SnapshotOf = openraft::alias::SnapshotOf<SimTypeConfig, Vec<u8>>;

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
}

/// The state machine of one process. Clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Machine {
    world: Arc<World>,
    place: usize,
    id: u64,
    log: LogStore,
    applied: Arc<Mutex<Applied>>,
    index: <WatchOf as Watch>::Sender<u64>,
}

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding()
}

fn decoded(meta: &SnapshotMeta, body: &[u8]) -> io::Result<Applied> {
    let state = options().deserialize(body).map_err(io::Error::other)?;
    Ok(Applied { state, last: meta.last_log_id, membership: meta.last_membership.clone() })
}

/// The state without what the planted bug forgets.
fn remembered(state: &State) -> anyhow::Result<State> {
    let mut value = serde_json::to_value(state)?;
    let volumes = value.get_mut("volumes").and_then(serde_json::Value::as_object_mut);
    for volume in volumes.context("a state has volumes")?.values_mut() {
        volume["cut_off"] = serde_json::Value::Array(Vec::new());
    }
    Ok(serde_json::from_value(value)?)
}

impl Machine {
    /// The state of the newest snapshot in `log`.
    pub(crate) fn open(world: &Arc<World>, place: usize, id: u64, log: LogStore) -> io::Result<Self> {
        let applied = match log.snapshot() {
            Some((meta, body)) => decoded(&meta, &body)?,
            None => Applied::default(),
        };
        let (index, _) = WatchOf::channel(applied.index());
        Ok(Self { world: world.clone(), place, id, log, applied: Arc::new(Mutex::new(applied)), index })
    }

    /// Reads the applied state.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.applied().state)
    }

    /// The last applied entry.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.applied().last
    }

    /// Wakes after each batch.
    pub(crate) fn watch_applied(&self) -> AppliedReceiver {
        self.index.subscribe()
    }

    fn applied(&self) -> MutexGuard<'_, Applied> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply_one(&self, applied: &mut Applied, entry: storage::LogEntry) -> Response {
        let response = match entry.payload {
            EntryPayload::Blank => Response::Done,
            EntryPayload::Normal(proposal) => {
                let command = proposal.0.command.clone();
                let response = applied.state.apply(proposal.0);
                self.world.records().applied(self.id, entry.log_id, &command, &response, &applied.state);
                response
            }
            EntryPayload::Membership(membership) => {
                applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                Response::Done
            }
        };
        applied.last = Some(entry.log_id);
        response
    }

    /// Whether the process died in the middle.
    fn apply_batch(&self, batch: Vec<EntryResponder<SimTypeConfig>>) -> bool {
        if self.world.reach(self.place, Point::BeforeApply) {
            return true;
        }
        let mut answers = Vec::with_capacity(batch.len());
        let index = {
            let mut applied = self.applied();
            for (entry, responder) in batch {
                let response = self.apply_one(&mut applied, entry);
                answers.extend(responder.map(|responder| (responder, response)));
            }
            applied.index()
        };
        if self.world.reach(self.place, Point::AfterApply) {
            return true;
        }
        self.index.send_if_modified(|seen| std::mem::replace(seen, index) != index);
        for (responder, response) in answers {
            responder.send(response);
        }
        false
    }
}

impl RaftStateMachine<SimTypeConfig> for Machine {
    type SnapshotData = Vec<u8>;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let applied = self.applied();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<SimTypeConfig>>> + Unpin + OptionalSend,
    {
        let mut batches = entries.try_ready_chunks(APPLY_BATCH_ENTRIES);
        while let Some(batch) = batches.try_next().await.map_err(|failed| failed.1)? {
            if self.apply_batch(batch) {
                die().await;
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Vec<u8>) -> io::Result<()> {
        let applied = decoded(meta, &snapshot)?;
        self.log.save_snapshot(meta.clone(), Arc::new(snapshot)).await?;
        let index = applied.index();
        self.world.tell(|| format!("replica {} installs a snapshot up to entry {index}", self.id));
        *self.applied() = applied;
        self.index.send_if_modified(|seen| std::mem::replace(seen, index) != index);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf>> {
        let newest = self.log.snapshot();
        Ok(newest.map(|(meta, body)| Snapshot { meta, snapshot: body.to_vec() }))
    }
}

impl RaftSnapshotBuilder<SimTypeConfig> for Machine {
    type SnapshotData = Vec<u8>;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf> {
        let mut applied = self.applied().clone();
        if planted::is(Bug::SnapshotWithoutTombstones) {
            applied.state = remembered(&applied.state).map_err(io::Error::other)?;
        }
        let snapshot = options().serialize(&applied.state).map_err(io::Error::other)?;
        let meta = SnapshotMeta { last_log_id: applied.last, last_membership: applied.membership };
        self.log.save_snapshot(meta.clone(), Arc::new(snapshot.clone())).await?;
        Ok(Snapshot { meta, snapshot })
    }
}
