//! Nodes, claims, attachments and users of a volume: each answer in each case.

use std::time::Instant;

use observer::{Answer, AttachmentSeen, Health, Index, Kind, PodSeen, RecordedError, Users, Why};
use serde_json::json;
use state_machine::{VmiObservation, VolumeId};

use crate::cluster::{Cluster, DRIVER, VOLUME, node, volume};

fn index(cluster: &Cluster) -> Index {
    cluster.index(Instant::now())
}

fn names(pods: &[PodSeen]) -> Vec<&str> {
    pods.iter().map(|pod| pod.name.as_str()).collect()
}

#[test]
fn a_node_is_there_or_tainted_or_gone() {
    let base = Cluster::recorded();
    let seen = |cluster: &Cluster| index(cluster).node(&node("worker-b"));
    let there = seen(&base).known().unwrap();
    assert_eq!(
        (there.uid.as_str(), there.out_of_service, there.deleting),
        ("6f0a7f5e-0000-4000-8000-00000000000b", false, false)
    );

    let taints = |key: &str, effect: &str| json!([{"key": "other", "effect": "NoSchedule"}, {"key": key, "effect": effect}]);
    let tainted =
        |key, effect| seen(&base.clone().set("Node", "worker-b", "/spec/taints", taints(key, effect)));
    assert!(tainted("node.kubernetes.io/out-of-service", "NoExecute").known().unwrap().out_of_service);
    assert!(tainted("node.kubernetes.io/out-of-service", "NoSchedule").known().unwrap().out_of_service);
    assert!(!tainted("node.kubernetes.io/unreachable", "NoExecute").known().unwrap().out_of_service);

    let deleting =
        base.clone().set("Node", "worker-b", "/metadata/deletionTimestamp", json!("2026-11-20T09:00:00Z"));
    assert!(seen(&deleting).known().unwrap().deleting);
    assert_eq!(seen(&base.without("Node", "worker-b")), Answer::Absent);
}

#[test]
fn a_claim_is_found_through_the_volume_of_this_driver() {
    let base = Cluster::recorded();
    let claim = index(&base).claim(&volume()).known().unwrap();
    assert_eq!(claim.to_string(), "vms/web-disk");
    assert_eq!(claim.uid.as_deref(), Some("22222222-0000-4000-8000-000000000001"));
    let others = VolumeId::parse("pvc-0b4fb0c0-5f5a-4a53-a6d8-2f6f4b1ff002").unwrap();
    assert_eq!(index(&base).claim(&others), Answer::Absent, "another driver's volume");

    // Two volumes by hand with one handle.
    let twice = base.clone().copy("PersistentVolume", VOLUME, "by-hand");
    assert!(index(&twice).claim(&volume()).known().is_some(), "both for the same claim");
    let apart = twice.set("PersistentVolume", "by-hand", "/spec/claimRef/name", json!("another"));
    assert!(matches!(index(&apart).claim(&volume()), Answer::Unknown(Why::Unclear(_))));

    let unbound = base.set("PersistentVolume", VOLUME, "/spec/claimRef", json!(null));
    assert_eq!(index(&unbound).claim(&volume()), Answer::Absent);
}

#[test]
fn volume_attachments_are_those_of_this_driver() {
    let base = Cluster::recorded();
    let seen = |node_name, attached, deleting| AttachmentSeen { node: node(node_name), attached, deleting };
    let expect = vec![seen("worker-a", true, false), seen("worker-b", false, false)];
    assert_eq!(index(&base).volume_attachments(&volume()), Answer::Known(expect));
    let at = json!("2026-11-20T09:00:00Z");
    let deleting = base.without("VolumeAttachment", "csi-bbbb").set(
        "VolumeAttachment",
        "csi-aaaa",
        "/metadata/deletionTimestamp",
        at,
    );
    let expect = vec![seen("worker-a", true, true)];
    assert_eq!(index(&deleting).volume_attachments(&volume()), Answer::Known(expect));
    let none = deleting.without("VolumeAttachment", "csi-aaaa");
    assert_eq!(index(&none).volume_attachments(&volume()), Answer::Absent);
}

#[test]
fn virt_launchers_and_hotplug_pods_belong_to_one_vm() {
    let users = index(&Cluster::recorded()).users(&volume()).known().unwrap();
    let Users::OneVm { vm, pods } = users else { panic!("{users:?}") };
    assert_eq!(vm, "web");
    // The importer has finished.
    assert_eq!(names(&pods), ["hp-volume-x7k2p", "virt-launcher-web-4xk9d", "virt-launcher-web-q2m8z"]);
    assert_eq!(pods[2].node, Some(node("worker-b")));
}

