//! What the leader knows of the nodes, and how any replica learns it: as `src/controller/src/sessions/{shell,leader}.rs`,
//! with their core.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use controller::cores::sessions::{
    Effect, Event, NOT_ATTACHED, Note, Refused, Report, SessionId, Sessions, Sight, Usage,
};
use openraft::async_runtime::{WatchReceiver, WatchSender};
use replica::MonotonicClock;
use state_machine::{Command, NodeId, State, VolumeId};

use super::Replica;
use super::forward::Seat;
use super::office::SimClock;
use crate::sim::network::Endpoint;
use crate::sim::node::{FromLeader, Order};
use crate::sim::runtime::{SimInstant, sleep_ms, spawn_in, timeout};

/// How long a proposal may take.
const PROPOSAL_LIMIT: Duration = Duration::from_secs(10);
/// How long a node that is asked to look again is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(3_000);
/// Between two questions while there is no leader, in ms.
const RETRY_PAUSE_MS: u64 = 50;

/// The line to a node, as its number in the node's own count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) node: usize,
    pub(crate) number: u64,
}

/// The newest line of a node, and the newest report on it.
type Newest = (u64, u64);

#[derive(Default)]
struct Inner {
    core: Sessions,
    lines: BTreeMap<SessionId, Line>,
    last_session: u64,
    newest: BTreeMap<usize, Newest>,
}

/// The sessions of one process.
#[derive(Clone, Default)]
pub(crate) struct NodeSessions {
    inner: Arc<Mutex<Inner>>,
}

impl NodeSessions {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the volume on the node.
    pub(crate) fn sight(&self, volume: &VolumeId, node: &NodeId, state: &State) -> Sight {
        self.lock().core.sight(volume, node, state, SimClock.elapsed())
    }

    /// How long nothing was heard of it.
    pub(crate) fn silent_for(&self, node: &NodeId) -> Option<Duration> {
        let heard = self.lock().core.last_heard(node)?;
        Some(SimClock.elapsed().saturating_sub(heard))
    }

    /// Since when this replica leads.
    pub(crate) fn in_office_since(&self) -> Option<Duration> {
        self.lock().core.in_office_since()
    }
}

impl Replica {
    /// Tells the sessions' core, and has its effects performed.
    pub(crate) fn tell_sessions(self: &Arc<Self>, event: Event) {
        let effects =
            self.read_local(|state| self.sessions.lock().core.step(event, state, SimClock.elapsed()));
        self.perform_all(effects);
    }

