//! The leader's knowledge of the nodes, sans-IO: an event, the ledger and the time go in, effects come out.
//!
//! Soft state: it begins empty with each office and lives in memory only. What has to be cut is read from the ledger
//! each time; remembered is only what has been ordered, proposed or said already, so that it is not repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use state_machine::{
    AttachmentPhase, Command, Fact, Generation, NodeId, NodeMoment, PROVEN_OFF, State, VolumeId,
};

use super::report::{Content, Entry, Report};
use super::sight::{Look, Sight, Usage};

/// After so long without a word nothing is known of a node: three reports at the usual interval.
pub(crate) const SILENCE: Duration = Duration::from_secs(30);
/// How long a node is given to carry out an order before it is repeated.
const CUT_AGAIN: Duration = Duration::from_secs(3);
/// For how long it is remembered when a node that has no session was heard last.
const LAST_HEARD_KEPT: Duration = Duration::from_secs(600);

/// A session, numbered by its replica; later ones have greater numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// What happens to the sessions.
#[derive(Debug)]
pub enum Event {
    /// This replica leads, and its state has everything that was decided before.
    TookOffice {
        /// In this term.
        term: u64,
    },
    /// It leads no more.
    LeftOffice,
    /// Entries were applied to the ledger.
    LedgerChanged,
    /// A node reported; its first word begins the session.
    Heard {
        /// The session.
        session: SessionId,
        /// The node, as its certificate says.
        node: NodeId,
        /// What it said.
        report: Report,
    },
    /// The line to the node is lost.
    Ended {
        /// The session.
        session: SessionId,
        /// Its node.
        node: NodeId,
    },
}

/// What is to be done about it.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// Tell the node to look again, and to cut these.
    Order {
        /// To whom.
        session: SessionId,
        /// The order's number.
        number: u64,
        /// What to cut, and under which generation; [`NOT_ATTACHED`]: the node has no attachment to it.
        cuts: Vec<(VolumeId, Generation)>,
    },
    /// End the session.
    Close {
        /// Which.
        session: SessionId,
        /// Why.
        why: Refused,
    },
    /// Propose, in this term.
    Propose {
        /// The term.
        term: u64,
        /// The proof that a node is off.
        command: Command,
    },
    /// Have people know.
    Note(Note),
}

/// In an order: the node has no attachment. No attachment has this generation.
pub const NOT_ATTACHED: Generation = Generation(0);

/// What people should know; each is said once while it is so.
#[derive(Debug, PartialEq)]
pub enum Note {
    /// A volume that is to be cut is used, and stays.
    Held { volume: VolumeId, node: NodeId, by: Vec<String> },
    /// A volume is connected where the ledger has no attachment: somebody's word that the node was off was wrong.
    Stray { volume: VolumeId, node: NodeId },
}

/// Why a session is not taken, or not continued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("this replica does not lead; another one does, or will")]
    NotInOffice,
    #[error("node {0} is not registered; register, then begin again")]
    NotRegistered(NodeId),
    #[error("node {0} is registered with another boot; register, then begin again")]
    OtherBoot(NodeId),
    #[error("node {0} is registered as another host; register, then begin again")]
    OtherHost(NodeId),
    #[error("node {0} spoke of a moment that has passed")]
    PastMoment(NodeId),
    #[error("a later session of node {0} took this one's place")]
    Superseded(NodeId),
    #[error("the first report of a session says who speaks and what it sees")]
    NoBeginning,
}

struct Office {
    term: u64,
    since: Duration,
    /// The number of the last question to look again.
    asked: Option<u64>,
}

struct Session {
    id: SessionId,
    look: Look,
    content: Content,
    pursued: BTreeMap<VolumeId, Pursuit>,
}

/// What was done about a volume that should go.
#[derive(Debug, Default)]
struct Pursuit {
    /// When the last order to cut it went out.
    ordered_at: Option<Duration>,
    /// The moment of the last proof that was proposed.
    proposed_ns: Option<u64>,
    /// For one without attachment: the number that the node has to echo before that is believed.
    doubted: Option<u64>,
    /// Its note was written.
    noted: bool,
}

/// What the ledger wants of a volume on a node that should go.
enum Duty {
    /// To be cut, and proven off after what was heard at this moment.
    Revoking { generation: Generation, heard_ns: Option<u64> },
    /// To be cut: there is no attachment.
    NotAttached,
}