#[test]
fn pods_that_disagree_are_named() {
    let base = Cluster::recorded();
    let not_one = |cluster: &Cluster| match index(cluster).users(&volume()) {
        Answer::Known(Users::NotOneVm { pods }) => names(&pods).join(" "),
        other @ (Answer::Known(_) | Answer::Absent | Answer::Unknown(_)) => panic!("{other:?}"),
    };
    let first = "virt-launcher-web-4xk9d";
    let second = "virt-launcher-web-q2m8z";
    let alone = base.clone().without("Pod", "hp-volume-x7k2p").without("Pod", second);

    let two_vms = alone.clone().copy("Pod", first, "virt-launcher-mail-1").set(
        "Pod",
        "virt-launcher-mail-1",
        "/metadata/ownerReferences",
        json!([{"apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance", "name": "mail", "uid": "x", "controller": true}]),
    );
    // The label is the host name, and two VMs may have the same.
    assert_eq!(not_one(&two_vms), "virt-launcher-mail-1 virt-launcher-web-4xk9d");

    let importing = alone.clone().set("Pod", "importer-web-disk", "/status/phase", json!("Running"));
    assert_eq!(not_one(&importing), "importer-web-disk virt-launcher-web-4xk9d");
    let without_vm = importing.without("Pod", first);
    assert_eq!(not_one(&without_vm), "importer-web-disk", "a pod of no VM is not a VM's");

    assert_eq!(index(&alone.without("Pod", first)).users(&volume()), Answer::Absent);
}

#[test]
fn a_vm_is_found_by_owner_annotation_and_label() {
    let first = "virt-launcher-web-4xk9d";
    let alone =
        Cluster::recorded().without("Pod", "hp-volume-x7k2p").without("Pod", "virt-launcher-web-q2m8z");
    let vm = |cluster: &Cluster| match index(cluster).users(&volume()) {
        Answer::Known(Users::OneVm { vm, .. }) => vm,
        other @ (Answer::Known(_) | Answer::Absent | Answer::Unknown(_)) => panic!("{other:?}"),
    };
    let relabelled = alone.set("Pod", first, "/metadata/labels", json!({"vm.kubevirt.io/name": "host-name"}));
    assert_eq!(vm(&relabelled), "web", "the owner goes before the label");
    let unowned = relabelled.set("Pod", first, "/metadata/ownerReferences", json!([]));
    assert_eq!(vm(&unowned), "web", "the annotation goes before the label");
    let labelled = unowned.set("Pod", first, "/metadata/annotations", json!({}));
    assert_eq!(vm(&labelled), "host-name");
}

#[test]
fn a_hotplug_pod_whose_owner_is_gone_is_nobodys_yet() {
    let orphan = Cluster::recorded().without("Pod", "virt-launcher-web-4xk9d");
    let answer = index(&orphan).users(&volume());
    assert!(
        matches!(&answer, Answer::Unknown(Why::Unclear(text)) if text.contains("hp-volume-x7k2p")),
        "{answer:?}"
    );
    // KubeVirt 1.9 says it on the pod itself.
    let named = json!({"kubevirt.io/owner-vmi-name": "web"});
    let told = orphan.clone().set("Pod", "hp-volume-x7k2p", "/metadata/annotations", named);
    assert!(matches!(index(&told).users(&volume()), Answer::Known(Users::OneVm { .. })));
    // That others disagree does not depend on it.
    let disagreeing = orphan.set("Pod", "importer-web-disk", "/status/phase", json!("Running"));
    assert!(matches!(index(&disagreeing).users(&volume()), Answer::Known(Users::NotOneVm { .. })));
}

