//! The reaper: looks for evidence about migrations past their deadline, and about nodes that may be off, and proposes
//! what follows (DESIGN.md, "Reaping" and "Proof"); on the leader only.
//!
//! [`Reaper::step`] decides, without IO or a clock; `shell` performs its effects. Life of an overdue migration: both
//! nodes are asked to look again, their answers and KubeVirt's word are judged by [`decide()`], one side is reaped.
//! Cutting it is the sessions' work, and only the ledger frees it. Every step is a committed fact and nothing is
//! remembered that the state does not say again: a new leader begins with an empty reaper, asks for itself, and
//! finds a migration that is being reaped already in the ledger.
//!
//! Four rules stand beside the table in `decide`:
//! - evidence counts only if it answers an asking that was sent after the migration was seen overdue;
//! - a node that can speak is heard before it loses anything: while its sight is unknown, its side goes only after
//!   [`SILENCE_OF_A_LOST_SESSION`] that this leader itself listened;
//! - a side that is only idle, or that KubeVirt has left, goes once one leader has seen it so for a while: it may be
//!   about to be unpublished, and then the migration has succeeded;
//! - a leader that was asleep has listened to nobody meanwhile.

mod decide;
mod evidence;
mod hearing;
mod off;
mod shell;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use state_machine::{
    Command, Generation, Migration, MigrationId, MigrationPhase, NodeId, Response, State, VolumeId,
};

pub use decide::{KubeVirt, Side, Sight};
pub(crate) use decide::{Verdict, decide};
pub use evidence::{Evidence, Seen, Standing};
use hearing::{Hearing, Words};
use off::OffVerdict;
pub(crate) use shell::Shell;
use watch::{Attention, Watch};

/// Everything is judged anew at least so often: silence grows without an event.
const JUDGE_INTERVAL: Duration = Duration::from_secs(1);
/// And at most so often, however many reports and entries come in.
const JUDGE_PAUSE: Duration = Duration::from_millis(200);
/// Sessions are asked at most so often.
const ASK_PAUSE: Duration = Duration::from_secs(1);
/// For so many migrations at once, at most; the others have their turn after them.
const MIGRATIONS_ASKED_AT_ONCE: usize = 64;
/// A reaper that was not called for so long was asleep.
const ASLEEP_AFTER: Duration = Duration::from_secs(5);

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// This replica leads, in `term`.
    TookOffice { term: u64 },
    /// It does no longer.
    LeftOffice,
    /// The state may be another.
    Changed,
    /// A node reported.
    Heard,
    /// The time that [`Reaper::wake_at`] named has come.
    Timer,
    /// The sessions were asked.
    Asked { number: u64 },
    /// A proposal was answered.
    Proposed { term: u64, answer: Answer },
}

/// How a proposal was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is so.
    Accepted,
    /// The ledger says no.
    Refused { why: String },
    /// It was not decided in this term.
    NotDecided,
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        match response {
            Response::Refused(refusal) => Self::Refused { why: refusal.to_string() },
            Response::Done
            | Response::Pending { .. }
            | Response::Exists { .. }
            | Response::Attached { .. }
            | Response::Revoking { .. } => Self::Accepted,
        }
    }
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Have these nodes look again, and tell the number of the asking.
    AskSessionsAgain { nodes: BTreeSet<NodeId> },
    /// Propose this, in this term and no other.
    Propose { term: u64, command: Command },
    /// Tell people.
    Report(Report),
}

/// What people are told, once each time that it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The term of the leader that says so.
    pub term: u64,
    pub about: About,
    /// What and why, with the facts.
    pub what: String,
    /// Somebody should look at it.
    pub loud: bool,
}

/// What something is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// A migration past its deadline.
    Migration { volume: VolumeId, migration: MigrationId },
    /// A node that may be off, and all that it has.
    Node(NodeId),
}

/// What can be seen at a step.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub state: &'a State,
    pub evidence: &'a dyn Evidence,
}

/// The reaper's state: nothing, unless this replica leads.
#[derive(Debug)]
pub struct Reaper {
    /// How long a side has to be stale before it is taken.
    reap_after: Duration,
    office: Option<Office>,
}

/// One term of office.
#[derive(Debug)]
struct Office {
    term: u64,
    reap_after: Duration,
    /// Since when this leader would have heard a node that speaks.
    listening_since: Duration,
    stepped_at: Duration,
    judged_at: Option<Duration>,
    asked_at: Option<Duration>,
    /// Something changed since everything was judged.
    stale: bool,
    migrations: BTreeMap<MigrationId, Watch>,
    nodes: BTreeMap<NodeId, Attention>,
    /// What the ledger heard of each node, through whichever replica.
    words: Words,
    /// What is being proposed: one thing at a time, so that what is judged next knows its answer.
    proposing: Option<Motion>,
}