/// All sessions.
#[derive(Default)]
pub struct Sessions {
    office: Option<Office>,
    /// The last order's number; grows over all offices of this process.
    number: u64,
    sessions: BTreeMap<NodeId, Session>,
    /// When each node was heard last, in this office.
    last_heard: BTreeMap<NodeId, Duration>,
    /// The last words of those that have no session any more, as long as they are in `last_heard`.
    lost: BTreeMap<NodeId, Content>,
    /// Where the ledger has something to cut, as of its last change.
    revoking: BTreeMap<NodeId, BTreeSet<VolumeId>>,
}

impl Sessions {
    /// One event at a time; `now` is of a monotonic clock.
    pub fn step(&mut self, event: Event, state: &State, now: Duration) -> Vec<Effect> {
        match event {
            Event::TookOffice { term } => {
                let mut effects = self.leave();
                self.office = Some(Office { term, since: now, asked: None });
                effects.extend(self.look_at_ledger(state, now));
                effects
            }
            Event::LeftOffice => self.leave(),
            Event::LedgerChanged => self.look_at_ledger(state, now),
            Event::Heard { session, node, report } => match self.take(session, &node, report, state, now) {
                Ok(mut effects) => {
                    effects.extend(self.pursue(&node, state, now));
                    effects
                }
                Err(why) => {
                    self.forget(session, &node, now);
                    vec![Effect::Close { session, why }]
                }
            },
            Event::Ended { session, node } => {
                self.forget(session, &node, now);
                Vec::new()
            }
        }
    }

