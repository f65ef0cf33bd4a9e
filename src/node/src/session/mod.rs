//! The session with the controllers (DESIGN.md, "Node sessions"): their leader hears what this node has, on each change
//! and regularly, and says what is to be cut.
//!
//! Life cycle: one task, which begins when the controllers know the node. It dials them in turn until one takes the
//! session, which only the leader does, and reports until the line is lost or the leader leads no more; then it dials
//! again, with pauses that grow to a bound and are never quite the same on two nodes. It ends with the plugin. Nothing
//! is remembered from one session to the next. Orders are operations like any other (`cut`), and are waited for at the
//! stop.
//!
//! A report rests on a look (`look`) that is taken off the runtime's threads where it may hang; while one is being taken,
//! orders are heard. It is taken after each operation, after each order, when the connections have changed, and when the
//! last report is as old as the interval.

mod cut;
mod look;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proto::node::v1::{LeaderOrder, NodeReport};
use rand::Rng;
use state_machine::{Generation, VolumeId};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use crate::gateway::Client;
use crate::operations::Operations;
use crate::volumes::NodeVolumes;
use cut::Cut;
use look::{Content, Look, Lookout, Outline};

/// How long a controller may take to take the session, or to make room for a report, in ms.
const ANSWER_LIMIT_MS: u64 = 5_000;
/// How long registering again may take, in ms.
const REGISTER_LIMIT_MS: u64 = 10_000;
/// First and longest pause between two rounds of dialling, in ms. Each is shortened at random, by up to a half.
const PAUSE_MS: (u64, u64) = (200, 5_000);
/// How often the connections are looked at for a change, in ms.
const POLL_MS: u64 = 2_000;
/// The least time from one look to the next, in ms: one look serves all that changes at once.
const LOOK_PAUSE_MS: u64 = 50;
/// How soon a look is repeated that could not see everything, in ms.
const UNSEEN_AGAIN_MS: u64 = 1_000;
/// Reports that may wait on their way out: the controllers' newest word is worth more than old looks.
const REPORTS_QUEUED: usize = 2;
/// Outcomes of cuts that may wait; each cut waits for its place.
const OUTCOMES_QUEUED: usize = 64;

/// The session of one node.
pub(crate) struct Session {
    lookout: Lookout,
    interval: Duration,
}

/// What attempts to cut have found since the last look: who uses the volume.
type Held = BTreeMap<VolumeId, Vec<String>>;

/// A session that a controller has taken.
struct Line {
    reports: mpsc::Sender<NodeReport>,
    orders: Streaming<LeaderOrder>,
    /// What was reported last.
    said: Content,
    outline: Option<Outline>,
    /// The newest order.
    echo: u64,
    held: Held,
    outcomes: (Outcomes, mpsc::Receiver<(VolumeId, Vec<String>)>),
}

/// Where a cut tells who uses its volume.
type Outcomes = mpsc::Sender<(VolumeId, Vec<String>)>;

impl Session {
    pub(crate) fn new(
        volumes: NodeVolumes,
        operations: Arc<Operations>,
        kubelet_directory: PathBuf,
        interval: Duration,
    ) -> Self {
        Self { lookout: Lookout { volumes, operations, kubelet_directory }, interval }
    }

