//! A simulated node: a machine that is connected to volumes, and the node plugin on it.
//!
//! The plugin keeps to the rules of `src/node`: it asks before it connects, reports when it is off, tells the leader
//! what it has, and cuts what the ledger wants cut and nobody uses. Connections are the machine's: they outlive the
//! plugin, and end with a boot.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::async_runtime::WatchSender;
use planted::Bug;
use state_machine::{
    AttachmentPhase, BootId, Command, Generation, NodeId, NodeMoment, Nqn, Refusal, Response, VolumeId,
};

use super::network::Endpoint;
use super::replica::{Receiver, Sender, watched};
use super::runtime::{GroupId, SimInstant, now_ns, random, sleep_ms};
use super::world::World;
use crate::history::Connection;

/// How long a controller may take to answer, in ms.
const ANSWER_MS: u64 = 10_000;
/// How long a connection takes to be made, in ms.
const CONNECT_MS: (u64, u64) = (10, 250);
/// How long the appliance is waited for when connecting, in ms, and how often it is tried.
const CONNECT_LIMIT_MS: u64 = 5_000;
const CONNECT_AGAIN_MS: u64 = 500;
/// How long the controllers may take while a volume is locked for a cut, in ms.
const CUT_ASK_MS: u64 = 5_000;

/// What a node is told on its line.
#[derive(Debug, Clone)]
pub(crate) enum FromLeader {
    Order(Order),
    Closed { register_again: bool },
}

/// What to cut; and the node is to look again.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) number: u64,
    pub(crate) cuts: Vec<(VolumeId, Generation)>,
}

/// A connection, and who uses it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Use {
    /// A VM has it open.
    pub(crate) open: bool,
    /// Something else holds the device.
    pub(crate) held: bool,
}

#[derive(Debug, Default)]
struct Inner {
    boot: u64,
    booted_ns: u64,
    last_moment_ns: u64,
    is_up: bool,
    plugin: Option<GroupId>,
    connected: BTreeMap<VolumeId, Use>,
    running: BTreeSet<VolumeId>,
    line: u64,
    words: VecDeque<FromLeader>,
    registered: Option<BootId>,
}

/// A node.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) host_nqn: Nqn,
    inner: Mutex<Inner>,
    /// Wakes the session: something changed, or a word came.
    news: Sender<u64>,
}

/// Why an operation of the plugin failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodeError {
    /// It may be tried again.
    Unavailable(String),
    /// The volume may not be connected here.
    NotPermitted(String),
    /// Somebody uses it.
    Held,
}

/// What the ledger says of a volume on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InLedger {
    Unknown,
    NotAttached,
    Attached,
    Revoking(Generation),
}

/// An operation on a volume, as long as it runs.
struct Running {
    world: Arc<World>,
    node: usize,
    volume: VolumeId,
}

impl Drop for Running {
    fn drop(&mut self) {
        let node = &self.world.nodes[self.node];
        node.inner().running.remove(&self.volume);
        node.wake();
    }
}

impl Node {
    /// A machine that is off.
    pub(crate) fn new(id: NodeId, host_nqn: Nqn) -> Self {
        Self { id, host_nqn, inner: Mutex::default(), news: watched(0) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.news.send_if_modified(|count| {
            *count += 1;
            true
        });
    }

    /// Changes when there is something to look at.
    pub(crate) fn news(&self) -> Receiver<u64> {
        self.news.subscribe()
    }

    /// Its boot's name.
    pub(crate) fn boot(&self) -> BootId {
        BootId::parse(&format!("boot-{}", self.inner().boot)).expect("a boot's name is in the safe set")
    }

    /// Now, as it signs its words.
    pub(crate) fn moment(&self) -> NodeMoment {
        let boot = self.boot();
        let mut inner = self.inner();
        let since = now_ns().saturating_sub(inner.booted_ns).max(inner.last_moment_ns + 1);
        inner.last_moment_ns = since;
        NodeMoment { boot, since_boot_ns: since }
    }

    /// Boots: nothing is connected.
    pub(crate) fn boots(&self) {
        let mut inner = self.inner();
        inner.boot += 1;
        inner.booted_ns = now_ns();
        inner.last_moment_ns = 0;
        inner.is_up = true;
        inner.registered = None;
        inner.connected.clear();
    }

    /// Goes down: what was connected is not any more.
    pub(crate) fn goes_down(&self) -> Vec<(VolumeId, Use)> {
        let mut inner = self.inner();
        inner.is_up = false;
        std::mem::take(&mut inner.connected).into_iter().collect()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.inner().is_up
    }

    pub(crate) fn plugin(&self) -> Option<GroupId> {
        self.inner().plugin
    }

    pub(crate) fn set_plugin(&self, plugin: Option<GroupId>) {
        self.inner().plugin = plugin;
    }

    /// What is connected, really.
    pub(crate) fn connected(&self) -> BTreeMap<VolumeId, Use> {
        self.inner().connected.clone()
    }

    /// Whether the volume is connected.
    pub(crate) fn has(&self, volume: &VolumeId) -> bool {
        self.inner().connected.contains_key(volume)
    }

    /// Volumes with an operation under way.
    pub(crate) fn running(&self) -> BTreeSet<VolumeId> {
        self.inner().running.clone()
    }

    /// Begins a line to a controller.
    pub(crate) fn new_line(&self) -> u64 {
        let mut inner = self.inner();
        inner.line += 1;
        inner.words.clear();
        inner.line
    }

    /// Takes a word that a leader said on a line.
    pub(crate) fn take_word(&self, line: u64, word: FromLeader) {
        let is_for_us = {
            let mut inner = self.inner();
            let is_for_us = inner.line == line && inner.is_up;
            if is_for_us {
                inner.words.push_back(word);
            }
            is_for_us
        };
        if is_for_us {
            self.wake();
        }
    }

    /// The next word on the present line.
    pub(crate) fn next_word(&self) -> Option<FromLeader> {
        self.inner().words.pop_front()
    }
}

impl World {
    /// A VM on the node opens the volume, or closes it; false if it is not connected.
    pub(crate) fn use_device(&self, node: usize, volume: &VolumeId, change: impl FnOnce(&mut Use)) -> bool {
        let used = {
            let mut inner = self.nodes[node].inner();
            let Some(used) = inner.connected.get_mut(volume) else { return false };
            let before = used.open || used.held;
            change(used);
            (before, used.open || used.held)
        };
        match used {
            (false, true) => self.record_connection(node, volume, Connection::Opened),
            (true, false) => self.record_connection(node, volume, Connection::Closed),
            (true, true) | (false, false) => {}
        }
        self.nodes[node].wake();
        true
    }

