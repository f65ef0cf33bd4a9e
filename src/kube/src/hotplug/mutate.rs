//! What a new attachment pod lacks: mounts and devices of volumes that it lists and does not expose.
//!
//! KubeVirt leaves a volume that the VM uses already out of the new pod's `volumeMounts` (Filesystem mode; before
//! 1.0.0 out of `volumeDevices` as well), and kubelet ignores what no container uses. `spec.volumes` is never touched:
//! KubeVirt counts them to recognise its pods. Volumes of other drivers, those whose claim is not known, and trigger
//! pods are left alone. Applied to its own result it adds nothing.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::facts::{Claim, NewContainer, NewPod, PatchOperation};
use crate::index::Answer;

/// The operations that make the first container of `pod` expose every volume of this driver that the pod lists.
///
/// The first one, as an attachment pod has a single container of KubeVirt's; what is injected comes after it.
pub fn mutate(pod: &NewPod) -> Vec<PatchOperation> {
    let Some(first) = pod.containers.first().filter(|_| !pod.is_trigger) else { return Vec::new() };
    let mut mounts = Vec::new();
    let mut devices = Vec::new();
    for (volume, claim) in &pod.volumes {
        if pod.containers.iter().any(|container| container.exposes(volume)) {
            continue;
        }
        match pod.claims.get(claim) {
            Some(Answer::Known(claim)) if claim.ours => {
                let (list, value) = if claim.block {
                    (&mut devices, device(volume, claim))
                } else {
                    (&mut mounts, json!({ "name": volume, "mountPath": mount_path(volume) }))
                };
                list.push(value);
            }
            Some(Answer::Known(_) | Answer::Absent | Answer::Unknown(_)) | None => {}
        }
    }
    let taken = first.paths();
    mounts.retain(|mount| is_free(&taken, &mount["mountPath"]));
    devices.retain(|device| is_free(&taken, &device["devicePath"]));
    let mut patch = additions("volumeMounts", first.mounts.is_some(), mounts);
    patch.extend(additions("volumeDevices", first.devices.is_some(), devices));
    patch
}

/// Where KubeVirt mounts a volume.
fn mount_path(volume: &str) -> String {
    format!("/{volume}")
}

/// As KubeVirt writes it: the device is found by the claim's UID.
fn device(volume: &str, claim: &Claim) -> Value {
    json!({ "name": volume, "devicePath": format!("/path/{volume}/{}", claim.uid) })
}

/// A path that is taken would make the API server refuse the pod.
fn is_free(taken: &BTreeSet<&str>, path: &Value) -> bool {
    path.as_str().is_some_and(|path| !taken.contains(path))
}

/// Adds `values` to a list of the first container, one after the other, or as a new list.
fn additions(list: &str, exists: bool, values: Vec<Value>) -> Vec<PatchOperation> {
    let path = format!("/spec/containers/0/{list}");
    if values.is_empty() {
        Vec::new()
    } else if exists {
        values
            .into_iter()
            .map(|value| PatchOperation { op: "add", path: format!("{path}/-"), value })
            .collect()
    } else {
        vec![PatchOperation { op: "add", path, value: Value::Array(values) }]
    }
}

impl NewContainer {
    fn lists(&self) -> impl Iterator<Item = &(String, String)> {
        self.mounts.iter().chain(&self.devices).flatten()
    }

    fn exposes(&self, volume: &str) -> bool {
        self.lists().any(|(name, _)| name == volume)
    }

    fn paths(&self) -> BTreeSet<&str> {
        self.lists().map(|(_, path)| path.as_str()).collect()
    }
}