/// Something to propose, and what is said when it was accepted.
#[derive(Debug)]
struct Motion {
    about: About,
    command: Command,
    what: String,
}

impl Reaper {
    /// Of a replica that does not lead yet. A side that may be about to be unpublished is taken once it has been stale
    /// for `reap_after`.
    pub fn new(reap_after: Duration) -> Self {
        Self { reap_after, office: None }
    }

    /// Takes in one event and says what is to be done. `now` is a monotonic clock's.
    pub fn step(&mut self, event: Event, now: Duration, view: View<'_>) -> Vec<Effect> {
        if let Event::TookOffice { term } = event {
            self.office = Some(Office::new(term, self.reap_after, now));
        }
        let Some(office) = &mut self.office else { return Vec::new() };
        office.notice_sleep(now);
        let mut effects = Vec::new();
        match event {
            Event::LeftOffice => {
                self.office = None;
                return effects;
            }
            Event::TookOffice { .. } | Event::Changed => office.stale = true,
            Event::Heard => office.stale |= office.is_doubtful(),
            Event::Timer => {}
            Event::Asked { number } => office.asked(number),
            Event::Proposed { term, answer } => effects.extend(office.proposed(now, term, answer)),
        }
        if now >= office.wake_at() {
            effects.extend(office.judge(now, view));
        }
        effects
    }

    /// Whether [`Event::Heard`] has to be told. Thousands of nodes speak all the time: where nothing is doubtful, what
    /// they say can wait.
    pub fn listens(&self) -> bool {
        self.office.as_ref().is_some_and(Office::is_doubtful)
    }

    /// When [`Event::Timer`] has to be told.
    pub fn wake_at(&self) -> Option<Duration> {
        self.office.as_ref().map(Office::wake_at)
    }
}

impl Office {
    fn new(term: u64, reap_after: Duration, now: Duration) -> Self {
        Self {
            term,
            reap_after,
            listening_since: now,
            stepped_at: now,
            judged_at: None,
            asked_at: None,
            stale: true,
            migrations: BTreeMap::new(),
            nodes: BTreeMap::new(),
            words: Words::default(),
            proposing: None,
        }
    }

    /// What was said while the process was stopped may not be read yet: silence begins anew.
    fn notice_sleep(&mut self, now: Duration) {
        if now.saturating_sub(self.stepped_at) > ASLEEP_AFTER {
            self.listening_since = now;
            self.migrations.values_mut().for_each(Watch::forget_stale);
        }
        self.stepped_at = now;
    }

    fn is_doubtful(&self) -> bool {
        !self.migrations.is_empty() || !self.nodes.is_empty()
    }

    fn wake_at(&self) -> Duration {
        let pause = if self.stale { JUDGE_PAUSE } else { JUDGE_INTERVAL };
        self.judged_at.map_or(Duration::ZERO, |at| at + pause)
    }

    fn asked(&mut self, number: u64) {
        for watch in self.migrations.values_mut() {
            watch.asked(number);
        }
    }

    fn proposed(&mut self, now: Duration, term: u64, answer: Answer) -> Option<Effect> {
        let Motion { about, what, .. } = self.proposing.take_if(|_| term == self.term)?;
        let attention = match &about {
            About::Migration { migration, .. } => {
                self.migrations.get_mut(migration).map(|watch| &mut watch.attention)
            }
            About::Node(node) => self.nodes.get_mut(node),
        };
        match answer {
            Answer::Accepted => {
                // What was held back behind this proposal is not to wait.
                self.judged_at = None;
                Some(Effect::Report(Report { term, about, what, loud: false }))
            }
            Answer::Refused { why } => {
                let attention = attention?;
                attention.hold(now);
                attention.say(term, about, format!("the ledger refused: {why}"), true)
            }
            Answer::NotDecided => {
                attention?.hold(now);
                None
            }
        }
    }

    /// Looks at everything once.
    fn judge(&mut self, now: Duration, view: View<'_>) -> Vec<Effect> {
        self.stale = false;
        self.judged_at = Some(now);
        self.words.count(now, view.state);
        let words = std::mem::take(&mut self.words);
        let hearing = Hearing::new(view, &words, self.listening_since, now);
        let mut effects = Vec::new();
        let mut motions = self.judge_migrations(now, &hearing, &mut effects);
        motions.extend(self.judge_nodes(now, &hearing, &mut effects));
        self.words = words;
        if self.proposing.is_none() {
            // Migrations come first: a side that is reaped and then proven off was reaped.
            if let Some(motion) = motions.into_iter().next() {
                effects.push(Effect::Propose { term: self.term, command: motion.command.clone() });
                self.proposing = Some(motion);
            }
        }
        effects.extend(self.ask(now));
        effects
    }