    fn begin(self: &Arc<Self>, node: usize, volume: &VolumeId) -> Result<Running, NodeError> {
        if !self.nodes[node].inner().running.insert(volume.clone()) {
            return Err(NodeError::Unavailable("another operation on it runs".to_owned()));
        }
        Ok(Running { world: self.clone(), node, volume: volume.clone() })
    }

    /// Has any controller decide something that a node says.
    async fn node_proposes(
        self: &Arc<Self>,
        node: usize,
        command: Command,
        until: SimInstant,
    ) -> Result<Response, NodeError> {
        let first = random(|rng| rng.below(self.places.len() as u64));
        for turn in 0.. {
            let to = usize::try_from(first).unwrap_or(0).wrapping_add(turn) % self.places.len();
            let limit = until.remaining().min(Duration::from_millis(ANSWER_MS / 2));
            if limit.is_zero() {
                break;
            }
            let command = command.clone();
            let serve = move |replica: Arc<super::replica::Replica>| {
                let command = command.clone();
                async move { replica.propose(command, SimInstant::now() + limit).await }
            };
            match self.call(Endpoint::Node(node), to, limit, serve).await {
                Ok(Ok(decided)) => return Ok(decided.answer),
                Ok(Err(_)) | Err(_) => sleep_ms(CONNECT_AGAIN_MS / 5).await,
            }
        }
        Err(NodeError::Unavailable("no controller answered".to_owned()))
    }

    /// Makes the node known.
    pub(crate) async fn register(self: &Arc<Self>, node: usize) -> bool {
        let here = &self.nodes[node];
        let mut replaces = here.inner().registered.clone();
        for _ in 0..3 {
            let command = Command::RegisterNode {
                node: here.id.clone(),
                boot: here.boot(),
                replaces: replaces.clone(),
                host_nqn: here.host_nqn.clone(),
                max_volumes: 0,
            };
            let until = SimInstant::now() + Duration::from_millis(ANSWER_MS);
            match self.node_proposes(node, command, until).await {
                Ok(Response::Done) => {
                    here.inner().registered = Some(here.boot());
                    return true;
                }
                Ok(Response::Refused(Refusal::OtherBoot { present, .. })) => replaces = Some(present),
                Ok(
                    Response::Refused(_)
                    | Response::Pending { .. }
                    | Response::Exists { .. }
                    | Response::Attached { .. }
                    | Response::Revoking { .. },
                )
                | Err(_) => return false,
            }
        }
        false
    }

    /// NodeStageVolume, as far as a connection.
    pub(crate) async fn stage(
        self: &Arc<Self>,
        node: usize,
        volume: &VolumeId,
        generation: Generation,
    ) -> Result<(), NodeError> {
        let _running = self.begin(node, volume)?;
        let here = &self.nodes[node];
        let until = SimInstant::now() + Duration::from_millis(ANSWER_MS);
        if !planted::is(Bug::NoPermission) {
            let command = Command::PermitConnect {
                volume: volume.clone(),
                node: here.id.clone(),
                generation,
                moment: here.moment(),
            };
            match self.node_proposes(node, command, until).await? {
                Response::Done => {}
                Response::Refused(Refusal::PastMoment { .. } | Refusal::NodeNotFound { .. }) => {
                    return Err(NodeError::Unavailable("the ledger has another boot of it".to_owned()));
                }
                refused @ (Response::Refused(_)
                | Response::Pending { .. }
                | Response::Exists { .. }
                | Response::Attached { .. }
                | Response::Revoking { .. }) => {
                    self.get_off(node, volume).await?;
                    return Err(NodeError::NotPermitted(format!("{refused:?}")));
                }
            }
        }
        if self.connect(node, volume).await {
            return Ok(());
        }
        self.get_off(node, volume).await?;
        Err(NodeError::Unavailable("the appliance does not serve it".to_owned()))
    }

