//! The sessions' rim: one lock over the core, the clock, and whoever carries out its effects.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::channel::mpsc;
use proto::node::v1;
use replica::{MonotonicClock, ProposeError, Replica, SystemClock};
use state_machine::{Command, NodeId, Response, State, VolumeId};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::core::{Effect, Event, Note, Refused, SessionId, Sessions};
use super::report::Report;
use super::sight::Sight;
use crate::metrics::Metrics;

/// Orders that may wait for one node. A node that takes none for so long is not there: its session ends.
const ORDERS_QUEUED: usize = 16;
/// Proofs that are proposed at once. One that finds no place is made again of the node's next report.
const PROPOSALS_AT_ONCE: usize = 256;
/// How long a proposal may take; a quorum that is away for longer hears the next report's.
const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked whether a quorum still follows.
const QUORUM_LOOK: Duration = Duration::from_millis(500);
/// After so many looks without one, this replica counts as leading no more: nodes are sent to another.
const LOOKS_WITHOUT_QUORUM: u32 = 4;
/// The least time between two looks at the whole ledger: under load one look serves many entries.
const LEDGER_PAUSE: Duration = Duration::from_millis(20);

/// What is sent to a node: orders, and at last why there are no more. Not tokio's channel, which makes room for 32
/// messages as soon as there is one: thousands of these are empty.
pub(super) type Orders = mpsc::Receiver<Result<v1::LeaderOrder, Status>>;

/// The sessions of this replica. Clones are handles to the same ones.
#[derive(Clone)]
pub(crate) struct NodeSessions {
    shared: Arc<Shared>,
}

struct Shared {
    replica: Replica,
    clock: SystemClock,
    metrics: Metrics,
    inner: Mutex<Inner>,
    /// Wakes at each report, for those who wait for one.
    heard: Notify,
    /// How many reports there were.
    reports: watch::Sender<u64>,
    proposals: Arc<Semaphore>,
}

#[derive(Default)]
struct Inner {
    core: Sessions,
    outgoing: BTreeMap<SessionId, mpsc::Sender<Result<v1::LeaderOrder, Status>>>,
    last_session: u64,
}

impl NodeSessions {
    pub(crate) fn new(replica: Replica, metrics: Metrics) -> Self {
        let shared = Shared {
            replica,
            clock: SystemClock::new(),
            metrics,
            inner: Mutex::default(),
            heard: Notify::new(),
            reports: watch::Sender::new(0),
            proposals: Arc::new(Semaphore::new(PROPOSALS_AT_ONCE)),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Follows leadership and ledger until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut leadership = self.shared.replica.watch_leadership();
        let mut applied = self.shared.replica.watch_applied();
        leadership.mark_changed();
        let mut looks = tokio::time::interval(QUORUM_LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks_without_quorum = 0;
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => break,
                changed = leadership.changed() => {
                    if changed.is_err() { break }
                    match *leadership.borrow_and_update() {
                        Some(leadership) => Event::TookOffice { term: leadership.term },
                        None => Event::LeftOffice,
                    }
                }
                _ = looks.tick() => {
                    let leads = leadership.borrow().map(|leadership| leadership.term);
                    looks_without_quorum =
                        if self.shared.replica.status().quorum_ok { 0 } else { looks_without_quorum + 1 };
                    match (leads, self.in_office_since()) {
                        // Another may lead by now, whom the nodes would never find.
                        (Some(_), Some(_)) if looks_without_quorum >= LOOKS_WITHOUT_QUORUM => Event::LeftOffice,
                        (Some(term), None) if looks_without_quorum == 0 => Event::TookOffice { term },
                        _ => continue,
                    }
                }
                changed = applied.changed(), if self.in_office_since().is_some() => {
                    if changed.is_err() { break }
                    Event::LedgerChanged
                }
            };
            let is_ledger = matches!(event, Event::LedgerChanged);
            self.step(event);
            if is_ledger {
                tokio::time::sleep(LEDGER_PAUSE).await;
            }
        }
        self.step(Event::LeftOffice);
    }

    /// Begins a session with the node's first report.
    pub(super) fn begin(&self, node: &NodeId, report: Report) -> (SessionId, Orders) {
        let (sender, orders) = mpsc::channel(ORDERS_QUEUED);
        let session = {
            let mut inner = self.lock();
            inner.last_session += 1;
            let session = SessionId(inner.last_session);
            inner.outgoing.insert(session, sender);
            session
        };
        self.hear(session, node, report);
        (session, orders)
    }

    /// Takes a report of the session.
    pub(super) fn hear(&self, session: SessionId, node: &NodeId, report: Report) {
        self.shared.metrics.session_report();
        self.step(Event::Heard { session, node: node.clone(), report });
        self.shared.heard.notify_waiters();
        self.shared.reports.send_modify(|reports| *reports += 1);
    }

    /// The session is over.
    pub(super) fn end(&self, session: SessionId, node: &NodeId) {
        self.step(Event::Ended { session, node: node.clone() });
        self.lock().outgoing.remove(&session);
        self.shared.heard.notify_waiters();
    }

    /// Changes with each report.
    pub(crate) fn watch_reports(&self) -> watch::Receiver<u64> {
        self.shared.reports.subscribe()
    }

    /// What is known of the volume on the node.
    pub(crate) fn sight(&self, volume: &VolumeId, node: &NodeId) -> Sight {
        self.shared.replica.read_local(|state| self.sight_in(state, volume, node))
    }

    /// The same, for who holds the ledger's state already: its lock is always taken before that of the sessions.
    pub(crate) fn sight_in(&self, state: &State, volume: &VolumeId, node: &NodeId) -> Sight {
        let inner = self.lock();
        inner.core.sight(volume, node, state, self.shared.clock.elapsed())
    }

