//! What is added to new pods.

use serde_json::json;

use super::*;

/// KubeVirt's pod: `one` (Filesystem) and `two` (Block) are listed, neither is exposed.
fn new_pod() -> NewPod {
    let block = Claim { block: true, ..claim("two") };
    let scratch = ("hotplug-disks".to_owned(), "/path".to_owned());
    NewPod {
        is_trigger: false,
        volumes: pod("new", &["one", "two"]).volumes,
        containers: vec![NewContainer { mounts: Some(vec![scratch]), devices: None }],
        claims: BTreeMap::from([
            ("one-claim".to_owned(), Answer::Known(claim("one"))),
            ("two-claim".to_owned(), Answer::Known(block)),
        ]),
    }
}

fn as_json(pod: &NewPod) -> serde_json::Value {
    serde_json::to_value(mutate(pod)).expect("JSON")
}

#[test]
fn what_is_listed_and_not_exposed_is_added() {
    let mount = json!({ "name": "one", "mountPath": "/one" });
    let device = json!({ "name": "two", "devicePath": "/path/two/uid-two" });
    assert_eq!(
        as_json(&new_pod()),
        json!([
            { "op": "add", "path": "/spec/containers/0/volumeMounts/-", "value": mount },
            { "op": "add", "path": "/spec/containers/0/volumeDevices", "value": [device] },
        ])
    );
    let mut bare = new_pod();
    bare.containers = vec![NewContainer { mounts: None, devices: Some(Vec::new()) }];
    assert_eq!(
        as_json(&bare),
        json!([
            { "op": "add", "path": "/spec/containers/0/volumeMounts", "value": [mount] },
            { "op": "add", "path": "/spec/containers/0/volumeDevices/-", "value": device },
        ])
    );
}

#[test]
fn what_is_exposed_already_is_left_alone() {
    let mut done = new_pod();
    let exposed = NewContainer {
        mounts: Some(vec![("one".to_owned(), "/elsewhere".to_owned())]),
        devices: Some(vec![("two".to_owned(), "/dev/two".to_owned())]),
    };
    done.containers = vec![exposed.clone()];
    assert!(mutate(&done).is_empty());
    done.containers = vec![NewContainer::default(), exposed];
    assert!(mutate(&done).is_empty(), "another container does as well");
}

#[test]
fn only_this_drivers_volumes_are_added() {
    let others: [Answer<Claim>; 3] =
        [Answer::Known(Claim { ours: false, ..claim("one") }), Answer::Absent, not_known()];
    for other in others {
        let mut pod = new_pod();
        pod.claims.insert("one-claim".to_owned(), other);
        let patch = as_json(&pod);
        assert!(!patch.to_string().contains("/one"), "{patch}");
        assert!(patch.to_string().contains("uid-two"), "{patch}");
    }
    let mut nothing = new_pod();
    nothing.claims.clear();
    assert!(mutate(&nothing).is_empty());
}

#[test]
fn trigger_pods_and_pods_without_containers_are_left_alone() {
    let mut pod = new_pod();
    pod.is_trigger = true;
    assert!(mutate(&pod).is_empty());
    let mut pod = new_pod();
    pod.containers.clear();
    assert!(mutate(&pod).is_empty());
}

#[test]
fn a_path_that_is_taken_is_not_given_twice() {
    let mut named_path = new_pod();
    named_path.volumes = BTreeMap::from([("path".to_owned(), "one-claim".to_owned())]);
    assert!(mutate(&named_path).is_empty(), "the API server would refuse the pod");
}

#[test]
fn the_pods_volumes_are_never_touched() {
    for operation in mutate(&new_pod()) {
        assert!(operation.path.starts_with("/spec/containers/0/volume"), "{}", operation.path);
        assert_eq!(operation.op, "add");
    }
}
