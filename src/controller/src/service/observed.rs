//! What this replica sees in Kubernetes of a volume that is to be published: it goes into the command, so that the
//! ledger's decision never depends on who looked.

use observer::{Answer, Event, EventReason, PodSeen, Users};
use state_machine::{NodeId, Observed, State, VolumeId};

use super::ControllerService;

impl ControllerService {
    /// What is seen of the volume's VM and of the pods that use its claim. What is not known is left out.
    pub(super) fn observed(&self, volume: &VolumeId) -> Observed {
        let index = self.kubernetes.observer.index();
        let other_users = match index.users(volume) {
            Answer::Known(Users::NotOneVm { pods }) => Some(sentence(&pods)),
            Answer::Known(Users::OneVm { .. }) | Answer::Absent | Answer::Unknown(_) => None,
        };
        let least_timeout_seconds = index.completion_timeout_seconds(volume).known();
        Observed {
            vmi: index.vmi_observation(volume),
            other_users,
            vm: index.vm(volume).known().map(|vm| format!("{}/{}", vm.namespace, vm.name)),
            one_publish_per_vm: self.one_publish_per_vm,
            least_timeout_seconds: least_timeout_seconds
                .map(|seconds| u32::try_from(seconds).unwrap_or(u32::MAX)),
        }
        .bounded()
    }

    /// Tells people that a node was refused because of those that have the volume: the same event for as long as the
    /// same nodes have it by the same attachments.
    pub(super) fn post_conflict(&self, volume: &VolumeId, node: &NodeId, reason: &str) {
        let Answer::Known(claim) = self.kubernetes.observer.index().claim(volume) else { return };
        let holders = self.replica.read_local(|state| holders(state, volume));
        let message = format!("{volume} is not attached to {node}: {reason}");
        let key = format!("{node} {holders}");
        self.kubernetes.events.post(Event { claim, reason: EventReason::AttachmentConflict, message, key });
    }
}

fn holders(state: &State, volume: &VolumeId) -> String {
    let attachments = state.volume(volume).into_iter().flat_map(|volume| volume.attachments.values());
    attachments.map(|attachment| attachment.generation.to_string()).collect::<Vec<_>>().join(",")
}

fn sentence(pods: &[PodSeen]) -> String {
    let named = pods.iter().map(|pod| match &pod.vm {
        Some(vm) => format!("{} (VM {vm})", pod.name),
        None => format!("{} (no VM)", pod.name),
    });
    named.collect::<Vec<_>>().join(", ")
}
