//! The reaper's rim: waits for one event at a time, and has the effects performed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use replica::Replica;
use state_machine::Command;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{About, Answer, Effect, Event, Evidence, Reaper, Report, View};

/// Answers that may wait. One proposal is under way at a time, one more may be left from an earlier term.
const ANSWERS_QUEUED: usize = 16;

/// What the reaper acts with.
pub(crate) struct Shell<E> {
    pub(crate) replica: Replica,
    pub(crate) evidence: Arc<E>,
    /// How long a side has to be stale before it is taken.
    pub(crate) reap_after: Duration,
}

impl<E: Evidence> Shell<E> {
    /// Runs until `stop`. Does nothing while another replica leads.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let (sender, mut answers) = mpsc::channel(ANSWERS_QUEUED);
        let mut leadership = self.replica.watch_leadership();
        let mut applied = self.replica.watch_applied();
        let mut news = self.evidence.watch();
        let (mut reaper, begun) = (Reaper::new(self.reap_after), Instant::now());
        leadership.mark_changed();
        loop {
            let wait = reaper.wake_at().map(|at| at.saturating_sub(begun.elapsed()));
            let event = tokio::select! {
                () = stop.cancelled() => return,
                changed = leadership.changed() => {
                    if changed.is_err() { return }
                    match *leadership.borrow_and_update() {
                        Some(leadership) => Event::TookOffice { term: leadership.term },
                        None => Event::LeftOffice,
                    }
                }
                Some(event) = answers.recv() => event,
                changed = applied.changed() => {
                    if changed.is_err() { return }
                    Event::Changed
                }
                changed = news.changed(), if reaper.listens() => {
                    if changed.is_err() { return }
                    Event::Heard
                }
                () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => Event::Timer,
            };
            self.handle(&mut reaper, event, begun.elapsed(), &sender);
        }
    }

    /// One event and all that follows from it at once.
    fn handle(&self, reaper: &mut Reaper, event: Event, now: Duration, sender: &mpsc::Sender<Event>) {
        let mut queue = VecDeque::from([event]);
        while let Some(event) = queue.pop_front() {
            let evidence = self.evidence.as_ref();
            let effects = self.replica.read_local(|state| reaper.step(event, now, View { state, evidence }));
            for effect in effects {
                match effect {
                    Effect::AskSessionsAgain { nodes } => {
                        queue.push_back(Event::Asked { number: self.evidence.ask_again(&nodes) });
                    }
                    Effect::Propose { term, command } => {
                        tokio::spawn(propose(self.replica.clone(), term, command, sender.clone()));
                    }
                    Effect::Report(report) => log(&report),
                }
            }
        }
    }
}

async fn propose(replica: Replica, term: u64, command: Command, sender: mpsc::Sender<Event>) {
    let answer = match replica.propose_as_leader(term, command).await {
        Ok(response) => Answer::from(response),
        Err(error) => {
            tracing::info!(term, %error, "the reaper's proposal was not decided");
            Answer::NotDecided
        }
    };
    // The receiver is gone only when the reaper has stopped; then nobody waits for the answer.
    let _ = sender.send(Event::Proposed { term, answer }).await;
}

fn log(report: &Report) {
    let (term, what) = (report.term, report.what.as_str());
    match (&report.about, report.loud) {
        (About::Migration { volume, migration }, true) => {
            tracing::warn!(%volume, %migration, term, what, "overdue migration");
        }
        (About::Migration { volume, migration }, false) => {
            tracing::info!(%volume, %migration, term, what, "overdue migration");
        }
        (About::Node(node), true) => tracing::warn!(%node, term, what, "node that may be off"),
        (About::Node(node), false) => tracing::info!(%node, term, what, "node that may be off"),
    }
}
