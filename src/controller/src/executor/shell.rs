//! The executor's rim: waits for one event at a time, and has the effects performed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backend::{Backend, BackendError};
use replica::Replica;
use state_machine::{State, Step, plan};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::hand::Hand;
use super::{Action, Effect, Event, Executor, Outcome, key_of};
use crate::metrics::Metrics;

/// Events that may wait; more than one a volume in work is not possible, so senders rarely wait.
const EVENTS_QUEUED: usize = 1024;

/// What the executor acts with.
#[derive(Clone)]
pub(crate) struct Shell {
    pub(crate) replica: Replica,
    pub(crate) hand: Hand,
    pub(crate) metrics: Metrics,
    /// The appliance as this leader changes it: whoever else does must share its numbers.
    pub(crate) in_office: watch::Sender<Option<Arc<dyn Backend>>>,
}

impl Shell {
    /// Runs until `shutdown`. Does nothing while another replica leads.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let (sender, mut events) = mpsc::channel(EVENTS_QUEUED);
        let mut leadership = self.replica.watch_leadership();
        let mut applied = self.replica.watch_applied();
        let (mut executor, begun) = (Executor::default(), Instant::now());
        let mut epoch = self.replica.read_local(State::epoch);
        leadership.mark_changed();
        loop {
            let now_ms = millis(begun);
            let wait = executor.wake_at_ms().map(|at| Duration::from_millis(at.saturating_sub(now_ms)));
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                changed = leadership.changed() => {
                    if changed.is_err() { return }
                    match *leadership.borrow_and_update() {
                        Some(leadership) => {
                            self.hand = self.hand.for_another_term();
                            self.in_office.send_replace(Some(self.hand.backend.clone()));
                            Event::Leading { term: leadership.term }
                        }
                        None => {
                            self.in_office.send_replace(None);
                            Event::Deposed
                        }
                    }
                }
                Some(event) = events.recv() => event,
                changed = applied.changed() => {
                    if changed.is_err() { return }
                    if !executor.is_leading() { continue }
                    let before = std::mem::replace(&mut epoch, self.replica.read_local(State::epoch));
                    match *leadership.borrow() {
                        // The term goes to the appliance anew, as one of the new epoch.
                        Some(leadership) if epoch != before => {
                            self.hand = self.hand.for_another_term();
                            Event::Leading { term: leadership.term }
                        }
                        Some(_) | None => self.planned(begun),
                    }
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
                // A cluster that took over from a lost one begins above the numbers that the lost one left there.
                let epoch = self.replica.read_local(State::epoch);
                let result = self.hand.begin_term(epoch.saturating_add(term)).await;
                self.metrics.appliance_reached(!matches!(result, Err(BackendError::Unavailable { .. })));
                match &result {
                    Ok(()) => tracing::info!(term, "leading; the appliance knows the term"),
                    Err(error) => {
                        tracing::warn!(term, %error, "leading, but the appliance does not know the term")
                    }
                }
                Event::TermBegun { now_ms: millis(begun), term, result }
            }
            Effect::Perform { term, step, action } => {
                let outcome = self.hand.act(&step, &action).await;
                self.metrics.appliance_reached(!outcome.is_unreached());
                log_outcome(term, &step, &action, &outcome);
                Event::Performed { term, key: key_of(&step), outcome }
            }
            Effect::Propose { term, key, command } => {
                let proposed = self.replica.propose_as_leader(term, command).await;
                if let Err(error) = &proposed {
                    tracing::info!(volume = %key.0, generation = key.1.0, term, %error, "outcome not recorded");
                }
                Event::Proposed { now_ms: millis(begun), term, key, committed: proposed.is_ok() }
            }
        };
        // The receiver is gone only when the executor has stopped; then nobody waits for the event.
        let _ = sender.send(event).await;
    }
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
