//! KubeVirt's objects (`kubevirt.io/v1`), and whose a pod is.

use std::collections::BTreeMap;

use kube::core::{NotUsed, Object, ObjectMeta};
use serde::Deserialize;

use super::{ClaimName, Watched, names, node_id};
use crate::hotplug::{SpecVolume, VolumePhase, VolumeStatus as HotplugStatus};
use crate::index::{
    Index, Kind, MigrationFact, MigrationPhase, PodOwner, SettingsFact, Table, VmiFact, VmiPhase, VmimFact,
};
use crate::quantity;

/// The VMI's name on a virt-launcher pod; an annotation, as names may be longer than a label.
const DOMAIN: &str = "kubevirt.io/domain";
/// The VMI's name on a hotplug pod, since v1.9.
const OWNER_VMI: &str = "kubevirt.io/owner-vmi-name";
/// What a pod of KubeVirt is for.
pub(super) const ROLE: &str = "kubevirt.io";
/// The migration whose target pod it is, by UID.
pub(super) const MIGRATION_JOB: &str = "kubevirt.io/migrationJobUID";
/// The VM's name as a label; in fact its host name, so it is the last resort.
const VM_NAME: &str = "vm.kubevirt.io/name";

/// Whose pod it is: by its owner first, as labels and annotations are copied around.
pub(super) fn owner(metadata: &ObjectMeta) -> PodOwner {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    if let Some(vmi) = owners.iter().find(|owner| owner.kind == "VirtualMachineInstance") {
        return PodOwner::Vm(vmi.name.clone());
    }
    let of = |map: &Option<BTreeMap<String, String>>, key: &str| {
        map.as_ref().and_then(|map| map.get(key)).filter(|value| !value.is_empty()).cloned()
    };
    if let Some(vmi) = of(&metadata.annotations, OWNER_VMI).or_else(|| of(&metadata.annotations, DOMAIN)) {
        return PodOwner::Vm(vmi);
    }
    if of(&metadata.labels, ROLE).as_deref() == Some(super::pod::HOTPLUG_DISK)
        && let Some(launcher) = owners.iter().find(|owner| owner.kind == "Pod")
    {
        return PodOwner::Launcher(launcher.uid.clone());
    }
    match of(&metadata.labels, DOMAIN).or_else(|| of(&metadata.labels, VM_NAME)) {
        Some(vmi) => PodOwner::Vm(vmi),
        None => PodOwner::None,
    }
}

