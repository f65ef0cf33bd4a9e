//! Claims, pods and virtual machines that users and KubeVirt make.

use serde_json::{Value, json};

use crate::cluster::NAMESPACE;

/// A claim of 1 GiB.
pub(crate) fn claim(name: &str, class: &str, access_mode: &str, volume_mode: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
           "metadata": {"name": name, "namespace": NAMESPACE},
           "spec": {"storageClassName": class, "accessModes": [access_mode], "volumeMode": volume_mode,
                    "resources": {"requests": {"storage": "1Gi"}}}})
}

/// An RWX block claim, as VMs have that migrate.
pub(crate) fn disk(name: &str) -> Value {
    claim(name, "rds-vm", "ReadWriteMany", "Block")
}

/// A pod on a node that uses the claims.
pub(crate) fn pod(name: &str, node: &str, claims: &[&str]) -> Value {
    let volume = |claim: &&str| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE},
           "spec": {"nodeName": node,
                    "containers": [{"name": "compute", "image": "registry.example/any"}],
                    "volumes": claims.iter().map(volume).collect::<Vec<_>>()}})
}

/// The virt-launcher pod of a VMI, which has a UID.
pub(crate) fn launcher(name: &str, node: &str, vmi: &Value, claims: &[&str]) -> Value {
    let mut pod = pod(name, node, claims);
    let (vm, uid) = (&vmi["metadata"]["name"], &vmi["metadata"]["uid"]);
    pod["metadata"]["labels"] = json!({"kubevirt.io": "virt-launcher", "vm.kubevirt.io/name": vm});
    pod["metadata"]["annotations"] = json!({"kubevirt.io/domain": vm});
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": vm, "uid": uid, "controller": true,
    }]);
    pod
}

/// A VMI with these claims as disks.
pub(crate) fn vmi(name: &str, claims: &[&str]) -> Value {
    let volume = |claim: &&str| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}});
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
           "metadata": {"name": name, "namespace": NAMESPACE},
           "spec": {"domain": {"memory": {"guest": "1Gi"}},
                    "volumes": claims.iter().map(volume).collect::<Vec<_>>()}})
}

/// A migration of a VMI.
pub(crate) fn migration(name: &str, vmi: &str) -> Value {
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
           "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"kubevirt.io/vmi-name": vmi}},
           "spec": {"vmiName": vmi}})
}

/// A kind of KubeVirt's, without a schema.
pub(crate) fn kubevirt_kind(kind: &str, plural: &str) -> Value {
    let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
           "metadata": {"name": format!("{plural}.kubevirt.io")},
           "spec": {"group": "kubevirt.io", "scope": "Namespaced",
                    "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                    "versions": [{"name": "v1", "served": true, "storage": true,
                                  "schema": {"openAPIV3Schema": any}}]}})
}