    /// Has nodes look again. A [`Look`](super::sight::Look) that echoes the number, or more, began later than this.
    pub fn ask<'a>(&mut self, nodes: impl IntoIterator<Item = &'a NodeId>) -> (u64, Vec<Effect>) {
        self.number += 1;
        let number = self.number;
        if let Some(office) = &mut self.office {
            office.asked = Some(number);
        }
        let sessions = nodes.into_iter().filter_map(|node| self.sessions.get(node));
        let order = |session: &Session| Effect::Order { session: session.id, number, cuts: Vec::new() };
        (number, sessions.map(order).collect())
    }

    /// What is known of the volume on the node.
    pub fn sight(&self, volume: &VolumeId, node: &NodeId, state: &State, now: Duration) -> Sight {
        let unknown = |why: String| Sight::Unknown { why };
        if self.office.is_none() {
            return unknown("this replica does not lead".to_owned());
        }
        let Some(session) = self.sessions.get(node) else {
            return unknown(format!("node {node} has no session with the leader: is its plugin running?"));
        };
        let silent = now.saturating_sub(session.look.heard_at);
        if silent >= SILENCE {
            return unknown(format!("nothing was heard of node {node} for {} s", silent.as_secs()));
        }
        if state.nodes().get(node).is_none_or(|known| known.boot != session.look.moment.boot) {
            return unknown(format!("node {node} spoke of another boot than it is registered with"));
        }
        let look = session.look.clone();
        match session.content.of(volume) {
            None => Sight::Absent { look },
            Some(Entry::Connected(used)) => Sight::Connected { used, look },
            Some(Entry::Unseen(why)) => unknown(format!("node {node} cannot see it: {why}")),
        }
    }

    /// The nodes that may have the volume connected: whose last word says so, be their session lost; and for a while
    /// after this replica took office those of which somebody else said that they are off, until they have spoken.
    pub fn nodes_with(&self, volume: &VolumeId, state: &State, now: Duration) -> BTreeSet<NodeId> {
        let has = |content: &Content| matches!(content.of(volume), Some(Entry::Connected(_)));
        let heard = self.sessions.iter().map(|(node, session)| (node, &session.content)).chain(&self.lost);
        let mut nodes: BTreeSet<NodeId> =
            heard.filter(|(_, content)| has(content)).map(|(node, _)| node.clone()).collect();
        let since = self.office.as_ref().map(|office| now.saturating_sub(office.since));
        if since.is_some_and(|since| since < SILENCE) {
            let records = state.volume(volume).into_iter().flat_map(|volume| &volume.history);
            let believed_off = records.filter_map(|record| {
                let Fact::Detached { node, evidence, .. } = &record.fact else { return None };
                (evidence != PROVEN_OFF).then_some(node)
            });
            let unheard = believed_off.filter(|node| !self.last_heard.contains_key(*node));
            nodes.extend(unheard.cloned());
        }
        nodes
    }

    /// When the node was heard last; `None`: not in this office, or longer ago than [`LAST_HEARD_KEPT`].
    pub fn last_heard(&self, node: &NodeId) -> Option<Duration> {
        self.last_heard.get(node).copied()
    }

    /// Since when this replica leads; nothing was heard before.
    pub fn in_office_since(&self) -> Option<Duration> {
        self.office.as_ref().map(|office| office.since)
    }

    /// How many sessions there are.
    pub(crate) fn count(&self) -> usize {
        self.sessions.len()
    }

    fn leave(&mut self) -> Vec<Effect> {
        self.office = None;
        self.last_heard.clear();
        self.lost.clear();
        self.revoking.clear();
        let sessions = std::mem::take(&mut self.sessions);
        let close = |session: Session| Effect::Close { session: session.id, why: Refused::NotInOffice };
        sessions.into_values().map(close).collect()
    }

    fn forget(&mut self, session: SessionId, node: &NodeId, now: Duration) {
        if self.sessions.get(node).is_some_and(|known| known.id == session) {
            let session = self.sessions.remove(node);
            self.lost.extend(session.map(|session| (node.clone(), session.content)));
        }
        let sessions = &self.sessions;
        self.last_heard.retain(|node, heard| {
            sessions.contains_key(node) || now.saturating_sub(*heard) < LAST_HEARD_KEPT
        });
        self.lost.retain(|node, _| self.last_heard.contains_key(node));
    }

    /// Takes a report in, if it may be believed.
    fn take(
        &mut self,
        id: SessionId,
        node: &NodeId,
        report: Report,
        state: &State,
        now: Duration,
    ) -> Result<Vec<Effect>, Refused> {
        let asked = self.office.as_ref().ok_or(Refused::NotInOffice)?.asked;
        let registered = state.nodes().get(node).ok_or_else(|| Refused::NotRegistered(node.clone()))?;
        if registered.boot != report.boot {
            return Err(Refused::OtherBoot(node.clone()));
        }
        let moment = NodeMoment { boot: report.boot, since_boot_ns: report.since_boot_ns };
        let look = Look { echo: report.echo, moment, heard_at: now };
        let mut effects = Vec::new();
        match self.sessions.get_mut(node) {
            Some(known) if known.id > id => return Err(Refused::Superseded(node.clone())),
            Some(known) if known.id == id => {
                if known.look.moment.since_boot_ns > look.moment.since_boot_ns {
                    return Err(Refused::PastMoment(node.clone()));
                }
                known.look = look;
                if let Some(content) = report.content {
                    known.content = content;
                }
            }
            earlier => {
                let host_nqn = report.host_nqn.ok_or(Refused::NoBeginning)?;
                if registered.host_nqn != host_nqn {
                    return Err(Refused::OtherHost(node.clone()));
                }
                // Whatever number it names is not of this session.
                let look = Look { echo: 0, ..look };
                let content = report.content.ok_or(Refused::NoBeginning)?;
                if let Some(earlier) = earlier {
                    let why = Refused::Superseded(node.clone());
                    effects.push(Effect::Close { session: earlier.id, why });
                }
                let session = Session { id, look, content, pursued: BTreeMap::new() };
                self.sessions.insert(node.clone(), session);
                // Whoever asked before it came, as a leader new in office does, waits for it too.
                effects.extend(asked.map(|number| Effect::Order { session: id, number, cuts: Vec::new() }));
            }
        }
        match self.last_heard.get_mut(node) {
            Some(heard) => *heard = now,
            None => {
                self.last_heard.insert(node.clone(), now);
            }
        }
        self.lost.remove(node);
        Ok(effects)
    }

    fn look_at_ledger(&mut self, state: &State, now: Duration) -> Vec<Effect> {
        self.revoking.clear();
        if self.office.is_none() {
            return Vec::new();
        }
        for (id, volume) in state.volumes() {
            for (node, attachment) in &volume.attachments {
                if attachment.phase == AttachmentPhase::Revoking {
                    self.revoking.entry(node.clone()).or_default().insert(id.clone());
                }
            }
        }
        let nodes: Vec<NodeId> = self.revoking.keys().cloned().collect();
        nodes.iter().flat_map(|node| self.pursue(node, state, now)).collect()
    }

    /// What follows from what is known of a node: orders, proofs, notes.
    fn pursue(&mut self, node: &NodeId, state: &State, now: Duration) -> Vec<Effect> {
        let (Some(office), Some(session)) = (&self.office, self.sessions.get_mut(node)) else {
            return Vec::new();
        };
        let is_heard = now.saturating_sub(session.look.heard_at) < SILENCE;
        let boot = state.nodes().get(node).map(|known| &known.boot);
        if !is_heard || boot != Some(&session.look.moment.boot) {
            return Vec::new();
        }
        let named = self.revoking.get(node).into_iter().flatten().chain(session.content.connected());
        let duties = named.filter_map(|volume| Some((volume.clone(), duty(state, volume, node)?)));
        let duties: BTreeMap<VolumeId, Duty> = duties.collect();
        session.pursued.retain(|volume, _| duties.contains_key(volume));
        let (mut effects, mut cuts, mut look_again) = (Vec::new(), Vec::new(), false);
        for (volume, duty) in duties {
            let seen = session.content.of(&volume);
            if matches!((&seen, &duty), (Some(Entry::Connected(Usage::Busy)), Duty::NotAttached)) {
                // Whoever stages it there is about to be refused.
                continue;
            }
            let pursuit = session.pursued.entry(volume.clone()).or_default();
            if let Duty::NotAttached = duty {
                // It may have been disconnected, and proven to be, after the look: only a later look tells.
                let number = *pursuit.doubted.get_or_insert_with(|| {
                    look_again = true;
                    self.number + 1
                });
                if session.look.echo < number {
                    continue;
                }
                if !std::mem::replace(&mut pursuit.noted, true) {
                    effects.push(Effect::Note(Note::Stray { volume: volume.clone(), node: node.clone() }));
                }
            }
            let due = pursuit.ordered_at.is_none_or(|at| now.saturating_sub(at) >= CUT_AGAIN);
            match (seen, duty) {
                (Some(Entry::Connected(Usage::Idle)), Duty::Revoking { generation, .. }) if due => {
                    pursuit.ordered_at = Some(now);
                    cuts.push((volume, generation));
                }
                (Some(Entry::Connected(Usage::Idle)), Duty::NotAttached) if due => {
                    pursuit.ordered_at = Some(now);
                    cuts.push((volume, NOT_ATTACHED));
                }
                (Some(Entry::Connected(Usage::InUse { by })), Duty::Revoking { .. }) if !pursuit.noted => {
                    pursuit.noted = true;
                    effects.push(Effect::Note(Note::Held { volume, node: node.clone(), by }));
                }
                (None, Duty::Revoking { heard_ns, .. })
                    if is_new_proof(&session.look.moment, heard_ns, pursuit.proposed_ns) =>
                {
                    let moment = session.look.moment.clone();
                    pursuit.proposed_ns = Some(moment.since_boot_ns);
                    let command = Command::ReportDisconnected { volume, node: node.clone(), moment };
                    effects.push(Effect::Propose { term: office.term, command });
                }
                (Some(Entry::Connected(_) | Entry::Unseen(_)) | None, _) => {}
            }
        }
        if look_again || !cuts.is_empty() {
            self.number += 1;
            effects.push(Effect::Order { session: session.id, number: self.number, cuts });
        }
        effects
    }
}

fn duty(state: &State, volume: &VolumeId, node: &NodeId) -> Option<Duty> {
    match state.volume(volume)?.attachments.get(node) {
        None => Some(Duty::NotAttached),
        Some(attachment) => match attachment.phase {
            AttachmentPhase::Granting | AttachmentPhase::Granted => None,
            AttachmentPhase::Revoking => Some(Duty::Revoking {
                generation: attachment.generation,
                heard_ns: attachment.heard.as_ref().map(|heard| heard.since_boot_ns),
            }),
        },
    }
}

/// Whether a look of this moment proves more than the ledger has heard, and than was proposed already.
fn is_new_proof(moment: &NodeMoment, heard_ns: Option<u64>, proposed_ns: Option<u64>) -> bool {
    [heard_ns, proposed_ns].into_iter().flatten().all(|earlier| earlier < moment.since_boot_ns)
}
