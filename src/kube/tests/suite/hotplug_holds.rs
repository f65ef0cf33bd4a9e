//! Which hold a denial belongs to, as the annotations on the pod and the pods beside it say.

use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;
use observer::DELETE_PATH;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::webhook::{ANNOTATION, Desk, LONG, NEW_POD, OLD_POD, settings};

const FIRST: &str = "rds.csi.srvlab.io/held-first";

/// The moment so long ago, in whole seconds, as the API has it.
fn ago(seconds: u64) -> String {
    let moment = SystemTime::now() - Duration::from_secs(seconds);
    let whole = Timestamp::try_from(moment).unwrap().as_second();
    Timestamp::from_second(whole).unwrap().to_string()
}

fn annotated(cluster: Cluster, annotations: Value) -> Cluster {
    cluster.set("Pod", OLD_POD, "/metadata/annotations", annotations)
}

/// A new pod was made so long ago, to replace the old one.
fn replaced(made_s: u64) -> Cluster {
    Cluster::hotplugging().set("Pod", NEW_POD, "/metadata/creationTimestamp", json!(ago(made_s)))
}

/// What stands on the pod.
fn annotations(desk: &Desk) -> Value {
    desk.review_now()["request"]["oldObject"]["metadata"]["annotations"].clone()
}

#[tokio::test]
async fn a_note_of_the_version_before_counts() {
    let plain = json!({ANNOTATION: ago(30)});
    let desk = Desk::of(&annotated(Cluster::hotplugging(), plain.clone()), settings(LONG)).await;
    let answer = desk.ask(DELETE_PATH, &desk.review_now()).await;
    let message = answer["status"]["message"].as_str().unwrap();
    assert!(message.contains("held for 3"), "{message}");
    assert_eq!((desk.patches(), annotations(&desk)), (Vec::new(), plain), "nothing is to be written");
}

#[tokio::test]
async fn a_note_that_is_no_time_is_said_and_replaced() {
    let cluster = annotated(Cluster::hotplugging(), json!({ANNOTATION: "yesterday", FIRST: "before"}));
    let desk = Desk::of(&cluster, settings(LONG)).await;
    for expected in [true, false] {
        let answer = desk.ask(DELETE_PATH, &desk.review_now()).await;
        let message = answer["status"]["message"].as_str().unwrap();
        assert_eq!(message.contains("held-since is no time in RFC 3339"), expected, "{message}");
    }
    assert_eq!(annotations(&desk)[ANNOTATION], annotations(&desk)[FIRST]);
    assert_eq!(desk.patches().len(), 1);
}

#[tokio::test]
async fn a_deletion_for_another_replacement_is_held_anew() {
    // The old hold is over; the pod that it waited for is as old as it.
    let over = json!({ANNOTATION: ago(LONG.as_secs() + 1)});
    let same = annotated(replaced(LONG.as_secs() + 1), over.clone());
    let desk = Desk::of(&same, settings(LONG)).await;
    assert_eq!(desk.ask(DELETE_PATH, &desk.review_now()).await["allowed"], true);

    let anew = annotated(replaced(5), over.clone());
    let desk = Desk::of(&anew, settings(LONG)).await;
    assert_eq!(desk.webhook.holds().unwrap(), Vec::new(), "it was not asked for yet");
    assert_eq!(desk.ask(DELETE_PATH, &desk.review_now()).await["allowed"], false);
    let first: Timestamp = annotations(&desk)[FIRST].as_str().unwrap().parse().unwrap();
    assert_eq!(first.to_string(), over[ANNOTATION].as_str().unwrap(), "the row goes on");
    assert_eq!(desk.webhook.holds().unwrap().len(), 1);

    // Another replica counts from the same moments, and has nothing to write.
    let other = Desk::of(&annotated(anew, annotations(&desk)), settings(LONG)).await;
    assert_eq!(other.ask(DELETE_PATH, &other.review_now()).await["allowed"], false);
    assert_eq!(other.patches(), Vec::<Value>::new());
    assert_eq!(other.webhook.holds().unwrap()[0].since, desk.webhook.holds().unwrap()[0].since);
}

#[tokio::test]
async fn a_pod_that_is_wanted_again_is_not_shown_as_held() {
    let held = || annotated(Cluster::hotplugging(), json!({ANNOTATION: ago(30)}));
    let desk = Desk::of(&held(), settings(LONG)).await;
    assert_eq!(desk.webhook.holds().unwrap().len(), 1);

    let volume = |name: &str| {
        let claim = json!({"claimName": format!("db-{name}"), "hotpluggable": true});
        json!({"name": name, "persistentVolumeClaim": claim})
    };
    let wanted = json!([volume("data"), volume("logs")]);
    let given_up = held().set("VirtualMachineInstance", "db", "/spec/volumes", wanted);
    let desk = Desk::of(&given_up, settings(LONG)).await;
    assert_eq!(desk.webhook.holds().unwrap(), Vec::new());
}
