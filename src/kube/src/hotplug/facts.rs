//! What the guard and the mutation are told, and what they answer: plain values, without Kubernetes' own types.
//!
//! A part that may not be known is an [`Answer`]: a watch that is not complete makes it unknown, and unknown never
//! reads as absent. Parts that came with the request itself are always known.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::Value;
use state_machine::NodeId;

use super::hold::Held;
use crate::index::{Answer, NodeSeen};

/// How long strict mode waits for volumes to be Ready, at most.
pub const WAITING_READY_LIMIT: Duration = Duration::from_secs(120);

/// Everything that the decision on one DELETE of an attachment pod needs.
#[derive(Debug, Clone)]
pub struct Facts {
    /// What is asked, and by whom.
    pub request: Request,
    /// The pod that is to be deleted, as the request has it (`oldObject`).
    pub pod: AttachmentPod,
    /// Since when it is held as the annotations on the pod say, for whichever of its deletions they were written.
    pub noted: Option<Held>,
    /// Since when it is held as this replica remembers, in case that it could not write it on the pod.
    pub remembered: Option<Held>,
    /// Whether the pod's namespace is terminating. Absent: there is no such namespace.
    pub namespace_terminating: Answer<bool>,
    /// The Pod that owns the attachment pod (virt-launcher). Absent: its owner is no Pod, is gone, or another Pod has
    /// its name now.
    pub owner: Answer<OwnerPod>,
    /// The VMI that the owner names by name. Absent: there is none, or the owner names none.
    pub vmi: Answer<Vmi>,
    /// The nodes to which unfinished migrations of that VMI go, as far as they have one. Absent: no migration.
    pub migration_targets: Answer<BTreeSet<NodeId>>,
    /// The node that the pod runs on. Absent: there is no such Node.
    pub node: Answer<NodeSeen>,
    /// The other attachment pods of the VMI, on whatever node, whichever virt-launcher pod owns them. Absent: none.
    /// A watch is late: a pod whose deletion was just allowed counts as terminating, although it may not look so yet.
    pub siblings: Answer<Vec<AttachmentPod>>,
    /// The claims that the pod's volumes name, by name, in the pod's namespace. One that is not in here is unknown.
    pub claims: BTreeMap<String, Answer<Claim>>,
}

/// What is asked of the API server, and by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// It is a DELETE of a pod with the label `kubevirt.io=hotplug-disk`.
    pub deletes_attachment_pod: bool,
    /// The user is KubeVirt's controller.
    pub by_kubevirt: bool,
    /// Nothing comes of it: there must be no side effects, and so no event.
    pub dry_run: bool,
}

/// An attachment pod (`hp-volume-*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachmentPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// `metadata.creationTimestamp`, in whole seconds of the API server's clock.
    pub created: Option<SystemTime>,
    /// It has a deletion timestamp.
    pub terminating: bool,
    /// `status.phase`.
    pub phase: PodPhase,
    /// Where it runs, once it was scheduled.
    pub node: Option<NodeId>,
    /// It has the annotation `kubevirt.io/ephemeral-provisioning`: it only makes a volume be provisioned.
    pub is_trigger: bool,
    /// It has containers, and all of them are ready.
    pub containers_ready: bool,
    /// Its volumes with a claim: the claim's name by the volume's name, which is the VMI's name for it, too.
    pub volumes: BTreeMap<String, String>,
    /// The names of the volumes that some container has in `volumeMounts` or `volumeDevices`.
    pub exposes: BTreeSet<String>,
}

/// A pod's phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodPhase {
    /// Not all containers started.
    Pending,
    /// It was started.
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, some not well.
    Failed,
    /// `Unknown`, none, or one that is not known here.
    Other,
}

/// The Pod that owns an attachment pod: the virt-launcher pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerPod {
    /// It has a deletion timestamp.
    pub terminating: bool,
    /// `status.phase`.
    pub phase: PodPhase,
    /// The UID of the VMI that owns it, if one does.
    pub vmi_uid: Option<String>,
}

/// A VirtualMachineInstance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vmi {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Succeeded or Failed.
    pub finished: bool,
    /// It has a deletion timestamp.
    pub deleting: bool,
    /// `status.nodeName`.
    pub node: Option<NodeId>,
    /// `spec.volumes`, by name.
    pub spec_volumes: BTreeMap<String, SpecVolume>,
    /// `status.volumeStatus`, by name.
    pub volume_status: BTreeMap<String, VolumeStatus>,
}

/// A volume in a VMI's `spec.volumes`, and in `spec.utilityVolumes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpecVolume {
    /// It is hotpluggable (`hotpluggable: true`, or a memory dump or utility volume).
    pub hotplug: bool,
    /// It is a memory-dump or a utility volume: it never becomes Ready.
    pub never_ready: bool,
}

/// One entry of a VMI's `status.volumeStatus`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeStatus {
    /// Its phase.
    pub phase: VolumePhase,
    /// The guest's name of the disk (`target`); empty: the guest does not have it.
    pub target: String,
    /// `hotplugVolume.attachPodUID`: the attachment pod that the status speaks of.
    pub attach_pod_uid: Option<String>,
    /// `memoryDumpVolume` is set, or it is a utility volume.
    pub never_ready: bool,
}

