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
use super::network::Net;
use super::node::Node;
use super::places::{Place, place_name};
use super::recorder::Recorder;
use super::runtime::{GroupId, WORLD, now_micros, spawn_in};
use crate::history::{
    Answer, ApplianceChange, Connection, ConnectionChange, FaultRecord, Installed, Mutation, Operation,
    VoteGranted,
};

/// How many replicas there are.
pub(crate) const REPLICAS: usize = 3;

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
    /// The volume that each client is busy with.
    in_hand: Mutex<BTreeMap<u32, VolumeId>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The beginning of all volumes' NQNs.
pub(crate) fn nqn_prefix() -> Nqn {
    Nqn::parse("nqn.2000-02.com.mikrotik").expect("it is written as NQNs are")
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
            places: (0..REPLICAS).map(Place::new).collect(),
            nodes: (0..nodes).map(node).collect(),
            appliance: Appliance::default(),
            net: Mutex::default(),
            records: Mutex::default(),
            armed: Mutex::default(),
            act: Mutex::new(Act::Chaos),
            standing: Mutex::default(),
            in_hand: Mutex::default(),
        })
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

    /// The volumes that clients are busy with.
    pub(crate) fn in_hand(&self) -> Vec<VolumeId> {
        lock(&self.in_hand).values().cloned().collect()
    }

    /// A client is busy with this one from now on.
    pub(crate) fn put_in_hand(&self, client: u32, volume: &VolumeId) {
        lock(&self.in_hand).insert(client, volume.clone());
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
        let cluster = self.places[place].disk().cluster;
        let granted = VoteGranted {
            at: now_micros(),
            replica,
            place: place_name(place),
            cluster: cluster.map(|id| id.to_string()).unwrap_or_default(),
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
        self.tell(|| format!("replica {} leads in term {term}", self.id_of(place)));
    }
}

/// Runs `work` in a process; none if that ends before. It goes no further once nobody waits for it, as a gRPC call does.
pub(crate) async fn in_process<T: Send + 'static>(
    group: GroupId,
    work: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let (mut sender, result) = oneshot::channel();
    spawn_in(group, async move {
        tokio::select! {
            biased;
            () = sender.closed() => {}
            done = work => drop(sender.send(done)),
        }
    });
    result.await.ok()
}

/// Begins what lasts as long as the world.
pub(crate) fn spawn_world(work: impl Future<Output = ()> + Send + 'static) {
    spawn_in(WORLD, work);
}
