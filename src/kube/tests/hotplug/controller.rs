//! virt-controller's part: one pass over the VMI, as KUBEVIRT.md describes it, for both generations.

use std::collections::BTreeSet;

use observer::hotplug::PodPhase;

use crate::world::{Event, Generation, Ms, Phase, Pod, Status, World};

/// The first pause after a failed pass; it doubles.
const FIRST_PAUSE_MS: Ms = 5;
/// The longest pause after a failed pass.
const LONGEST_PAUSE_MS: Ms = 1_000_000;

/// The API server did not delete a pod.
struct Denied;

impl World {
    /// One pass; a failed one is tried again, later each time.
    pub(crate) fn controller(&mut self) {
        self.delete_orphans();
        let synced = if self.vmi.finished {
            self.delete_all()
        } else if self.vmi.deleting {
            Ok(())
        } else {
            self.replace_pods()
        };
        self.update_status();
        match synced {
            Ok(()) => self.failures = 0,
            Err(Denied) => {
                let pause = FIRST_PAUSE_MS.saturating_mul(1 << self.failures.min(30)).min(LONGEST_PAUSE_MS);
                self.failures += 1;
                self.after(pause, Event::Controller);
            }
        }
    }

    /// The attachment pods of the VMI's present virt-launcher pod, newest first.
    fn attachment_pods(&self) -> Vec<&Pod> {
        let mut pods: Vec<_> = self.pods.values().filter(|pod| pod.launcher == self.vmi.launcher).collect();
        pods.reverse();
        pods
    }

    /// Makes a pod for the volumes as they are wanted now, and cleans up what is old.
    fn replace_pods(&mut self) -> Result<(), Denied> {
        let wanted = self.vmi.spec.clone();
        let pods = self.attachment_pods();
        let mut current = pods.iter().find(|pod| pod.volumes == wanted).map(|pod| pod.id);
        let old: Vec<u32> = pods.iter().map(|pod| pod.id).filter(|id| Some(*id) != current).collect();
        let pending = old.iter().any(|id| self.pods[id].phase == PodPhase::Pending);
        let may_create = self.generation == Generation::Before || !pending;
        if current.is_none() && may_create && !wanted.is_empty() {
            current = Some(self.create_pod(self.vmi.launcher, &wanted));
        }
        self.clean_up(current, &old, wanted.is_empty())
    }

    /// Deletes old pods, newest first, up to the first error.
    fn clean_up(&mut self, current: Option<u32>, old: &[u32], nothing_wanted: bool) -> Result<(), Denied> {
        let runs = |world: &Self, id: u32| world.pods[&id].phase == PodPhase::Running;
        let current_runs = current.is_some_and(|id| runs(self, id));
        let mut kept_one = current_runs;
        for id in old.iter().copied() {
            if self.generation == Generation::After {
                if !kept_one && !nothing_wanted && runs(self, id) {
                    kept_one = true;
                    continue;
                }
                if self.still_unplugging(id) {
                    continue;
                }
            }
            self.delete_pod(id)?;
        }
        Ok(())
    }

    /// Whether a volume that was removed from the VMI is still mounted through this pod.
    fn still_unplugging(&self, id: u32) -> bool {
        let is_mounted = |volume: &usize| {
            let status = self.vmi.status.get(volume);
            !self.vmi.spec.contains(volume) && status.is_some_and(|status| status.phase.is_mounted())
        };
        self.pods[&id].volumes.iter().any(is_mounted)
    }

    /// Creates an attachment pod; the mutation has its say.
    pub(crate) fn create_pod(&mut self, launcher: u32, volumes: &BTreeSet<usize>) -> u32 {
        let is_target = launcher != self.vmi.launcher;
        let mounted = |volume: &usize| self.vmi.status.get(volume).is_some_and(|s| s.phase.is_mounted());
        let skipped = |volume: &usize| {
            !is_target && mounted(volume) && (!self.volumes[*volume].block || self.skips_block)
        };
        let exposes: BTreeSet<_> = volumes.iter().copied().filter(|volume| !skipped(volume)).collect();
        let exposes = self.mutated(volumes, exposes);
        let id = self.next_pod;
        self.next_pod += 1;
        let pod = Pod {
            id,
            launcher,
            node: self.launchers[&launcher].node,
            bound_at: self.now + self.between(5, 1_500),
            starts_at: None,
            phase: PodPhase::Pending,
            ready: false,
            volumes: volumes.clone(),
            exposes,
            created_at: self.now,
            held: None,
        };
        self.pods.insert(id, pod);
        self.tally.pods += 1;
        self.pod_changed(id);
        id
    }

