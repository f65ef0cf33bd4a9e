//! The simulated world: three places for replicas, the appliance, the nodes, the network between them, and what is
//! recorded of it all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backend::FenceNumber;
use controller::cores::reaper::Standing;
use state_machine::{NodeId, Nqn, VolumeId};
use storage::Vote;
use tokio::sync::oneshot;

use super::appliance::Appliance;
use super::disk::Disk;
use super::network::Net;
use super::node::Node;
use super::plugin;
use super::recorder::Recorder;
use super::replica::{self, Replica};
use super::runtime::{GroupId, WORLD, kill, new_group, now_micros, random, sleep_ms, spawn_in};
use crate::history::{
    Answer, ApplianceChange, Connection, ConnectionChange, FaultRecord, Installed, Mutation, Operation,
    VoteGranted,
};

/// How many replicas there are.
pub(crate) const REPLICAS: usize = 3;
/// The name that the simulated cluster goes by.
pub(crate) const CLUSTER: &str = "simulated";
/// How long a process that died is away, in ms.
const RESTART_MS: (u64, u64) = (300, 4_000);
/// How long a plugin that died is away, in ms.
const PLUGIN_RESTART_MS: (u64, u64) = (500, 5_000);
/// How often it is looked whether a process may start again, in ms.
const LOOK_MS: u64 = 100;
/// The largest age of a process's clock when it starts, in seconds.
const CLOCK_AGE_SECONDS: u64 = 1_000_000;

/// Where a replica can die in the middle of what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    BeforeVote,
    AfterVote,
    BeforeAppend,
    AfterAppend,
    BeforeApply,
    AfterApply,
    BeforeStep,
    AfterStep,
}

impl Point {
    /// All of them.
    pub(crate) const ALL: [Self; 8] = [
        Self::BeforeVote,
        Self::AfterVote,
        Self::BeforeAppend,
        Self::AfterAppend,
        Self::BeforeApply,
        Self::AfterApply,
        Self::BeforeStep,
        Self::AfterStep,
    ];

    /// As the table of faults names it.
    pub(crate) const fn fault(self) -> &'static str {
        match self {
            Self::BeforeVote => "crash-before-vote",
            Self::AfterVote => "crash-after-vote",
            Self::BeforeAppend => "crash-before-append",
            Self::AfterAppend => "crash-after-append",
            Self::BeforeApply => "crash-before-apply",
            Self::AfterApply => "crash-after-apply",
            Self::BeforeStep => "crash-before-step",
            Self::AfterStep => "crash-after-step",
        }
    }
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Act {
    /// Faults come.
    Chaos,
    /// They are healed; what was begun is brought to its end.
    Healing,
}

/// Where a replica runs, when it does.
#[derive(Default)]
pub(crate) struct Place {
    disk: Mutex<Disk>,
    running: Mutex<Option<Arc<Replica>>>,
    group: Mutex<Option<GroupId>>,
    down: Mutex<Down>,
}

/// What keeps a place's process away.
#[derive(Debug, Clone, Copy, Default)]
struct Down {
    is_held: bool,
    power_failed: bool,
}

/// Everything.
pub(crate) struct World {
    pub(crate) places: Vec<Place>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) appliance: Appliance,
    net: Mutex<Net>,
    records: Mutex<Recorder>,
    armed: Mutex<Option<(usize, Point)>>,
    act: Mutex<Act>,
    standing: Mutex<BTreeMap<NodeId, Standing>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The beginning of all volumes' NQNs.
pub(crate) fn nqn_prefix() -> Nqn {
    Nqn::parse("nqn.2000-02.com.mikrotik").expect("it is written as NQNs are")
}

