//! The few facts that are kept of each object.

use state_machine::NodeId;

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
}

impl Fact for ClaimFact {
    fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
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
    /// Succeeded or Failed: it uses nothing any more.
    pub(crate) finished: bool,
    pub(crate) terminating: bool,
    pub(crate) claims: Vec<String>,
    pub(crate) owner: PodOwner,
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
