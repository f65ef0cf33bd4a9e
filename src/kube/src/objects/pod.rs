//! Pods: those that are watched, and those that an admission review shows.

use std::collections::{BTreeMap, BTreeSet};

use kube::core::{NotUsed, Object, ObjectMeta};
use serde::Deserialize;

use super::kubevirt::{MIGRATION_JOB, ROLE, owner};
use super::{ClaimName, Watched, names, node_id};
use crate::hotplug::{AttachmentPod, NewContainer, PodPhase};
use crate::index::{HotplugFact, Index, Kind, PodFact, PodOwner, Table};

/// The [`ROLE`] of an attachment pod.
pub(crate) const HOTPLUG_DISK: &str = "hotplug-disk";
/// On an attachment pod that only has a volume provisioned.
const EPHEMERAL_PROVISIONING: &str = "kubevirt.io/ephemeral-provisioning";
/// The driver's own annotation on an attachment pod: when its deletion was first denied, in RFC 3339.
pub(crate) const HELD_SINCE: &str = "rds.csi.srvlab.io/held-since";
/// The same, of the first of several holds in a row.
pub(crate) const HELD_FIRST: &str = "rds.csi.srvlab.io/held-first";

/// A pod, as far as it is read.
pub(crate) type Pod = Object<PodSpec, PodStatus>;

/// `spec` of a Pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodSpec {
    node_name: Option<String>,
    #[serde(default)]
    volumes: Vec<PodVolume>,
    #[serde(default)]
    containers: Vec<Container>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodVolume {
    name: String,
    persistent_volume_claim: Option<ClaimName>,
    ephemeral: Option<NotUsed>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    volume_mounts: Option<Vec<Mount>>,
    volume_devices: Option<Vec<Device>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    name: String,
    mount_path: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    device_path: String,
}

/// `status` of a Pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodStatus {
    #[serde(default)]
    phase: String,
    #[serde(default)]
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Clone, Deserialize)]
struct ContainerStatus {
    #[serde(default)]
    ready: bool,
}

impl PodVolume {
    fn claim(&self, pod: &str) -> Option<String> {
        match (&self.persistent_volume_claim, &self.ephemeral) {
            (Some(claim), _) => Some(claim.claim_name.clone()),
            // Kubernetes names the claim of a generic ephemeral volume so.
            (None, Some(_)) => Some(format!("{pod}-{}", self.name)),
            (None, None) => None,
        }
    }
}

impl Container {
    fn exposes(&self) -> impl Iterator<Item = &str> {
        let mounts = self.volume_mounts.iter().flatten().map(|mount| mount.name.as_str());
        mounts.chain(self.volume_devices.iter().flatten().map(|device| device.name.as_str()))
    }

    fn new_container(&self) -> NewContainer {
        let mount = |mount: &Mount| (mount.name.clone(), mount.mount_path.clone());
        let device = |device: &Device| (device.name.clone(), device.device_path.clone());
        NewContainer {
            mounts: self.volume_mounts.as_ref().map(|all| all.iter().map(mount).collect()),
            devices: self.volume_devices.as_ref().map(|all| all.iter().map(device).collect()),
        }
    }
}

impl PodStatus {
    fn phase(&self) -> PodPhase {
        match self.phase.as_str() {
            "Pending" => PodPhase::Pending,
            "Running" => PodPhase::Running,
            "Succeeded" => PodPhase::Succeeded,
            "Failed" => PodPhase::Failed,
            _ => PodPhase::Other,
        }
    }

    /// Whether each of so many containers is ready.
    fn is_ready(&self, containers: usize) -> bool {
        containers > 0
            && self.container_statuses.len() == containers
            && self.container_statuses.iter().all(|status| status.ready)
    }
}

fn value<'a>(map: Option<&'a BTreeMap<String, String>>, key: &str) -> Option<&'a String> {
    map?.get(key).filter(|value| !value.is_empty())
}

