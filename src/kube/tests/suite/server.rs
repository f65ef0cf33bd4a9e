//! A simulated API server: lists with pages, watches from a resource version, forgets old versions, breaks on demand.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, Response, Uri};
use observer::Client;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::cluster::Cluster;

/// The path of an object's collection without its namespace, and the object's namespace and name.
type Place = (String, String, String);

/// A change that watches tell of.
struct Change {
    version: u64,
    path: String,
    event: Value,
}

/// What the server has and how it behaves.
#[derive(Default)]
pub(crate) struct Scene {
    version: u64,
    objects: BTreeMap<Place, Value>,
    changes: Vec<Change>,
    /// Changes up to this version are forgotten.
    forgotten: u64,
    /// Requests with this in their path are answered with the status.
    pub(crate) refused: BTreeMap<String, u16>,
    /// Watches of paths with this say nothing, as if their connection had died silently.
    pub(crate) mute: Option<String>,
    /// Pages after the first are not answered.
    pub(crate) holds_pages: bool,
    /// Each list and watch: its path, and `list` or `watch`.
    pub(crate) requests: Vec<(String, &'static str)>,
    pub(crate) watching: usize,
    /// The answers to token reviews, by token: the status.
    pub(crate) reviews: BTreeMap<String, Value>,
    pub(crate) reviewed: Vec<Value>,
    /// Creations that fail with the status before one is accepted.
    pub(crate) refuse_creations: Vec<u16>,
    /// Changes of objects, as they were asked for.
    pub(crate) patches: Vec<Value>,
    /// Changes of objects are answered with this status.
    pub(crate) refuse_patches: Option<u16>,
}

#[derive(Clone)]
struct Shared {
    scene: Arc<Mutex<Scene>>,
    /// Counts changes of the scene; watches wait for them.
    changed: watch::Sender<u64>,
    /// Counts how often all watches were cut.
    cuts: watch::Sender<u64>,
}

/// The server; it ends with the test's runtime.
pub(crate) struct SimulatedApiServer {
    address: SocketAddr,
    shared: Shared,
}

impl SimulatedApiServer {
    pub(crate) async fn start(cluster: &Cluster) -> Self {
        let shared = Shared {
            scene: Arc::new(Mutex::new(Scene { version: 1_000, ..Scene::default() })),
            changed: watch::Sender::new(0),
            cuts: watch::Sender::new(0),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let server = Self { address, shared };
        for object in &cluster.objects {
            server.put(object);
        }
        server
    }

    pub(crate) fn client(&self) -> Client {
        observer::connect_as_nobody(&format!("http://{}", self.address)).unwrap()
    }

    /// Looks at the scene or changes it.
    pub(crate) fn scene<T>(&self, with: impl FnOnce(&mut Scene) -> T) -> T {
        let result = with(&mut self.shared.lock());
        self.shared.changed.send_modify(|count| *count += 1);
        result
    }

    pub(crate) fn put(&self, object: &Value) {
        self.scene(|scene| scene.put(object, "MODIFIED"));
    }

    pub(crate) fn delete(&self, object: &Value) {
        self.scene(|scene| {
            scene.put(object, "DELETED");
            scene.objects.remove(&place(object));
        });
    }

    /// Breaks the connections of all watches.
    pub(crate) fn cut(&self) {
        self.shared.cuts.send_modify(|count| *count += 1);
    }

    pub(crate) fn lists(&self, plural: &str) -> usize {
        self.shared.lock().lists(plural)
    }

    /// Waits until the scene is so.
    pub(crate) async fn until(&self, is_so: impl Fn(&Scene) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        let waiting = async {
            while !is_so(&self.shared.lock()) {
                changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(crate::watching::DEADLINE, waiting).await.expect("the server never saw it");
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Scene> {
        self.scene.lock().unwrap()
    }
}

impl Scene {
    fn put(&mut self, object: &Value, verb: &str) {
        self.version += 1;
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let event = json!({"type": verb, "object": object});
        let place = place(&object);
        self.changes.push(Change { version: self.version, path: place.0.clone(), event });
        self.objects.insert(place, object);
    }

    /// Forgets all changes until now: who was not watching has to list again.
    pub(crate) fn forget(&mut self) {
        self.version += 1;
        self.forgotten = self.version;
        self.changes.clear();
    }

    /// How often the kind was listed, each page counted.
    pub(crate) fn lists(&self, plural: &str) -> usize {
        let is_one = |(path, verb): &&(String, &str)| path.ends_with(plural) && *verb == "list";
        self.requests.iter().filter(is_one).count()
    }

    pub(crate) fn of_path(&self, path: &str) -> Vec<Value> {
        self.objects.iter().filter(|((of, ..), _)| of == path).map(|(_, object)| object.clone()).collect()
    }
}

fn place(object: &Value) -> Place {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let plural = match object["kind"].as_str().unwrap() {
        "VirtualMachineInstance" => "virtualmachineinstances".to_owned(),
        kind => format!("{}s", kind.to_lowercase()),
    };
    let version = text(&object["apiVersion"]);
    let root = if version.contains('/') { "apis" } else { "api" };
    let metadata = &object["metadata"];
    (format!("/{root}/{version}/{plural}"), text(&metadata["namespace"]), text(&metadata["name"]))
}

fn json_response(code: u16, body: &Value) -> Response<Body> {
    let response = Response::builder().status(code).header("content-type", "application/json");
    response.body(Body::from(body.to_string())).unwrap()
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "simulated",
           "reason": reason, "code": code})
}

fn refusal(code: u16) -> Response<Body> {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "AlreadyExists",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    };
    json_response(code, &status(code, reason))
}

async fn answer(State(shared): State<Shared>, method: Method, uri: Uri, body: Bytes) -> Response<Body> {
    let path = uri.path().to_owned();
    let refused =
        shared.lock().refused.iter().find(|(part, _)| path.contains(part.as_str())).map(|(_, code)| *code);
    let query: BTreeMap<_, _> =
        uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')).collect();
    let is_watch = query.get("watch") == Some(&"true");
    if method == Method::GET {
        shared.lock().requests.push((path.clone(), if is_watch { "watch" } else { "list" }));
        shared.changed.send_modify(|count| *count += 1);
    }
    if let Some(code) = refused {
        return refusal(code);
    }
    if method == Method::POST {
        let response = create(&shared, &path, &body);
        shared.changed.send_modify(|count| *count += 1);
        return response;
    }
    if method == Method::PATCH {
        let response = patch(&shared, &path, &body);
        shared.changed.send_modify(|count| *count += 1);
        return response;
    }
    if is_watch {
        let from = query.get("resourceVersion").and_then(|text| text.parse().ok()).unwrap();
        return Response::new(watch_body(shared, path, from));
    }
    let from: usize = query.get("continue").and_then(|text| text.parse().ok()).unwrap_or(0);
    let limit: usize = query.get("limit").and_then(|text| text.parse().ok()).unwrap();
    let mut changed = shared.changed.subscribe();
    while from > 0 && shared.lock().holds_pages {
        changed.changed().await.unwrap();
    }
    let scene = shared.lock();
    let all = scene.of_path(&path);
    let mut metadata = json!({"resourceVersion": scene.version.to_string()});
    if from + limit < all.len() {
        metadata["continue"] = json!((from + limit).to_string());
    }
    let items: Vec<_> = all.into_iter().skip(from).take(limit).collect();
    json_response(200, &json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}))
}