/// The phase of a hotplugged volume, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumePhase {
    /// `Ready`: the guest has it.
    Ready,
    /// `MountedToPod`: it is in the virt-launcher pod.
    MountedToPod,
    /// `AttachedToNode`: an attachment pod has it, and virt-handler may be about to take it from there.
    AttachedToNode,
    /// Any other, and none.
    Other,
}

/// A PersistentVolumeClaim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its UID.
    pub uid: String,
    /// Its phase is Bound.
    pub bound: bool,
    /// Its PersistentVolume is this driver's.
    pub ours: bool,
    /// `volumeMode` is Block; else it is Filesystem.
    pub block: bool,
}

/// How the guard is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Covered is not enough: wait until the volumes are Ready for the pod that covers them.
    pub strict: bool,
    /// A hold lasts so long, at most, counted from its first denial.
    pub max_hold: Duration,
    /// Strict mode waits for so long, at most: [`WAITING_READY_LIMIT`].
    pub waiting_ready_limit: Duration,
}

/// The guard's answer to a DELETE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the pod may go.
    pub allowed: bool,
    /// The row that decided.
    pub reason: Reason,
    /// A sentence for whoever asked, with the volumes and what is awaited.
    pub message: String,
    /// The volumes that it is about: those in use that would lose their last pod, or are awaited.
    pub volumes: Vec<String>,
    /// The hold that the decision belongs to; to be noted on the pod if the deletion is denied.
    pub held: Held,
    /// There was no such hold before.
    pub begins: bool,
    /// Whether to tell the message as an event, and how loudly.
    pub event: Option<Severity>,
}

/// How loudly an event is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// For the record.
    Normal,
    /// Somebody should look.
    Warning,
}

/// Why the guard decided so: the rows of its table, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Row 1: no DELETE of an attachment pod, or not by KubeVirt's controller.
    NotGuarded,
    /// Row 2: it is terminating already, or does not run.
    NotRunning,
    /// Row 3: it only triggers provisioning.
    TriggerPod,
    /// Row 4: its namespace is terminating.
    NamespaceGone,
    /// Row 5: its virt-launcher pod is gone or ends.
    OwnerGone,
    /// Row 6: its VMI is gone or ends.
    VmiFinal,
    /// Row 7: the VMI runs elsewhere, and nothing migrates to the pod's node.
    MigratedAway,
    /// Row 8: its node is gone, or known to be off.
    NodeGone,
    /// Row 9: none of its volumes is one of ours in use.
    NothingInUse,
    /// Row 10: other pods expose all of its volumes that are in use.
    Covered,
    /// Row 11, denied: strict mode, and volumes are not Ready for the pod that covers them.
    WaitingReady,
    /// Row 12: nothing else holds the volumes, but they are leaving the VM.
    Leaving,
    /// Row 13, denied: nothing else exposes a volume in use.
    LastHolder,
    /// Row 14: it was held for as long as may be.
    HoldExpired,
    /// Something that a row needs is not known.
    Unknown,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 15] = [
        Self::NotGuarded,
        Self::NotRunning,
        Self::TriggerPod,
        Self::NamespaceGone,
        Self::OwnerGone,
        Self::VmiFinal,
        Self::MigratedAway,
        Self::NodeGone,
        Self::NothingInUse,
        Self::Covered,
        Self::WaitingReady,
        Self::Leaving,
        Self::LastHolder,
        Self::HoldExpired,
        Self::Unknown,
    ];

    /// Its name, in answers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotGuarded => "NotGuarded",
            Self::NotRunning => "NotRunning",
            Self::TriggerPod => "TriggerPod",
            Self::NamespaceGone => "NamespaceGone",
            Self::OwnerGone => "OwnerGone",
            Self::VmiFinal => "VMIFinal",
            Self::MigratedAway => "MigratedAway",
            Self::NodeGone => "NodeGone",
            Self::NothingInUse => "NothingInUse",
            Self::Covered => "Covered",
            Self::WaitingReady => "WaitingReady",
            Self::Leaving => "Leaving",
            Self::LastHolder => "LastHolder",
            Self::HoldExpired => "HoldExpired",
            Self::Unknown => "Unknown",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the mutation is told of an attachment pod that is to be created.
#[derive(Debug, Clone)]
pub struct NewPod {
    /// It is a trigger pod; see [`AttachmentPod::is_trigger`].
    pub is_trigger: bool,
    /// Its volumes with a claim: the claim's name by the volume's name.
    pub volumes: BTreeMap<String, String>,
    /// Its containers, in the pod's order.
    pub containers: Vec<NewContainer>,
    /// The claims of its volumes, by name. One that is not in here is unknown.
    pub claims: BTreeMap<String, Answer<Claim>>,
}

/// What a container of a pod that is to be created exposes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewContainer {
    /// `volumeMounts`, if it has that list: names of volumes and mount paths.
    pub mounts: Option<Vec<(String, String)>>,
    /// `volumeDevices`, if it has that list: names of volumes and device paths.
    pub devices: Option<Vec<(String, String)>>,
}

/// One operation of a JSON patch (RFC 6902).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PatchOperation {
    /// What is done: always `add`.
    pub op: &'static str,
    /// Where, as a JSON pointer.
    pub path: String,
    /// What is added.
    pub value: Value,
}
