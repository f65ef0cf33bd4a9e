//! A made-up cluster of VMs with hotplugged volumes, as `bench webhook` shows it: objects and reviews in the API's form.
//!
//! Each VM uses two volumes of this driver, and is given a third of another one. Its old attachment pod exposes the
//! first two. The new one lists all three; for VMs with an even number it exposes only what is new, as KubeVirt makes it.

use serde_json::{Value, json};

/// The driver whose volumes are made up.
pub(super) const DRIVER: &str = "rds.csi.srvlab.io";
/// Where KubeVirt's controller runs.
pub(super) const KUBEVIRT_NAMESPACE: &str = "kubevirt";

const NAMESPACE: &str = "vms";
/// Nodes that the VMs are spread over.
const NODES: u32 = 20;
/// Fields that a pod's `managedFields` name, in all: most of what a review weighs.
const MANAGED_FIELDS: u32 = 200;
/// The volumes of each VM, and whether they are this driver's.
const VOLUMES: [(&str, bool); 3] = [("data", true), ("logs", true), ("extra", false)];

/// When everything was made.
const CREATED: &str = "2020-01-01T00:00:00Z";
/// When the first deletion was denied, whenever that was: the bench's longest hold is longer.
const HELD_SINCE: &str = "2020-01-01T00:00:01Z";

/// What is reviewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Review {
    /// The deletion of the old pod, whose volumes the new one does not expose.
    DeleteUncovered,
    /// The deletion of the old pod, whose volumes the new one exposes.
    DeleteCovered,
    /// The creation of the new pod.
    Create,
}

/// All objects of a cluster with so many VMs.
pub(super) fn objects(vms: u32) -> Vec<Value> {
    let node = |number| {
        json!({"apiVersion": "v1", "kind": "Node",
               "metadata": {"name": node_name(number), "uid": format!("uid-of-node-{number}")}, "spec": {}})
    };
    let mut objects: Vec<_> = (0..NODES).map(node).collect();
    objects
        .push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}, "spec": {}}));
    for vm in 0..vms {
        objects.extend(VOLUMES.iter().flat_map(|(volume, is_ours)| claim(vm, volume, *is_ours)));
        objects.extend([launcher(vm), vmi(vm), old_pod(vm), new_pod(vm)]);
    }
    objects
}

/// A review about the VM of this number, or the next one that it makes sense for.
pub(super) fn review(vm: u32, review: Review) -> Value {
    let (operation, object, old_object) = match review {
        // Even numbers are uncovered, odd ones covered.
        Review::DeleteUncovered => ("DELETE", Value::Null, old_pod(vm & !1)),
        Review::DeleteCovered => ("DELETE", Value::Null, old_pod(vm | 1)),
        Review::Create => ("CREATE", new_pod(vm & !1), Value::Null),
    };
    let pods = json!({"group": "", "version": "v1", "resource": "pods"});
    json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": format!("review-of-{vm}"), "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": pods, "requestResource": pods, "namespace": NAMESPACE, "operation": operation,
            "userInfo": {
                "username": format!("system:serviceaccount:{KUBEVIRT_NAMESPACE}:kubevirt-controller"),
                "groups": ["system:serviceaccounts", "system:authenticated"],
            },
            "object": object, "oldObject": old_object, "dryRun": false,
        },
    })
}

fn node_name(vm: u32) -> String {
    format!("node-{}", vm % NODES)
}

fn metadata(name: &str) -> Value {
    json!({"name": name, "namespace": NAMESPACE, "uid": format!("uid-of-{name}"), "resourceVersion": "1",
           "creationTimestamp": CREATED})
}

fn claim(vm: u32, volume: &str, is_ours: bool) -> [Value; 2] {
    let name = format!("vm-{vm}-{volume}");
    let driver = if is_ours { DRIVER } else { "other.csi.example.com" };
    let reference = json!({"namespace": NAMESPACE, "name": name, "uid": format!("uid-of-{name}")});
    [
        json!({"apiVersion": "v1", "kind": "PersistentVolume",
               "metadata": {"name": format!("pv-{name}"), "uid": format!("uid-of-pv-{name}")},
               "spec": {"claimRef": reference, "csi": {"driver": driver, "volumeHandle": format!("pvc-{name}")},
                        "volumeMode": "Filesystem"}}),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata(&name),
               "spec": {"volumeName": format!("pv-{name}")}, "status": {"phase": "Bound"}}),
    ]
}

fn launcher(vm: u32) -> Value {
    let mut metadata = metadata(&format!("virt-launcher-{vm}"));
    metadata["labels"] = json!({"kubevirt.io": "virt-launcher"});
    metadata["ownerReferences"] = json!([{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
                                          "name": format!("vm-{vm}"), "uid": format!("uid-of-vm-{vm}")}]);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
           "spec": {"nodeName": node_name(vm), "containers": [{"name": "compute"}]}, "status": {"phase": "Running"}})
}

fn vmi(vm: u32) -> Value {
    let volume = |(name, _): &(&str, bool)| json!({"name": name, "persistentVolumeClaim": {"claimName": format!("vm-{vm}-{name}"), "hotpluggable": true}});
    let status = |name: &str| {
        json!({"name": name, "target": "sda", "phase": "Ready",
               "hotplugVolume": {"attachPodUID": format!("uid-of-hp-volume-old-{vm}")}})
    };
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": metadata(&format!("vm-{vm}")),
           "spec": {"volumes": VOLUMES.iter().map(volume).collect::<Vec<_>>()},
           "status": {"phase": "Running", "nodeName": node_name(vm), "volumeStatus": [status("data"), status("logs")]}})
}

fn old_pod(vm: u32) -> Value {
    let mut pod = attachment_pod(vm, "old", &["data", "logs"], &["data", "logs"]);
    if vm.is_multiple_of(2) {
        // It is held already: a first denial would be written on it.
        pod["metadata"]["annotations"] = json!({"rds.csi.srvlab.io/held-since": HELD_SINCE});
    }
    pod
}

fn new_pod(vm: u32) -> Value {
    let exposed: &[&str] = if vm.is_multiple_of(2) { &["extra"] } else { &["data", "logs", "extra"] };
    attachment_pod(vm, "new", &["data", "logs", "extra"], exposed)
}

fn attachment_pod(vm: u32, which: &str, volumes: &[&str], exposed: &[&str]) -> Value {
    let mut metadata = metadata(&format!("hp-volume-{which}-{vm}"));
    metadata["labels"] = json!({"kubevirt.io": "hotplug-disk"});
    metadata["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Pod", "name": format!("virt-launcher-{vm}"),
                                          "uid": format!("uid-of-virt-launcher-{vm}")}]);
    let fields: serde_json::Map<_, _> = (0..MANAGED_FIELDS)
        .map(|number| (format!("f:field-of-the-pod-{number}"), json!({".": {}})))
        .collect();
    metadata["managedFields"] =
        json!([{"manager": "virt-controller", "operation": "Update", "fieldsV1": fields}]);
    let volume = |name: &&str| json!({"name": name, "persistentVolumeClaim": {"claimName": format!("vm-{vm}-{name}")}});
    let mount = |name: &&str| json!({"name": name, "mountPath": format!("/{name}")});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {
            "nodeName": node_name(vm),
            "containers": [{"name": "hotplug-disk", "volumeMounts": exposed.iter().map(mount).collect::<Vec<_>>()}],
            "volumes": volumes.iter().map(volume).collect::<Vec<_>>(),
        },
        "status": {"phase": "Running", "containerStatuses": [{"name": "hotplug-disk", "ready": true}]},
    })
}
