//! Events on claims, for `kubectl describe pvc`.
//!
//! An event's object is named after what happened: whoever posts it again, after a failover for instance, finds it
//! there and is done. Posting never waits and never fails a caller: the queue is bounded, and what does not fit, or
//! is not accepted for minutes, is counted and forgotten.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event as ApiEvent, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::backoff::Backoff;
use crate::index::ClaimRef;

/// Events that may wait to be posted.
const QUEUE: usize = 1_000;
/// For how long an event is tried: an API server that restarts, or is upgraded, is back by then.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after the first failed attempt; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The longest message, in bytes: what the newer events API accepts.
const MESSAGE_BYTES: usize = 1_024;
/// How much of the claim's name goes into an event's name, in bytes: with the rest it fits a DNS subdomain.
const NAME_BYTES: usize = 200;
/// How many bytes of the hash go into an event's name.
const HASH_BYTES: usize = 12;

/// What happened to a volume (COMPATIBILITY.md, "Events").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventReason {
    /// A second node was admitted.
    MigrationStarted,
    /// A migration outlived its timeout.
    MigrationOverdue,
    /// The source left.
    MigrationCompleted,
    /// The target left, or a side was reaped.
    MigrationFailed,
    /// A node was refused, as others have the volume.
    AttachmentConflict,
    /// A node was admitted.
    VolumeAttached,
    /// A node was proven off.
    VolumeDetached,
    /// An attachment was cleared whose node is gone.
    StaleAttachmentCleared,
    /// An attachment pod may not go yet, as nothing else holds the volume.
    HotplugVolumeHeld,
    /// It was held for as long as may be, and goes.
    HotplugHoldExpired,
    /// The volume's last attachment pod goes, as the volume leaves the VM.
    HotplugVolumeLeaving,
}

impl EventReason {
    /// Its name, in the event and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::MigrationStarted => "MigrationStarted",
            Self::MigrationOverdue => "MigrationOverdue",
            Self::MigrationCompleted => "MigrationCompleted",
            Self::MigrationFailed => "MigrationFailed",
            Self::AttachmentConflict => "AttachmentConflict",
            Self::VolumeAttached => "VolumeAttached",
            Self::VolumeDetached => "VolumeDetached",
            Self::StaleAttachmentCleared => "StaleAttachmentCleared",
            Self::HotplugVolumeHeld => "HotplugVolumeHeld",
            Self::HotplugHoldExpired => "HotplugHoldExpired",
            Self::HotplugVolumeLeaving => "HotplugVolumeLeaving",
        }
    }

    /// `Warning` where somebody should look, else `Normal`.
    pub fn kind(self) -> &'static str {
        match self {
            Self::MigrationOverdue
            | Self::MigrationFailed
            | Self::AttachmentConflict
            | Self::StaleAttachmentCleared
            | Self::HotplugHoldExpired => "Warning",
            Self::MigrationStarted
            | Self::MigrationCompleted
            | Self::VolumeAttached
            | Self::VolumeDetached
            | Self::HotplugVolumeHeld
            | Self::HotplugVolumeLeaving => "Normal",
        }
    }
}

/// Something to tell people about a claim's volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The claim; see [`Index::claim`](crate::Index::claim).
    pub claim: ClaimRef,
    /// What happened.
    pub reason: EventReason,
    /// In a sentence or two; cut after 1,024 bytes.
    pub message: String,
    /// Tells this occurrence from others with the same claim and reason, the same on every replica: a migration's
    /// number, an attachment's generation.
    pub key: String,
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventOutcome {
    /// It was posted.
    Posted,
    /// It had been posted before.
    AlreadyThere,
    /// The API server did not take it.
    Failed,
    /// The queue was full, or posting was stopped.
    Dropped,
}

type Count = dyn Fn(EventReason, EventOutcome) + Send + Sync;