fn create(shared: &Shared, path: &str, body: &[u8]) -> Response<Body> {
    let mut scene = shared.lock();
    let mut object: Value = serde_json::from_slice(body).unwrap();
    if let Some(code) = scene.refuse_creations.pop() {
        return refusal(code);
    }
    if path.ends_with("/tokenreviews") {
        scene.reviewed.push(object.clone());
        let token = object["spec"]["token"].as_str().unwrap();
        object["status"] = scene.reviews.get(token).cloned().unwrap_or(json!({"authenticated": false}));
        return json_response(201, &object);
    }
    object["kind"] = json!("Event");
    object["apiVersion"] = json!("v1");
    if scene.objects.contains_key(&place(&object)) {
        return refusal(409);
    }
    scene.put(&object, "ADDED");
    json_response(201, &object)
}

/// Merges annotations into an object, if it is the very one that is meant.
fn patch(shared: &Shared, path: &str, body: &[u8]) -> Response<Body> {
    let mut scene = shared.lock();
    let patch: Value = serde_json::from_slice(body).unwrap();
    scene.patches.push(patch.clone());
    if let Some(code) = scene.refuse_patches {
        return refusal(code);
    }
    let found = scene.objects.iter().find(|((collection, namespace, name), _)| {
        let (root, plural) = collection.rsplit_once('/').unwrap();
        path == format!("{root}/namespaces/{namespace}/{plural}/{name}")
    });
    let Some(mut object) = found.map(|(_, object)| object.clone()) else { return refusal(404) };
    for field in ["uid", "resourceVersion"] {
        if object["metadata"][field] != patch["metadata"][field] {
            return json_response(409, &status(409, "Conflict"));
        }
    }
    for (key, value) in patch["metadata"]["annotations"].as_object().unwrap() {
        object["metadata"]["annotations"][key] = value.clone();
    }
    scene.put(&object, "MODIFIED");
    json_response(200, &object)
}

/// Counts a watch as long as it lives.
struct Counted(Shared);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.lock().watching -= 1;
        self.0.changed.send_modify(|count| *count += 1);
    }
}

fn watch_body(shared: Shared, path: String, from: u64) -> Body {
    let (changed, cuts) = (shared.changed.subscribe(), shared.cuts.subscribe());
    shared.lock().watching += 1;
    let counted = Counted(shared);
    let events = futures::stream::unfold((counted, path, from, changed, cuts), async |state| {
        let (counted, path, from, mut changed, mut cuts) = state;
        loop {
            let next = next_event(&counted.0.lock(), &path, from);
            if let Some((version, event)) = next {
                return Some((Ok(format!("{event}\n")), (counted, path, version, changed, cuts)));
            }
            tokio::select! {
                _ = changed.changed() => {}
                _ = cuts.changed() => {
                    let broken = std::io::Error::other("the connection is cut");
                    return Some((Err(broken), (counted, path, from, changed, cuts)));
                }
            }
        }
    });
    Body::from_stream(events)
}

fn next_event(scene: &Scene, path: &str, from: u64) -> Option<(u64, Value)> {
    if scene.mute.as_ref().is_some_and(|part| path.contains(part.as_str())) {
        return None;
    }
    if from < scene.forgotten {
        return Some((u64::MAX, json!({"type": "ERROR", "object": status(410, "Expired")})));
    }
    let next = scene.changes.iter().find(|change| change.path == path && change.version > from);
    next.map(|change| (change.version, change.event.clone()))
}
