//! The hotplug webhook over HTTP (TLS is others' business), with reviews as the API server sends them for KubeVirt's controller, and a simulated
//! API server behind.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use observer::hotplug::{Reason, Settings as GuardSettings, WAITING_READY_LIMIT};
use observer::{
    CREATE_PATH, DELETE_PATH, Events, Happening, Health, Index, Kind, MAX_REVIEW_BYTES, Observer, Settings,
    Webhook, WebhookSettings,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, DRIVER};
use crate::server::SimulatedApiServer;
use crate::watching::DEADLINE;

pub(crate) const OLD_POD: &str = "hp-volume-4mzxk";
pub(crate) const NEW_POD: &str = "hp-volume-9tq2w";
pub(crate) const ANNOTATION: &str = "rds.csi.srvlab.io/held-since";

pub(crate) fn delete_review() -> Value {
    serde_json::from_str(include_str!("../recorded/review-delete.json")).unwrap()
}

fn create_review() -> Value {
    serde_json::from_str(include_str!("../recorded/review-create.json")).unwrap()
}

/// How a webhook is set in a test.
pub(crate) fn settings(max_hold: Duration) -> WebhookSettings {
    WebhookSettings {
        guard: GuardSettings { strict: false, max_hold, waiting_ready_limit: WAITING_READY_LIMIT },
        kubevirt_namespace: "kubevirt".to_owned(),
        mutate: true,
    }
}