    async fn connect(self: &Arc<Self>, node: usize, volume: &VolumeId) -> bool {
        let here = &self.nodes[node];
        let give_up = SimInstant::now() + Duration::from_millis(CONNECT_LIMIT_MS);
        while !here.has(volume) {
            sleep_ms(random(|rng| rng.between(CONNECT_MS.0, CONNECT_MS.1))).await;
            let is_cut_off = self.net().blocked.contains(&(Endpoint::Node(node), Endpoint::Appliance));
            if !is_cut_off && self.appliance.serves(volume) {
                here.inner().connected.insert(volume.clone(), Use::default());
                self.record_connection(node, volume, Connection::Connected);
                break;
            }
            if give_up.remaining().is_zero() {
                return false;
            }
            sleep_ms(CONNECT_AGAIN_MS).await;
        }
        true
    }

    /// Disconnects the volume if nobody uses it, and says so.
    async fn get_off(self: &Arc<Self>, node: usize, volume: &VolumeId) -> Result<(), NodeError> {
        let here = &self.nodes[node];
        let moment = {
            let used = here.inner().connected.get(volume).copied();
            if used.is_some_and(|used| used.open || used.held) {
                return Err(NodeError::Held);
            }
            if here.inner().connected.remove(volume).is_some() {
                self.record_connection(node, volume, Connection::Disconnected);
            }
            here.moment()
        };
        here.wake();
        let command = Command::ReportDisconnected { volume: volume.clone(), node: here.id.clone(), moment };
        let until = SimInstant::now() + Duration::from_millis(ANSWER_MS);
        match self.node_proposes(node, command, until).await? {
            Response::Done => Ok(()),
            other @ (Response::Refused(_)
            | Response::Pending { .. }
            | Response::Exists { .. }
            | Response::Attached { .. }
            | Response::Revoking { .. }) => Err(NodeError::Unavailable(format!("{other:?}"))),
        }
    }

    /// NodeUnstageVolume.
    pub(crate) async fn unstage(self: &Arc<Self>, node: usize, volume: &VolumeId) -> Result<(), NodeError> {
        let _running = self.begin(node, volume)?;
        if self.in_ledger(node, volume).await? == InLedger::Unknown {
            return Ok(());
        }
        self.get_off(node, volume).await
    }

    /// Carries out an order to cut, if the ledger still wants just that.
    pub(crate) async fn cut(
        self: &Arc<Self>,
        node: usize,
        volume: &VolumeId,
        ordered: Generation,
    ) -> Result<(), NodeError> {
        let _running = self.begin(node, volume)?;
        let is_wanted = match self.in_ledger(node, volume).await? {
            InLedger::Revoking(generation) => generation == ordered,
            InLedger::NotAttached => ordered == Generation(0),
            InLedger::Attached | InLedger::Unknown => false,
        };
        if is_wanted { self.get_off(node, volume).await } else { Ok(()) }
    }

    async fn in_ledger(self: &Arc<Self>, node: usize, volume: &VolumeId) -> Result<InLedger, NodeError> {
        let id = self.nodes[node].id.clone();
        let limit = Duration::from_millis(CUT_ASK_MS);
        let to = random(|rng| rng.below(self.places.len() as u64));
        let (volume, to) = (volume.clone(), usize::try_from(to).unwrap_or(0));
        let serve = move |replica: Arc<super::replica::Replica>| {
            let (volume, id) = (volume.clone(), id.clone());
            async move {
                let described = replica.read(SimInstant::now() + limit, |state| {
                    let known = state.volume(&volume)?;
                    Some(known.attachments.get(&id).map(|held| (held.phase, held.generation)))
                });
                described.await.ok()
            }
        };
        match self.call(Endpoint::Node(node), to, limit, serve).await {
            Ok(Some(None)) => Ok(InLedger::Unknown),
            Ok(Some(Some(None))) => Ok(InLedger::NotAttached),
            Ok(Some(Some(Some((AttachmentPhase::Revoking, generation))))) => {
                Ok(InLedger::Revoking(generation))
            }
            Ok(Some(Some(Some((AttachmentPhase::Granting | AttachmentPhase::Granted, _))))) => {
                Ok(InLedger::Attached)
            }
            Ok(None) | Err(_) => Err(NodeError::Unavailable("no controller said".to_owned())),
        }
    }
}
