//! When it is looked, and who asks for a look: the rim with the clock, the log and the metrics.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backend::{Backend, BackendError};
use proto::operator::v1;
use replica::{MonotonicClock, SystemClock};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::judge::Verdict;
use super::pass::{Cleaned, Found, Reconciler, Thing, Witnesses};
use super::witnesses::LeadersWitnesses;
use crate::config::OrphansConfig;
use crate::metrics::Metrics;

/// When a new leader looks first, at the latest: what is more urgent after a failover comes before.
const FIRST_LOOK: Duration = Duration::from_secs(60);
/// People who may wait for a look at once.
const ASKED_QUEUED: usize = 16;

type Answer = Result<v1::ListOrphansReply, String>;

/// Where people ask.
#[derive(Clone)]
pub(crate) struct Orphans {
    asked: mpsc::Sender<oneshot::Sender<Answer>>,
}

impl Orphans {
    /// Has the leader look now. The error says why there is no answer.
    pub(crate) async fn look(&self, deadline: Instant) -> Answer {
        let (sender, answer) = oneshot::channel();
        let ended = || "this controller is about to end".to_owned();
        let asked = async {
            self.asked.send(sender).await.map_err(|_| ended())?;
            answer.await.map_err(|_| ended())?
        };
        let late = || "the look at the appliance was not over in time".to_owned();
        tokio::time::timeout_at(deadline.into(), asked).await.unwrap_or_else(|_| Err(late()))
    }
}

/// The task.
pub(crate) struct Shell<W> {
    reconciler: Reconciler<W>,
    /// The appliance as the executor of this office changes it.
    in_office: watch::Receiver<Option<Arc<dyn Backend>>>,
    asked: mpsc::Receiver<oneshot::Sender<Answer>>,
    metrics: Metrics,
    clock: SystemClock,
}

impl Shell<LeadersWitnesses> {
    pub(crate) fn new(
        witnesses: LeadersWitnesses,
        settings: OrphansConfig,
        in_office: watch::Receiver<Option<Arc<dyn Backend>>>,
        metrics: Metrics,
    ) -> (Orphans, Self) {
        let (sender, asked) = mpsc::channel(ASKED_QUEUED);
        let reconciler = Reconciler::new(settings, witnesses);
        (Orphans { asked: sender }, Self { reconciler, in_office, asked, metrics, clock: SystemClock::new() })
    }
}

impl<W: Witnesses> Shell<W> {
    /// Runs until `stop`. Looks only while this replica leads.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        // What is under way when it stops is dropped: the appliance is looked at anew by whoever leads next.
        stop.run_until_cancelled(self.follow()).await;
    }

    async fn follow(&mut self) {
        let interval = Duration::from_secs(self.reconciler.settings.interval_seconds.into());
        let mut look_at = None;
        self.in_office.mark_changed();
        loop {
            let wait = look_at.map(|at: Duration| at.saturating_sub(self.clock.elapsed()));
            tokio::select! {
                changed = self.in_office.changed() => {
                    if changed.is_err() { return }
                    let leads = self.in_office.borrow_and_update().is_some();
                    look_at = leads.then(|| self.clock.elapsed() + interval.min(FIRST_LOOK));
                    self.reconciler.forget();
                    self.metrics.orphans(None);
                }
                Some(asker) = self.asked.recv() => {
                    // Whoever asked may have gone.
                    let _ = asker.send(self.answer().await);
                }
                () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => {
                    self.pass().await;
                    look_at = Some(self.clock.elapsed() + interval);
                }
            }
        }
    }

    /// A look; its error is for people.
    async fn look(&mut self) -> Result<(Arc<dyn Backend>, Vec<Found>), String> {
        let backend = self.in_office.borrow().clone();
        let backend = backend.ok_or("this replica does not lead; another one does, or will")?;
        let looked = self.reconciler.look(&*backend, self.clock.elapsed()).await;
        let found = looked.map_err(|error| error.to_string())?;
        let removable = found.iter().filter(|found| found.verdict.is_removable()).count();
        self.metrics.orphans(Some((found.len() - removable, removable)));
        Ok((backend, found))
    }

    async fn pass(&mut self) {
        let (backend, found) = match self.look().await {
            Ok(looked) => looked,
            Err(why) => return tracing::warn!(why, "orphans were not looked for; nothing is removed"),
        };
        for Found { thing, verdict, .. } in &found {
            if let Verdict::Kept { why } = verdict {
                tracing::debug!(volume = %thing.volume, file = thing.file_path, why, "orphan kept");
            }
        }
        for (thing, because, outcome) in self.reconciler.clean(&*backend, &found).await {
            self.tell(&thing, because, &outcome);
        }
    }

    fn tell(&self, thing: &Thing, because: &str, outcome: &Cleaned) {
        let Thing { volume, file_path: file, .. } = thing;
        match outcome {
            Cleaned::Removed => {
                self.metrics.orphan_cleaned();
                tracing::warn!(%volume, file, because, "orphan removed from the appliance");
            }
            Cleaned::WouldBe => tracing::info!(%volume, file, because, "orphan would be removed (dry run)"),
            Cleaned::Failed(BackendError::Conflict { reason }) => {
                tracing::info!(%volume, file, reason, "orphan kept after all");
            }
            Cleaned::Failed(error) => tracing::warn!(%volume, file, %error, "orphan not removed"),
        }
    }

    async fn answer(&mut self) -> Answer {
        let (_, found) = self.look().await?;
        let removal = match (self.reconciler.settings.enabled, self.reconciler.settings.dry_run) {
            (false, _) => "off",
            (true, true) => "dry run",
            (true, false) => "on",
        };
        let orphans = found.into_iter().map(message).collect();
        Ok(v1::ListOrphansReply { orphans, removal: removal.to_owned() })
    }
}

fn message(found: Found) -> v1::Orphan {
    let Found { thing, seen_for, verdict } = found;
    let (verdict, reason) = match verdict {
        Verdict::Removable { because } => ("removable", because.to_owned()),
        Verdict::Kept { why } => ("kept", why),
        Verdict::Needed => ("needed", String::new()),
    };
    v1::Orphan {
        volume_id: thing.volume.to_string(),
        file_path: thing.file_path,
        form: if thing.disk.is_some() { "disk" } else { "file" }.to_owned(),
        size_bytes: thing.disk.as_ref().map(|disk| disk.size_bytes),
        exported: thing.disk.is_some_and(|disk| disk.exported),
        seen_for_ms: u64::try_from(seen_for.as_millis()).unwrap_or(u64::MAX),
        verdict: verdict.to_owned(),
        reason,
    }
}
