//! The executor: carries out what [`state_machine::plan()`] asks for, on the leader only.
//!
//! [`Executor::step`] is the decision, without IO or a clock; `shell` performs its effects. Life of a step:
//! performed on the appliance, its outcome proposed as a command, forgotten. Nothing is remembered that the state
//! does not say again: a new leader begins with an empty executor, and repeats what its predecessor left unfinished,
//! since every action on the appliance is idempotent.

mod hand;
mod shell;

use std::collections::{BTreeMap, BTreeSet};

use backend::BackendError;
use state_machine::{Command, Generation, Problem, ProblemKind, Step, StepKind, VolumeId};

pub use hand::Hand;
pub(crate) use shell::Shell;

/// The first wait after a failed attempt, in milliseconds; each further failure doubles it.
const FIRST_RETRY_MS: u64 = 500;
/// The longest wait between attempts, in milliseconds.
const LONGEST_RETRY_MS: u64 = 30_000;
/// So many failures lead to the longest wait.
const FAILURES_TO_LONGEST: u32 = 6;
/// The longest text of a problem that goes into the ledger, in bytes.
const MAX_PROBLEM_BYTES: usize = 500;

/// What a step is about: generations are unique, the volume is there to be looked up.
pub type Key = (VolumeId, Generation);

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// This replica leads, in `term`.
    Leading { term: u64 },
    /// It does no longer.
    Deposed,
    /// The term was written on the appliance, or not.
    TermBegun { now_ms: u64, term: u64, result: Result<(), BackendError> },
    /// The state asks for these steps; also told when a wait is over.
    Planned { now_ms: u64, steps: Vec<Step> },
    /// An action ended.
    Performed { term: u64, key: Key, outcome: Outcome },
    /// A proposal was committed, or this replica could not commit it: then the step is repeated, later.
    Proposed { now_ms: u64, term: u64, key: Key, committed: bool },
}

/// What an action came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Done,
    /// The slot, to be seen empty, has this.
    SlotTaken(String),
    /// It failed, or nobody knows.
    Failed(BackendError),
}

impl Outcome {
    /// Whether the appliance did not answer.
    fn is_unreached(&self) -> bool {
        matches!(self, Self::Failed(BackendError::Unavailable { .. }))
    }
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Write the term on the appliance, so that earlier leaders' commands are refused there.
    BeginTerm { term: u64 },
    /// Do this on the appliance.
    Perform { term: u64, step: Step, action: Action },
    /// Propose the outcome, in this term and no other.
    Propose { term: u64, key: Key, command: Command },
}

/// One thing done on the appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The step itself.
    Step,
    /// Remove what a creation that is given up may have left.
    UndoCreate {
        /// Why it is given up.
        because: Problem,
    },
}

/// How far a step has come.
#[derive(Debug)]
enum Work {
    Performing {
        step: Box<Step>,
        action: Action,
        failures: u32,
    },
    /// The outcome is being proposed; `failures` is set if it is tried again afterwards.
    Reporting {
        failures: Option<u32>,
    },
    /// `told`: the ledger has the trouble, so a step without it means that somebody asks again.
    Waiting {
        until_ms: u64,
        failures: u32,
        told: bool,
    },
}

/// What keeps the term from the appliance. While it does, every step's trouble is this one.
#[derive(Debug)]
struct Obstacle {
    problem: Problem,
    failures: u32,
    /// `None` while another try runs.
    retry_at_ms: Option<u64>,
}

/// The executor's state.
#[derive(Debug, Default)]
pub struct Executor {
    term: Option<u64>,
    /// The appliance knows our term.
    begun: bool,
    /// Why it does not, if it was tried.
    obstacle: Option<Obstacle>,
    work: BTreeMap<Key, Work>,
}