    /// The nodes that may have the volume connected, or be about to.
    pub(crate) fn nodes_with(&self, volume: &VolumeId) -> Vec<NodeId> {
        let now = self.shared.clock.elapsed();
        let nodes = self.shared.replica.read_local(|state| self.lock().core.nodes_with(volume, state, now));
        nodes.into_iter().collect()
    }

    /// Waits for a sight that rests on a look after [`NodeSessions::ask`] answered `number`, or for what is known at
    /// the deadline.
    pub(super) async fn sight_after(
        &self,
        number: u64,
        volume: &VolumeId,
        node: &NodeId,
        deadline: Instant,
    ) -> Sight {
        loop {
            let heard = self.shared.heard.notified();
            tokio::pin!(heard);
            heard.as_mut().enable();
            let sight = self.sight(volume, node);
            if sight.is_settled(number) || tokio::time::timeout_at(deadline.into(), heard).await.is_err() {
                return sight;
            }
        }
    }

    /// Has nodes look again. A [`super::sight::Look`] that echoes the answer, or more, began later than this call.
    pub(crate) fn ask<'a>(&self, nodes: impl IntoIterator<Item = &'a NodeId>) -> u64 {
        let mut inner = self.lock();
        let (number, orders) = inner.core.ask(nodes);
        self.perform(&mut inner, orders);
        number
    }

    /// When a node was heard last, by [`NodeSessions::now`]; `None`: not in this office, or long ago.
    pub(crate) fn last_heard(&self, node: &NodeId) -> Option<Duration> {
        self.lock().core.last_heard(node)
    }

    /// Since when this replica leads, by [`NodeSessions::now`]; nothing was heard before.
    pub(crate) fn in_office_since(&self) -> Option<Duration> {
        self.lock().core.in_office_since()
    }

    /// The clock of all these times.
    pub(crate) fn now(&self) -> Duration {
        self.shared.clock.elapsed()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // Each step leaves the core whole, whatever happens to who carries out its effects.
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, event: Event) {
        self.shared.replica.read_local(|state| {
            let mut inner = self.lock();
            let effects = inner.core.step(event, state, self.shared.clock.elapsed());
            self.perform(&mut inner, effects);
            self.shared.metrics.sessions_active(inner.core.count());
        });
    }

    fn perform(&self, inner: &mut Inner, effects: impl IntoIterator<Item = Effect>) {
        for effect in effects {
            match effect {
                Effect::Order { session, number, cuts } => {
                    for (volume, generation) in &cuts {
                        tracing::info!(%volume, %generation, session = session.0, number, "cut ordered");
                        self.shared.metrics.session_cut("ordered");
                    }
                    let cut = |(volume, generation): (VolumeId, state_machine::Generation)| v1::Cut {
                        volume_id: volume.to_string(),
                        generation: generation.0,
                    };
                    let cuts = cuts.into_iter().map(cut).collect();
                    let order = Ok(v1::LeaderOrder { number, cuts });
                    let sent = inner.outgoing.get_mut(&session).map(|sender| sender.try_send(order));
                    if let Some(Err(error)) = sent {
                        // Cuts are ordered again, and who waits for a look has a deadline; a dead line ends by itself.
                        tracing::warn!(session = session.0, number, %error, "an order is lost");
                    }
                }
                Effect::Close { session, why } => {
                    // If its queue is full, it ends without the reason.
                    if let Some(mut sender) = inner.outgoing.remove(&session) {
                        let _ = sender.try_send(Err(status(&why)));
                    }
                }
                Effect::Propose { term, command } => self.propose(term, command),
                Effect::Note(note) => self.note(&note),
            }
        }
    }

    fn propose(&self, term: u64, command: Command) {
        let Ok(place) = self.shared.proposals.clone().try_acquire_owned() else {
            tracing::debug!("too many proofs at once; this one is made again of the next report");
            return;
        };
        let (replica, metrics) = (self.shared.replica.clone(), self.shared.metrics.clone());
        tokio::spawn(async move {
            let _place = place;
            let what = format!("{command:?}");
            let proposed = replica.propose_as_leader(term, command);
            match tokio::time::timeout(PROPOSAL_TIMEOUT, proposed).await {
                Ok(Ok(Response::Refused(refusal))) => tracing::info!(%refusal, "a look was no proof"),
                Ok(Ok(_)) => {
                    metrics.session_cut("proven");
                    tracing::info!(proof = what, term, "a node's session proved it off");
                }
                Ok(Err(ProposeError::NotLeader { .. })) | Err(_) => {
                    tracing::debug!(proof = what, term, "not recorded; the next report proves it again");
                }
                Ok(Err(error)) => tracing::warn!(proof = what, term, %error, "not recorded"),
            }
        });
    }

    fn note(&self, note: &Note) {
        match note {
            Note::Held { volume, node, by } => {
                self.shared.metrics.session_cut("held");
                tracing::warn!(%volume, %node, ?by, "to be cut, but in use: it stays until that has ended");
            }
            Note::Stray { volume, node } => tracing::error!(
                %volume, %node,
                "connected on a node that has no attachment to it: the node was believed to be off and was not; \
                 cut there as soon as nobody uses it"
            ),
        }
    }
}

/// What a node is told: UNAVAILABLE sends it to another controller, NOT_FOUND and ABORTED have it register first.
fn status(why: &Refused) -> Status {
    let text = why.to_string();
    match why {
        Refused::NotInOffice => Status::unavailable(text),
        Refused::NotRegistered(_) => Status::not_found(text),
        Refused::OtherBoot(_) | Refused::OtherHost(_) | Refused::PastMoment(_) | Refused::Superseded(_) => {
            Status::aborted(text)
        }
        Refused::NoBeginning => Status::invalid_argument(text),
    }
}
