//! The executor's rim: waits for one event at a time, and performs the effects.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backend::{Backend, BackendError, DiskSpec, Presence};
use replica::Replica;
use state_machine::{ByteSize, Nqn, Step, StepKind, plan};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Action, Effect, Event, Executor, Outcome, key_of};
use crate::metrics::Metrics;

/// Events that may wait; more than one a volume in work is not possible, so senders rarely wait.
const EVENTS_QUEUED: usize = 1024;

/// What the executor acts with.
#[derive(Clone)]
pub(crate) struct Shell {
    pub(crate) replica: Replica,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) nqn_prefix: Nqn,
    pub(crate) metrics: Metrics,
}

impl Shell {
    /// Runs until `shutdown`. Does nothing while another replica leads.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let (sender, mut events) = mpsc::channel(EVENTS_QUEUED);
        let mut leadership = self.replica.watch_leadership();
        let mut applied = self.replica.watch_applied();
        let (mut executor, begun) = (Executor::default(), Instant::now());
        leadership.mark_changed();
        loop {
            let now_ms = millis(begun);
            let wait = executor.wake_at_ms().map(|at| Duration::from_millis(at.saturating_sub(now_ms)));
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                changed = leadership.changed() => {
                    if changed.is_err() { return }
                    match *leadership.borrow_and_update() {
                        Some(leadership) => Event::Leading { term: leadership.term },
                        None => Event::Deposed,
                    }
                }
                Some(event) = events.recv() => event,
                changed = applied.changed() => {
                    if changed.is_err() { return }
                    if !executor.is_leading() { continue }
                    self.planned(begun)
                }
                () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => self.planned(begun),
            };
            self.handle(&mut executor, event, begun, &sender);
        }
    }

    /// One event and all that follows from it at once.
    fn handle(&self, executor: &mut Executor, event: Event, begun: Instant, sender: &mpsc::Sender<Event>) {
        let mut queue = VecDeque::from([event]);
        while let Some(event) = queue.pop_front() {
            // What ended, or a term that begins, makes room for the next step.
            let look_again = !matches!(event, Event::Planned { .. });
            for effect in executor.step(event) {
                tokio::spawn(self.clone().perform(effect, begun, sender.clone()));
            }
            if look_again {
                queue.push_back(self.planned(begun));
            }
        }
    }

    fn planned(&self, begun: Instant) -> Event {
        Event::Planned { now_ms: millis(begun), steps: self.replica.read_local(plan) }
    }

    async fn perform(self, effect: Effect, begun: Instant, sender: mpsc::Sender<Event>) {
        let event = match effect {
            Effect::BeginTerm { term } => {
                let result = self.backend.begin_term(term).await;
                self.metrics.appliance_reached(reached(&result));
                match &result {
                    Ok(()) => tracing::info!(term, "leading; the appliance knows the term"),
                    Err(error) => {
                        tracing::warn!(term, %error, "leading, but the appliance does not know the term")
                    }
                }
                Event::TermBegun { now_ms: millis(begun), term, result }
            }
            Effect::Perform { term, step, action } => {
                let outcome = self.act(&step, &action).await;
                log_outcome(term, &step, &action, &outcome);
                Event::Performed { term, key: key_of(&step), outcome }
            }
            Effect::Propose { term, key, command } => {
                if let Err(error) = self.replica.propose_as_leader(term, command).await {
                    tracing::info!(volume = %key.0, generation = key.1.0, term, %error, "outcome not recorded");
                }
                Event::Proposed { now_ms: millis(begun), term, key }
            }
        };
        // The receiver is gone only when the executor has stopped; then nobody waits for the event.
        let _ = sender.send(event).await;
    }

    async fn act(&self, step: &Step, action: &Action) -> Outcome {
        let result = match (action, &step.kind) {
            (Action::UndoCreate { .. }, _) | (Action::Step, StepKind::Delete) => self.remove(step).await,
            (Action::Step, StepKind::InspectSlot) => return self.inspect(step).await,
            (Action::Step, StepKind::Create) => self.create(step).await,
            (Action::Step, StepKind::Expand { to }) => self.expand(step, *to).await,
            (Action::Step, StepKind::ConfirmExport { .. }) => self.confirm_export(step).await,
        };
        self.metrics.appliance_reached(reached(&result));
        result.map_or_else(Outcome::Failed, |()| Outcome::Done)
    }

    async fn inspect(&self, step: &Step) -> Outcome {
        match self.backend.look(&step.volume, &step.parameters.volume_path).await {
            Ok(Presence::Absent) => Outcome::Done,
            Ok(Presence::FileOnly) => {
                Outcome::SlotTaken(format!("a file for {} without a disk", step.volume))
            }
            Ok(Presence::Disk(disk)) => {
                Outcome::SlotTaken(format!("a disk {} with {}", step.volume, disk.file_path))
            }
            Err(error) => Outcome::Failed(error),
        }
    }

    async fn create(&self, step: &Step) -> Result<(), BackendError> {
        self.backend.create(&self.disk(step, step.size)?).await
    }

    async fn expand(&self, step: &Step, to: ByteSize) -> Result<(), BackendError> {
        self.backend.resize(&self.disk(step, to)?).await
    }

    async fn remove(&self, step: &Step) -> Result<(), BackendError> {
        self.backend.remove(&step.volume, &step.parameters.volume_path).await
    }

    /// Finishes an export that is half done, but never makes a disk that is missing: it would be an empty one.
    async fn confirm_export(&self, step: &Step) -> Result<(), BackendError> {
        let spec = self.disk(step, step.size)?;
        match self.backend.look(&step.volume, &step.parameters.volume_path).await? {
            Presence::Disk(disk) => match disk.conflict_with(&spec) {
                Some(reason) => Err(BackendError::Conflict { reason }),
                None if disk.exported => Ok(()),
                None => self.backend.create(&spec).await,
            },
            Presence::Absent | Presence::FileOnly => {
                let reason = format!("the ledger has volume {}, the appliance has no such disk", step.volume);
                Err(BackendError::Conflict { reason })
            }
        }
    }

    fn disk(&self, step: &Step, size: ByteSize) -> Result<DiskSpec, BackendError> {
        let nqn = Nqn::of_volume(&self.nqn_prefix, &step.volume)
            .map_err(|error| BackendError::Rejected { words: format!("the volume's NQN {error}") })?;
        Ok(DiskSpec {
            volume: step.volume.clone(),
            directory: step.parameters.volume_path.clone(),
            size,
            nqn,
            nvme_port: step.parameters.nvme_port,
        })
    }
}

fn reached<T>(result: &Result<T, BackendError>) -> bool {
    !matches!(result, Err(BackendError::Unavailable { .. }))
}

fn millis(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn log_outcome(term: u64, step: &Step, action: &Action, outcome: &Outcome) {
    let (volume, generation) = (&step.volume, step.generation.0);
    let doing = match action {
        Action::Step => format!("{:?}", step.kind),
        Action::UndoCreate { .. } => "UndoCreate".to_owned(),
    };
    match outcome {
        Outcome::Done => tracing::info!(%volume, generation, term, doing, "done on the appliance"),
        Outcome::SlotTaken(_) | Outcome::Failed(_) => {
            tracing::warn!(%volume, generation, term, doing, ?outcome, "not done on the appliance");
        }
    }
}