impl Place {
    pub(crate) fn disk(&self) -> MutexGuard<'_, Disk> {
        lock(&self.disk)
    }

    /// The process, if there is one, whether it has come far or not.
    pub(crate) fn group(&self) -> Option<GroupId> {
        *lock(&self.group)
    }

    /// Keeps the process away after its end, or lets it start again.
    pub(crate) fn hold_down(&self, is_held: bool) {
        lock(&self.down).is_held = is_held;
    }

    /// Ends the process, and its power with it.
    pub(crate) fn cut_power(&self) {
        lock(&self.down).power_failed = true;
        if let Some(group) = self.group() {
            kill(group);
        }
    }
}

impl World {
    /// Nothing runs yet.
    pub(crate) fn new(nodes: usize) -> Arc<Self> {
        let node = |index: usize| {
            let id = NodeId::parse(&format!("node-{index}")).expect("it is written as node ids are");
            let nqn = Nqn::parse(&format!("nqn.2014-08.org.example:node-{index}"));
            Node::new(id, nqn.expect("it is written as NQNs are"))
        };
        Arc::new(Self {
            places: (0..REPLICAS).map(|_| Place::default()).collect(),
            nodes: (0..nodes).map(node).collect(),
            appliance: Appliance::default(),
            net: Mutex::default(),
            records: Mutex::default(),
            armed: Mutex::default(),
            act: Mutex::new(Act::Chaos),
            standing: Mutex::default(),
        })
    }

    /// The id of the replica in a place.
    pub(crate) fn id_of(place: usize) -> u64 {
        place as u64 + 1
    }

    /// Where the replica of this id is.
    pub(crate) fn place_of(id: u64) -> usize {
        usize::try_from(id.saturating_sub(1)).unwrap_or(0) % REPLICAS
    }