    /// Reports until `stop` is cancelled.
    pub(crate) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.keep() => {}
        }
        self.lookout.volumes.metrics.session_connected(false);
    }

    async fn keep(&self) {
        let gateway = &self.lookout.volumes.gateway;
        let (mut pause_ms, mut said) = (PAUSE_MS.0, String::new());
        loop {
            gateway.wait_until_registered().await;
            // One look serves a round of refusals; after a session it is too old.
            let mut first = None;
            for (address, client) in gateway.clients() {
                let look = match first.take() {
                    Some(look) => look,
                    None => self.lookout.look(&Held::new()).await,
                };
                let ended = match self.dial(client, look.clone()).await {
                    Ok(line) => {
                        tracing::info!(node = %self.lookout.volumes.identity.node, address, "session begun");
                        (pause_ms, said) = (PAUSE_MS.0, String::new());
                        self.lookout.volumes.metrics.session_connected(true);
                        let ended = self.talk(line).await;
                        self.lookout.volumes.metrics.session_connected(false);
                        tracing::info!(address, reason = ended.message(), "session ended");
                        ended
                    }
                    Err(refused) => {
                        first = Some(look);
                        refused
                    }
                };
                let (code, reason) = (ended.code(), format!("{address}: {}", ended.message()));
                if matches!(code, Code::NotFound | Code::Aborted) {
                    self.register_again(reason).await;
                } else if code == Code::Unavailable {
                    tracing::debug!(reason, "no session there");
                } else if reason != said {
                    // Only the last is kept, so that two that alternate are said more than once: they are rare.
                    tracing::warn!(?code, reason, "no session");
                    said = reason;
                }
            }
            sleep(shortened(Duration::from_millis(pause_ms))).await;
            pause_ms = (pause_ms * 2).min(PAUSE_MS.1);
        }
    }

    /// The controllers have another boot on record, or forgot the node: they will say what is the matter.
    async fn register_again(&self, reason: String) {
        tracing::warn!(reason, "no session; registering again");
        let until = Instant::now() + Duration::from_millis(REGISTER_LIMIT_MS);
        if let Err(error) = self.lookout.volumes.gateway.register(until).await {
            tracing::warn!(%error, "not registered again");
        }
    }

    /// Offers the session to a controller, with a first report.
    async fn dial(&self, mut client: Client, look: Look) -> Result<Line, Status> {
        let Look { since_boot_ns, content: said, outline } = look;
        let (reports, outgoing) = mpsc::channel(REPORTS_QUEUED);
        let host_nqn = self.lookout.volumes.identity.host_nqn.to_string();
        let first = NodeReport { host_nqn, ..self.report(since_boot_ns, 0, Some(said.clone())) };
        let limit = Duration::from_millis(ANSWER_LIMIT_MS);
        let offer = async {
            // There is room for it: nothing was sent yet.
            reports.send(first).await.ok();
            client.session(ReceiverStream::new(outgoing)).await
        };
        let answer = timeout(limit, offer).await;
        let orders = answer.map_err(|_| Status::unavailable("no answer in time"))??.into_inner();
        let outcomes = mpsc::channel(OUTCOMES_QUEUED);
        Ok(Line { reports, orders, said, outline, echo: 0, held: Held::new(), outcomes })
    }

    /// Reports and obeys until the session is over; says why it is.
    async fn talk(&self, mut line: Line) -> Status {
        let operations = &self.lookout.operations;
        let mut looking = None;
        let (mut wanted, mut not_before) = (false, Instant::now());
        // From then on all nodes keep to the same interval.
        let mut due = Instant::now() + shortened(self.until_next(&line.said));
        let mut poll_at = Instant::now() + Duration::from_millis(POLL_MS);
        loop {
            if wanted && looking.is_none() && Instant::now() >= not_before {
                wanted = false;
                not_before = Instant::now() + Duration::from_millis(LOOK_PAUSE_MS);
                let (lookout, echo, held) = (self.lookout.clone(), line.echo, std::mem::take(&mut line.held));
                looking = Some(Box::pin(async move { (echo, lookout.look(&held).await) }));
            }
            tokio::select! {
                order = line.orders.message() => match order {
                    Ok(Some(order)) => {
                        self.obey(&mut line, order);
                        wanted = true;
                    }
                    Ok(None) => return Status::unavailable("the controller ended it"),
                    Err(status) => return status,
                },
                (echo, look) = finished(&mut looking) => {
                    looking = None;
                    if let Err(lost) = self.send(&mut line, echo, look).await {
                        return lost;
                    }
                    due = Instant::now() + self.until_next(&line.said);
                }
                Some((volume, by)) = line.outcomes.1.recv() => {
                    line.held.insert(volume, by);
                    wanted = true;
                }
                () = operations.ended() => wanted = true,
                () = sleep_until(not_before), if wanted && looking.is_none() => {}
                () = sleep_until(due), if !wanted && looking.is_none() => wanted = true,
                () = sleep_until(poll_at), if looking.is_none() => {
                    wanted |= self.lookout.outline().await != line.outline;
                    poll_at = Instant::now() + Duration::from_millis(POLL_MS);
                }
            }
        }
    }

    /// How long the last report may stay the last.
    fn until_next(&self, said: &Content) -> Duration {
        if said.is_complete() {
            self.interval
        } else {
            Duration::from_millis(UNSEEN_AGAIN_MS).min(self.interval)
        }
    }

    async fn send(&self, line: &mut Line, echo: u64, look: Look) -> Result<(), Status> {
        let Look { since_boot_ns, content, outline } = look;
        let news = (content != line.said).then(|| content.clone());
        let report = self.report(since_boot_ns, echo, news);
        let room = line.reports.send_timeout(report, Duration::from_millis(ANSWER_LIMIT_MS)).await;
        room.map_err(|_| Status::unavailable("the controller takes no reports"))?;
        (line.said, line.outline) = (content, outline);
        Ok(())
    }

    /// A report; without `news` all is as it was.
    fn report(&self, since_boot_ns: u64, echo: u64, news: Option<Content>) -> NodeReport {
        let identity = &self.lookout.volumes.identity;
        let unchanged = news.is_none();
        let Content { incomplete, volumes } = news.unwrap_or_default();
        NodeReport {
            node_id: identity.node.to_string(),
            boot_id: identity.boot.to_string(),
            host_nqn: String::new(),
            since_boot_ns,
            echo,
            unchanged,
            incomplete,
            volumes,
        }
    }

    fn obey(&self, line: &mut Line, order: LeaderOrder) {
        line.echo = line.echo.max(order.number);
        for cut in order.cuts {
            match VolumeId::parse(&cut.volume_id) {
                Ok(volume) => self.begin_cut(volume, Generation(cut.generation), line.outcomes.0.clone()),
                Err(error) => tracing::warn!(volume = cut.volume_id, %error, "an order makes no sense"),
            }
        }
    }

    /// Cuts in the background. Who uses it goes to `outcomes`; everything else shows in the next look.
    fn begin_cut(&self, volume: VolumeId, generation: Generation, outcomes: Outcomes) {
        let (operations, volumes) = (self.lookout.operations.clone(), self.lookout.volumes.clone());
        let kubelet = self.lookout.kubelet_directory.clone();
        tokio::spawn(async move {
            let id = volume.clone();
            let work = async move { volumes.cut(&id, generation, &kubelet).await };
            match operations.run("cut", &volume, work).await {
                Ok(Cut::Done) => tracing::info!(%volume, %generation, "cut, as ordered"),
                Ok(Cut::Late(standing)) => {
                    tracing::info!(%volume, %generation, ?standing, "an order to cut came late; nothing was done");
                }
                Ok(Cut::Used(by)) => {
                    tracing::warn!(%volume, %generation, ?by, "to be cut, but in use: it stays");
                    outcomes.send((volume, by)).await.ok();
                }
                // The operation has logged it; the order is repeated.
                Err(error) => tracing::debug!(%volume, %generation, %error, "not cut"),
            }
        });
    }
}

/// The result of the look that is being taken; without one, never.
async fn finished<T>(looking: &mut Option<impl Future<Output = T> + Unpin>) -> T {
    match looking {
        Some(looking) => looking.await,
        None => std::future::pending().await,
    }
}

/// This long, or up to a half less: so that nodes which lost their leader together do not come back together.
fn shortened(longest: Duration) -> Duration {
    longest.mul_f64(rand::rng().random_range(0.5..=1.0))
}
