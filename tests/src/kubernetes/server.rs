//! A simulated API server: it lists and watches by resource version, refuses a name that is there, merges annotations
//! into an object of the version that is meant, reviews tokens by a table, and can be away.
//!
//! Life cycle: it serves from its start to the end of the test's runtime. What it has is in memory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, Response, Uri};
use futures::Stream;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::named;

/// How often a watch without news gets a bookmark, in milliseconds.
const BOOKMARK_MS: u64 = 2_000;
/// How long a watch lasts that does not say how long it wants to, in seconds.
const WATCH_SECONDS: u64 = 300;

/// The path of an object's collection without its namespace, and the object's namespace and name.
pub(super) type Place = (String, String, String);

/// A change that watches tell of.
struct Change {
    version: u64,
    path: String,
    event: Value,
}

#[derive(Default)]
pub(super) struct Scene {
    version: u64,
    pub(super) objects: BTreeMap<Place, Value>,
    changes: Vec<Change>,
    /// Every request is answered with 503, and watches end.
    is_away: bool,
    /// What is said of each token; of others, that they are not valid.
    reviews: BTreeMap<String, Value>,
    reviewed: usize,
    /// How many events were refused because they were there.
    repeated_events: usize,
    /// So many writes by name are refused, as if somebody else had been there in between.
    pub(super) refused_writes: usize,
}

#[derive(Clone)]
struct Shared {
    scene: Arc<Mutex<Scene>>,
    /// Counts changes of the scene; watches wait for them.
    changed: watch::Sender<u64>,
}

/// The server.
pub struct SimulatedApiServer {
    address: SocketAddr,
    shared: Shared,
}

impl SimulatedApiServer {
    /// Starts it on a free port, with these objects.
    pub async fn start(objects: impl IntoIterator<Item = Value>) -> Result<Self> {
        let scene = Scene { version: 1_000, ..Scene::default() };
        let shared = Shared { scene: Arc::new(Mutex::new(scene)), changed: watch::Sender::new(0) };
        let listener =
            tokio::net::TcpListener::bind("127.0.0.1:0").await.context("a port for the API server")?;
        let address = listener.local_addr()?;
        let router = Router::new().fallback(answer).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let server = Self { address, shared };
        server.put(objects);
        Ok(server)
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Has these objects from now on, in place of those of their names.
    pub fn put(&self, objects: impl IntoIterator<Item = Value>) {
        self.shared.change(|scene| {
            for object in objects {
                scene.put(object, "MODIFIED");
            }
        });
    }

    /// Has the object no longer.
    pub fn delete(&self, object: Value) {
        self.shared.change(|scene| {
            let place = place(&object);
            scene.put(object, "DELETED");
            scene.objects.remove(&place);
        });
    }

    /// Is away, or is back.
    pub fn set_away(&self, is_away: bool) {
        self.shared.change(|scene| scene.is_away = is_away);
    }

    /// The pods that it has.
    pub fn pods(&self) -> Vec<Value> {
        self.shared.lock().objects_at("/api/v1/pods")
    }

    /// The object of this name in the collection, which is a path without the namespace.
    pub fn object(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        let place = (collection.to_owned(), namespace.to_owned(), name.to_owned());
        self.shared.lock().objects.get(&place).cloned()
    }

    /// Refuses the next writes by name, as if somebody else had been there in between.
    pub fn refuse_writes(&self, count: usize) {
        self.shared.change(|scene| scene.refused_writes = count);
    }

    /// The events that were taken, in the order of their names.
    pub fn events(&self) -> Vec<Value> {
        self.shared.lock().objects_at("/api/v1/events")
    }

    /// How often an event was posted that was there.
    pub fn repeated_events(&self) -> usize {
        self.shared.lock().repeated_events
    }

    /// Says this of the token from now on: the `status` of its review, or, without one, that it is not valid.
    pub fn review(&self, token: &str, status: Option<Value>) {
        self.shared.change(|scene| match status {
            Some(status) => drop(scene.reviews.insert(token.to_owned(), status)),
            None => drop(scene.reviews.remove(token)),
        });
    }

    /// How many tokens were reviewed.
    pub fn reviewed(&self) -> usize {
        self.shared.lock().reviewed
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Scene> {
        self.scene.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Scene) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.send_modify(|count| *count += 1);
        result
    }
}

impl Scene {
    pub(super) fn put(&mut self, mut object: Value, verb: &str) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let place = place(&object);
        let event = json!({"type": verb, "object": object});
        self.changes.push(Change { version: self.version, path: place.0.clone(), event });
        self.objects.insert(place, object);
    }

    fn objects_at(&self, path: &str) -> Vec<Value> {
        self.objects.iter().filter(|((of, ..), _)| of == path).map(|(_, object)| object.clone()).collect()
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn place(object: &Value) -> Place {
    let plural = format!("{}s", text(&object["kind"]).to_lowercase());
    let version = text(&object["apiVersion"]);
    let root = if version.contains('/') { "apis" } else { "api" };
    let metadata = &object["metadata"];
    (format!("/{root}/{version}/{plural}"), text(&metadata["namespace"]), text(&metadata["name"]))
}

pub(super) fn reply(code: u16, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = axum::http::StatusCode::from_u16(code).unwrap_or_default();
    response.headers_mut().insert("content-type", axum::http::HeaderValue::from_static("application/json"));
    response
}

pub(super) fn refusal(code: u16, reason: &str) -> Response<Body> {
    reply(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "simulated", "reason": reason, "code": code}),
    )
}