    pub(crate) fn net(&self) -> MutexGuard<'_, Net> {
        lock(&self.net)
    }

    pub(crate) fn records(&self) -> MutexGuard<'_, Recorder> {
        lock(&self.records)
    }

    pub(crate) fn act(&self) -> Act {
        *lock(&self.act)
    }

    pub(crate) fn set_act(&self, act: Act) {
        *lock(&self.act) = act;
    }

    /// The replica that runs in a place.
    pub(crate) fn replica(&self, place: usize) -> Option<Arc<Replica>> {
        lock(&self.places[place].running).clone()
    }

    /// The place of a replica that holds office, the one of the latest term.
    pub(crate) fn leader(&self) -> Option<usize> {
        let holders = (0..self.places.len()).filter_map(|place| {
            let term = self.replica(place)?.term_held()?;
            Some((term, place))
        });
        holders.max().map(|(_, place)| place)
    }

    /// Adds a line to the story.
    pub(crate) fn tell(&self, line: impl FnOnce() -> String) {
        let line = line();
        self.records().tell(&line);
    }

    /// What Kubernetes says of a node.
    pub(crate) fn standing(&self, node: &NodeId) -> Standing {
        lock(&self.standing).get(node).copied().unwrap_or(Standing::Unknown)
    }

    pub(crate) fn set_standing(&self, node: &NodeId, standing: Standing) {
        lock(&self.standing).insert(node.clone(), standing);
    }

    /// Has the replica in a place die when it comes to `point`; the armed one before is disarmed. Whether it was still
    /// armed.
    pub(crate) fn arm(&self, point: Option<(usize, Point)>) -> bool {
        std::mem::replace(&mut *lock(&self.armed), point).is_some()
    }

    /// A replica came to a point; whether it is to die there.
    pub(crate) fn reach(&self, place: usize, point: Point) -> bool {
        let mut armed = lock(&self.armed);
        if *armed != Some((place, point)) {
            return false;
        }
        *armed = None;
        drop(armed);
        self.record_fault(point.fault(), place_name(place), Installed::Yes, Some(place));
        true
    }

    /// Records a fault; its number is for [`Self::record_healed`].
    pub(crate) fn record_fault(
        &self,
        kind: &str,
        target: String,
        installed: Installed,
        place: Option<usize>,
    ) -> usize {
        let hit_leader = place.is_some() && place == self.leader();
        let mut records = self.records();
        let in_migration = records.is_migrating();
        if installed != Installed::Skipped {
            let led = if hit_leader { ", the leader" } else { "" };
            records.tell(&format!("FAULT {kind} on {target}{led}"));
        }
        let kind = kind.to_owned();
        let at = now_micros();
        let healed = None;
        let fault = FaultRecord { at, healed, kind, target, installed, in_migration, hit_leader };
        records.history.faults.push(fault);
        records.history.faults.len() - 1
    }

    /// What is wrong with a replica's disk was met; the fault's number.
    pub(crate) fn record_disk_fault(&self, kind: &str, place: usize) -> usize {
        let target = format!("the disk of {}", place_name(place));
        self.record_fault(kind, target, Installed::Yes, Some(place))
    }

    /// Of a fault it is known now whether it struck.
    pub(crate) fn record_struck(&self, fault: usize, installed: Installed) {
        if let Some(fault) = self.records().history.faults.get_mut(fault) {
            fault.installed = installed;
        }
    }

    /// A fault is over.
    pub(crate) fn record_healed(&self, fault: usize) {
        if let Some(fault) = self.records().history.faults.get_mut(fault) {
            fault.healed = Some(now_micros());
        }
    }

    /// A client asks.
    pub(crate) fn begin_operation(&self, operation: Operation) -> usize {
        let mut records = self.records();
        records.history.operations.push(operation);
        records.history.operations.len() - 1
    }

    /// It is told.
    pub(crate) fn end_operation(&self, number: usize, answer: Answer) {
        let mut records = self.records();
        let Some(operation) = records.history.operations.get_mut(number) else { return };
        operation.ended = Some(now_micros());
        operation.answer = answer;
        let line = format!("client {}: {:?} -> {:?}", operation.client, operation.request, operation.answer);
        records.tell(&line);
    }

    /// The appliance changed something.
    pub(crate) fn record_mutation(&self, number: FenceNumber, volume: &VolumeId, change: ApplianceChange) {
        let term = number.term();
        let sequence = number.raw() & u64::from(u32::MAX);
        let mut records = self.records();
        records.tell(&format!("appliance: {volume} {change:?} by {term}/{sequence}"));
        let (term, sequence) = (Some(term), Some(sequence));
        let (at, volume) = (now_micros(), volume.to_string());
        records.history.appliance.push(Mutation { at, term, sequence, volume, change });
    }

    /// A node's connection changed.
    pub(crate) fn record_connection(&self, node: usize, volume: &VolumeId, change: Connection) {
        let node = self.nodes[node].id.to_string();
        let mut records = self.records();
        records.tell(&format!("{node}: {volume} {change:?}"));
        let (at, volume) = (now_micros(), volume.to_string());
        records.history.connections.push(ConnectionChange { at, node, volume, change });
    }

    /// A replica's vote is on its disk. One that is committed is no vote: a leader that was elected by others is kept in
    /// its place, by a candidate of the same term too.
    pub(crate) fn record_vote(&self, place: usize, replica: u64, vote: &Vote) {
        if vote.committed {
            return;
        }
        let (term, candidate) = (vote.leader_id.term, vote.leader_id.voted_for);
        let granted = VoteGranted {
            at: now_micros(),
            replica,
            place: place_name(place),
            cluster: CLUSTER.to_owned(),
            term,
            candidate,
        };
        let mut records = self.records();
        let is_news = records
            .history
            .votes
            .last()
            .is_none_or(|last| (last.replica, last.term, last.candidate) != (replica, term, candidate));
        if is_news {
            records.tell(&format!("replica {replica} votes for {candidate} in term {term}"));
            records.history.votes.push(granted);
        }
    }

    /// A replica took office.
    pub(crate) fn took_office(&self, place: usize, term: u64) {
        self.tell(|| format!("replica {} leads in term {term}", Self::id_of(place)));
    }

    /// Keeps a process running in a place as long as the world lasts.
    pub(crate) async fn supervise_replica(self: Arc<Self>, place: usize) {
        loop {
            let age_ns = random(|rng| rng.below(CLOCK_AGE_SECONDS)) * 1_000_000_000;
            let group = new_group(age_ns);
            *lock(&self.places[place].group) = Some(group);
            let (alive, ended) = oneshot::channel::<()>();
            spawn_in(group, async move {
                let _alive = alive;
                std::future::pending::<()>().await;
            });
            let world = self.clone();
            spawn_in(group, async move {
                match replica::start(world.clone(), place).await {
                    Ok(replica) => {
                        world.tell(|| format!("replica {} runs", replica.id));
                        *lock(&world.places[place].running) = Some(replica);
                    }
                    Err(why) => {
                        world.records().breach("start", format!("{}: {why}", place_name(place)));
                    }
                }
            });
            let _ = ended.await;
            self.process_ended(place);
            sleep_ms(random(|rng| rng.between(RESTART_MS.0, RESTART_MS.1))).await;
            while lock(&self.places[place].down).is_held {
                sleep_ms(LOOK_MS).await;
            }
        }
    }

    fn process_ended(&self, place: usize) {
        let replica = lock(&self.places[place].running).take();
        *lock(&self.places[place].group) = None;
        let power_failed = std::mem::take(&mut lock(&self.places[place].down).power_failed);
        let lost = self.places[place].disk().crash(power_failed);
        self.tell(|| format!("replica {} is gone (writes lost: {lost})", Self::id_of(place)));
        if lost {
            let fault = self.record_fault("writes-lost", place_name(place), Installed::Yes, None);
            self.record_healed(fault);
        }
        drop(replica);
    }

    /// Keeps the plugin of a node running, when the machine is up.
    pub(crate) async fn supervise_plugin(self: Arc<Self>, node: usize) {
        loop {
            while !self.nodes[node].is_up() {
                sleep_ms(LOOK_MS).await;
            }
            let group = new_group(random(|rng| rng.below(CLOCK_AGE_SECONDS)) * 1_000_000_000);
            self.nodes[node].set_plugin(Some(group));
            let (alive, ended) = oneshot::channel::<()>();
            spawn_in(group, async move {
                let _alive = alive;
                std::future::pending::<()>().await;
            });
            spawn_in(group, plugin::run(self.clone(), node));
            let _ = ended.await;
            self.nodes[node].set_plugin(None);
            sleep_ms(random(|rng| rng.between(PLUGIN_RESTART_MS.0, PLUGIN_RESTART_MS.1))).await;
        }
    }

    /// A node's machine stops at once.
    pub(crate) fn node_down(&self, node: usize) {
        for (volume, used) in self.nodes[node].goes_down() {
            if used.open || used.held {
                self.record_connection(node, &volume, Connection::Closed);
            }
            self.record_connection(node, &volume, Connection::Disconnected);
        }
        if let Some(plugin) = self.nodes[node].plugin() {
            kill(plugin);
        }
    }

    /// Lets go of what keeps the world together.
    pub(crate) fn dissolve(&self) {
        for place in &self.places {
            drop(lock(&place.running).take());
        }
    }
}

/// A place's name.
pub(crate) fn place_name(place: usize) -> String {
    format!("controller-{place}")
}

/// Runs `work` in a process; none if that ends before.
pub(crate) async fn in_process<T: Send + 'static>(
    group: GroupId,
    work: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let (sender, result) = oneshot::channel();
    spawn_in(group, async move {
        let _ = sender.send(work.await);
    });
    result.await.ok()
}

/// Begins what lasts as long as the world.
pub(crate) fn spawn_world(work: impl Future<Output = ()> + Send + 'static) {
    spawn_in(WORLD, work);
}
