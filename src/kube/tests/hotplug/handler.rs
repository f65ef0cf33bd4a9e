//! virt-handler's part: what a running attachment pod exposes goes into QEMU, and out of it what is not wanted.

use observer::hotplug::PodPhase;

use crate::world::{Event, Phase, World};

impl World {
    /// One look at the VMI on its node.
    pub(crate) fn handler(&mut self) {
        let node = self.vmi.node;
        if self.vmi.finished || self.vmi.deleting || self.nodes[node].is_dead {
            return;
        }
        let mut volumes: Vec<_> = self.vmi.status.keys().copied().collect();
        volumes.extend(self.nodes[node].qemu.iter().filter(|volume| !self.vmi.status.contains_key(volume)));
        let mut changed = false;
        let mut unfinished = false;
        for volume in volumes {
            if self.vmi.spec.contains(&volume) {
                changed |= self.plug(node, volume);
                let phase = self.vmi.status.get(&volume).map(|status| status.phase);
                unfinished |= phase != Some(Phase::Ready);
            } else {
                changed |= self.unplug(node, volume);
            }
        }
        if changed {
            self.vmi_changed();
        }
        if unfinished {
            let delay = self.between(500, 1_500);
            self.after(delay, Event::Handler);
        }
    }

    /// One step of a volume into QEMU; says whether its status changed. Each is in the API before the next is taken.
    fn plug(&mut self, node: usize, volume: usize) -> bool {
        let is_staged = self.nodes[node].staged.contains(&volume);
        let is_open = self.nodes[node].qemu.contains(&volume);
        let Some(status) = self.vmi.status.get_mut(&volume) else { return false };
        match status.phase {
            Phase::AttachedToNode => {
                let pod = status.attach_pod.and_then(|id| self.pods.get(&id));
                let runs = pod.is_some_and(|pod| {
                    pod.phase == PodPhase::Running && pod.node == node && pod.exposes.contains(&volume)
                });
                if runs && is_staged {
                    status.phase = Phase::MountedToPod;
                }
                runs && is_staged
            }
            Phase::MountedToPod if is_open => {
                (status.phase, status.has_target) = (Phase::Ready, true);
                self.tally.plugged += 1;
                true
            }
            Phase::MountedToPod => {
                if is_staged {
                    self.nodes[node].qemu.insert(volume);
                    self.tell(|| format!("QEMU on node {node} opened {volume}"));
                }
                false
            }
            Phase::Pending | Phase::Ready | Phase::Detaching | Phase::UnMounted => false,
        }
    }

    /// One step of a volume out of QEMU; says whether its status changed.
    fn unplug(&mut self, node: usize, volume: usize) -> bool {
        if self.nodes[node].qemu.contains(&volume) {
            if self.nodes[node].guest_detaching.insert(volume) {
                let slow = self.chance(5);
                let delay = if slow { self.between(20_000, 60_000) } else { self.between(200, 8_000) };
                self.after(delay, Event::GuestDetached(node, volume));
            }
            return false;
        }
        let Some(status) = self.vmi.status.get_mut(&volume) else { return false };
        if status.phase == Phase::UnMounted {
            return false;
        }
        (status.phase, status.has_target) = (Phase::UnMounted, false);
        true
    }

    /// The guest let the disk go; virt-handler notices at its next look.
    pub(crate) fn guest_detached(&mut self, node: usize, volume: usize) {
        self.nodes[node].guest_detaching.remove(&volume);
        if self.nodes[node].qemu.remove(&volume) {
            self.tally.unplugged += 1;
            self.tell(|| format!("QEMU on node {node} closed {volume}"));
        }
        let delay = self.between(50, 300);
        self.after(delay, Event::Handler);
    }
}