impl Executor {
    /// Takes in one event and says what is to be done.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Leading { term } => {
                *self = Self { term: Some(term), ..Self::default() };
                vec![Effect::BeginTerm { term }]
            }
            Event::Deposed => {
                *self = Self::default();
                Vec::new()
            }
            Event::TermBegun { now_ms, term, result } if self.term == Some(term) => {
                self.term_begun(now_ms, result)
            }
            Event::Planned { now_ms, steps } => self.planned(now_ms, steps),
            Event::Performed { term, key, outcome } if self.term == Some(term) => {
                self.performed(term, key, outcome).into_iter().collect()
            }
            Event::Proposed { now_ms, term, key, committed } if self.term == Some(term) => {
                self.proposed(now_ms, key, committed);
                Vec::new()
            }
            Event::TermBegun { .. } | Event::Performed { .. } | Event::Proposed { .. } => Vec::new(),
        }
    }

    /// Whether `Planned` leads to anything.
    pub fn is_leading(&self) -> bool {
        self.term.is_some()
    }

    /// When `Planned` has to be told again although the state did not change. What cannot go on by itself at its time is
    /// not waited for, or it would be told again and again: before the appliance knows the term that is everything but
    /// the next try to write it, and then what stands behind another step of its volume, whose end tells `Planned` too.
    pub fn wake_at_ms(&self) -> Option<u64> {
        if !self.begun {
            return self.obstacle.as_ref().and_then(|obstacle| obstacle.retry_at_ms);
        }
        let waits = self.work.iter().filter_map(|((volume, _), work)| match work {
            Work::Waiting { until_ms, .. } if !self.is_busy(volume) => Some(*until_ms),
            Work::Waiting { .. } | Work::Performing { .. } | Work::Reporting { .. } => None,
        });
        waits.min()
    }

    fn term_begun(&mut self, now_ms: u64, result: Result<(), BackendError>) -> Vec<Effect> {
        match result {
            Ok(()) => (self.begun, self.obstacle) = (true, None),
            Err(error) => {
                let failures = match (&error, &self.obstacle) {
                    // Somebody leads in a later term: raft will tell soon. If it does not, the fence on the appliance
                    // is higher than it should be, which does not mend itself.
                    (BackendError::StaleTerm { .. }, _) => FAILURES_TO_LONGEST,
                    (_, Some(obstacle)) => obstacle.failures,
                    (_, None) => 0,
                };
                let retry_at_ms = Some(now_ms + retry_ms(failures));
                self.obstacle =
                    Some(Obstacle { problem: problem_of(&error), failures: failures + 1, retry_at_ms });
            }
        }
        Vec::new()
    }

    fn planned(&mut self, now_ms: u64, steps: Vec<Step>) -> Vec<Effect> {
        let Some(term) = self.term else { return Vec::new() };
        let planned: BTreeSet<Key> = steps.iter().map(key_of).collect();
        self.work.retain(|key, work| work.is_busy() || planned.contains(key));
        if !self.begun {
            return self.without_term(now_ms, term, steps);
        }
        let mut effects = Vec::new();
        for step in steps {
            let key = key_of(&step);
            if self.is_busy(&step.volume) {
                continue;
            }
            let failures = match self.work.get(&key) {
                None => 0,
                Some(Work::Waiting { failures, told: true, .. }) if step.problem.is_none() => *failures,
                Some(Work::Waiting { until_ms, failures, .. }) if now_ms >= *until_ms => *failures,
                Some(Work::Waiting { .. } | Work::Performing { .. } | Work::Reporting { .. }) => continue,
            };
            let action = Action::Step;
            let work = Work::Performing { step: Box::new(step.clone()), action: action.clone(), failures };
            self.work.insert(key, work);
            effects.push(Effect::Perform { term, step, action });
        }
        effects
    }

    /// Nothing is done before the appliance knows the term; whoever waits is told why.
    fn without_term(&mut self, now_ms: u64, term: u64, steps: Vec<Step>) -> Vec<Effect> {
        let Some(obstacle) = &mut self.obstacle else { return Vec::new() };
        let mut effects = Vec::new();
        if obstacle.retry_at_ms.is_some_and(|retry_at_ms| now_ms >= retry_at_ms) {
            obstacle.retry_at_ms = None;
            effects.push(Effect::BeginTerm { term });
        }
        let problem = obstacle.problem.clone();
        for step in steps.iter().filter(|step| step.problem.is_none()) {
            if !self.is_busy(&step.volume) {
                let key = key_of(step);
                self.work.insert(key.clone(), Work::Reporting { failures: Some(0) });
                effects.push(Effect::Propose { term, key, command: trouble(step, problem.clone()) });
            }
        }
        effects
    }

    /// Whether something runs for the volume: one operation a volume at a time.
    fn is_busy(&self, volume: &VolumeId) -> bool {
        let first = (volume.clone(), Generation(0));
        let last = (volume.clone(), Generation(u64::MAX));
        self.work.range(first..=last).any(|(_, work)| work.is_busy())
    }

    fn performed(&mut self, term: u64, key: Key, outcome: Outcome) -> Option<Effect> {
        let Some(Work::Performing { step, action, failures }) = self.work.remove(&key) else { return None };
        if let Outcome::Failed(error @ BackendError::StaleTerm { .. }) = &outcome {
            let problem = problem_of(error);
            // Another leader took over on the appliance: nothing more is done until the term is accepted again.
            self.begun = false;
            self.obstacle = Some(Obstacle { problem, failures: 0, retry_at_ms: Some(0) });
            return None;
        }
        match verdict(&step, &action, outcome) {
            Verdict::Propose(command) => {
                self.work.insert(key.clone(), Work::Reporting { failures: None });
                Some(Effect::Propose { term, key, command })
            }
            Verdict::Undo(because) => {
                let action = Action::UndoCreate { because };
                let work = Work::Performing { step: step.clone(), action: action.clone(), failures };
                self.work.insert(key, work);
                Some(Effect::Perform { term, step: *step, action })
            }
            Verdict::TryAgain(problem) => {
                let command = trouble(&step, problem);
                self.work.insert(key.clone(), Work::Reporting { failures: Some(failures) });
                Some(Effect::Propose { term, key, command })
            }
        }
    }

    fn proposed(&mut self, now_ms: u64, key: Key, committed: bool) {
        let Some(Work::Reporting { failures }) = self.work.get(&key) else { return };
        match (committed, *failures) {
            (true, None) => {
                self.work.remove(&key);
            }
            // Without a quorum nothing is recorded; the appliance is not to be asked again and again meanwhile.
            (told, failures) => {
                let failures = failures.unwrap_or(0);
                let until_ms = now_ms + retry_ms(failures);
                self.work.insert(key, Work::Waiting { until_ms, failures: failures + 1, told });
            }
        }
    }
}

