//! What the webhook finds out about a pod: each change of the cluster leads to the row of the table that is about it.

use observer::hotplug::{Reason, Settings, WAITING_READY_LIMIT};
use observer::{DELETE_PATH, Happening, WebhookSettings};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::webhook::{Desk, LONG, NEW_POD, OLD_POD, delete_review, settings};

const VMI: &str = "VirtualMachineInstance";
const VMIM: &str = "VirtualMachineInstanceMigration";
const LAUNCHER: &str = "virt-launcher-db-7xq2m";
const DATA_PV: &str = "pvc-0b4fb0c0-5f5a-4a53-a6d8-2f6f4b1ff100";
const LOGS_PV: &str = "pvc-0b4fb0c0-5f5a-4a53-a6d8-2f6f4b1ff101";
const DELETED_AT: &str = "2026-11-20T09:00:00Z";
const MIGRATION: &str = "66666666-0000-4000-8000-000000000101";

fn base() -> Cluster {
    Cluster::hotplugging()
}

fn deleted(kind: &str, name: &str) -> Cluster {
    base().set(kind, name, "/metadata/deletionTimestamp", json!(DELETED_AT))
}

/// The VM runs on worker-b; its old pod is on worker-a.
fn moved() -> Cluster {
    base().set(VMI, "db", "/status/nodeName", json!("worker-b"))
}

fn migration(phase: &str) -> Value {
    json!({"apiVersion": "kubevirt.io/v1", "kind": VMIM,
           "metadata": {"name": "db-migration", "namespace": "vms", "uid": MIGRATION},
           "spec": {"vmiName": "db"}, "status": {"phase": phase}})
}

/// The VM runs on worker-b, and a migration of it back to worker-a is in this phase; that it goes there is said at
/// one place only.
fn moving_back(phase: &str, said_by: (&str, &str), at: &str, what: Value) -> Cluster {
    moved().with(migration(phase)).set(said_by.0, said_by.1, at, what)
}

/// Neither pod of the VM but the old one.
fn alone(cluster: Cluster) -> Cluster {
    cluster.without("Pod", NEW_POD)
}

async fn reason(cluster: &Cluster, settings: WebhookSettings) -> Reason {
    let desk = Desk::shown(cluster, settings).await;
    let mut review = delete_review();
    review["request"]["oldObject"] = cluster.find("Pod", OLD_POD).clone();
    let _ = desk.ask(DELETE_PATH, &review).await;
    match desk.told()[0] {
        Happening::Decided(reason) => reason,
        other @ (Happening::Released(_) | Happening::Mutated) => panic!("{other:?}"),
    }
}

async fn expect(what: &str, cluster: Cluster, expected: Reason) {
    assert_eq!(reason(&cluster, settings(LONG)).await, expected, "{what}");
}

#[tokio::test]
async fn the_pod_its_namespace_and_its_owner() {
    expect("as recorded", base(), Reason::LastHolder).await;
    expect("terminating", deleted("Pod", OLD_POD), Reason::NotRunning).await;
    let pending = base().set("Pod", OLD_POD, "/status/phase", json!("Pending"));
    expect("pending", pending, Reason::NotRunning).await;
    let trigger = json!({"kubevirt.io/ephemeral-provisioning": "true"});
    let trigger = base().set("Pod", OLD_POD, "/metadata/annotations", trigger);
    expect("trigger", trigger, Reason::TriggerPod).await;
    expect("namespace", deleted("Namespace", "vms"), Reason::NamespaceGone).await;
    expect("no namespace", base().without("Namespace", "vms"), Reason::NamespaceGone).await;
    expect("owner", base().without("Pod", LAUNCHER), Reason::OwnerGone).await;
    expect("owner goes", deleted("Pod", LAUNCHER), Reason::OwnerGone).await;
    let ended = base().set("Pod", LAUNCHER, "/status/phase", json!("Failed"));
    expect("owner ended", ended, Reason::OwnerGone).await;
    let other = base().set("Pod", LAUNCHER, "/metadata/uid", json!("another"));
    expect("another owner of the name", other, Reason::OwnerGone).await;
    let none = base().set("Pod", OLD_POD, "/metadata/ownerReferences", json!([]));
    expect("no owner", none, Reason::OwnerGone).await;
}