    fn judge_migrations(
        &mut self,
        now: Duration,
        hearing: &Hearing<'_>,
        effects: &mut Vec<Effect>,
    ) -> Vec<Motion> {
        let mut gone = std::mem::take(&mut self.migrations);
        let mut motions = Vec::new();
        for (volume, migration) in past_deadline(hearing.state) {
            let mut watch = gone
                .remove(&migration.id)
                .unwrap_or_else(|| Watch::new(now, &migration.source, &migration.target));
            watch.note_phase(&migration.phase);
            let about = About::Migration { volume: volume.clone(), migration: migration.id };
            let facts = hearing.facts(volume, migration, watch.asked_first());
            let verdict = decide(&facts, self.term);
            let stale_for = watch.stale_for(now, &verdict);
            let said = match hearing.heard_first(&facts, verdict) {
                Verdict::Wait { why } => watch.attention.say(self.term, about, why, false),
                Verdict::LeaveAlone { why } => watch.attention.say(self.term, about, why, true),
                Verdict::Reap { decision, ground } if ground.may_pass() && stale_for < self.reap_after => {
                    let why = format!(
                        "in {} s, unless it is unpublished: {}",
                        self.reap_after.as_secs(),
                        decision.evidence
                    );
                    watch.attention.say(self.term, about, why, false)
                }
                Verdict::Reap { decision, ground: _ } => {
                    if watch.attention.is_free(now) {
                        let what = format!("node {} loses the volume: {}", decision.stale, decision.evidence);
                        let (volume, migration) = (volume.clone(), migration.id);
                        let command = Command::Reap { volume, migration, decision };
                        motions.push(Motion { about, command, what });
                    }
                    None
                }
            };
            effects.extend(said);
            self.migrations.insert(migration.id, watch);
        }
        motions
    }

    fn judge_nodes(
        &mut self,
        now: Duration,
        hearing: &Hearing<'_>,
        effects: &mut Vec<Effect>,
    ) -> Vec<Motion> {
        let verdicts = hearing.doubtful.iter().map(|node| (*node, hearing.node(node).verdict()));
        let doubtful: BTreeMap<&NodeId, OffVerdict> = verdicts.collect();
        let attached = newest_attachments(hearing.state, |node| doubtful.contains_key(node));
        self.nodes.retain(|node, _| attached.contains_key(node));
        let mut motions = Vec::new();
        for (node, up_to) in attached {
            let attention = self.nodes.entry(node.clone()).or_default();
            let about = About::Node(node.clone());
            let said = match doubtful.get(node) {
                None | Some(OffVerdict::NotOff) => None,
                Some(OffVerdict::Wait { why }) => attention.say(self.term, about, (*why).to_owned(), false),
                Some(OffVerdict::LeaveAlone { why }) => {
                    attention.say(self.term, about, (*why).to_owned(), true)
                }
                Some(OffVerdict::Off(proof)) => {
                    if attention.is_free(now) {
                        let what = format!("the node is off, what it had is free: {}", proof.words().1);
                        let words = hearing.words_of(node);
                        let (node, proof) = (node.clone(), proof.clone());
                        let command = Command::NodeIsOff { node, volume: None, up_to, words, proof };
                        motions.push(Motion { about, command, what });
                    }
                    None
                }
            };
            effects.extend(said);
        }
        motions
    }

    /// Has those looked at again whose time has come.
    fn ask(&mut self, now: Duration) -> Option<Effect> {
        if self.asked_at.is_some_and(|at| now < at + ASK_PAUSE) {
            return None;
        }
        let mut due: Vec<_> = self.migrations.values_mut().filter(|watch| watch.is_due(now)).collect();
        due.sort_by_key(|watch| watch.due_at());
        let nodes: BTreeSet<NodeId> =
            due.into_iter().take(MIGRATIONS_ASKED_AT_ONCE).flat_map(|watch| watch.ask(now)).collect();
        if nodes.is_empty() {
            return None;
        }
        self.asked_at = Some(now);
        Some(Effect::AskSessionsAgain { nodes })
    }
}

/// Migrations that are overdue or being reaped.
fn past_deadline(state: &State) -> impl Iterator<Item = (&VolumeId, &Migration)> {
    let migrations = state.volumes().iter().filter_map(|(id, volume)| Some((id, volume.migration.as_ref()?)));
    migrations.filter(|(_, migration)| match migration.phase {
        MigrationPhase::Active => false,
        MigrationPhase::Overdue | MigrationPhase::Reaping(_) => true,
    })
}

/// For each of these nodes that has an attachment, the generation of its newest one.
fn newest_attachments(state: &State, among: impl Fn(&NodeId) -> bool) -> BTreeMap<&NodeId, Generation> {
    let mut newest = BTreeMap::new();
    let attachments = state.volumes().values().flat_map(|volume| &volume.attachments);
    for (node, attachment) in attachments.filter(|(node, _)| among(node)) {
        let generation: &mut Generation = newest.entry(node).or_default();
        *generation = attachment.generation.max(*generation);
    }
    newest
}

#[cfg(test)]
mod table;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod walk;