fn created_at_s(metadata: &ObjectMeta) -> i64 {
    metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

/// `spec` of a VMI.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VmiSpec {
    #[serde(default)]
    domain: Domain,
    #[serde(default)]
    volumes: Vec<VmiVolume>,
    #[serde(default)]
    utility_volumes: Vec<UtilityVolume>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct UtilityVolume {
    name: String,
    claim_name: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Domain {
    memory: Option<GuestMemory>,
    resources: Option<Resources>,
}

#[derive(Debug, Clone, Deserialize)]
struct GuestMemory {
    guest: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Resources {
    requests: Option<Requests>,
}

#[derive(Debug, Clone, Deserialize)]
struct Requests {
    memory: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VmiVolume {
    #[serde(default)]
    name: String,
    persistent_volume_claim: Option<ClaimOfVmi>,
    data_volume: Option<DataVolume>,
    memory_dump: Option<ClaimName>,
    ephemeral: Option<Ephemeral>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClaimOfVmi {
    claim_name: String,
    #[serde(default)]
    hotpluggable: bool,
}

#[derive(Debug, Clone, Deserialize)]
struct DataVolume {
    name: String,
    #[serde(default)]
    hotpluggable: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ephemeral {
    persistent_volume_claim: Option<ClaimName>,
}

impl VmiVolume {
    fn claim(self) -> Option<String> {
        let ephemeral = self.ephemeral.and_then(|volume| volume.persistent_volume_claim);
        let claim = self.memory_dump.or(ephemeral).map(|claim| claim.claim_name);
        // A DataVolume's claim has its name.
        let claim = claim.or(self.data_volume.map(|volume| volume.name));
        self.persistent_volume_claim.map(|claim| claim.claim_name).or(claim)
    }

    fn spec_volume(&self) -> SpecVolume {
        let is_dump = self.memory_dump.is_some();
        let hotplug = is_dump
            || self.persistent_volume_claim.as_ref().is_some_and(|claim| claim.hotpluggable)
            || self.data_volume.as_ref().is_some_and(|volume| volume.hotpluggable);
        SpecVolume { hotplug, never_ready: is_dump }
    }
}

/// `status` of a VMI.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VmiStatus {
    #[serde(default)]
    phase: String,
    node_name: Option<String>,
    migration_state: Option<MigrationState>,
    #[serde(default)]
    volume_status: Vec<VolumeStatus>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeStatus {
    #[serde(default)]
    name: String,
    #[serde(default)]
    target: String,
    #[serde(default)]
    phase: String,
    hotplug_volume: Option<HotplugVolume>,
    memory_dump_volume: Option<NotUsed>,
    persistent_volume_claim_info: Option<VolumeClaimInfo>,
}

#[derive(Debug, Clone, Deserialize)]
struct HotplugVolume {
    // With the usual rename the field would be `attachPodUid`.
    #[serde(rename = "attachPodUID")]
    attach_pod_uid: Option<String>,
}

impl VolumeStatus {
    fn hotplug_status(&self) -> HotplugStatus {
        let attached = self.hotplug_volume.as_ref().and_then(|volume| volume.attach_pod_uid.clone());
        HotplugStatus {
            phase: match self.phase.as_str() {
                "Ready" => VolumePhase::Ready,
                "MountedToPod" => VolumePhase::MountedToPod,
                "AttachedToNode" => VolumePhase::AttachedToNode,
                _ => VolumePhase::Other,
            },
            target: self.target.clone(),
            attach_pod_uid: attached.filter(|uid| !uid.is_empty()),
            never_ready: self.memory_dump_volume.is_some(),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeClaimInfo {
    claim_name: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MigrationState {
    #[serde(default)]
    migration_uid: String,
    source_node: Option<String>,
    target_node: Option<String>,
    #[serde(default)]
    completed: bool,
    #[serde(default)]
    failed: bool,
    migration_configuration: Option<MigrationSettings>,
}

/// `configuration.migrations` of a KubeVirt object, and what a VMI got of it and of its policy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MigrationSettings {
    // With this rename the field would be `completionTimeoutPerGib`.
    #[serde(rename = "completionTimeoutPerGiB")]
    completion_timeout_per_gib: Option<u64>,
    allow_workload_disruption: Option<bool>,
}

impl MigrationState {
    fn fact(self) -> MigrationFact {
        let settings = self.migration_configuration.unwrap_or_default();
        MigrationFact {
            uid: self.migration_uid,
            source: node_id(self.source_node.as_deref()),
            target: node_id(self.target_node.as_deref()),
            completed: self.completed,
            failed: self.failed,
            completion_seconds_per_gib: settings.completion_timeout_per_gib,
            allow_workload_disruption: settings.allow_workload_disruption,
        }
    }
}

impl Domain {
    /// What KubeVirt sizes a migration by: the guest's memory, else what is requested for it.
    fn memory_bytes(&self) -> Option<u64> {
        let guest = self.memory.as_ref().and_then(|memory| memory.guest.as_deref());
        let requested =
            || self.resources.as_ref().and_then(|r| r.requests.as_ref()).and_then(|r| r.memory.as_deref());
        quantity::bytes(guest.or_else(requested)?)
    }
}

impl VmiSpec {
    fn hotplug_volumes(&self) -> BTreeMap<String, SpecVolume> {
        let volumes = self.volumes.iter().map(|volume| (volume.name.clone(), volume.spec_volume()));
        let utility = self.utility_volumes.iter();
        let utility =
            utility.map(|volume| (volume.name.clone(), SpecVolume { hotplug: true, never_ready: true }));
        volumes.chain(utility).collect()
    }
}

/// The statuses, by name. That a volume never becomes Ready, the spec may say alone.
fn hotplug_statuses(
    statuses: &[VolumeStatus],
    spec: &BTreeMap<String, SpecVolume>,
) -> BTreeMap<String, HotplugStatus> {
    let of = |status: &VolumeStatus| {
        let told = status.hotplug_status();
        let by_spec = spec.get(&status.name).is_some_and(|volume| volume.never_ready);
        (status.name.clone(), HotplugStatus { never_ready: told.never_ready || by_spec, ..told })
    };
    statuses.iter().map(of).collect()
}

impl Watched for VmiFact {
    const KIND: Kind = Kind::Vmi;
    const API: (&'static str, &'static str, &'static str) = ("kubevirt.io", "v1", "VirtualMachineInstance");
    const MAY_BE_ABSENT: bool = true;
    type Object = Object<VmiSpec, VmiStatus>;

    fn read(object: Self::Object, _: &str) -> Option<Self> {
        let (namespace, name) = names(&object.metadata)?;
        let created_at_s = created_at_s(&object.metadata);
        let status = object.status.unwrap_or_default();
        let memory_bytes = object.spec.domain.memory_bytes();
        let spec_volumes = object.spec.hotplug_volumes();
        let volume_status = hotplug_statuses(&status.volume_status, &spec_volumes);
        // The status also has volumes that KubeVirt adds itself, and those on their way out.
        let reported =
            status.volume_status.into_iter().filter_map(|volume| volume.persistent_volume_claim_info);
        let mut claims: Vec<_> = object.spec.volumes.into_iter().filter_map(VmiVolume::claim).collect();
        claims.extend(object.spec.utility_volumes.into_iter().filter_map(|volume| volume.claim_name));
        claims.extend(reported.filter_map(|claim| claim.claim_name));
        claims.sort_unstable();
        claims.dedup();
        Some(Self {
            namespace,
            name,
            uid: object.metadata.uid?,
            node: node_id(status.node_name.as_deref().filter(|node| !node.is_empty())),
            phase: match status.phase.as_str() {
                "Running" => VmiPhase::Running,
                "Succeeded" | "Failed" => VmiPhase::Final,
                _ => VmiPhase::Starting,
            },
            claims,
            memory_bytes,
            created_at_s,
            migration: status.migration_state.map(MigrationState::fact),
            deleting: object.metadata.deletion_timestamp.is_some(),
            spec_volumes,
            volume_status,
        })
    }

    fn table(index: &mut Index) -> &mut Table<Self> {
        &mut index.vmis
    }
}

/// `spec` of a VMIM.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VmimSpec {
    #[serde(default)]
    vmi_name: String,
}

/// `status` of a VMIM.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VmimStatus {
    #[serde(default)]
    phase: String,
    migration_state: Option<TargetState>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TargetState {
    target_node: Option<String>,
}

impl Watched for VmimFact {
    const KIND: Kind = Kind::Vmim;
    const API: (&'static str, &'static str, &'static str) =
        ("kubevirt.io", "v1", "VirtualMachineInstanceMigration");
    const MAY_BE_ABSENT: bool = true;
    type Object = Object<VmimSpec, VmimStatus>;

    fn read(object: Self::Object, _: &str) -> Option<Self> {
        let (namespace, name) = names(&object.metadata)?;
        let created_at_s = created_at_s(&object.metadata);
        let phase = match object.status.as_ref().map(|status| status.phase.as_str()) {
            Some("Succeeded") => MigrationPhase::Succeeded,
            Some("Failed") => MigrationPhase::Failed,
            // A phase that is not known here is not final.
            Some(_) | None => MigrationPhase::Unfinished,
        };
        let (uid, vmi) = (object.metadata.uid?, object.spec.vmi_name);
        let state = object.status.and_then(|status| status.migration_state);
        let target = node_id(state.and_then(|state| state.target_node).as_deref());
        Some(Self { namespace, name, uid, vmi, phase, target, created_at_s })
    }

    fn table(index: &mut Index) -> &mut Table<Self> {
        &mut index.vmims
    }
}

/// `spec` of a KubeVirt object.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct KubeVirtSpec {
    #[serde(default)]
    configuration: Configuration,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Configuration {
    #[serde(default)]
    migrations: MigrationSettings,
}

impl Watched for SettingsFact {
    const KIND: Kind = Kind::KubeVirt;
    const API: (&'static str, &'static str, &'static str) = ("kubevirt.io", "v1", "KubeVirt");
    const MAY_BE_ABSENT: bool = true;
    type Object = Object<KubeVirtSpec, kube::core::NotUsed>;

    fn read(object: Self::Object, _: &str) -> Option<Self> {
        let (namespace, name) = names(&object.metadata)?;
        let settings = object.spec.configuration.migrations;
        Some(Self {
            namespace,
            name,
            completion_seconds_per_gib: settings.completion_timeout_per_gib,
            allow_workload_disruption: settings.allow_workload_disruption,
        })
    }

    fn table(index: &mut Index) -> &mut Table<Self> {
        &mut index.settings
    }
}
