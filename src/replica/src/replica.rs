//! The handle of a replica: start, stop, and what the rest of the process may ask of it.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver;
use state_machine::{Command, LedgerTime, Response, State};
use storage::{Identity, MachineStore, StorageError, Store};
use tls::Tls;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::bootstrap::{self, Surroundings};
use crate::clock::{MonotonicClock, SystemClock};
use crate::config::{PeerAddress, ReplicaConfig};
use crate::consensus::{Consensus, Metrics};
use crate::error::{Failure, MembershipError, ProposeError, ReadError, StartError};
use crate::forward::{Attempt, LeaderPlace, Proposed, RETRY_PAUSE, ReadIndex, Unanswered};
use crate::leader::{self, Leadership, Office};
use crate::membership::{self, Change};
use crate::network::Network;
use crate::peers::Peers;
use crate::roll::Roll;
use crate::service::{PeerEndpoint, endpoint};
use crate::status::{self, ReplicaStatus};
use crate::turns::Turns;

/// How long a leader waits at its shutdown for another one to take over.
const HANDOVER_TIMEOUT: Duration = Duration::from_millis(1_000);
/// How long it then goes on pointing to the new leader, for requests that are under way.
const REDIRECT_AFTER_HANDOVER: Duration = Duration::from_millis(20);
/// How long consensus and the tasks around it may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_millis(2_000);

/// One replica. Clones are handles to the same one.
#[derive(Clone)]
pub struct Replica {
    inner: Arc<Inner>,
}

