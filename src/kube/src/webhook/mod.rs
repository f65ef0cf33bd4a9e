//! The admission webhook for KubeVirt's attachment pods: HTTP and AdmissionReview around [`decide`](crate::hotplug::decide) and
//! [`mutate`](crate::hotplug::mutate) (KUBEVIRT.md, "The hotplug hazard").
//!
//! Any replica answers, from what it watches. It is there to help, not to stop anybody: what it does not know it
//! allows, and says so. A first denial is written on the pod, so that every replica counts a hold from the same
//! moment; what is held now is therefore to be seen at any replica ([`Webhook::holds`]).
//!
//! Life cycle: [`Webhook::serve`] until it is stopped. What a replica remembers by itself ([`holds`]) only stands in
//! for an annotation that could not be written, and ends with the process.

mod holds;
mod http;
mod judge;
mod review;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use std::{fmt, io};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::Stream;
use kube::Client;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::events::Events;
use crate::hotplug::{Departures, Reason, Settings};
use crate::watch::Observer;
pub use holds::Hold;
use holds::OwnHolds;
pub use http::MAX_CONNECTIONS;
use review::Answered;

/// The largest body that is read, in bytes: an object of etcd's largest size, twice, in JSON.
pub const MAX_REVIEW_BYTES: usize = 3 << 20;
/// Questions whose bodies are in memory at once; more wait, within [`ANSWER_WITHIN`].
pub const MAX_REVIEWS_UNDER_WAY: usize = 32;
/// How long an answer takes at most: the API server waits for 2 s, and goes on without one.
pub const ANSWER_WITHIN: Duration = Duration::from_millis(1_500);

/// Where deletions of attachment pods are judged.
pub const DELETE_PATH: &str = "/hotplug/delete";
/// Where attachment pods that are to be created are completed.
pub const CREATE_PATH: &str = "/hotplug/create";

/// How the webhook is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookSettings {
    /// How deletions are decided.
    pub guard: Settings,
    /// The namespace of KubeVirt's controller.
    pub kubevirt_namespace: String,
    /// Whether attachment pods are completed when they are created.
    pub mutate: bool,
}

/// What happened, to be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// A deletion was decided on.
    Decided(Reason),
    /// A pod was let go after its deletion had been denied for so long.
    Released(Duration),
    /// A new pod was completed.
    Mutated,
}

type Tell = dyn Fn(Happening) + Send + Sync;

/// The webhook. Clones share it.
#[derive(Clone)]
pub struct Webhook {
    shared: Arc<Shared>,
}

struct Shared {
    observer: Observer,
    events: Events,
    /// Writes annotations; without it nothing is written.
    client: Option<Client>,
    settings: WebhookSettings,
    /// The name of KubeVirt's controller as a user.
    kubevirt: String,
    own: Mutex<OwnHolds>,
    /// Locked for as long as one deletion is decided on: the next one has to see its outcome.
    departures: Mutex<Departures>,
    places: Semaphore,
    tell: Box<Tell>,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

impl Webhook {
    /// A webhook that knows what `observer` sees, posts to `events`, annotates through `client`, and has `tell` count.
    pub fn new(
        observer: Observer,
        events: Events,
        client: Option<Client>,
        settings: WebhookSettings,
        tell: impl Fn(Happening) + Send + Sync + 'static,
    ) -> Self {
        let kubevirt = format!("system:serviceaccount:{}:kubevirt-controller", settings.kubevirt_namespace);
        Self {
            shared: Arc::new(Shared {
                observer,
                events,
                client,
                settings,
                kubevirt,
                own: Mutex::default(),
                departures: Mutex::default(),
                places: Semaphore::new(MAX_REVIEWS_UNDER_WAY),
                tell: Box::new(tell),
            }),
        }
    }

    /// Answers callers on connections that were accepted and, for API servers, secured with TLS, until `stop`.
    pub async fn serve<Connection>(
        self,
        incoming: impl Stream<Item = io::Result<Connection>>,
        stop: CancellationToken,
    ) where
        Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let router = Router::new()
            .route(DELETE_PATH, post(delete))
            .route(CREATE_PATH, post(create))
            .layer(DefaultBodyLimit::max(MAX_REVIEW_BYTES))
            .with_state(self);
        http::serve(incoming, router, stop).await;
    }

    /// The pods that are held now, as far as this replica sees: those whose deletion was denied and would be denied
    /// again, in the order of namespaces and names.
    pub fn holds(&self) -> Result<Vec<Hold>, crate::Why> {
        self.shared.holds(SystemTime::now())
    }
}

impl Shared {
    fn own(&self) -> std::sync::MutexGuard<'_, OwnHolds> {
        // Each change leaves it whole, also one that panicked.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn delete(State(webhook): State<Webhook>, request: Request) -> Response {
    webhook.answer(request, async |shared, asked| Ok(shared.judge_delete(asked).await)).await
}

async fn create(State(webhook): State<Webhook>, request: Request) -> Response {
    webhook.answer(request, async |shared, asked| shared.complete_new(asked)).await
}

impl Webhook {
    /// Reads the question and has it answered, in time.
    async fn answer(
        &self,
        request: Request,
        judge: impl AsyncFnOnce(&Shared, review::Request) -> Result<Answered, serde_json::Error>,
    ) -> Response {
        let answering = async {
            // The semaphore is never closed.
            let _place = self.shared.places.acquire().await.ok();
            let body = match Bytes::from_request(request, &()).await {
                Ok(body) => body,
                Err(rejection) => return rejection.into_response(),
            };
            let asked = match review::Request::parse(&body) {
                Ok(asked) => asked,
                Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
            };
            let uid = asked.uid.clone();
            let answered = judge(&self.shared, asked).await.unwrap_or_else(|error| {
                warn!(%error, "the webhook cannot say what it wants changed");
                let why = format!("rds-csi cannot write its answer, and leaves the pod as it is: {error}");
                Answered::allowed_with_warning(uid, why)
            });
            json(&answered)
        };
        let late = || (StatusCode::SERVICE_UNAVAILABLE, format!("no answer within {ANSWER_WITHIN:?}\n"));
        timeout(ANSWER_WITHIN, answering).await.unwrap_or_else(|_| late().into_response())
    }
}

fn json(answered: &Answered) -> Response {
    match serde_json::to_vec(answered) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
