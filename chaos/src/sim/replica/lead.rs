//! What a leader does: the shells of the executor, of the sessions and of the reaper, around their own cores.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use controller::cores::executor::{Effect, Event, Executor, Hand, key_of};
use controller::cores::reaper::{
    self, Answer, Evidence, KubeVirt, Reaper, Seen, Sight as Side, Standing, View,
};
use controller::cores::sessions::{Event as SessionEvent, Sight, Usage};
use openraft::Instant;
use openraft::async_runtime::{WatchReceiver, WatchSender};
use replica::MonotonicClock;
use state_machine::{Migration, NodeId, State, VolumeId, plan};
use tokio::sync::mpsc;

use super::office::SimClock;
use super::{NodeSessions, Replica, sleep_until};
use crate::REAP_AFTER_SECONDS;
use crate::sim::appliance::SimBackend;
use crate::sim::runtime::{SimInstant, die, sleep_ms, spawn};
use crate::sim::world::{Point, World, nqn_prefix};

/// How often it is looked whether a quorum still follows, in ms.
const QUORUM_LOOK_MS: u64 = 500;
/// After so many looks without one, the sessions end.
const LOOKS_WITHOUT_QUORUM: u32 = 4;
/// A quorum that answered within so long follows: three heartbeats' and an election's time.
const LATELY: Duration = Duration::from_millis(1_800);

enum Input {
    Executor(Event),
    Reaper(reaper::Event),
}

struct Leader {
    replica: Arc<Replica>,
    hand: Hand,
    executor: Executor,
    reaper: Reaper,
    evidence: SimEvidence,
    inputs: mpsc::UnboundedSender<Input>,
    looks_without_quorum: u32,
}