/// A webhook that is served, and everything around it.
pub(crate) struct Desk {
    pub(crate) server: SimulatedApiServer,
    pub(crate) webhook: Webhook,
    address: std::net::SocketAddr,
    told: Arc<Mutex<Vec<Happening>>>,
    observer: Observer,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Desk {
    pub(crate) async fn of(cluster: &Cluster, settings: WebhookSettings) -> Self {
        let desk = Self::cold(cluster, settings, |_| ()).await;
        desk.until(|index| {
            Kind::ALL.iter().all(|kind| matches!(index.health(*kind), Health::Current { .. }))
        })
        .await;
        desk
    }

    /// One that is shown the cluster at once, without watches.
    pub(crate) async fn shown(cluster: &Cluster, settings: WebhookSettings) -> Self {
        let server = SimulatedApiServer::start(&Cluster { objects: Vec::new() }).await;
        let (observer, _) = Observer::simulated(cluster.index(Instant::now()));
        Self::around(server, observer, settings, CancellationToken::new()).await
    }

    /// One whose watches may not be complete.
    async fn cold(
        cluster: &Cluster,
        settings: WebhookSettings,
        prepare: impl FnOnce(&SimulatedApiServer),
    ) -> Self {
        let server = SimulatedApiServer::start(cluster).await;
        prepare(&server);
        let stop = CancellationToken::new();
        let observer = Observer::start(&server.client(), &Settings::of_driver(DRIVER), &stop);
        Self::around(server, observer, settings, stop).await
    }

    async fn around(
        server: SimulatedApiServer,
        observer: Observer,
        settings: WebhookSettings,
        stop: CancellationToken,
    ) -> Self {
        let events = Events::start(server.client(), DRIVER, stop.clone(), |_, _| ());
        let told: Arc<Mutex<Vec<Happening>>> = Arc::default();
        let count = Arc::clone(&told);
        let tell = move |happening| count.lock().unwrap().push(happening);
        let webhook = Webhook::new(observer.clone(), events, Some(server.client()), settings, tell);

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = futures::stream::unfold(listener, |listener| async move {
            Some((listener.accept().await.map(|(stream, _)| stream), listener))
        });
        let serving = tokio::spawn(webhook.clone().serve(incoming, stop.clone()));
        Self { server, webhook, address, told, observer, stop, serving }
    }

    async fn until(&self, is_so: impl Fn(&Index) -> bool) {
        let mut changes = self.observer.changes();
        let waiting = async {
            while !is_so(&self.observer.index()) {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(DEADLINE, waiting).await.expect("never seen");
    }

    /// Sends a body, on a connection of its own; the status and the answer's body.
    async fn send(&self, method: &str, path: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    /// The response to a review: the request's UID is echoed, and the status is 200.
    pub(crate) async fn ask(&self, path: &str, review: &Value) -> Value {
        let (status, body) = self.send("POST", path, review.to_string().as_bytes()).await;
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["kind"], "AdmissionReview");
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer["response"]["uid"], review["request"]["uid"]);
        answer["response"].clone()
    }

    /// The review of the old pod's deletion, with the pod as the API server has it now.
    pub(crate) fn review_now(&self) -> Value {
        let pods = self.server.scene(|scene| scene.of_path("/api/v1/pods"));
        let pod = pods.into_iter().find(|pod| pod["metadata"]["name"] == OLD_POD).unwrap();
        let mut review = delete_review();
        review["request"]["oldObject"] = pod;
        review
    }

    pub(crate) fn told(&self) -> Vec<Happening> {
        self.told.lock().unwrap().clone()
    }

    pub(crate) fn patches(&self) -> Vec<Value> {
        self.server.scene(|scene| scene.patches.clone())
    }

    /// The events on claims, once there are so many: claim and reason.
    async fn events(&self, count: usize) -> Vec<(String, String)> {
        self.server.until(|scene| scene.of_path("/api/v1/events").len() >= count).await;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let events = self.server.scene(|scene| scene.of_path("/api/v1/events"));
        let mut found: Vec<_> = events
            .iter()
            .map(|event| (text(&event["involvedObject"]["name"]), text(&event["reason"])))
            .collect();
        found.sort();
        found
    }
}

pub(crate) const LONG: Duration = Duration::from_secs(600);

#[tokio::test]
async fn a_pod_that_is_the_last_to_hold_volumes_in_use_may_not_go() {
    let desk = Desk::of(&Cluster::hotplugging(), settings(LONG)).await;
    let answer = desk.ask(DELETE_PATH, &desk.review_now()).await;
    assert_eq!(answer["allowed"], false, "{answer}");
    assert_eq!(answer["status"]["code"], 409);
    let message = answer["status"]["message"].as_str().unwrap();
    for part in ["data", "logs"] {
        assert!(message.contains(part), "{part} is not in {message}");
    }
    assert!(!message.contains("by this replica alone"), "{message}");
    assert_eq!(desk.told(), [Happening::Decided(Reason::LastHolder)]);
    let held = |claim: &str| (claim.to_owned(), "HotplugVolumeHeld".to_owned());
    assert_eq!(desk.events(2).await, [held("db-data"), held("db-logs")]);

    let holds = desk.webhook.holds().unwrap();
    let [hold] = holds.as_slice() else { panic!("{holds:?}") };
    assert_eq!((hold.pod.as_str(), hold.vmi.as_str(), hold.node.as_str()), (OLD_POD, "db", "worker-a"));
    assert_eq!(hold.volumes, ["data", "logs"]);

    // The new pod comes to expose everything: then the old one may go.
    let mounts = json!([{"name": "data", "mountPath": "/data"}, {"name": "logs", "mountPath": "/logs"}]);
    let covered = Cluster::hotplugging().set("Pod", NEW_POD, "/spec/containers/0/volumeMounts", mounts);
    desk.server.put(covered.find("Pod", NEW_POD));
    let seen = async {
        while !desk.webhook.holds().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, seen).await.unwrap();
    let answer = desk.ask(DELETE_PATH, &desk.review_now()).await;
    assert_eq!(answer["allowed"], true, "{answer}");
    assert!(answer.get("status").is_none() && answer.get("warnings").is_none(), "{answer}");
    let told = desk.told();
    assert_eq!(told[1], Happening::Decided(Reason::Covered));
    assert!(matches!(told[2], Happening::Released(_)), "{told:?}");
}

#[tokio::test]
async fn the_first_denial_is_written_on_the_pod_and_counts_for_all() {
    let desk = Desk::of(&Cluster::hotplugging(), settings(LONG)).await;
    let before = SystemTime::now();
    desk.ask(DELETE_PATH, &desk.review_now()).await;
    let review = desk.review_now();
    let written = review["request"]["oldObject"]["metadata"]["annotations"][ANNOTATION].as_str().unwrap();
    assert!(written.ends_with('Z'), "{written}");
    assert_eq!(desk.patches().len(), 1);
    assert_eq!(desk.patches()[0]["metadata"]["uid"], "55555555-0000-4000-8000-000000000201");

    // Asked again, it is not written again, nor told again.
    desk.ask(DELETE_PATH, &review).await;
    assert_eq!(desk.patches().len(), 1);
    assert_eq!(desk.events(2).await.len(), 2);

    // Another replica, which never denied it, sees the hold and since when.
    let other = Desk::of(&Cluster::hotplugging(), settings(LONG)).await;
    other.server.put(&review["request"]["oldObject"]);
    other.until(|_| !other.webhook.holds().unwrap().is_empty()).await;
    let since = other.webhook.holds().unwrap()[0].since;
    assert_eq!(since, desk.webhook.holds().unwrap()[0].since);
    assert!(since + Duration::from_millis(1) >= before && since <= SystemTime::now(), "{since:?}");
    other.ask(DELETE_PATH, &other.review_now()).await;
    assert_eq!(other.patches(), Vec::<Value>::new(), "what is there wins");
}

#[tokio::test]
async fn a_hold_ends_with_its_time_and_says_so() {
    let mut cluster = Cluster::hotplugging();
    let since = json!({ANNOTATION: "2026-11-20T09:00:00.000Z"});
    cluster = cluster.set("Pod", OLD_POD, "/metadata/annotations", since);
    // Longer ago than any time that is set here, and never forgotten.
    let max_hold = Duration::from_secs(1);
    let desk = Desk::of(&cluster, settings(max_hold)).await;
    let answer = desk.ask(DELETE_PATH, &desk.review_now()).await;
    assert_eq!(answer["allowed"], false, "a former hold does not count: {answer}");
    assert_eq!(desk.patches().len(), 1, "the hold begins anew");

    tokio::time::sleep(max_hold).await;
    let answer = desk.ask(DELETE_PATH, &desk.review_now()).await;
    assert_eq!(answer["allowed"], true, "{answer}");
    assert!(answer["warnings"][0].as_str().unwrap().contains("data"), "{answer}");
    let told = desk.told();
    assert_eq!(told[1], Happening::Decided(Reason::HoldExpired));
    assert!(matches!(told[2], Happening::Released(held) if held >= max_hold), "{told:?}");
    let expired = desk.events(4).await.into_iter().filter(|(_, reason)| reason == "HotplugHoldExpired");
    assert_eq!(expired.count(), 2);
}

#[tokio::test]
async fn what_cannot_be_written_is_remembered_and_said() {
    let desk = Desk::of(&Cluster::hotplugging(), settings(Duration::from_secs(1))).await;
    for code in [403, 409, 500] {
        desk.server.scene(|scene| scene.refuse_patches = Some(code));
        let answer = desk.ask(DELETE_PATH, &desk.review_now()).await;
        let message = answer["status"]["message"].as_str().unwrap();
        assert!(message.contains("by this replica alone"), "{code}: {message}");
    }
    assert_eq!(desk.webhook.holds().unwrap().len(), 1, "remembered");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let answer = desk.ask(DELETE_PATH, &desk.review_now()).await;
    assert_eq!(answer["allowed"], true, "counted from the first denial: {answer}");

    // A review of an older version of the pod does not overwrite what was written since.
    let desk = Desk::of(&Cluster::hotplugging(), settings(LONG)).await;
    let answer = desk.ask(DELETE_PATH, &delete_review()).await;
    assert!(answer["status"]["message"].as_str().unwrap().contains("by this replica alone"), "{answer}");
}

#[tokio::test]
async fn a_dry_run_is_answered_and_leaves_no_trace() {
    let desk = Desk::of(&Cluster::hotplugging(), settings(LONG)).await;
    let mut review = desk.review_now();
    review["request"]["dryRun"] = json!(true);
    let answer = desk.ask(DELETE_PATH, &review).await;
    assert_eq!(answer["allowed"], false, "{answer}");
    let mut create = create_review();
    create["request"]["dryRun"] = json!(true);
    assert!(desk.ask(CREATE_PATH, &create).await["patch"].is_string());
    assert_eq!((desk.patches(), desk.told()), (Vec::new(), Vec::new()));
    assert_eq!(desk.webhook.holds().unwrap(), Vec::new());
    // What is posted is posted in order: after an event of a real request, none of these is to come.
    desk.ask(DELETE_PATH, &desk.review_now()).await;
    assert_eq!(desk.events(2).await.len(), 2);
}

#[tokio::test]
async fn only_deletions_by_kubevirts_controller_are_judged() {
    let desk = Desk::of(&Cluster::hotplugging(), settings(LONG)).await;
    let changed = |pointer: &str, value: Value| {
        let mut review = desk.review_now();
        *review.pointer_mut(pointer).unwrap() = value;
        review
    };
    let others = [
        changed(
            "/request/userInfo/username",
            json!("system:serviceaccount:kube-system:generic-garbage-collector"),
        ),
        changed("/request/userInfo/username", json!("system:serviceaccount:elsewhere:kubevirt-controller")),
        changed("/request/operation", json!("UPDATE")),
        changed("/request/resource/resource", json!("pods-of-another-kind")),
        changed("/request/oldObject/metadata/labels", json!({"kubevirt.io": "virt-launcher"})),
    ];
    for review in others {
        assert_eq!(desk.ask(DELETE_PATH, &review).await["allowed"], true, "{}", review["request"]);
    }
    let mut eviction = desk.review_now();
    eviction["request"]["subResource"] = json!("eviction");
    assert_eq!(desk.ask(DELETE_PATH, &eviction).await["allowed"], true);
    assert!(desk.told().iter().all(|told| *told == Happening::Decided(Reason::NotGuarded)));
    assert_eq!(desk.patches(), Vec::<Value>::new());

    let without = changed("/request/oldObject", Value::Null);
    let answer = desk.ask(DELETE_PATH, &without).await;
    assert!(answer["allowed"] == true && answer["warnings"][0].is_string(), "{answer}");
}

#[tokio::test]
async fn a_new_pod_is_made_to_expose_our_volumes_and_no_others() {
    let desk = Desk::of(&Cluster::hotplugging(), settings(LONG)).await;
    let answer = desk.ask(CREATE_PATH, &create_review()).await;
    assert_eq!((&answer["allowed"], &answer["patchType"]), (&json!(true), &json!("JSONPatch")));
    // Base64 of a JSON patch: decoded as the API's own types do it.
    let patch: k8s_openapi::ByteString = serde_json::from_value(answer["patch"].clone()).unwrap();
    let patch: Vec<Value> = serde_json::from_slice(&patch.0).unwrap();
    let text = serde_json::to_string(&patch).unwrap();
    assert!(!patch.is_empty() && text.contains("\"data\""), "{text}");
    assert!(!text.contains("extra") && !text.contains("/spec/volumes"), "{text}");
    assert_eq!(desk.told(), [Happening::Mutated]);

    let off = WebhookSettings { mutate: false, ..settings(LONG) };
    let desk = Desk::of(&Cluster::hotplugging(), off).await;
    let answer = desk.ask(CREATE_PATH, &create_review()).await;
    assert!(answer["allowed"] == true && answer.get("patch").is_none(), "{answer}");
}

#[tokio::test]
async fn what_is_no_review_is_refused() {
    let desk = Desk::of(&Cluster::hotplugging(), settings(LONG)).await;
    let mut beta = delete_review();
    beta["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let mut without_request = delete_review();
    without_request["request"] = Value::Null;
    let mut without_uid = delete_review();
    without_uid["request"]["uid"] = json!("");
    let mut odd_pod = delete_review();
    odd_pod["request"]["oldObject"]["spec"]["volumes"] = json!("none");
    for body in
        ["", "{", "[]", "{\"kind\":\"AdmissionReview\"}", &beta.to_string(), &without_request.to_string()]
            .into_iter()
            .chain([without_uid.to_string().as_str(), odd_pod.to_string().as_str()])
    {
        for path in [DELETE_PATH, CREATE_PATH] {
            let (status, said) = desk.send("POST", path, body.as_bytes()).await;
            assert_eq!(status, 400, "{path}: {said}");
            assert!(said.len() > 10, "it does not say why: {said:?}");
        }
    }
    assert_eq!(desk.send("GET", DELETE_PATH, b"").await.0, 405);
    assert_eq!(desk.send("POST", "/hotplug", b"").await.0, 404);
    assert_eq!(desk.told(), []);
}

#[tokio::test]
async fn a_body_has_a_bound_and_may_say_more_than_is_understood() {
    let desk = Desk::of(&Cluster::hotplugging(), settings(LONG)).await;
    let mut review = desk.review_now();
    review["request"]["somethingNew"] = json!({"a": [1, 2, 3]});
    review["request"]["oldObject"]["spec"]["containers"][0]["somethingNew"] = json!(true);
    review["request"]["oldObject"]["metadata"]["annotations"] = json!({"padding": ""});
    let room = MAX_REVIEW_BYTES - review.to_string().len();
    review["request"]["oldObject"]["metadata"]["annotations"]["padding"] = json!("x".repeat(room));
    assert_eq!(review.to_string().len(), MAX_REVIEW_BYTES);
    assert_eq!(desk.ask(DELETE_PATH, &review).await["allowed"], false, "the largest is read");
    let too_long = review.to_string() + " ";
    let (status, said) = desk.send("POST", DELETE_PATH, too_long.as_bytes()).await;
    assert_eq!(status, 413, "{said}");
}

#[tokio::test]
async fn without_kubevirt_nothing_breaks() {
    let desk = Desk::cold(&Cluster::hotplugging(), settings(LONG), |server| {
        server.scene(|scene| scene.refused.insert("/kubevirt.io/".to_owned(), 404));
    })
    .await;
    desk.until(|index| matches!(index.health(Kind::Vmi), Health::NotInstalled { .. })).await;
    desk.until(|index| {
        [Kind::Pod, Kind::Namespace, Kind::Node, Kind::Claim, Kind::PersistentVolume]
            .iter()
            .all(|kind| matches!(index.health(*kind), Health::Current { .. }))
    })
    .await;
    let answer = desk.ask(DELETE_PATH, &desk.review_now()).await;
    assert_eq!(answer["allowed"], true, "{answer}");
    assert_eq!(desk.told(), [Happening::Decided(Reason::VmiFinal)]);
    assert_eq!(desk.webhook.holds().unwrap(), Vec::new());
}

#[tokio::test]
async fn what_is_not_known_is_allowed_and_said() {
    let kinds =
        ["/pods", "/namespaces", "/nodes", "/persistentvolumeclaims", "/persistentvolumes", "/kubevirt.io/"];
    for kind in kinds {
        // Forbidden: never listed, as when the rights are missing, or right after the start.
        let desk = Desk::cold(&Cluster::hotplugging(), settings(LONG), |server| {
            server.scene(|scene| scene.refused.insert(kind.to_owned(), 403));
        })
        .await;
        desk.until(|index| Kind::ALL.iter().all(|kind| *index.health(*kind) != Health::NotListed)).await;
        let answer = desk.ask(DELETE_PATH, &delete_review()).await;
        assert_eq!(answer["allowed"], true, "{kind}: {answer}");
        let warning = answer["warnings"][0].as_str().unwrap_or_default();
        assert!(warning.contains("broken") || warning.contains("not listed"), "{kind}: {answer}");
        assert_eq!(desk.told(), [Happening::Decided(Reason::Unknown)], "{kind}");
    }
    // A claim that is not known is left as it is, too.
    let desk = Desk::cold(&Cluster::hotplugging(), settings(LONG), |server| {
        server.scene(|scene| scene.refused.insert("/persistentvolumes".to_owned(), 403));
    })
    .await;
    let answer = desk.ask(CREATE_PATH, &create_review()).await;
    assert!(answer["allowed"] == true && answer.get("patch").is_none(), "{answer}");
    assert!(answer["warnings"][0].is_string(), "{answer}");
}

#[tokio::test]
async fn serving_ends_when_told_to() {
    let desk = Desk::of(&Cluster::hotplugging(), settings(LONG)).await;
    desk.stop.cancel();
    tokio::time::timeout(DEADLINE, desk.serving).await.unwrap().unwrap();
    assert!(TcpStream::connect(desk.address).await.is_err());
}

#[tokio::test]
async fn two_pods_do_not_both_go_because_of_each_other() {
    let mounts = json!([{"name": "data", "mountPath": "/data"}, {"name": "logs", "mountPath": "/logs"}]);
    let covered = Cluster::hotplugging().set("Pod", NEW_POD, "/spec/containers/0/volumeMounts", mounts);
    let desk = Desk::shown(&covered, settings(LONG)).await;
    let review_of = |name: &str| {
        let mut review = delete_review();
        review["request"]["oldObject"] = covered.find("Pod", name).clone();
        review
    };
    let mut rehearsed = review_of(OLD_POD);
    rehearsed["request"]["dryRun"] = json!(true);
    assert_eq!(desk.ask(DELETE_PATH, &rehearsed).await["allowed"], true);
    assert_eq!(
        desk.ask(DELETE_PATH, &review_of(NEW_POD)).await["allowed"],
        true,
        "nothing went in a dry run"
    );
    // The watches still show the new pod.
    assert_eq!(desk.ask(DELETE_PATH, &review_of(OLD_POD)).await["allowed"], false);
}