/// Posts events. Clones share one queue.
#[derive(Clone)]
pub struct Events {
    /// `None`: there is no Kubernetes.
    queue: Option<mpsc::Sender<Event>>,
    count: Arc<Count>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Events {
    /// Posts events under the driver's name until `stop`, and calls `count` once for each with what became of it.
    /// Must be called inside an async runtime.
    pub fn start(
        client: Client,
        driver: &str,
        stop: CancellationToken,
        count: impl Fn(EventReason, EventOutcome) + Send + Sync + 'static,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let count: Arc<Count> = Arc::new(count);
        tokio::spawn(post_all(client, driver.to_owned(), waiting, Arc::clone(&count), stop));
        Self { queue: Some(queue), count }
    }

    /// Without Kubernetes: events go nowhere, and are not counted.
    pub fn none() -> Self {
        Self { queue: None, count: Arc::new(|_, _| ()) }
    }

    /// Has the event posted, soon or never. Does not wait.
    pub fn post(&self, event: Event) {
        let Some(queue) = &self.queue else { return };
        let reason = event.reason;
        if queue.try_send(event).is_err() {
            (self.count)(reason, EventOutcome::Dropped);
        }
    }
}

async fn post_all(
    client: Client,
    driver: String,
    mut waiting: mpsc::Receiver<Event>,
    count: Arc<Count>,
    stop: CancellationToken,
) {
    while let Some(Some(event)) = stop.run_until_cancelled(waiting.recv()).await {
        let outcome = stop.run_until_cancelled(post(&client, &driver, &event)).await;
        count(event.reason, outcome.unwrap_or(EventOutcome::Dropped));
    }
    waiting.close();
    while let Some(event) = waiting.recv().await {
        count(event.reason, EventOutcome::Dropped);
    }
}

async fn post(client: &Client, driver: &str, event: &Event) -> EventOutcome {
    let api: Api<ApiEvent> = Api::namespaced(client.clone(), &event.claim.namespace);
    let object = object_of(event, driver, Timestamp::now());
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let give_up = Instant::now() + PATIENCE;
    loop {
        let problem = match timeout(ATTEMPT_TIMEOUT, api.create(&PostParams::default(), &object)).await {
            Ok(Ok(_)) => return EventOutcome::Posted,
            Ok(Err(kube::Error::Api(status))) if status.is_already_exists() => {
                return EventOutcome::AlreadyThere;
            }
            Ok(Err(kube::Error::Api(status))) if is_final(status.code) => {
                warn!(claim = %event.claim, reason = event.reason.name(), %status, "cannot post an event");
                return EventOutcome::Failed;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {ATTEMPT_TIMEOUT:?}"),
        };
        let pause = backoff.pause();
        if Instant::now() + pause >= give_up {
            warn!(claim = %event.claim, reason = event.reason.name(), problem, "cannot post an event");
            return EventOutcome::Failed;
        }
        sleep(pause).await;
    }
}

/// Whether the API server would say the same again.
fn is_final(code: u16) -> bool {
    (400..500).contains(&code) && !matches!(code, 408 | 409 | 429)
}

fn object_of(event: &Event, driver: &str, now: Timestamp) -> ApiEvent {
    let claim = &event.claim;
    ApiEvent {
        metadata: ObjectMeta {
            name: Some(name_of(event)),
            namespace: Some(claim.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("PersistentVolumeClaim".to_owned()),
            namespace: Some(claim.namespace.clone()),
            name: Some(claim.name.clone()),
            uid: claim.uid.clone(),
            ..ObjectReference::default()
        },
        reason: Some(event.reason.name().to_owned()),
        message: Some(cut(&event.message, MESSAGE_BYTES).to_owned()),
        type_: Some(event.reason.kind().to_owned()),
        source: Some(EventSource { component: Some(driver.to_owned()), host: None }),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..ApiEvent::default()
    }
}

/// The event's name: the claim's, and a hash of what happened to which claim.
fn name_of(event: &Event) -> String {
    let uid = event.claim.uid.as_deref().unwrap_or_default();
    let mut hash = Sha256::new();
    for part in [uid, event.reason.name(), event.key.as_str()] {
        // With its length before it, no part runs into the next.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let digits: String = hash.finalize().iter().take(HASH_BYTES).map(|byte| format!("{byte:02x}")).collect();
    let claim = cut(&event.claim.name, NAME_BYTES).trim_end_matches(['.', '-']);
    format!("{claim}.{digits}")
}

/// The beginning of `text` that fits `bytes`.
fn cut(text: &str, bytes: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(claim: &str, uid: &str, reason: EventReason, key: &str) -> Event {
        let claim =
            ClaimRef { namespace: "apps".to_owned(), name: claim.to_owned(), uid: Some(uid.to_owned()) };
        Event { claim, reason, message: "m".to_owned(), key: key.to_owned() }
    }

    #[test]
    fn a_name_tells_occurrences_apart_and_nothing_else() {
        let started = EventReason::MigrationStarted;
        let one = event("disk", "u1", started, "7");
        let again = Event { message: "in other words".to_owned(), ..one.clone() };
        assert_eq!(name_of(&one), name_of(&again));
        for other in [
            event("disk", "u1", started, "8"),
            event("disk", "u2", started, "7"),
            event("disk", "u1", EventReason::MigrationOverdue, "7"),
            event("disk2", "u1", started, "7"),
        ] {
            assert_ne!(name_of(&one), name_of(&other), "{other:?}");
        }
    }

    #[test]
    fn names_and_messages_have_bounds() {
        let mut long =
            event(&format!("{}-{}", "a".repeat(199), "b".repeat(53)), "u", EventReason::VolumeAttached, "1");
        let name = name_of(&long);
        assert!(name.len() <= 253 && name.starts_with(&"a".repeat(199)) && !name.contains("-."), "{name}");
        // Two bytes a letter, and an odd number of bytes before.
        long.message = format!("x{}", "\u{e4}".repeat(2_000));
        let object = object_of(&long, "driver", Timestamp::now());
        assert!(object.message.is_some_and(|text| text.len() == 1_023));
    }
}
