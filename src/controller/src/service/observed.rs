//! What this replica sees in Kubernetes of a volume that is to be published: it goes into the command, so that the
//! ledger's decision never depends on who looked.

use std::time::{Duration, Instant};

use observer::{Answer, Event, EventReason, Index, PodSeen, Users};
use state_machine::{NodeId, Observed, State, VolumeId};

use super::ControllerService;

/// How long the pod is waited for that a volume is published for.
const POD_WAIT: Duration = Duration::from_secs(2);
/// How often it is looked for.
const POD_POLL: Duration = Duration::from_millis(20);

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

    /// Where another node has the volume, its pods are compared, and the one on this node has to be among them. It is
    /// there: it made the orchestrator publish. But this replica may hear of it a little later.
    pub(super) async fn await_pod(&self, volume: &VolumeId, node: &NodeId, deadline: Instant) {
        let is_second = |state: &State| {
            state.volume(volume).is_some_and(|volume| volume.attachments.keys().any(|holder| holder != node))
        };
        if !self.replica.read_local(is_second) {
            return;
        }
        let until = deadline.min(Instant::now() + POD_WAIT);
        while lacks_pod(&self.kubernetes.observer.index(), volume, node) && Instant::now() + POD_POLL < until
        {
            tokio::time::sleep(POD_POLL).await;
        }
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

/// Whether pods can be read, agree so far, and none of them is on the node.
fn lacks_pod(index: &Index, volume: &VolumeId, node: &NodeId) -> bool {
    match index.users(volume) {
        Answer::Known(Users::OneVm { pods, .. }) => pods.iter().all(|pod| pod.node.as_ref() != Some(node)),
        Answer::Absent => true,
        Answer::Known(Users::NotOneVm { .. }) | Answer::Unknown(_) => false,
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