/// What the parts of a replica share.
pub(crate) struct Inner {
    pub(crate) config: ReplicaConfig,
    pub(crate) id: u64,
    pub(crate) consensus: Consensus,
    pub(crate) machine: MachineStore,
    pub(crate) clock: Arc<dyn MonotonicClock>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) cluster_id: Arc<OnceLock<Uuid>>,
    identity: Arc<Mutex<Identity>>,
    pub(crate) office: watch::Sender<Option<Office>>,
    pub(crate) leadership: watch::Sender<Option<Leadership>>,
    pub(crate) surroundings: watch::Sender<Surroundings>,
    failure: watch::Sender<Option<Failure>>,
    /// A committed membership with this replica in it was seen since it started.
    pub(crate) was_member: AtomicBool,
    /// Who was a member since it started.
    pub(crate) roll: Mutex<Roll>,
    /// Commands are handed to consensus one after the other.
    pub(crate) turns: Arc<tokio::sync::Mutex<Turns>>,
    /// Changes of the membership, one at a time.
    pub(crate) membership_changes: tokio::sync::Mutex<()>,
    pub(crate) stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Replica {
    /// Opens the storage and starts consensus. The server is the caller's: see [`Replica::peer_service`].
    pub async fn start(config: ReplicaConfig) -> Result<Self, StartError> {
        Self::start_with_clock(config, Arc::new(SystemClock::new())).await
    }

    /// As [`Replica::start`], with another clock to run the ledger's time by.
    pub async fn start_with_clock(
        config: ReplicaConfig,
        clock: Arc<dyn MonotonicClock>,
    ) -> Result<Self, StartError> {
        let inner = Arc::new(Inner::open(config, clock).await?);
        inner.keep("its office", leader::keep_office(inner.clone()));
        inner.keep("the ledger's time", leader::keep_time(inner.clone()));
        inner.keep("its place", bootstrap::keep_place(inner.clone()));
        inner.keep("the members", membership::keep_members(inner.clone()));
        Ok(Self { inner })
    }

    /// The service for the other replicas, to be added to the gRPC server that listens on this one's address.
    pub fn peer_service(&self) -> PeerEndpoint {
        endpoint(self.inner.clone())
    }

    /// Has the leader decide `command`. Any replica may ask; elections are waited for, and an attempt whose outcome
    /// is unknown is repeated, until `deadline`.
    pub async fn propose(&self, command: Command, deadline: Instant) -> Result<Response, ProposeError> {
        let proposed = Proposed::new(command)?;
        let answer = self.inner.through_leader(&proposed, deadline).await;
        answer.map_err(|unanswered| match unanswered {
            Unanswered::Deadline(why) => ProposeError::Deadline(why),
            Unanswered::Stopped => ProposeError::Fatal,
        })
    }

    /// Decides `command` if this replica leads in `term`; it is never forwarded. An attempt that fails or whose outcome
    /// is unknown is repeated, so the answer may take as long as the leadership lasts: without a quorum the leader
    /// takes nothing, and may find its quorum again in the same term.
    pub async fn propose_as_leader(&self, term: u64, command: Command) -> Result<Response, ProposeError> {
        let proposed = Proposed::new(command)?;
        loop {
            let office = *self.inner.office.borrow();
            let Some(office) = office.filter(|office| office.term == term) else {
                return Err(ProposeError::NotLeader { term });
            };
            match self.inner.write(&office, proposed.command().clone(), None).await {
                Attempt::Answered(response) => return Ok(response),
                Attempt::Retry(_) => tokio::time::sleep(RETRY_PAUSE).await,
                Attempt::Stopped => return Err(ProposeError::Fatal),
            }
        }
    }

    /// Reads what was decided before the call, at least. `read` must be quick, and not wait for anything.
    pub async fn read<T>(&self, deadline: Instant, read: impl FnOnce(&State) -> T) -> Result<T, ReadError> {
        let index = self.inner.through_leader(&ReadIndex, deadline).await;
        let index = index.map_err(|unanswered| match unanswered {
            Unanswered::Deadline(why) => ReadError::Deadline(why),
            Unanswered::Stopped => ReadError::Fatal,
        })?;
        let mut applied = self.inner.machine.watch_applied();
        let caught_up = applied.wait_for(|applied| *applied >= index);
        match tokio::time::timeout_at(deadline.into(), caught_up).await {
            Ok(Ok(_)) => Ok(self.inner.machine.read(read)),
            Ok(Err(_)) => Err(ReadError::Fatal),
            Err(_) => Err(ReadError::Deadline(format!("this replica has not caught up to entry {index}"))),
        }
    }

    /// Reads what this replica has applied, which may be old. `read` must be quick, and not wait for anything.
    pub fn read_local<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        self.inner.machine.read(read)
    }

    /// Wakes at each batch of applied entries, with the last applied index.
    pub fn watch_applied(&self) -> watch::Receiver<u64> {
        self.inner.machine.watch_applied()
    }

    /// `Some` while this replica leads and an entry of its own term is applied: from then on its state contains
    /// everything that was ever decided.
    pub fn watch_leadership(&self) -> watch::Receiver<Option<Leadership>> {
        self.inner.leadership.subscribe()
    }

    /// The ledger's time now, by this leader's monotonic clock; `None` while this replica is not in office.
    pub fn ledger_time(&self) -> Option<LedgerTime> {
        let office = *self.inner.office.borrow();
        office.map(|office| office.ledger_time(&*self.inner.clock))
    }

    /// Where the leader is, as far as this replica knows.
    pub fn leader_place(&self) -> LeaderPlace {
        self.inner.leader_place()
    }

    /// Resolves when the replica can do nothing more; the process then logs the failure and ends.
    pub async fn failed(&self) -> Failure {
        let mut failure = self.inner.failure.subscribe();
        let failed = failure.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone());
        // The sender lives as long as `self`: there is no other way out of the wait.
        failed.unwrap_or_else(|| Failure::Raft("the replica was dropped".to_owned()))
    }

    /// What this replica knows by itself, without asking anyone.
    pub fn status(&self) -> ReplicaStatus {
        status::status(&self.inner)
    }

    /// The last applied index and the SHA-256 of the state there: equal on replicas that have applied equally much.
    pub async fn state_hash(&self) -> Result<(u64, [u8; 32]), ReadError> {
        let machine = self.inner.machine.clone();
        spawn_blocking(move || machine.state_hash()).await.map_err(|_| ReadError::Fatal)
    }

    /// Takes in the empty replica at this address, as a learner; the leader promotes it once it has caught up.
    pub async fn add_replica(&self, replica: PeerAddress, deadline: Instant) -> Result<u64, MembershipError> {
        self.change_membership(Change::Add(replica), deadline).await
    }

    /// Removes a replica; fine if it is none any more.
    pub async fn remove_replica(&self, id: u64, deadline: Instant) -> Result<(), MembershipError> {
        self.change_membership(Change::Remove(id), deadline).await.map(drop)
    }

    /// Takes in the empty replica that lives where the dead one lived; its promotion removes the dead one.
    pub async fn replace_replica(&self, dead: u64, deadline: Instant) -> Result<u64, MembershipError> {
        self.change_membership(Change::Replace(dead), deadline).await
    }

    async fn change_membership(&self, change: Change, deadline: Instant) -> Result<u64, MembershipError> {
        match self.inner.through_leader(&change, deadline).await {
            Ok(Ok(id)) => Ok(id),
            Ok(Err(refused)) => Err(MembershipError::Refused(refused)),
            Err(Unanswered::Deadline(why)) => Err(MembershipError::Deadline(why)),
            Err(Unanswered::Stopped) => Err(MembershipError::Fatal),
        }
    }

    /// The certificates of this replica, for its server and its clients.
    pub fn tls(&self) -> &Tls {
        &self.inner.peers.tls
    }

    /// Hands leadership to the answering follower that is furthest along, keeps pointing to it for a moment, and stops. The
    /// server should go on serving until this returns.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        if inner.metrics().current_leader == Some(inner.id) {
            match inner.hand_over(HANDOVER_TIMEOUT).await {
                Ok(()) => tokio::time::sleep(REDIRECT_AFTER_HANDOVER).await,
                Err(why) => tracing::warn!(replica = inner.id, why, "leaving without a successor"),
            }
        }
        inner.stopping.cancel();
        inner.tasks.close();
        let stop = async {
            let stopped = inner.consensus.end().await;
            inner.tasks.wait().await;
            stopped
        };
        match tokio::time::timeout(STOP_TIMEOUT, stop).await {
            Ok(Ok(())) => tracing::info!(replica = inner.id, "replica stopped"),
            Ok(Err(error)) => tracing::warn!(replica = inner.id, %error, "consensus did not stop well"),
            Err(_) => tracing::warn!(replica = inner.id, "consensus did not stop in time"),
        }
    }
}

