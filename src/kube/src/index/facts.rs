//! The few facts that are kept of each object.

use std::collections::BTreeMap;

use state_machine::NodeId;

use crate::hotplug::{AttachmentPod, PodPhase, SpecVolume, VolumeStatus};

/// Where a fact stands in its table: two names, the first of which a question can be narrowed down to.
pub(crate) type Key = (String, String);

/// What a table keeps.
pub(crate) trait Fact {
    /// Where it stands. It never changes in an object's life.
    fn key(&self) -> Key;
}

/// A node.
#[derive(Debug, Clone)]
pub(crate) struct NodeFact {
    pub(crate) name: String,
    pub(crate) uid: String,
    /// It bears the taint `node.kubernetes.io/out-of-service`, with whatever effect.
    pub(crate) out_of_service: bool,
    pub(crate) deleting: bool,
}

impl Fact for NodeFact {
    fn key(&self) -> Key {
        (self.name.clone(), String::new())
    }
}

/// A PersistentVolume of this driver.
#[derive(Debug, Clone)]
pub(crate) struct VolumeFact {
    pub(crate) handle: String,
    pub(crate) name: String,
    pub(crate) claim: Option<super::ClaimRef>,
    /// `volumeMode` is Block.
    pub(crate) block: bool,
}

impl Fact for VolumeFact {
    fn key(&self) -> Key {
        (self.handle.clone(), self.name.clone())
    }
}

/// A PersistentVolumeClaim.
#[derive(Debug, Clone)]
pub(crate) struct ClaimFact {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// Its phase is Bound.
    pub(crate) bound: bool,
}

impl Fact for ClaimFact {
    fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }
}

/// A namespace.
#[derive(Debug, Clone)]
pub(crate) struct NamespaceFact {
    pub(crate) name: String,
    pub(crate) terminating: bool,
}

impl Fact for NamespaceFact {
    fn key(&self) -> Key {
        (self.name.clone(), String::new())
    }
}

/// A VolumeAttachment of this driver.
#[derive(Debug, Clone)]
pub(crate) struct AttachmentFact {
    /// The PersistentVolume's name.
    pub(crate) volume: String,
    pub(crate) name: String,
    pub(crate) node: NodeId,
    pub(crate) attached: bool,
    pub(crate) deleting: bool,
}

impl Fact for AttachmentFact {
    fn key(&self) -> Key {
        (self.volume.clone(), self.name.clone())
    }
}

/// A pod that uses a claim, or may own one that does.
#[derive(Debug, Clone)]
pub(crate) struct PodFact {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) node: Option<NodeId>,
    pub(crate) phase: PodPhase,
    pub(crate) terminating: bool,
    pub(crate) claims: Vec<String>,
    pub(crate) owner: PodOwner,
    /// The UID of the VMI that owns it: of a virt-launcher pod.
    pub(crate) vmi_uid: Option<String>,
    /// The UID of the migration that it is the target of.
    pub(crate) migration: Option<String>,
    /// More, if it is an attachment pod.
    pub(crate) hotplug: Option<Box<HotplugFact>>,
}

impl PodFact {
    /// Succeeded or Failed: it uses nothing any more.
    pub(crate) fn is_finished(&self) -> bool {
        matches!(self.phase, PodPhase::Succeeded | PodPhase::Failed)
    }
}

/// What is kept of an attachment pod beside what is kept of any pod.
#[derive(Debug, Clone)]
pub(crate) struct HotplugFact {
    pub(crate) pod: AttachmentPod,
    /// The name and the UID of the Pod that owns it.
    pub(crate) owner: Option<(String, String)>,
    /// The annotation that says when its deletion was first denied, as it is.
    pub(crate) held_since: Option<String>,
    /// The annotation that says when the first of a row of holds began, as it is.
    pub(crate) held_first: Option<String>,
}

impl Fact for PodFact {
    fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }
}

/// For whom a pod runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PodOwner {
    /// No virtual machine.
    None,
    /// The VMI of this name.
    Vm(String),
    /// The VMI of the virt-launcher pod with this UID, as it is a hotplug pod.
    Launcher(String),
}

/// A VirtualMachineInstance.
#[derive(Debug, Clone)]
pub(crate) struct VmiFact {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) node: Option<NodeId>,
    pub(crate) phase: VmiPhase,
    pub(crate) claims: Vec<String>,
    pub(crate) memory_bytes: Option<u64>,
    /// When it was created, by the API server's clock, in seconds since 1970.
    pub(crate) created_at_s: i64,
    pub(crate) migration: Option<MigrationFact>,
    pub(crate) deleting: bool,
    /// `spec.volumes` and `spec.utilityVolumes`, by name.
    pub(crate) spec_volumes: BTreeMap<String, SpecVolume>,
    /// `status.volumeStatus`, by name.
    pub(crate) volume_status: BTreeMap<String, VolumeStatus>,
}

impl Fact for VmiFact {
    fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }
}

/// Where a VMI is in its life, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VmiPhase {
    /// It does not run yet.
    Starting,
    Running,
    /// Succeeded or Failed.
    Final,
}

/// `status.migrationState` of a VMI: the present migration, or the previous one until the hand-off.
#[derive(Debug, Clone)]
pub(crate) struct MigrationFact {
    pub(crate) uid: String,
    pub(crate) source: Option<NodeId>,
    pub(crate) target: Option<NodeId>,
    pub(crate) completed: bool,
    pub(crate) failed: bool,
    pub(crate) completion_seconds_per_gib: Option<u64>,
    pub(crate) allow_workload_disruption: Option<bool>,
}

/// A VirtualMachineInstanceMigration.
#[derive(Debug, Clone)]
pub(crate) struct VmimFact {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) vmi: String,
    pub(crate) phase: MigrationPhase,
    /// Where it goes, once the object says so.
    pub(crate) target: Option<NodeId>,
    /// When it was created, by the API server's clock, in seconds since 1970. Only to find the last one of a VMI.
    pub(crate) created_at_s: i64,
}

impl Fact for VmimFact {
    fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }
}

/// The phase of a migration, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MigrationPhase {
    /// Any phase that is not final, and none at all.
    Unfinished,
    Succeeded,
    Failed,
}

/// The migration settings of a KubeVirt object.
#[derive(Debug, Clone)]
pub(crate) struct SettingsFact {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) completion_seconds_per_gib: Option<u64>,
    pub(crate) allow_workload_disruption: Option<bool>,
}

impl Fact for SettingsFact {
    fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }
}