#[tokio::test]
async fn the_vmi_and_where_it_runs() {
    expect("no VMI", base().without(VMI, "db"), Reason::VmiFinal).await;
    expect("VMI goes", deleted(VMI, "db"), Reason::VmiFinal).await;
    let restarted = base().set(VMI, "db", "/metadata/uid", json!("another"));
    expect("another VMI of the name", restarted, Reason::VmiFinal).await;
    let ended = base().set(VMI, "db", "/status/phase", json!("Succeeded"));
    expect("VMI ended", ended, Reason::VmiFinal).await;

    expect("moved", moved(), Reason::MigratedAway).await;
    expect("moved, and to be moved", moved().with(migration("Pending")), Reason::MigratedAway).await;
    let state = json!({"migrationUid": MIGRATION, "sourceNode": "worker-b", "targetNode": "worker-a"});
    let in_vmi = ((VMI, "db"), "/status/migrationState");
    let in_vmim = ((VMIM, "db-migration"), "/status/migrationState");
    let in_pod = (("Pod", LAUNCHER), "/metadata/labels");
    let labels = json!({"kubevirt.io": "virt-launcher", "kubevirt.io/migrationJobUID": MIGRATION});
    for (place, what) in [(in_vmi, &state), (in_vmim, &state), (in_pod, &labels)] {
        let (object, at) = place;
        let running = moving_back("Running", object, at, what.clone());
        expect(&format!("back, says {}", object.0), running, Reason::LastHolder).await;
        let ended = moving_back("Succeeded", object, at, what.clone());
        expect(&format!("was back, says {}", object.0), ended, Reason::MigratedAway).await;
    }
    // The previous migration stands in the VMI until the hand-off.
    let previous = json!({"migrationUid": "another", "targetNode": "worker-a"});
    let previous = moving_back("Scheduling", in_vmi.0, in_vmi.1, previous);
    expect("the previous went there", previous, Reason::MigratedAway).await;

    expect("no node", base().without("Node", "worker-a"), Reason::NodeGone).await;
    let taint = json!([{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]);
    expect("off", base().set("Node", "worker-a", "/spec/taints", taint), Reason::NodeGone).await;
}

#[tokio::test]
async fn the_volumes_and_whose_they_are() {
    let others = [DATA_PV, LOGS_PV].into_iter().fold(base(), |cluster, volume| {
        cluster.set("PersistentVolume", volume, "/spec/csi/driver", json!("other.csi.example.com"))
    });
    expect("another driver's", others, Reason::NothingInUse).await;
    let anew = ["db-data", "db-logs"].into_iter().fold(base(), |cluster, claim| {
        cluster.set("PersistentVolumeClaim", claim, "/metadata/uid", json!("another"))
    });
    expect("claims made anew", anew, Reason::NothingInUse).await;
    let unused = base().set(VMI, "db", "/status/volumeStatus", json!([]));
    expect("not in use", unused, Reason::NothingInUse).await;

    // On its way into the VM: through this pod, or through another.
    for (pod, expected) in [(OLD_POD, Reason::LastHolder), (NEW_POD, Reason::NothingInUse)] {
        let uid = base().find("Pod", pod)["metadata"]["uid"].clone();
        let status =
            json!({"name": "data", "phase": "AttachedToNode", "hotplugVolume": {"attachPodUID": uid}});
        let on_its_way = base().set(VMI, "db", "/status/volumeStatus", json!([status]));
        expect(&format!("on its way through {pod}"), on_its_way, expected).await;
    }

    let dumped = |volume: &str| json!({"name": volume, "memoryDump": {"claimName": format!("db-{volume}")}});
    let dumps = base().set(VMI, "db", "/spec/volumes", json!([dumped("data"), dumped("logs")]));
    expect("memory dumps", dumps, Reason::NothingInUse).await;
    let utility = |volume: &str| json!({"name": volume, "claimName": format!("db-{volume}")});
    let utilities = base().set(VMI, "db", "/spec/volumes", json!([])).set(
        VMI,
        "db",
        "/spec/utilityVolumes",
        json!([utility("data"), utility("logs")]),
    );
    expect("utility volumes", utilities, Reason::NothingInUse).await;
}

#[tokio::test]
async fn the_other_pods_of_the_vmi() {
    let mounts = json!([{"name": "data", "mountPath": "/data"}]);
    let devices = json!([{"name": "logs", "devicePath": "/path/logs"}]);
    let covered = base().set("Pod", NEW_POD, "/spec/containers/0/volumeMounts", mounts).set(
        "Pod",
        NEW_POD,
        "/spec/containers/0/volumeDevices",
        devices,
    );
    expect("a mount and a device", covered.clone(), Reason::Covered).await;
    let unready = covered.clone().set("Pod", NEW_POD, "/status/containerStatuses/0/ready", json!(false));
    expect("not ready", unready, Reason::LastHolder).await;
    let untold = covered.clone().set("Pod", NEW_POD, "/status/containerStatuses", json!([]));
    expect("nothing is said of its container", untold, Reason::LastHolder).await;
    let going = covered.clone().set("Pod", NEW_POD, "/metadata/deletionTimestamp", json!(DELETED_AT));
    expect("going", going, Reason::LastHolder).await;
    let elsewhere = covered.clone().set("Pod", NEW_POD, "/spec/nodeName", json!("worker-b"));
    expect("on another node", elsewhere, Reason::LastHolder).await;
    let stranger =
        json!([{"apiVersion": "v1", "kind": "Pod", "name": "virt-launcher-web", "uid": "another"}]);
    let strangers = covered.clone().set("Pod", NEW_POD, "/metadata/ownerReferences", stranger);
    expect("another VMI's", strangers, Reason::LastHolder).await;

    let strict = || WebhookSettings {
        guard: Settings { strict: true, max_hold: LONG, waiting_ready_limit: WAITING_READY_LIMIT },
        ..settings(LONG)
    };
    assert_eq!(reason(&covered, strict()).await, Reason::WaitingReady, "Ready for the old pod");
    let new_uid = covered.find("Pod", NEW_POD)["metadata"]["uid"].clone();
    let ready = |volume: &str| json!({"name": volume, "target": "sdx", "phase": "Ready", "hotplugVolume": {"attachPodUID": new_uid}});
    let statuses = json!([ready("data"), ready("logs"), ready("extra")]);
    let handed_over = covered.set(VMI, "db", "/status/volumeStatus", statuses);
    assert_eq!(reason(&handed_over, strict()).await, Reason::Covered);

    // The spec has them no longer, and the guest takes its time.
    let removed = alone(base()).set(VMI, "db", "/spec/volumes", json!([]));
    expect("removed", removed, Reason::LastHolder).await;
    let lost = ["db-data", "db-logs"].into_iter().fold(alone(base()), |cluster, claim| {
        cluster.set("PersistentVolumeClaim", claim, "/status/phase", json!("Lost"))
    });
    expect("claims that are not bound", lost, Reason::Leaving).await;
}