#[test]
fn the_claim_of_a_generic_ephemeral_volume_is_the_pods() {
    let pod = "virt-launcher-web-4xk9d";
    let volumes = json!([{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]);
    let cluster = Cluster::recorded()
        .without("Pod", "hp-volume-x7k2p")
        .without("Pod", "virt-launcher-web-q2m8z")
        .set("Pod", pod, "/spec/volumes", volumes)
        .set("PersistentVolume", VOLUME, "/spec/claimRef/name", json!("virt-launcher-web-4xk9d-scratch"))
        .set("PersistentVolumeClaim", "web-disk", "/metadata/name", json!("virt-launcher-web-4xk9d-scratch"));
    assert!(matches!(index(&cluster).users(&volume()), Answer::Known(Users::OneVm { .. })));
}

#[test]
fn a_claim_that_was_made_anew_is_another() {
    let anew =
        Cluster::recorded().set("PersistentVolumeClaim", "web-disk", "/metadata/uid", json!("another"));
    let index = index(&anew);
    assert_eq!(index.users(&volume()), Answer::Absent);
    assert_eq!(index.vm(&volume()), Answer::Absent);
    assert!(index.claim(&volume()).known().is_some(), "events go to the claim that the volume was bound to");
}

/// Each answer of an index, and the kinds that it needs.
fn answers(index: &Index) -> Vec<(&'static str, Answer<()>, &'static [Kind])> {
    fn seen<T>(answer: Answer<T>) -> Answer<()> {
        match answer {
            Answer::Known(_) => Answer::Known(()),
            Answer::Absent => Answer::Absent,
            Answer::Unknown(why) => Answer::Unknown(why),
        }
    }
    use Kind::{Claim, Node, PersistentVolume, Pod, Vmi, Vmim, VolumeAttachment};
    let (a, b) = (node("worker-a"), node("worker-b"));
    let long_ago = Instant::now() - std::time::Duration::from_secs(60);
    vec![
        ("node", seen(index.node(&a)), &[Node]),
        ("users", seen(index.users(&volume())), &[PersistentVolume, Claim, Pod]),
        ("attachments", seen(index.volume_attachments(&volume())), &[PersistentVolume, VolumeAttachment]),
        ("vm", seen(index.vm(&volume())), &[PersistentVolume, Claim, Vmi]),
        (
            "migration",
            seen(index.migration(&volume(), &a, &b, long_ago)),
            &[PersistentVolume, Claim, Vmi, Vmim],
        ),
        ("claim", seen(index.claim(&volume())), &[PersistentVolume]),
        ("timeout", seen(index.completion_timeout_seconds(&volume())), &[PersistentVolume, Vmi]),
    ]
}

#[test]
fn what_is_not_listed_is_unknown_in_every_answer_that_needs_it() {
    for kind in Kind::ALL {
        let mut index = Index::recorded(DRIVER, &[], Instant::now()).unwrap();
        index.set_health(kind, Health::NotListed);
        for (name, answer, needs) in answers(&index) {
            let expect =
                if needs.contains(&kind) { Answer::Unknown(Why::NotListed(kind)) } else { Answer::Absent };
            // Where there is no VMI, its migrations do not matter.
            let expect = if name == "migration" && kind == Kind::Vmim { Answer::Absent } else { expect };
            assert_eq!(answer, expect, "{name} without {kind}");
        }
    }
}

#[test]
fn what_is_not_watched_is_unknown_except_what_does_not_change_or_only_advises() {
    for kind in Kind::ALL {
        let mut index = index(&Cluster::recorded());
        index.set_health(kind, Health::Broken { since: Instant::now(), reason: "503".to_owned() });
        for (name, answer, needs) in answers(&index) {
            let keeps = matches!(name, "claim" | "timeout");
            match answer {
                Answer::Unknown(Why::Broken { kind: of, .. }) => {
                    assert!(of == kind && needs.contains(&kind) && !keeps, "{name} without {kind}");
                }
                Answer::Known(()) => assert!(keeps || !needs.contains(&kind), "{name} without {kind}"),
                other @ (Answer::Absent | Answer::Unknown(_)) => panic!("{name} without {kind}: {other:?}"),
            }
        }
    }
}

#[test]
fn what_old_facts_do_not_have_is_unknown() {
    let mut index = Index::recorded(DRIVER, &[], Instant::now()).unwrap();
    let broken = || Health::Broken { since: Instant::now(), reason: "503".to_owned() };
    index.set_health(Kind::PersistentVolume, broken());
    assert!(matches!(index.claim(&volume()), Answer::Unknown(_)), "made while nobody watched");
    let mut index = self::index(&Cluster::recorded().without("VirtualMachineInstance", "web"));
    index.set_health(Kind::Vmi, broken());
    assert!(matches!(index.completion_timeout_seconds(&volume()), Answer::Unknown(_)));
}

#[test]
fn without_kubernetes_everything_is_unknown() {
    let index = Index::without_kubernetes();
    for (name, answer, _) in answers(&index) {
        assert_eq!(answer, Answer::Unknown(Why::NoKubernetes), "{name}");
    }
    assert_eq!(index.vmi_observation(&volume()), VmiObservation::Unknown);
    assert_eq!(Why::NoKubernetes.to_string(), "there is no Kubernetes");
}

#[test]
fn an_object_of_another_kind_or_form_is_refused() {
    let read = |object| Index::recorded(DRIVER, &[object], Instant::now()).unwrap_err();
    assert!(matches!(read(json!({"kind": "ConfigMap"})), RecordedError::Kind(_)));
    let malformed =
        json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "x"}, "spec": {"taints": 7}});
    assert!(matches!(read(malformed), RecordedError::Form { kind: Kind::Node, .. }));
}