async fn open(dir: &Path) -> Result<Store, StartError> {
    let dir = dir.to_owned();
    let opened = spawn_blocking(move || Store::open(&dir)).await;
    Ok(opened.map_err(|error| StartError::Config(format!("opening the storage failed: {error}")))??)
}

impl Inner {
    /// Opens the storage and starts consensus, and nothing of what lives around it.
    pub(crate) async fn open(
        config: ReplicaConfig,
        clock: Arc<dyn MonotonicClock>,
    ) -> Result<Self, StartError> {
        config.check().map_err(StartError::Config)?;
        let raft_config = config.raft().map_err(StartError::Config)?;
        let peers = Arc::new(Peers::new(&config)?);
        let store = open(&config.data_dir).await?;
        let (id, known_cluster) = (store.identity.replica_id, store.identity.cluster_id);
        if store.identity.removed {
            let (name, data_dir) = (config.name.clone(), config.data_dir.clone());
            return Err(StartError::Removed { replica_id: id, name, data_dir });
        }
        let cluster_id = Arc::new(known_cluster.map(OnceLock::from).unwrap_or_default());
        let network = Network { peers: peers.clone(), cluster_id: cluster_id.clone() };
        let machine = store.machine;
        let raft = openraft::Raft::new(id, raft_config, network, store.log, machine.clone()).await;
        let raft = raft.map_err(|error| StartError::Raft(error.to_string()))?;
        tracing::info!(replica = id, name = config.name, cluster = ?known_cluster, "replica started");
        Ok(Self {
            config,
            id,
            consensus: Consensus::new(raft),
            machine,
            clock,
            peers,
            cluster_id,
            identity: Arc::new(Mutex::new(store.identity)),
            office: watch::Sender::new(None),
            leadership: watch::Sender::new(None),
            surroundings: watch::Sender::default(),
            failure: watch::Sender::new(None),
            was_member: AtomicBool::new(false),
            roll: Mutex::default(),
            turns: Arc::default(),
            membership_changes: tokio::sync::Mutex::default(),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// Starts work that keeps `what`, as long as the replica lives. If it panics, the replica has failed: without that work
    /// it would only look like one.
    fn keep(self: &Arc<Self>, what: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let (inner, work) = (self.clone(), tokio::spawn(work));
        self.tasks.spawn(async move {
            if work.await.is_err_and(|error| error.is_panic()) {
                inner.fail(Failure::Panicked(what));
            }
        });
    }

    pub(crate) fn metrics(&self) -> Metrics {
        self.consensus.metrics().borrow_watched().clone()
    }

    /// Waits until `condition` holds; false if consensus stopped before.
    pub(crate) async fn metrics_reach(&self, condition: impl Fn(&Metrics) -> bool) -> bool {
        let mut metrics = self.consensus.metrics();
        loop {
            if condition(&metrics.borrow_and_update()) {
                return true;
            }
            if metrics.changed().await.is_err() {
                return false;
            }
        }
    }

    /// Whether nothing is decided here any more. Consensus ends before that is noted as the failure; whoever asks until
    /// then again and again, and never waits, keeps it from being noted.
    pub(crate) fn is_stopped(&self) -> bool {
        let has_ended = self.consensus.metrics().borrow_watched().running_state.is_err();
        has_ended || self.stopping.is_cancelled() || self.failure.borrow().is_some()
    }

    /// Records why the process has to end; the first reason stays.
    pub(crate) fn fail(&self, failure: Failure) {
        self.failure.send_if_modified(|present| {
            let first = present.is_none();
            if first {
                tracing::error!(replica = self.id, %failure, "replica failed");
                *present = Some(failure);
            }
            first
        });
    }

    /// Records durably which cluster the replica belongs to.
    pub(crate) async fn adopt(&self, cluster_id: Uuid) -> Result<(), StorageError> {
        self.change_identity(move |identity| identity.set_cluster_id(cluster_id)).await?;
        // Set before only by the same value: the identity refuses another one.
        self.cluster_id.get_or_init(|| cluster_id);
        Ok(())
    }

    /// Records durably that the replica was removed, and fails it.
    pub(crate) async fn leave(&self, why: String) {
        if let Err(error) = self.change_identity(Identity::mark_removed).await {
            tracing::error!(replica = self.id, %error, "cannot record the removal");
        }
        self.fail(Failure::Removed(why));
    }

    async fn change_identity(
        &self,
        change: impl FnOnce(&mut Identity) -> Result<(), StorageError> + Send + 'static,
    ) -> Result<(), StorageError> {
        let identity = self.identity.clone();
        let changed = spawn_blocking(move || {
            // Each change writes first and changes memory after: a panic leaves nothing half done.
            change(&mut identity.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match changed.await {
            Ok(changed) => changed,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::opened;

    #[tokio::test]
    async fn a_replica_whose_keeping_panics_has_failed() {
        let dir = tempfile::tempdir().unwrap();
        let replica = Replica { inner: Arc::new(opened(dir.path()).await) };
        replica.inner.keep("an exercise", async {});
        replica.inner.keep("its promise", async { panic!("as asked") });
        let failure = tokio::time::timeout(Duration::from_secs(10), replica.failed()).await;
        assert_eq!(failure, Ok(Failure::Panicked("its promise")));
    }
}
