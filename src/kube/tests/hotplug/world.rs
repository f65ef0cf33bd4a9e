//! What there is: one VMI with its volumes, its attachment pods in the API, and the nodes; and the clock.
//!
//! Everything happens by events in simulated milliseconds, in an order that the seed alone decides.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use observer::hotplug::{Held, PodPhase};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::guard::Guard;
use crate::tally::Tally;

/// Simulated milliseconds since the run began.
pub(crate) type Ms = u64;

/// Nodes of the model.
pub(crate) const NODES: usize = 2;

/// Which of KubeVirt's two ways to replace an attachment pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Generation {
    /// Up to 1.0.0: the old pod is deleted as soon as the new one is created.
    Before,
    /// Since #10275 (1.0.1, 1.1.0): the old one goes once the new one runs.
    After,
}

/// What protects the VM.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layers {
    pub(crate) guard: bool,
    pub(crate) strict: bool,
    /// The guard remembers which deletions it allowed.
    pub(crate) remembers: bool,
    pub(crate) mutation: bool,
    /// The node refuses to unstage what QEMU has open.
    pub(crate) in_use_check: bool,
    pub(crate) max_hold_ms: Ms,
}

/// A volume that may be plugged in.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) block: bool,
    pub(crate) ours: bool,
    /// How long an attachment takes.
    pub(crate) attach_ms: Ms,
    /// Attachments fail until then.
    pub(crate) fails_until: Ms,
}

/// An attachment pod in the API.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) id: u32,
    pub(crate) launcher: u32,
    pub(crate) node: usize,
    /// When kubelet gets it.
    pub(crate) bound_at: Ms,
    /// When its containers run, once all it exposes is staged.
    pub(crate) starts_at: Option<Ms>,
    pub(crate) phase: PodPhase,
    pub(crate) ready: bool,
    pub(crate) volumes: BTreeSet<usize>,
    pub(crate) exposes: BTreeSet<usize>,
    pub(crate) created_at: Ms,
    /// The annotations, once it was denied.
    pub(crate) held: Option<Held>,
}

/// `status.volumeStatus[].phase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Pending,
    AttachedToNode,
    MountedToPod,
    Ready,
    Detaching,
    UnMounted,
}

impl Phase {
    pub(crate) fn is_mounted(self) -> bool {
        match self {
            Self::Ready | Self::MountedToPod => true,
            Self::Pending | Self::AttachedToNode | Self::Detaching | Self::UnMounted => false,
        }
    }
}

/// One entry of `status.volumeStatus`.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    pub(crate) phase: Phase,
    pub(crate) has_target: bool,
    pub(crate) attach_pod: Option<u32>,
}

/// The VMI in the API.
#[derive(Debug, Clone)]
pub(crate) struct Vmi {
    pub(crate) node: usize,
    pub(crate) launcher: u32,
    pub(crate) deleting: bool,
    pub(crate) finished: bool,
    pub(crate) spec: BTreeSet<usize>,
    pub(crate) status: BTreeMap<usize, Status>,
    /// The node and the virt-launcher pod to which an unfinished migration goes.
    pub(crate) migration: Option<(usize, u32)>,
}

/// A virt-launcher pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Launcher {
    pub(crate) node: usize,
    pub(crate) terminating: bool,
    pub(crate) phase: PodPhase,
}

/// A node: what kubelet did there, and what QEMU has open.
#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) is_dead: bool,
    pub(crate) out_of_service: bool,
    pub(crate) staged: BTreeSet<usize>,
    pub(crate) attaching: BTreeMap<usize, Ms>,
    pub(crate) unstaging: BTreeMap<usize, Ms>,
    pub(crate) qemu: BTreeSet<usize>,
    pub(crate) guest_detaching: BTreeSet<usize>,
    /// Lost their last pod when the API did not show that QEMU had them.
    pub(crate) unseen: BTreeSet<usize>,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// virt-controller looks at the VMI.
    Controller,
    /// virt-handler looks at the VMI.
    Handler,
    /// kubelet of a node looks at its pods.
    Kubelet(usize),
    /// The containers of a pod are ready.
    PodReady(u32),
    /// The guest gave a disk back.
    GuestDetached(usize, usize),
    /// Somebody changes the VM's volumes.
    Change,
    /// What the run has in store for the VM.
    Fate,
    /// QEMU of a VM that stops has ended.
    QemuEnded,
    /// The target of a migration takes over, or not.
    MigrationEnds,
    /// A dead node is vouched for.
    Fenced,
    /// virt-handler wrote something else of the VMI, as of its guest agent.
    Heartbeat,
    /// The garbage collector, which nobody guards, takes what an ended VMI left.
    Collected,
}

impl Event {
    /// Loops that look at everything each time: one that is due sooner stands for a later one.
    fn is_loop(self) -> bool {
        match self {
            Self::Controller | Self::Handler | Self::Kubelet(_) => true,
            Self::PodReady(_)
            | Self::GuestDetached(..)
            | Self::Change
            | Self::Fate
            | Self::QemuEnded
            | Self::MigrationEnds
            | Self::Fenced
            | Self::Heartbeat
            | Self::Collected => false,
        }
    }
}

