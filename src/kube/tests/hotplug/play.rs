//! One run: somebody plugs volumes in and out, something happens to the VM, and in the end all has to be tidy.

use std::collections::BTreeSet;

use observer::hotplug::PodPhase;

use crate::tally::Tally;
use crate::world::{Event, Generation, Launcher, Layers, Ms, NODES, Volume, World};

/// The most volumes of a VM.
const MOST_VOLUMES: usize = 8;
/// The virt-launcher pod of a migration's target.
const TARGET_LAUNCHER: u32 = 2;
/// How long a run goes on after the last change, beside what attachments and holds take.
const SETTLE_MS: Ms = 240_000;
/// How often virt-handler writes something else of a VMI that runs.
const HEARTBEAT_MS: Ms = 30_000;

/// How attachments fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failures {
    /// They heal within a minute.
    Heal,
    /// Some never do; who wanted such a volume gives it up only after every hold is over.
    Last,
}

/// What a run has in store for the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    None,
    Stop,
    Migration,
    NodeDeath,
}

/// Plays the run of a seed.
pub(crate) fn play(seed: u64, generation: Generation, layers: Layers, failures: Failures) -> Tally {
    play_in(World::new(seed, generation, layers), failures).tally
}

/// What happens in the run of a seed, line by line.
pub(crate) fn story(seed: u64, generation: Generation, layers: Layers, failures: Failures) -> String {
    let mut world = World::new(seed, generation, layers);
    world.story = Some(Vec::new());
    play_in(world, failures).story.unwrap_or_default().join("\n")
}

fn play_in(mut world: World, failures: Failures) -> World {
    let layers = world.layers;
    let fate = world.set_up(failures);
    let mut changes = world.between(4, 14);
    let end = loop {
        // Each change comes at most 12 s after the one before.
        let Some(event) = world.next_event(Ms::MAX) else { break world.now };
        if event == Event::Change {
            if changes == 0 {
                break world.now;
            }
            changes -= 1;
        }
        world.handle(event, fate);
    };
    let mut end = end + SETTLE_MS;
    if failures == Failures::Last {
        // Nobody can get a pod to run, so holds expire; then the broken volumes are given up.
        world.run_until(end + 3 * layers.max_hold_ms, fate);
        let broken = |volume: &usize| world.volumes[*volume].fails_until == Ms::MAX;
        let given_up: BTreeSet<_> = world.vmi.spec.iter().copied().filter(broken).collect();
        world.vmi.spec.retain(|volume| !given_up.contains(volume));
        world.vmi_changed();
        end = world.now + SETTLE_MS + 3 * layers.max_hold_ms;
    }
    world.run_until(end, fate);
    world.look_for_leftovers();
    world
}

impl World {
    fn run_until(&mut self, end: Ms, fate: Fate) {
        while let Some(event) = self.next_event(end) {
            if event != Event::Change {
                self.handle(event, fate);
            }
        }
        self.now = end;
    }

    fn handle(&mut self, event: Event, fate: Fate) {
        match event {
            Event::Controller => self.controller(),
            Event::Handler => self.handler(),
            Event::Kubelet(node) => self.kubelet(node),
            Event::PodReady(id) => self.pod_ready(id),
            Event::GuestDetached(node, volume) => self.guest_detached(node, volume),
            Event::Change => self.change(),
            Event::Fate => self.begin(fate),
            Event::QemuEnded => self.qemu_ended(),
            Event::MigrationEnds => self.migration_ends(),
            Event::Fenced => self.fenced(),
            Event::Heartbeat => self.heartbeat(),
            Event::Collected => self.collected(),
        }
    }

    /// Draws the volumes and what will happen.
    fn set_up(&mut self, failures: Failures) -> Fate {
        let count = self.rng_index(MOST_VOLUMES) + 1;
        let mode = self.between(0, 2);
        for _ in 0..count {
            let block = mode == 0 || (mode == 2 && self.chance(50));
            let attach_ms = if self.chance(20) { self.between(2_000, 20_000) } else { self.between(20, 500) };
            let fails = self.chance(10);
            let fails_until = match failures {
                Failures::Heal if fails => self.between(10_000, 60_000),
                Failures::Last if fails => Ms::MAX,
                Failures::Heal | Failures::Last => 0,
            };
            let ours = !self.chance(5);
            self.volumes.push(Volume { block, ours, attach_ms, fails_until });
        }
        self.after(0, Event::Change);
        self.after(HEARTBEAT_MS, Event::Heartbeat);
        let at = self.between(5_000, 60_000);
        self.after(at, Event::Fate);
        match self.between(0, 9) {
            0 => Fate::Stop,
            1 => Fate::NodeDeath,
            2 | 3 => Fate::Migration,
            _ => Fate::None,
        }
    }

    fn rng_index(&mut self, below: usize) -> usize {
        let most = Ms::try_from(below).expect("a small number") - 1;
        usize::try_from(self.between(0, most)).expect("a small number")
    }

    /// One or several volumes are plugged in or out, as somebody who uses the VM's API does.
    fn change(&mut self) {
        let delay = if self.chance(40) { self.between(0, 300) } else { self.between(300, 12_000) };
        self.after(delay, Event::Change);
        if self.vmi.deleting || self.vmi.finished {
            return;
        }
        let some = if self.chance(30) { 3 } else { 1 };
        let plug = self.vmi.spec.is_empty() || self.chance(60);
        for _ in 0..some {
            let volume = self.rng_index(self.volumes.len());
            let is_leaving = self.vmi.status.contains_key(&volume)
                || self.nodes.iter().any(|node| node.qemu.contains(&volume));
            if plug && (self.vmi.spec.contains(&volume) || !is_leaving) {
                self.vmi.spec.insert(volume);
            } else if !plug {
                self.vmi.spec.remove(&volume);
            }
        }
        self.vmi_changed();
    }