    /// Has nodes look again.
    pub(crate) fn ask_nodes<'a>(self: &Arc<Self>, nodes: impl IntoIterator<Item = &'a NodeId>) -> u64 {
        let (number, effects) = self.sessions.lock().core.ask(nodes);
        self.perform_all(effects);
        number
    }

    /// Takes a node's report on one of its lines. A line is a stream: nothing on it comes twice or out of order, and
    /// nothing on one that the node has left.
    pub(crate) fn hear(self: &Arc<Self>, line: Line, sequence: u64, node: NodeId, report: Report) {
        let session = {
            let mut inner = self.sessions.lock();
            let newest = inner.newest.entry(line.node).or_default();
            if *newest >= (line.number, sequence) {
                return;
            }
            *newest = (line.number, sequence);
            let known = inner.lines.iter().find(|(_, known)| **known == line).map(|(id, _)| *id);
            known.unwrap_or_else(|| {
                inner.last_session += 1;
                let session = SessionId(inner.last_session);
                inner.lines.insert(session, line);
                session
            })
        };
        self.tell_sessions(Event::Heard { session, node, report });
        self.heard.send_if_modified(|reports| {
            *reports += 1;
            true
        });
    }

    /// A node hung up.
    pub(crate) fn hung_up(self: &Arc<Self>, line: Line, node: NodeId) {
        let ended = {
            let mut inner = self.sessions.lock();
            let ended = inner.lines.iter().find(|(_, known)| **known == line).map(|(id, _)| *id);
            inner.lines.retain(|_, known| *known != line);
            ended
        };
        if let Some(session) = ended {
            self.tell_sessions(Event::Ended { session, node });
        }
    }

    fn perform_all(self: &Arc<Self>, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Order { session, number, cuts } => {
                    for (volume, generation) in &cuts {
                        let why = if *generation == NOT_ATTACHED { "unattached" } else { "revoked" };
                        self.world.tell(|| format!("replica {} has {volume} cut ({why})", self.id));
                    }
                    self.say(session, FromLeader::Order(Order { number, cuts }));
                }
                Effect::Close { session, why } => {
                    let again = matches!(why, Refused::NotRegistered(_) | Refused::OtherBoot(_));
                    self.say(session, FromLeader::Closed { register_again: again });
                    self.sessions.lock().lines.remove(&session);
                }
                Effect::Propose { term, command } => self.propose_proof(term, command),
                Effect::Note(Note::Held { volume, node, .. }) => {
                    self.world.tell(|| format!("replica {}: {volume} is held on {node}", self.id));
                }
                Effect::Note(Note::Stray { volume, node }) => {
                    self.world.tell(|| format!("replica {}: {volume} is stray on {node}", self.id));
                }
            }
        }
    }

    fn say(&self, session: SessionId, word: FromLeader) {
        let Some(line) = self.sessions.lock().lines.get(&session).copied() else { return };
        let (from, to) = (Endpoint::Replica(self.place), Endpoint::Node(line.node));
        self.world.send(from, to, move |world| async move {
            world.nodes[line.node].take_word(line.number, word);
        });
    }

    fn propose_proof(self: &Arc<Self>, term: u64, command: Command) {
        let replica = self.clone();
        spawn_in(self.group, async move {
            timeout(PROPOSAL_LIMIT, replica.propose_as_leader(term, command)).await;
        });
    }

    /// How the volume stands on these nodes, or on all that report it, as the leader in office knows it.
    pub(crate) async fn sights(
        self: &Arc<Self>,
        volume: &VolumeId,
        nodes: &[NodeId],
        until: SimInstant,
    ) -> Result<Vec<(NodeId, Sight)>, String> {
        loop {
            let limit = until.remaining().min(LOOK_AGAIN);
            let asked = match self.seat() {
                Seat::Nowhere => None,
                Seat::Here { .. } => self.sights_here(volume, nodes, limit).await,
                Seat::There { place, .. } => {
                    let (volume, nodes) = (volume.clone(), nodes.to_vec());
                    let serve = move |leader: Arc<Self>| {
                        let (volume, nodes) = (volume.clone(), nodes.clone());
                        async move { leader.sights_here(&volume, &nodes, limit).await }
                    };
                    let from = Endpoint::Replica(self.place);
                    self.world.call(from, place, limit, serve).await.ok().flatten()
                }
            };
            if let Some(sights) = asked {
                return Ok(sights);
            }
            if until.remaining() <= Duration::from_millis(RETRY_PAUSE_MS) {
                return Err("no leader in office says".to_owned());
            }
            sleep_ms(RETRY_PAUSE_MS).await;
        }
    }

    async fn sights_here(
        self: &Arc<Self>,
        volume: &VolumeId,
        nodes: &[NodeId],
        limit: Duration,
    ) -> Option<Vec<(NodeId, Sight)>> {
        let office = self.sessions.in_office_since()?;
        let until = SimInstant::now() + limit;
        let nodes = if nodes.is_empty() {
            let all = self
                .read_local(|state| self.sessions.lock().core.nodes_with(volume, state, SimClock.elapsed()));
            all.into_iter().collect()
        } else {
            nodes.to_vec()
        };
        let look = |node: &NodeId| self.read_local(|state| self.sessions.sight(volume, node, state));
        let asked: Vec<_> = nodes
            .into_iter()
            .map(|node| {
                let number = match look(&node) {
                    Sight::Unknown { .. } => None,
                    Sight::Absent { .. } | Sight::Connected { .. } => Some(self.ask_nodes([&node])),
                };
                (number, node)
            })
            .collect();
        let mut sights = Vec::new();
        for (number, node) in asked {
            let mut heard = self.heard.subscribe();
            let mut sight = look(&node);
            while number.is_some_and(|number| !sight.is_settled(number)) {
                if timeout(until.remaining(), heard.changed()).await.is_none() {
                    break;
                }
                sight = look(&node);
            }
            sights.push((node, sight));
        }
        (self.sessions.in_office_since() == Some(office)).then_some(sights)
    }
}

/// Who uses it, if somebody is known to.
pub(crate) fn is_held(sight: &Sight) -> bool {
    match sight {
        Sight::Connected { used: Usage::InUse { .. }, .. } => true,
        Sight::Connected { used: Usage::Idle | Usage::Busy | Usage::Unseen { .. }, .. }
        | Sight::Absent { .. }
        | Sight::Unknown { .. } => false,
    }
}