/// The model.
pub(crate) struct World {
    pub(crate) now: Ms,
    pub(crate) rng: StdRng,
    pub(crate) generation: Generation,
    /// Before 1.0.0 a volume in use is left out in Block mode as well.
    pub(crate) skips_block: bool,
    pub(crate) layers: Layers,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) pods: BTreeMap<u32, Pod>,
    pub(crate) launchers: BTreeMap<u32, Launcher>,
    pub(crate) vmi: Vmi,
    pub(crate) nodes: [Node; NODES],
    pub(crate) guard: Guard,
    pub(crate) tally: Tally,
    /// Failed passes of virt-controller in a row.
    pub(crate) failures: u32,
    pub(crate) next_pod: u32,
    /// What happened, if somebody wants to read it.
    pub(crate) story: Option<Vec<String>>,
    queue: BinaryHeap<Reverse<(Ms, u64, Event)>>,
    sequence: u64,
    loops: BTreeMap<Event, Ms>,
}

impl World {
    pub(crate) fn new(seed: u64, generation: Generation, layers: Layers) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let skips_block = generation == Generation::Before && rng.random_bool(0.5);
        let launcher = Launcher { node: 0, terminating: false, phase: PodPhase::Running };
        let vmi = Vmi {
            node: 0,
            launcher: 1,
            deleting: false,
            finished: false,
            spec: BTreeSet::new(),
            status: BTreeMap::new(),
            migration: None,
        };
        let launchers = BTreeMap::from([(1, launcher)]);
        let lag_ms = rng.random_range(1..50);
        Self {
            now: 0,
            guard: Guard::new(lag_ms, &vmi, &launchers),
            rng,
            generation,
            skips_block,
            layers,
            volumes: Vec::new(),
            pods: BTreeMap::new(),
            launchers,
            vmi,
            nodes: Default::default(),
            tally: Tally::default(),
            failures: 0,
            next_pod: 1,
            story: None,
            queue: BinaryHeap::new(),
            sequence: 0,
            loops: BTreeMap::new(),
        }
    }

    pub(crate) fn tell(&mut self, what: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(format!("{:>9.3} s  {}", self.now as f64 / 1_000.0, what()));
        }
    }

    /// Between `least` and `most` milliseconds.
    pub(crate) fn between(&mut self, least: Ms, most: Ms) -> Ms {
        self.rng.random_range(least..=most)
    }

    pub(crate) fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_ratio(percent, 100)
    }

    pub(crate) fn after(&mut self, delay: Ms, event: Event) {
        let at = self.now + delay;
        if event.is_loop() {
            match self.loops.get(&event) {
                Some(due) if *due <= at => return,
                Some(_) | None => _ = self.loops.insert(event, at),
            }
        }
        self.sequence += 1;
        self.queue.push(Reverse((at, self.sequence, event)));
    }

    /// The next event until `end`, at its time.
    pub(crate) fn next_event(&mut self, end: Ms) -> Option<Event> {
        while let Some(Reverse((at, _, event))) = self.queue.peek().copied() {
            if at > end {
                return None;
            }
            self.queue.pop();
            if event.is_loop() {
                if self.loops.get(&event) != Some(&at) {
                    continue;
                }
                self.loops.remove(&event);
            }
            self.now = at;
            return Some(event);
        }
        None
    }

    /// The VMI changed: watches tell it.
    pub(crate) fn vmi_changed(&mut self) {
        if self.story.is_some() {
            let told = |(volume, status): (&usize, &Status)| {
                let target = if status.has_target { " target" } else { "" };
                format!("{volume}: {:?}{target} {:?}", status.phase, status.attach_pod)
            };
            let status: Vec<_> = self.vmi.status.iter().map(told).collect();
            let spec = self.vmi.spec.clone();
            self.tell(|| format!("VMI spec {spec:?}, status [{}]", status.join("; ")));
        }
        self.guard.vmi_changed(self.now, &self.vmi);
        let delay = self.between(1, 50);
        self.after(delay, Event::Controller);
        // virt-handler's own watch and its work before QEMU is told take longer than the guard's watch.
        let delay = self.between(100, 600);
        self.after(delay, Event::Handler);
    }

    pub(crate) fn pod_changed(&mut self, id: u32) {
        let told = match self.pods.get(&id) {
            Some(pod) => {
                format!("{:?} ready {} exposes {:?} of {:?}", pod.phase, pod.ready, pod.exposes, pod.volumes)
            }
            None => "gone".to_owned(),
        };
        self.tell(|| format!("pod {id}: {told}"));
        self.guard.pod_changed(self.now, id, self.pods.get(&id));
        let delay = self.between(1, 50);
        self.after(delay, Event::Controller);
        for node in 0..NODES {
            let delay = self.between(20, 300);
            self.after(delay, Event::Kubelet(node));
        }
    }

    pub(crate) fn launcher_changed(&mut self, id: u32) {
        self.guard.launcher_changed(self.now, id, self.launchers.get(&id).copied());
        let delay = self.between(1, 50);
        self.after(delay, Event::Controller);
    }
}