/// Runs as long as the process.
pub(crate) async fn lead(replica: Arc<Replica>) {
    let (sender, mut inputs) = mpsc::unbounded_channel();
    let backend = Arc::new(SimBackend::new(replica.world.clone(), replica.place));
    let evidence = SimEvidence { sessions: replica.sessions.clone(), world: replica.world.clone() };
    let mut leader = Leader {
        hand: Hand { backend, nqn_prefix: nqn_prefix() },
        executor: Executor::default(),
        reaper: Reaper::new(Duration::from_secs(REAP_AFTER_SECONDS.into())),
        evidence,
        inputs: sender,
        looks_without_quorum: 0,
        replica,
    };
    let mut office = leader.replica.office.subscribe();
    let mut applied = leader.replica.machine.watch_applied();
    let mut heard = leader.replica.heard.subscribe();
    let mut term = None;
    let mut quorum_look = SimInstant::now();
    loop {
        let wake = leader.wake_at(term.is_some().then_some(quorum_look));
        let wait = async {
            match wake {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = office.changed() => {
                if changed.is_err() { return }
                term = leader.replica.term_held();
                leader.office_changed(term);
            }
            Some(input) = inputs.recv() => leader.take(input),
            changed = applied.changed() => {
                if changed.is_err() { return }
                if term.is_some() { leader.ledger_changed(); }
            }
            changed = heard.changed() => {
                if changed.is_err() { return }
                leader.tell_reaper(reaper::Event::Heard);
            }
            () = wait => {
                leader.timer();
                if quorum_look <= SimInstant::now() {
                    quorum_look = SimInstant::now() + Duration::from_millis(QUORUM_LOOK_MS);
                    leader.look_at_quorum(term);
                }
            }
        }
    }
}

fn millis() -> u64 {
    u64::try_from(SimClock.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Leader {
    fn wake_at(&self, quorum_look: Option<SimInstant>) -> Option<SimInstant> {
        let executor = self.executor.wake_at_ms().map(Duration::from_millis);
        let now = (SimInstant::now(), SimClock.elapsed());
        let instant = |at: Duration| now.0 + at.saturating_sub(now.1);
        [executor, self.reaper.wake_at()].into_iter().flatten().map(instant).chain(quorum_look).min()
    }

    fn office_changed(&mut self, term: Option<u64>) {
        match term {
            Some(term) => {
                self.hand = self.hand.for_another_term();
                self.tell_executor(Event::Leading { term });
                self.looks_without_quorum = 0;
                self.replica.tell_sessions(SessionEvent::TookOffice { term });
                self.tell_reaper(reaper::Event::TookOffice { term });
            }
            None => {
                self.tell_executor(Event::Deposed);
                self.replica.tell_sessions(SessionEvent::LeftOffice);
                self.tell_reaper(reaper::Event::LeftOffice);
            }
        }
    }

    fn ledger_changed(&mut self) {
        let planned = self.planned();
        self.tell_executor(planned);
        if self.replica.sessions.in_office_since().is_some() {
            self.replica.tell_sessions(SessionEvent::LedgerChanged);
        }
        self.tell_reaper(reaper::Event::Changed);
    }

    fn timer(&mut self) {
        if self.executor.wake_at_ms().is_some_and(|at| at <= millis()) {
            let planned = self.planned();
            self.tell_executor(planned);
        }
        if self.reaper.wake_at().is_some_and(|at| at <= SimClock.elapsed()) {
            self.tell_reaper(reaper::Event::Timer);
        }
    }

    fn look_at_quorum(&mut self, term: Option<u64>) {
        let is_followed = {
            let metrics = self.replica.raft.metrics();
            let seen = metrics.borrow_watched();
            seen.last_quorum_acked.as_ref().is_some_and(|acked| acked.elapsed() <= LATELY)
        };
        self.looks_without_quorum = if is_followed { 0 } else { self.looks_without_quorum + 1 };
        let in_office = self.replica.sessions.in_office_since().is_some();
        match term {
            Some(_) if in_office && self.looks_without_quorum >= LOOKS_WITHOUT_QUORUM => {
                self.replica.tell_sessions(SessionEvent::LeftOffice);
            }
            Some(term) if !in_office && self.looks_without_quorum == 0 => {
                self.replica.tell_sessions(SessionEvent::TookOffice { term });
            }
            Some(_) | None => {}
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Executor(event) => self.tell_executor(event),
            Input::Reaper(event) => self.tell_reaper(event),
        }
    }

    fn planned(&self) -> Event {
        Event::Planned { now_ms: millis(), steps: self.replica.read_local(plan) }
    }

    fn tell_executor(&mut self, event: Event) {
        let mut queue = VecDeque::from([event]);
        while let Some(event) = queue.pop_front() {
            let look_again = !matches!(event, Event::Planned { .. });
            for effect in self.executor.step(event) {
                spawn(perform(self.replica.clone(), self.hand.clone(), effect, self.inputs.clone()));
            }
            if look_again {
                queue.push_back(self.planned());
            }
        }
    }

    fn tell_reaper(&mut self, event: reaper::Event) {
        let mut queue = VecDeque::from([event]);
        while let Some(event) = queue.pop_front() {
            let (replica, evidence) = (self.replica.clone(), &self.evidence);
            let now = SimClock.elapsed();
            let effects = replica.read_local(|state| self.reaper.step(event, now, View { state, evidence }));
            for effect in effects {
                match effect {
                    reaper::Effect::AskSessionsAgain { nodes } => {
                        queue.push_back(reaper::Event::Asked { number: replica.ask_nodes(&nodes) });
                    }
                    reaper::Effect::Propose { term, command } => {
                        let (replica, inputs) = (replica.clone(), self.inputs.clone());
                        replica.world.tell(|| format!("replica {} proposes {command:?}", replica.id));
                        spawn(async move {
                            let answer = replica.propose_as_leader(term, command).await;
                            let answer = answer.map_or(Answer::NotDecided, Answer::from);
                            let _ = inputs.send(Input::Reaper(reaper::Event::Proposed { term, answer }));
                        });
                    }
                    reaper::Effect::Report(report) => {
                        replica.world.tell(|| format!("reaper of {}: {}", replica.id, report.what));
                    }
                }
            }
        }
    }
}

async fn perform(replica: Arc<Replica>, hand: Hand, effect: Effect, inputs: mpsc::UnboundedSender<Input>) {
    let event = match effect {
        Effect::BeginTerm { term } => {
            let result = hand.begin_term(term).await;
            Event::TermBegun { now_ms: millis(), term, result }
        }
        Effect::Perform { term, step, action } => {
            if replica.world.reach(replica.place, Point::BeforeStep) {
                die().await;
            }
            let outcome = hand.act(&step, &action).await;
            if replica.world.reach(replica.place, Point::AfterStep) {
                die().await;
            }
            replica.world.tell(|| {
                format!("replica {} did {:?} of {}: {outcome:?}", replica.id, step.kind, step.volume)
            });
            Event::Performed { term, key: key_of(&step), outcome }
        }
        Effect::Propose { term, key, command } => {
            let proposed = replica.propose_as_leader(term, command).await;
            Event::Proposed { now_ms: millis(), term, key, committed: proposed.is_some() }
        }
    };
    // A core that was told something is not told the rest at the same instant.
    sleep_ms(0).await;
    let _ = inputs.send(Input::Executor(event));
}

/// What the reaper is told.
struct SimEvidence {
    sessions: NodeSessions,
    world: Arc<World>,
}

impl Evidence for SimEvidence {
    fn seen(&self, state: &State, volume: &VolumeId, node: &NodeId) -> Seen {
        let (sight, look) = match self.sessions.sight(volume, node, state) {
            Sight::Unknown { why } => return Seen::Nothing { why },
            Sight::Absent { look } => (Side::Absent, look),
            Sight::Connected { used: Usage::Idle, look } => (Side::Idle, look),
            Sight::Connected { used: Usage::InUse { by }, look } => (Side::InUse { by: by.join(", ") }, look),
            Sight::Connected { used: Usage::Busy, look } => {
                (Side::Unknown { why: "an operation on it is running there".to_owned() }, look)
            }
            Sight::Connected { used: Usage::Unseen { why }, look } => (Side::Unknown { why }, look),
        };
        Seen::Looked { answers: look.echo, sight }
    }

    fn silent_for(&self, node: &NodeId) -> Option<Duration> {
        self.sessions.silent_for(node)
    }

    fn listening(&self) -> Option<Duration> {
        Some(SimClock.elapsed().saturating_sub(self.sessions.in_office_since()?))
    }

    fn kubevirt(&self, _: &VolumeId, _: &Migration) -> KubeVirt {
        KubeVirt::Unknown { why: "there is no Kubernetes here".to_owned() }
    }

    fn standing(&self, node: &NodeId) -> Standing {
        self.world.standing(node)
    }

    fn ask_again(&self, _: &BTreeSet<NodeId>) -> u64 {
        // The shell asks the sessions itself.
        0
    }

    fn watch(&self) -> tokio::sync::watch::Receiver<u64> {
        tokio::sync::watch::channel(0).1
    }
}