impl Work {
    fn is_busy(&self) -> bool {
        match self {
            Self::Performing { .. } | Self::Reporting { .. } => true,
            Self::Waiting { .. } => false,
        }
    }
}

pub fn key_of(step: &Step) -> Key {
    (step.volume.clone(), step.generation)
}

enum Verdict {
    Propose(Command),
    Undo(Problem),
    TryAgain(Problem),
}

/// What an action's outcome means for the ledger.
fn verdict(step: &Step, action: &Action, outcome: Outcome) -> Verdict {
    let (volume, generation) = (step.volume.clone(), step.generation);
    match (&step.kind, action, outcome) {
        (_, Action::UndoCreate { because }, Outcome::Done) => {
            Verdict::Propose(Command::OperationAbandoned { volume, generation, problem: because.clone() })
        }
        (StepKind::InspectSlot, Action::Step, Outcome::Done) => {
            Verdict::Propose(Command::SlotWasFree { volume, generation })
        }
        (StepKind::Create, Action::Step, Outcome::Done) => {
            Verdict::Propose(Command::VolumeCreated { volume, generation })
        }
        (StepKind::Expand { .. }, Action::Step, Outcome::Done) => {
            Verdict::Propose(Command::VolumeExpanded { volume, generation })
        }
        (StepKind::Delete, Action::Step, Outcome::Done) => {
            Verdict::Propose(Command::VolumeDeleted { volume, generation })
        }
        (StepKind::ConfirmExport { node }, Action::Step, Outcome::Done) => {
            Verdict::Propose(Command::ExportConfirmed { volume, node: node.clone(), generation })
        }
        (_, _, Outcome::SlotTaken(what)) => {
            let message =
                format!("the appliance has {what}, which is not in the ledger; it is not adopted silently");
            let problem = problem(ProblemKind::Conflict, &message);
            Verdict::Propose(Command::OperationAbandoned { volume, generation, problem })
        }
        (kind, action, Outcome::Failed(error)) => failed(step, kind, action, &error),
    }
}

/// Final refusals of a creation or an expansion are given up; everything else is tried again.
fn failed(step: &Step, kind: &StepKind, action: &Action, error: &BackendError) -> Verdict {
    let problem = problem_of(error);
    let is_final = matches!(error, BackendError::Full | BackendError::Rejected { .. });
    match (kind, action) {
        (StepKind::Create, Action::Step) if is_final => Verdict::Undo(problem),
        (StepKind::Expand { .. }, Action::Step) if is_final => {
            let (volume, generation) = (step.volume.clone(), step.generation);
            Verdict::Propose(Command::OperationAbandoned { volume, generation, problem })
        }
        (
            StepKind::InspectSlot
            | StepKind::Create
            | StepKind::Expand { .. }
            | StepKind::Delete
            | StepKind::ConfirmExport { .. },
            Action::Step | Action::UndoCreate { .. },
        ) => Verdict::TryAgain(problem),
    }
}

fn trouble(step: &Step, problem: Problem) -> Command {
    let (volume, generation) = (step.volume.clone(), step.generation);
    match &step.kind {
        StepKind::ConfirmExport { node } => {
            Command::GrantFailed { volume, node: node.clone(), generation, problem }
        }
        StepKind::InspectSlot | StepKind::Create | StepKind::Expand { .. } | StepKind::Delete => {
            Command::OperationFailed { volume, generation, problem }
        }
    }
}

fn kind_of(error: &BackendError) -> ProblemKind {
    match error {
        BackendError::Full => ProblemKind::Full,
        BackendError::Unavailable { .. } | BackendError::StaleTerm { .. } | BackendError::Busy { .. } => {
            ProblemKind::Unavailable
        }
        BackendError::Conflict { .. } => ProblemKind::Conflict,
        BackendError::Rejected { .. } => ProblemKind::Rejected,
    }
}

/// The appliance's trouble as the ledger and callers have it.
pub(crate) fn problem_of(error: &BackendError) -> Problem {
    problem(kind_of(error), &error.to_string())
}

fn problem(kind: ProblemKind, message: &str) -> Problem {
    let mut end = message.len().min(MAX_PROBLEM_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    Problem { kind, message: message[..end].to_owned() }
}

fn retry_ms(failures: u32) -> u64 {
    FIRST_RETRY_MS.saturating_mul(1 << failures.min(16)).min(LONGEST_RETRY_MS)
}

#[cfg(test)]
mod kills;
#[cfg(test)]
mod tests;