async fn answer(State(shared): State<Shared>, method: Method, uri: Uri, body: Bytes) -> Response<Body> {
    let path = uri.path().to_owned();
    if shared.lock().is_away {
        return refusal(503, "ServiceUnavailable");
    }
    if let Some(place) = named::place_at(&path) {
        return shared.change(|scene| scene.named(&method, place, &body));
    }
    if method == Method::POST {
        return create(&shared, &path, &body);
    }
    if method == Method::PATCH {
        return annotate(&shared, &path, &body);
    }
    if method != Method::GET {
        return refusal(405, "MethodNotAllowed");
    }
    let query: BTreeMap<_, _> =
        uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')).collect();
    let number = |key: &str| query.get(key).and_then(|text| text.parse::<u64>().ok());
    if query.get("watch") == Some(&"true") {
        let lasts = Duration::from_secs(number("timeoutSeconds").unwrap_or(WATCH_SECONDS));
        let from = number("resourceVersion").unwrap_or_default();
        let watch = Watch {
            changed: shared.changed.subscribe(),
            shared,
            path,
            from,
            ends_at: Instant::now() + lasts,
            bookmark_at: Instant::now() + Duration::from_millis(BOOKMARK_MS),
        };
        return Response::new(Body::from_stream(watch.events()));
    }
    let scene = shared.lock();
    let metadata = json!({"resourceVersion": scene.version.to_string()});
    let items = scene.objects_at(&path);
    reply(200, &json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}))
}

fn create(shared: &Shared, path: &str, body: &[u8]) -> Response<Body> {
    let Ok(mut object) = serde_json::from_slice::<Value>(body) else { return refusal(400, "BadRequest") };
    if path.ends_with("/tokenreviews") {
        return shared.change(|scene| {
            scene.reviewed += 1;
            let token = text(&object["spec"]["token"]);
            let status = scene.reviews.get(&token).cloned();
            object["status"] = status
                .unwrap_or_else(|| json!({"authenticated": false, "error": "token has expired, simulated"}));
            reply(201, &object)
        });
    }
    if !path.ends_with("/events") {
        return refusal(404, "NotFound");
    }
    object["kind"] = json!("Event");
    object["apiVersion"] = json!("v1");
    shared.change(|scene| {
        if scene.objects.contains_key(&place(&object)) {
            scene.repeated_events += 1;
            return refusal(409, "AlreadyExists");
        }
        scene.put(object.clone(), "ADDED");
        reply(201, &object)
    })
}

/// Merges annotations into an object.
fn annotate(shared: &Shared, path: &str, body: &[u8]) -> Response<Body> {
    let Ok(patch) = serde_json::from_slice::<Value>(body) else { return refusal(400, "BadRequest") };
    shared.change(|scene| {
        let found = scene.objects.iter().find(|((collection, namespace, name), _)| {
            let (root, plural) = collection.rsplit_once('/').unwrap_or_default();
            path == format!("{root}/namespaces/{namespace}/{plural}/{name}")
        });
        let Some(mut object) = found.map(|(_, object)| object.clone()) else {
            return refusal(404, "NotFound");
        };
        let is_other = |field: &&str| object["metadata"][field] != patch["metadata"][field];
        if ["uid", "resourceVersion"].iter().any(is_other) {
            return refusal(409, "Conflict");
        }
        for (key, value) in patch["metadata"]["annotations"].as_object().into_iter().flatten() {
            object["metadata"]["annotations"][key] = value.clone();
        }
        scene.put(object.clone(), "MODIFIED");
        reply(200, &object)
    })
}

/// A watch of one kind.
struct Watch {
    shared: Shared,
    path: String,
    /// The version of the last change that was told.
    from: u64,
    changed: watch::Receiver<u64>,
    ends_at: Instant,
    bookmark_at: Instant,
}

impl Watch {
    fn events(self) -> impl Stream<Item = Result<String, std::io::Error>> {
        futures::stream::unfold(self, async |mut watch| {
            let event = watch.next().await?;
            Some((event.map(|event| format!("{event}\n")), watch))
        })
    }

    /// The next event; none when the watch has lasted long enough.
    async fn next(&mut self) -> Option<Result<Value, std::io::Error>> {
        loop {
            let (is_away, version, next) = {
                let scene = self.shared.lock();
                let mut changes = scene.changes.iter();
                let next = changes.find(|change| change.path == self.path && change.version > self.from);
                (scene.is_away, scene.version, next.map(|change| (change.version, change.event.clone())))
            };
            if is_away {
                return Some(Err(std::io::Error::other("the API server is away")));
            }
            if let Some((version, event)) = next {
                self.from = version;
                return Some(Ok(event));
            }
            let now = Instant::now();
            if now >= self.ends_at {
                return None;
            }
            if now >= self.bookmark_at {
                self.from = self.from.max(version);
                self.bookmark_at = now + Duration::from_millis(BOOKMARK_MS);
                return Some(Ok(bookmark(&self.path, version)));
            }
            // Whichever it was, the scene tells.
            let _ = timeout_at(self.ends_at.min(self.bookmark_at), self.changed.changed()).await;
        }
    }
}

/// An object of the watched kind with nothing but the version that all was told to.
fn bookmark(path: &str, version: u64) -> Value {
    let version_of_kind = path.trim_start_matches("/apis/").trim_start_matches("/api/");
    let (api_version, _) = version_of_kind.rsplit_once('/').unwrap_or_default();
    json!({"type": "BOOKMARK",
           "object": {"apiVersion": api_version, "kind": "Bookmark",
                      "metadata": {"resourceVersion": version.to_string()}}})
}
