//! Objects of a small cluster in the form of the API, all in one namespace.

use serde_json::{Value, json};

/// The namespace of everything that has one.
pub const NAMESPACE: &str = "vms";

/// The driver that the volumes belong to.
const DRIVER: &str = "rds.csi.srvlab.io";

fn metadata(name: &str) -> Value {
    json!({"name": name, "namespace": NAMESPACE, "uid": format!("uid-of-{name}"),
           "creationTimestamp": "2026-11-20T09:00:00Z"})
}

/// A node that is there and well.
pub fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": format!("uid-of-{name}")},
           "spec": {}, "status": {}})
}

/// A node that somebody vouches is off.
pub fn node_out_of_service(name: &str) -> Value {
    let mut node = node(name);
    let taint =
        json!({"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"});
    node["spec"] = json!({"taints": [taint]});
    node
}

/// The PersistentVolume of `volume_id`, bound to the claim `claim`, and the claim.
pub fn bound_claim(volume_id: &str, claim: &str) -> [Value; 2] {
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": format!("pv-of-{claim}"), "uid": format!("uid-of-pv-of-{claim}")},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "claimRef": {"kind": "PersistentVolumeClaim", "namespace": NAMESPACE, "name": claim,
                         "uid": format!("uid-of-{claim}")},
            "csi": {"driver": DRIVER, "volumeHandle": volume_id},
            "volumeMode": "Block",
        },
    });
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata(claim),
                       "spec": {"volumeName": format!("pv-of-{claim}")}});
    [volume, claim]
}

/// The virt-launcher pod `name` of the VMI `vm` on `node`, which uses the claims.
pub fn launcher(name: &str, vm: &str, node: &str, claims: &[&str]) -> Value {
    let volumes = claims
        .iter()
        .map(|claim| json!({"name": format!("disk-{claim}"), "persistentVolumeClaim": {"claimName": claim}}));
    let mut metadata = metadata(name);
    metadata["labels"] = json!({"kubevirt.io": "virt-launcher", "vm.kubevirt.io/name": vm});
    metadata["ownerReferences"] = json!([{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
                                          "name": vm, "uid": format!("uid-of-{vm}"), "controller": true}]);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
           "spec": {"nodeName": node, "volumes": volumes.collect::<Vec<_>>()}, "status": {"phase": "Running"}})
}

/// The VMI `vm`, which runs on `node` with as much memory, and uses the claims.
pub fn vmi(vm: &str, node: &str, guest_memory: &str, claims: &[&str]) -> Value {
    let volumes = claims
        .iter()
        .map(|claim| json!({"name": format!("disk-{claim}"), "persistentVolumeClaim": {"claimName": claim}}));
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": metadata(vm),
           "spec": {"domain": {"memory": {"guest": guest_memory}}, "volumes": volumes.collect::<Vec<_>>()},
           "status": {"phase": "Running", "nodeName": node}})
}

/// A migration of the VMI `vm` in a phase.
pub fn migration(vm: &str, phase: &str) -> Value {
    let mut metadata = metadata(&format!("{vm}-migration"));
    metadata["labels"] = json!({"kubevirt.io/vmi-name": vm});
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration", "metadata": metadata,
           "spec": {"vmiName": vm}, "status": {"phase": phase}})
}

/// What a TokenReview says of a valid token: whose it is, for whom it is meant, and on which node its pod runs.
pub fn reviewed(namespace: &str, service_account: &str, audience: &str, node: &str) -> Value {
    json!({
        "authenticated": true,
        "audiences": [audience],
        "user": {
            "username": format!("system:serviceaccount:{namespace}:{service_account}"),
            "uid": "uid-of-the-account",
            "groups": ["system:serviceaccounts"],
            "extra": {
                "authentication.kubernetes.io/node-name": [node],
                "authentication.kubernetes.io/pod-name": [format!("{service_account}-{node}")],
                "authentication.kubernetes.io/pod-uid": [format!("uid-of-pod-on-{node}")],
            },
        },
    })
}
