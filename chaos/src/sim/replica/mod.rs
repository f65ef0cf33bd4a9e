//! One simulated replica: openraft itself, the ledger's state, and around them what `src/replica` and `src/controller`
//! do, with the same cores.
//!
//! | file | after |
//! |---|---|
//! | `office` | `src/replica/src/leader.rs` |
//! | `forward` | `src/replica/src/forward.rs` |
//! | `members` | `src/replica/src/membership.rs` |
//! | `place` | `src/replica/src/bootstrap.rs` |
//! | `lead` | the shells of the executor, the sessions and the reaper |
//! | `sights` | `src/controller/src/sessions/leader.rs` |
//! | `service` | `src/controller/src/service/` |

mod forward;
mod lead;
mod members;
mod office;
mod place;
mod service;
mod sights;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::async_runtime::{Watch, WatchReceiver, WatchSender};
use openraft::{AsyncRuntime, Config, RaftMetrics, SnapshotPolicy};
use replica::cores::Turns;
use state_machine::State;

use super::disk;
use super::link::Network;
use super::machine::Machine;
use super::runtime::{GroupId, SimInstant, SimRuntime, current_group, spawn};
use super::types::SimTypeConfig;
use super::world::World;
pub(crate) use forward::Decided;
pub(crate) use office::Office;
pub(crate) use service::{Failure, Outcome, Published};
pub(crate) use sights::{Line, NodeSessions};

/// Raft's heartbeats are slower than in production (50, 150 to 300 ms) by this: an idle second costs less then.
const TIMERS_SLOWER: u64 = 4;
/// Entries between two snapshots: few, so that there are many.
const SNAPSHOT_EVERY: u64 = 150;
/// Of those, so many stay in the log below a snapshot.
const KEPT_BELOW_SNAPSHOT: u64 = 15;

/// openraft here.
pub(crate) type Raft = openraft::Raft<SimTypeConfig, Machine>;
type Metrics = RaftMetrics<SimTypeConfig>;
type WatchOf = <SimRuntime as AsyncRuntime>::Watch;
pub(crate) type Sender<T> = <WatchOf as Watch>::Sender<T>;
pub(crate) type Receiver<T> = <WatchOf as Watch>::Receiver<T>;

/// A watched value.
pub(crate) fn watched<T: Send + Sync + 'static>(value: T) -> Sender<T> {
    WatchOf::channel(value).0
}

/// Sets a watched value, whoever watches.
pub(crate) fn set<T: Send + Sync + 'static>(sender: &Sender<T>, value: T) {
    sender.send_if_modified(|watched| {
        *watched = value;
        true
    });
}

/// One process that runs a replica.
pub(crate) struct Replica {
    pub(crate) world: Arc<World>,
    pub(crate) place: usize,
    pub(crate) id: u64,
    pub(crate) group: GroupId,
    pub(crate) raft: Raft,
    pub(crate) machine: Machine,
    pub(crate) office: Sender<Option<Office>>,
    pub(crate) sessions: NodeSessions,
    /// Commands are handed to consensus one after the other.
    turns: Mutex<Turns>,
    /// A change of the membership is being made.
    membership_changes: tokio::sync::Mutex<()>,
    /// This process has been a member.
    was_member: AtomicBool,
    /// Counts what the nodes reported here.
    pub(crate) heard: Sender<u64>,
}

fn config() -> Result<Arc<Config>, String> {
    let config = Config {
        cluster_name: "rds-csi".to_owned(),
        heartbeat_interval: 50 * TIMERS_SLOWER,
        election_timeout_min: 150 * TIMERS_SLOWER,
        election_timeout_max: 300 * TIMERS_SLOWER,
        enable_leader_restore: Some(false),
        enable_pre_vote: Some(true),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
        max_in_snapshot_log_to_keep: KEPT_BELOW_SNAPSHOT,
        purge_batch_size: 1,
        replication_lag_threshold: SNAPSHOT_EVERY * 2,
        install_snapshot_timeout: 120_000,
        max_payload_entries: 256,
        backoff: "20ms 40ms 80ms ...200ms".to_owned(),
        ..Config::default()
    };
    config.validate().map(Arc::new).map_err(|error| error.to_string())
}

/// Starts the replica in a place, in the current process, on what its disk has.
pub(crate) async fn start(world: Arc<World>, place: usize) -> Result<Arc<Replica>, String> {
    let id = world.id_of(place);
    if world.places[place].disk().is_removed {
        // It refuses to run on what it has.
        std::future::pending::<()>().await;
    }
    let (log, writer) = disk::open(&world, place, id);
    spawn(writer.run());
    let machine =
        Machine::open(&world, place, id, log.clone()).map_err(|error| format!("its snapshot: {error}"))?;
    let network = Network { world: world.clone(), from: place };
    let raft = Raft::new(id, config()?, network, log, machine.clone()).await;
    let raft = raft.map_err(|error| error.to_string())?;
    let replica = Arc::new(Replica {
        world,
        place,
        id,
        group: current_group(),
        raft,
        machine,
        office: watched(None),
        sessions: NodeSessions::default(),
        turns: Mutex::default(),
        membership_changes: tokio::sync::Mutex::default(),
        was_member: AtomicBool::new(false),
        heard: watched(0),
    });
    spawn(office::keep_office(replica.clone()));
    spawn(office::keep_time(replica.clone()));
    spawn(lead::lead(replica.clone()));
    spawn(place::keep_place(replica.clone()));
    spawn(members::keep_members(replica.clone()));
    Ok(replica)
}

impl Replica {
    /// Reads what this replica has applied.
    pub(crate) fn read_local<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        self.machine.read(read)
    }

    /// The term in which it holds office.
    pub(crate) fn term_held(&self) -> Option<u64> {
        self.office.borrow_watched().as_ref().map(|office| office.term)
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn metrics_reach(&self, reached: impl Fn(&Metrics) -> bool + Send) {
        let mut metrics = self.raft.metrics();
        loop {
            if reached(&metrics.borrow_and_update()) {
                return;
            }
            if metrics.changed().await.is_err() {
                // It stops: so does whoever waits here.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Waits until the time is `until`.
pub(crate) async fn sleep_until(until: SimInstant) {
    SimRuntime::sleep_until(until).await;
}
