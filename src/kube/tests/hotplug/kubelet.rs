//! kubelet's part: what a container of a live pod exposes is staged, and nothing else stays.

use std::collections::BTreeSet;

use observer::hotplug::PodPhase;

use crate::world::{Event, Ms, Node, World};

/// How soon an unstage that was refused is tried again.
const UNSTAGE_AGAIN_MS: Ms = 500;

impl World {
    /// One look of a node's kubelet.
    pub(crate) fn kubelet(&mut self, node: usize) {
        if self.nodes[node].is_dead {
            return;
        }
        let now = self.now;
        let desired: BTreeSet<usize> = self
            .pods
            .values()
            .filter(|pod| pod.node == node && pod.bound_at <= now)
            .flat_map(|pod| pod.exposes.iter().copied())
            .collect();
        self.unstage(node, &desired);
        self.stage(node, &desired);
        self.start_pods(node);
        self.look_again(node);
    }

    fn unstage(&mut self, node: usize, desired: &BTreeSet<usize>) {
        self.nodes[node].unstaging.retain(|volume, _| !desired.contains(volume));
        self.nodes[node].unseen.retain(|volume| !desired.contains(volume));
        let idle: Vec<_> = self.nodes[node].staged.difference(desired).copied().collect();
        for volume in idle {
            let Some(due) = self.nodes[node].unstaging.get(&volume).copied() else {
                let due = self.now + self.between(10, 400);
                self.nodes[node].unstaging.insert(volume, due);
                continue;
            };
            if due > self.now {
                continue;
            }
            let ours = self.volumes[volume].ours;
            let Node { qemu, unstaging, staged, .. } = &mut self.nodes[node];
            if self.layers.in_use_check && ours && qemu.contains(&volume) {
                unstaging.insert(volume, self.now + UNSTAGE_AGAIN_MS);
                self.tally.unstages_refused += 1;
                continue;
            }
            unstaging.remove(&volume);
            staged.remove(&volume);
            let was_open = qemu.remove(&volume);
            let was_seen = !self.nodes[node].unseen.remove(&volume);
            self.tell(|| format!("node {node} unstaged {volume}, in use: {was_open}"));
            if was_open && ours {
                self.tally.pauses += u64::from(was_seen);
                self.tally.unseen_pauses += u64::from(!was_seen);
            }
        }
    }

    fn stage(&mut self, node: usize, desired: &BTreeSet<usize>) {
        let Node { attaching, staged, .. } = &mut self.nodes[node];
        attaching.retain(|volume, _| desired.contains(volume));
        let missing: Vec<_> = desired.difference(staged).copied().collect();
        for volume in missing {
            let Some(due) = self.nodes[node].attaching.get(&volume).copied() else {
                let due = self.now + self.volumes[volume].attach_ms;
                self.nodes[node].attaching.insert(volume, due);
                continue;
            };
            if due > self.now {
                continue;
            }
            if self.volumes[volume].fails_until > self.now {
                let again = self.now + self.between(500, 2_000);
                self.nodes[node].attaching.insert(volume, again);
                continue;
            }
            self.nodes[node].attaching.remove(&volume);
            self.nodes[node].staged.insert(volume);
            self.tell(|| format!("node {node} staged {volume}"));
            let delay = self.between(100, 600);
            self.after(delay, Event::Handler);
        }
    }

    /// A pod's containers start once all that they expose is there.
    fn start_pods(&mut self, node: usize) {
        let is_due = |pod: &crate::world::Pod| {
            pod.node == node && pod.phase == PodPhase::Pending && pod.bound_at <= self.now
        };
        let pending: Vec<_> = self.pods.values().filter(|pod| is_due(pod)).map(|pod| pod.id).collect();
        for id in pending {
            let start_ms = self.between(50, 1_500);
            let ready_ms = self.between(0, 1_000);
            let (now, staged) = (self.now, &self.nodes[node].staged);
            let Some(pod) = self.pods.get_mut(&id) else { continue };
            if !pod.exposes.is_subset(staged) {
                pod.starts_at = None;
                continue;
            }
            if now < *pod.starts_at.get_or_insert(now + start_ms) {
                continue;
            }
            pod.phase = PodPhase::Running;
            self.after(ready_ms, Event::PodReady(id));
            self.pod_changed(id);
        }
    }

    pub(crate) fn pod_ready(&mut self, id: u32) {
        if let Some(pod) = self.pods.get_mut(&id) {
            pod.ready = true;
            self.pod_changed(id);
        }
    }

    /// Wakes kubelet when the next thing that it waits for is due.
    fn look_again(&mut self, node: usize) {
        let of_node = &self.nodes[node];
        let pods = self.pods.values().filter(|pod| pod.node == node && pod.phase == PodPhase::Pending);
        let waits = pods.flat_map(|pod| [Some(pod.bound_at), pod.starts_at]).flatten();
        let timers = of_node.attaching.values().chain(of_node.unstaging.values()).copied().chain(waits);
        if let Some(due) = timers.filter(|due| *due > self.now).min() {
            self.after(due - self.now, Event::Kubelet(node));
        }
    }
}