/// Whether the pod holds hotplugged volumes.
pub(crate) fn is_attachment_pod(metadata: &ObjectMeta) -> bool {
    value(metadata.labels.as_ref(), ROLE).is_some_and(|role| role == HOTPLUG_DISK)
}

/// Whether the pod only has a volume provisioned.
pub(crate) fn is_trigger(metadata: &ObjectMeta) -> bool {
    metadata.annotations.as_ref().is_some_and(|map| map.contains_key(EPHEMERAL_PROVISIONING))
}

/// The claims of the pod's volumes, by the volumes' names.
pub(crate) fn claims_by_volume(pod: &str, spec: &PodSpec) -> BTreeMap<String, String> {
    let volumes = spec.volumes.iter();
    volumes.filter_map(|volume| Some((volume.name.clone(), volume.claim(pod)?))).collect()
}

/// The pod's containers, as the mutation looks at them.
pub(crate) fn new_containers(spec: &PodSpec) -> Vec<NewContainer> {
    spec.containers.iter().map(Container::new_container).collect()
}

/// What is known of an attachment pod by itself; `None` if it is none, or has no name yet.
pub(crate) fn hotplug_fact(pod: &Pod) -> Option<HotplugFact> {
    let metadata = &pod.metadata;
    if !is_attachment_pod(metadata) {
        return None;
    }
    let (namespace, name) = names(metadata)?;
    let status = pod.status.clone().unwrap_or_default();
    let exposes: BTreeSet<_> =
        pod.spec.containers.iter().flat_map(Container::exposes).map(str::to_owned).collect();
    let owners = metadata.owner_references.iter().flatten();
    let mut owners = owners.filter(|owner| owner.kind == "Pod");
    Some(HotplugFact {
        owner: owners.next().map(|owner| (owner.name.clone(), owner.uid.clone())),
        held_since: value(metadata.annotations.as_ref(), HELD_SINCE).cloned(),
        held_first: value(metadata.annotations.as_ref(), HELD_FIRST).cloned(),
        pod: AttachmentPod {
            volumes: claims_by_volume(&name, &pod.spec),
            namespace,
            name,
            uid: metadata.uid.clone()?,
            created: metadata.creation_timestamp.as_ref().map(|time| time.0.into()),
            terminating: metadata.deletion_timestamp.is_some(),
            phase: status.phase(),
            node: node_id(pod.spec.node_name.as_deref()),
            is_trigger: is_trigger(metadata),
            containers_ready: status.is_ready(pod.spec.containers.len()),
            exposes,
        },
    })
}

impl Watched for PodFact {
    const KIND: Kind = Kind::Pod;
    const API: (&'static str, &'static str, &'static str) = ("", "v1", "Pod");
    type Object = Pod;

    fn read(object: Self::Object, _: &str) -> Option<Self> {
        let hotplug = hotplug_fact(&object).map(Box::new);
        let (namespace, name) = names(&object.metadata)?;
        let claims: Vec<_> = object.spec.volumes.iter().filter_map(|volume| volume.claim(&name)).collect();
        let owner = owner(&object.metadata);
        if claims.is_empty() && owner == PodOwner::None && hotplug.is_none() {
            return None;
        }
        let owners = object.metadata.owner_references.iter().flatten();
        let mut vmis = owners.filter(|owner| owner.kind == "VirtualMachineInstance");
        Some(Self {
            namespace,
            name,
            vmi_uid: vmis.next().map(|vmi| vmi.uid.clone()),
            migration: value(object.metadata.labels.as_ref(), MIGRATION_JOB).cloned(),
            uid: object.metadata.uid?,
            node: node_id(object.spec.node_name.as_deref()),
            phase: object.status.as_ref().map_or(PodPhase::Other, PodStatus::phase),
            terminating: object.metadata.deletion_timestamp.is_some(),
            claims,
            owner,
            hotplug,
        })
    }

    fn table(index: &mut Index) -> &mut Table<Self> {
        &mut index.pods
    }
}
