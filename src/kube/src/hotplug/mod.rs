//! KubeVirt's attachment pods: which of them may go, and what they have to expose (KUBEVIRT.md).
//!
//! A volume that is plugged into a running VM is held on its node by an attachment pod. Each change of the VM's
//! volumes makes a new pod for all of them, and the old one is deleted. Whatever no pod exposes then is unpublished
//! and unstaged by kubelet, under the VM's feet. Two pure functions stand against that: [`decide()`] says whether an
//! attachment pod may be deleted now, [`mutate()`] makes new ones expose every volume that they list. Both are told
//! [`Facts`] and are without IO and clock; who watches, serves and remembers is not their business.

mod decide;
mod departures;
mod facts;
mod hold;
mod mutate;
mod say;
#[cfg(test)]
mod tests;

pub use decide::decide;
pub use departures::{Departures, MAX_REMEMBERED, REMEMBERED};
pub use facts::{
    AttachmentPod, Claim, Facts, NewContainer, NewPod, OwnerPod, PatchOperation, PodPhase, Reason, Request,
    Settings, Severity, SpecVolume, Verdict, Vmi, VolumePhase, VolumeStatus, WAITING_READY_LIMIT,
};
pub use hold::{CLOCK_TOLERANCE, FORMER_HOLD_AFTER, HOLDS_IN_A_ROW, Held};
pub use mutate::mutate;
