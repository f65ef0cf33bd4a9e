//! What Kubernetes shows of the driver's volumes, and what the driver tells Kubernetes.
//!
//! [`Observer`] watches nodes, volumes, claims, pods and KubeVirt's virtual machines and keeps the few facts of each
//! that a decision may need. [`Index`] answers from those facts: pure, without IO and without a clock. Every answer
//! is known, absent or unknown, and unknown never reads as absent: a kind that was not listed completely, or whose
//! watch is broken, is unknown. [`Events`] posts events on claims, [`Tokens`] has ServiceAccount tokens checked; [`Secrets`] is where certificates are kept.
//!
//! The driver works without Kubernetes: [`Observer::none`] and [`Events::none`] are there for that.
//!
//! Implements DESIGN's "Publish" (the row for a VM restarted elsewhere), "Proof" (c) and (d), the first step of
//! "Reaping", and "Security" (tokens).

mod backoff;
mod client;
mod events;
pub mod hotplug;
mod index;
mod objects;
mod quantity;
mod secrets;
mod tokens;
mod watch;
mod webhook;

pub use client::{ConnectError, connect, connect_as_nobody};
pub use events::{Event, EventOutcome, EventReason, Events};
pub use index::{
    Answer, AttachmentSeen, ClaimRef, DEFAULT_COMPLETION_SECONDS_PER_GIB, Health, Index, Kind,
    MAX_FACTS_OF_A_KIND, MigrationSeen, NodeSeen, PodSeen, Users, VmSeen, Why,
};
pub use kube::Client;
pub use objects::RecordedError;
pub use quantity::bytes as quantity_bytes;
pub use secrets::{Secrets, StoredSecret, WriteError, trust_webhooks};
pub use tokens::{
    MAX_CACHED_TOKENS, MAX_REVIEWS_AT_ONCE, MAX_TOKEN_BYTES, PodIdentity, TOKEN_CACHED, TokenAnswer,
    TokenIdentity, Tokens,
};
pub use watch::{LIST_PAGE, LIST_TIMEOUT, Observer, Settings, SimulatedKubernetes, WATCH_TIMEOUT_SECONDS};
pub use webhook::{
    ANSWER_WITHIN, CREATE_PATH, DELETE_PATH, Happening, Hold, MAX_CONNECTIONS, MAX_REVIEW_BYTES,
    MAX_REVIEWS_UNDER_WAY, Webhook, WebhookSettings,
};