    fn begin(&mut self, fate: Fate) {
        self.tell(|| format!("fate: {fate:?}"));
        match fate {
            Fate::None => {}
            Fate::Stop => {
                self.vmi.deleting = true;
                self.vmi_changed();
                let delay = self.between(1_000, 30_000);
                self.after(delay, Event::QemuEnded);
            }
            Fate::Migration => self.begin_migration(),
            Fate::NodeDeath => {
                let node = self.vmi.node;
                self.nodes[node].is_dead = true;
                self.nodes[node].qemu.clear();
                let delay = self.between(5_000, 40_000);
                self.after(delay, Event::Fenced);
            }
        }
    }

    /// The guest has shut down, and the VMI is final.
    fn qemu_ended(&mut self) {
        for node in &mut self.nodes {
            node.qemu.clear();
        }
        self.finish();
        let launcher = self.vmi.launcher;
        self.end_launcher(launcher, PodPhase::Succeeded);
    }

    fn heartbeat(&mut self) {
        if !self.vmi.finished {
            self.after(0, Event::Controller);
            self.after(HEARTBEAT_MS, Event::Heartbeat);
        }
    }

    fn collected(&mut self) {
        for id in self.pods.keys().copied().collect::<Vec<_>>() {
            self.remove_pod(id);
        }
    }

    fn finish(&mut self) {
        self.vmi.finished = true;
        self.vmi_changed();
        let delay = self.between(1_000, 20_000);
        self.after(delay, Event::Collected);
    }

    fn end_launcher(&mut self, id: u32, phase: PodPhase) {
        if let Some(launcher) = self.launchers.get_mut(&id) {
            launcher.phase = phase;
            self.launcher_changed(id);
        }
    }

    /// A target with an attachment pod of its own; only for VMs whose volumes are all in Block mode.
    fn begin_migration(&mut self) {
        let source = self.vmi.node;
        let target = (source + 1) % NODES;
        if self.volumes.iter().any(|volume| !volume.block) {
            return;
        }
        let launcher = Launcher { node: target, terminating: false, phase: PodPhase::Running };
        self.launchers.insert(TARGET_LAUNCHER, launcher);
        self.launcher_changed(TARGET_LAUNCHER);
        self.vmi.migration = Some((target, TARGET_LAUNCHER));
        self.vmi_changed();
        let in_use = self.nodes[source].qemu.clone();
        if !in_use.is_empty() {
            self.create_pod(TARGET_LAUNCHER, &in_use);
        }
        let delay = self.between(3_000, 40_000);
        self.after(delay, Event::MigrationEnds);
    }

    /// The target takes over if it has all that the source has; else it goes.
    fn migration_ends(&mut self) {
        let Some((target, launcher)) = self.vmi.migration.take() else { return };
        let source = self.vmi.node;
        let in_use = self.nodes[source].qemu.clone();
        let fails = self.chance(20) || !in_use.is_subset(&self.nodes[target].staged);
        if fails {
            self.vmi_changed();
            self.end_launcher(launcher, PodPhase::Failed);
            return;
        }
        self.nodes[source].qemu.clear();
        self.nodes[target].guest_detaching.clear();
        self.nodes[target].qemu = in_use;
        let left = std::mem::replace(&mut self.vmi.launcher, launcher);
        self.vmi.node = target;
        self.vmi_changed();
        self.end_launcher(left, PodPhase::Succeeded);
    }

    /// The dead node is tainted out-of-service: its VMI failed, and its pods are removed by the garbage collector.
    fn fenced(&mut self) {
        let node = self.vmi.node;
        self.nodes[node].out_of_service = true;
        self.guard.out_of_service(self.now, node);
        self.finish();
        let launcher = self.vmi.launcher;
        self.end_launcher(launcher, PodPhase::Failed);
    }

    /// What should have gone and is there, and what should be there and is not.
    fn look_for_leftovers(&mut self) {
        let mut stuck = Vec::new();
        let wanted = if self.vmi.finished { BTreeSet::new() } else { self.vmi.spec.clone() };
        for pod in self.pods.values() {
            let is_current = pod.launcher == self.vmi.launcher && pod.volumes == wanted;
            if !is_current || self.vmi.finished {
                stuck
                    .push(format!("pod {} with {:?} is still there; wanted {wanted:?}", pod.id, pod.volumes));
            }
        }
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| !node.is_dead) {
            let here = if index == self.vmi.node { wanted.clone() } else { BTreeSet::new() };
            let left: Vec<_> = node.staged.difference(&here).collect();
            if !left.is_empty() {
                stuck.push(format!("volumes {left:?} are still staged on node {index}"));
            }
            let missing: Vec<_> =
                here.difference(&node.qemu).filter(|volume| self.volumes[**volume].ours).collect();
            // A VM that paused lost its disks; that is counted as such.
            if !missing.is_empty() && self.tally.pauses + self.tally.unseen_pauses == 0 {
                stuck.push(format!("volumes {missing:?} never came into the guest"));
            }
        }
        self.tally.stuck = stuck;
    }
}