    /// Asks the API server to delete a pod. With a grace period of zero it is gone at once.
    fn delete_pod(&mut self, id: u32) -> Result<(), Denied> {
        if !self.guard_allows(id) {
            return Err(Denied);
        }
        let Some(pod) = self.remove_pod(id) else { return Ok(()) };
        let exposed_elsewhere = |volume: &usize| {
            self.pods.values().any(|other| {
                other.node == pod.node && other.phase == PodPhase::Running && other.exposes.contains(volume)
            })
        };
        let in_use = self.nodes[pod.node].qemu.intersection(&pod.exposes);
        let left: Vec<_> = in_use
            .copied()
            .filter(|volume| self.volumes[*volume].ours && !exposed_elsewhere(volume))
            .collect();
        for volume in left {
            let status = self.vmi.status.get(&volume);
            if status.is_some_and(|status| status.phase.is_mounted() || status.has_target) {
                self.tally.left_alone += 1;
            } else {
                self.nodes[pod.node].unseen.insert(volume);
            }
        }
        Ok(())
    }

    /// A pod is no longer in the API, whoever deleted it.
    pub(crate) fn remove_pod(&mut self, id: u32) -> Option<Pod> {
        let pod = self.pods.remove(&id)?;
        self.pod_changed(id);
        Some(pod)
    }

    /// What belongs to virt-launcher pods that ended goes, whatever becomes of the rest.
    fn delete_orphans(&mut self) {
        let ended = |pod: &&Pod| match self.launchers[&pod.launcher].phase {
            PodPhase::Succeeded | PodPhase::Failed => true,
            PodPhase::Pending | PodPhase::Running | PodPhase::Other => false,
        };
        let orphans: Vec<_> = self.pods.values().filter(ended).map(|pod| pod.id).collect();
        for id in orphans {
            // What is denied, as the guard's watch is late, is tried again in the next pass.
            _ = self.delete_pod(id);
        }
    }

    fn delete_all(&mut self) -> Result<(), Denied> {
        let all: Vec<_> = self.attachment_pods().iter().map(|pod| pod.id).collect();
        all.into_iter().try_for_each(|id| self.delete_pod(id))
    }

    /// Which pod the volumes' status speaks of, and what becomes of volumes that were removed.
    fn update_status(&mut self) {
        let spec = self.vmi.spec.clone();
        let pods = self.attachment_pods();
        let of_all = pods.iter().find(|pod| pod.volumes == spec).map(|pod| (pod.id, pod.ready));
        let mut status = self.vmi.status.clone();
        let mut changed = false;
        for volume in &spec {
            let entry = status.entry(*volume).or_insert_with(|| {
                changed = true;
                Status { phase: Phase::Pending, has_target: false, attach_pod: None }
            });
            let pod = match self.generation {
                Generation::After => of_all,
                // The first pod that lists it, old or not.
                Generation::Before => {
                    pods.iter().rev().find(|pod| pod.volumes.contains(volume)).map(|pod| (pod.id, pod.ready))
                }
            };
            changed |= tell_pod(entry, pod, self.generation);
        }
        let listed: BTreeSet<_> = pods.iter().flat_map(|pod| pod.volumes.iter().copied()).collect();
        for (volume, entry) in &mut status {
            let detaching = match entry.phase {
                Phase::Detaching | Phase::UnMounted => true,
                Phase::Pending | Phase::AttachedToNode | Phase::MountedToPod | Phase::Ready => false,
            };
            if !spec.contains(volume) && self.generation == Generation::Before && !detaching {
                entry.phase = Phase::Detaching;
                changed = true;
            }
        }
        let before = status.len();
        status.retain(|volume, _| spec.contains(volume) || listed.contains(volume));
        if changed || status.len() != before {
            self.vmi.status = status;
            self.vmi_changed();
        }
    }
}

/// Writes which pod a volume's status speaks of; says whether that changed anything.
fn tell_pod(entry: &mut Status, pod: Option<(u32, bool)>, generation: Generation) -> bool {
    let was = (entry.phase, entry.attach_pod);
    match (pod, generation) {
        (None, _) if entry.phase == Phase::Ready => {}
        (None, _) => (entry.attach_pod, entry.phase) = (None, Phase::Pending),
        (Some((id, true)), _) => entry.attach_pod = Some(id),
        (Some(_), Generation::After) => entry.attach_pod = None,
        (Some(_), Generation::Before) => {}
    }
    if pod.is_some() && !entry.phase.is_mounted() {
        entry.phase = Phase::AttachedToNode;
    }
    was != (entry.phase, entry.attach_pod)
}
