//! A small cluster, written by hand in the form of the API: VM `vms/web` migrates from worker-a to worker-b with the
//! volume's claim `vms/web-disk`; an earlier migration of it failed.

use std::time::Instant;

use observer::Index;
use serde_json::{Value, json};
use state_machine::{NodeId, VolumeId};

pub(crate) const DRIVER: &str = "rds.csi.srvlab.io";
pub(crate) const VOLUME: &str = "pvc-0b4fb0c0-5f5a-4a53-a6d8-2f6f4b1ff001";
/// The migration that failed.
pub(crate) const FIRST: &str = "66666666-0000-4000-8000-000000000001";
/// The migration that is under way.
pub(crate) const SECOND: &str = "66666666-0000-4000-8000-000000000002";

pub(crate) fn volume() -> VolumeId {
    VolumeId::parse(VOLUME).unwrap()
}

pub(crate) fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

/// The objects of a cluster.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    pub(crate) objects: Vec<Value>,
}

impl Cluster {
    pub(crate) fn recorded() -> Self {
        let files = [
            include_str!("../recorded/nodes.json"),
            include_str!("../recorded/volumes.json"),
            include_str!("../recorded/pods.json"),
            include_str!("../recorded/vmi.json"),
            include_str!("../recorded/migrations.json"),
            include_str!("../recorded/kubevirt.json"),
        ];
        let objects =
            files.iter().flat_map(|text| serde_json::from_str::<Vec<Value>>(text).unwrap()).collect();
        Self { objects }
    }

    /// A VM with hotplugged volumes at the moment of the hazard: the old attachment pod is to go, and the new one lists
    /// what the VM uses and does not expose it.
    pub(crate) fn hotplugging() -> Self {
        let files = [include_str!("../recorded/nodes.json"), include_str!("../recorded/hotplug.json")];
        let objects =
            files.iter().flat_map(|text| serde_json::from_str::<Vec<Value>>(text).unwrap()).collect();
        Self { objects }
    }

    pub(crate) fn find(&self, kind: &str, name: &str) -> &Value {
        self.objects
            .iter()
            .find(|object| is(object, kind, name))
            .unwrap_or_else(|| panic!("no {kind} {name}"))
    }

    /// Sets the value at `pointer` in an object; the place above it must be there.
    pub(crate) fn set(mut self, kind: &str, name: &str, pointer: &str, value: Value) -> Self {
        let object = self.objects.iter_mut().find(|object| is(object, kind, name));
        let object = object.unwrap_or_else(|| panic!("no {kind} {name}"));
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(field.to_owned(), value);
        self
    }

    pub(crate) fn without(mut self, kind: &str, name: &str) -> Self {
        self.find(kind, name);
        self.objects.retain(|object| !is(object, kind, name));
        self
    }

    pub(crate) fn with(mut self, object: Value) -> Self {
        self.objects.push(object);
        self
    }

    /// A copy of an object under another name and UID.
    pub(crate) fn copy(self, kind: &str, name: &str, to: &str) -> Self {
        let copy = self.find(kind, name).clone();
        self.with(copy).renamed(to)
    }

    fn renamed(mut self, to: &str) -> Self {
        let metadata = self.objects.last_mut().unwrap().get_mut("metadata").unwrap();
        metadata["name"] = json!(to);
        metadata["uid"] = json!(format!("uid-of-{to}"));
        self
    }

    /// `status.migrationState` of the VMI.
    pub(crate) fn state(self, uid: &str, source: &str, target: &str, end: &str) -> Self {
        let state = json!({
            "migrationUid": uid,
            "sourceNode": source,
            "targetNode": target,
            "startTimestamp": "2026-11-20T09:00:10Z",
            // KubeVirt calls a failed migration completed as well.
            "completed": end != "running",
            "failed": end == "failed",
        });
        self.set("VirtualMachineInstance", "web", "/status/migrationState", state)
    }

    pub(crate) fn phase(self, migration: &str, phase: &str) -> Self {
        self.set("VirtualMachineInstanceMigration", migration, "/status/phase", json!(phase))
    }

    pub(crate) fn runs_on(self, node: &str) -> Self {
        self.set("VirtualMachineInstance", "web", "/status/nodeName", json!(node))
    }

    pub(crate) fn index(&self, as_of: Instant) -> Index {
        Index::recorded(DRIVER, &self.objects, as_of).unwrap()
    }
}

fn is(object: &Value, kind: &str, name: &str) -> bool {
    object["kind"] == kind && object["metadata"]["name"] == name
}
