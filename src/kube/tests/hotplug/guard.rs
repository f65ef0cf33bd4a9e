//! The real guard and the real mutation in the model: what a replica's watches show, as facts.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant, SystemTime};

use observer::hotplug::{
    AttachmentPod, Claim, Departures, Facts, NewContainer, NewPod, OwnerPod, PodPhase, Request, Settings,
    SpecVolume, VolumePhase, VolumeStatus, WAITING_READY_LIMIT, decide, mutate,
};
use observer::{Answer, NodeSeen};
use state_machine::NodeId;

use crate::world::{Launcher, Ms, NODES, Phase, Pod, Vmi, Volume, World};

/// What a watch brings.
enum Update {
    Pod(u32, Option<Pod>),
    Launcher(u32, Option<Launcher>),
    Vmi(Box<Vmi>),
    OutOfService(usize),
}

/// What a replica knows by its watches, which are late.
pub(crate) struct Guard {
    lag_ms: Ms,
    coming: VecDeque<(Ms, Update)>,
    pods: BTreeMap<u32, Pod>,
    launchers: BTreeMap<u32, Launcher>,
    vmi: Vmi,
    out_of_service: [bool; NODES],
    departures: Departures,
    began: Instant,
}

impl Guard {
    pub(crate) fn new(lag_ms: Ms, vmi: &Vmi, launchers: &BTreeMap<u32, Launcher>) -> Self {
        Self {
            lag_ms,
            coming: VecDeque::new(),
            pods: BTreeMap::new(),
            launchers: launchers.clone(),
            vmi: vmi.clone(),
            out_of_service: [false; NODES],
            departures: Departures::default(),
            began: Instant::now(),
        }
    }

    pub(crate) fn pod_changed(&mut self, now: Ms, id: u32, pod: Option<&Pod>) {
        self.coming.push_back((now + self.lag_ms, Update::Pod(id, pod.cloned())));
    }

    pub(crate) fn launcher_changed(&mut self, now: Ms, id: u32, launcher: Option<Launcher>) {
        self.coming.push_back((now + self.lag_ms, Update::Launcher(id, launcher)));
    }

    pub(crate) fn vmi_changed(&mut self, now: Ms, vmi: &Vmi) {
        self.coming.push_back((now + self.lag_ms, Update::Vmi(Box::new(vmi.clone()))));
    }

    pub(crate) fn out_of_service(&mut self, now: Ms, node: usize) {
        self.coming.push_back((now + self.lag_ms, Update::OutOfService(node)));
    }

    fn catch_up(&mut self, now: Ms) {
        while self.coming.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, update)) = self.coming.pop_front() else { return };
            match update {
                Update::Pod(id, Some(pod)) => _ = self.pods.insert(id, pod),
                Update::Pod(id, None) => _ = self.pods.remove(&id),
                Update::Launcher(id, Some(launcher)) => _ = self.launchers.insert(id, launcher),
                Update::Launcher(id, None) => _ = self.launchers.remove(&id),
                Update::Vmi(vmi) => self.vmi = *vmi,
                Update::OutOfService(node) => self.out_of_service[node] = true,
            }
        }
    }

    fn moment(&self, now: Ms) -> Instant {
        self.began + Duration::from_millis(now)
    }

    /// The facts of the deletion of `pod`, which the request itself brings.
    fn facts(&self, pod: &Pod, volumes: &[Volume], remembers: Option<Instant>) -> Facts {
        let others = self.pods.values().filter(|other| other.id != pod.id).map(|other| {
            let mut seen = attachment_pod(other);
            seen.terminating = remembers.is_some_and(|now| self.departures.contains(&seen.uid, now));
            seen
        });
        let owner = self.launchers.get(&pod.launcher).map(|launcher| OwnerPod {
            terminating: launcher.terminating,
            phase: launcher.phase,
            vmi_uid: Some("uid-vmi".to_owned()),
        });
        let targets = self.vmi.migration.map(|(target, _)| BTreeSet::from([node_id(target)]));
        let node = NodeSeen {
            uid: format!("uid-{}", pod.node),
            out_of_service: self.out_of_service[pod.node],
            deleting: false,
        };
        Facts {
            request: Request { deletes_attachment_pod: true, by_kubevirt: true, dry_run: false },
            pod: attachment_pod(pod),
            noted: pod.held,
            remembered: None,
            namespace_terminating: Answer::Known(false),
            owner: known(owner),
            vmi: Answer::Known(vmi(&self.vmi)),
            migration_targets: known(targets),
            node: Answer::Known(node),
            siblings: Answer::Known(others.collect()),
            claims: claims(&pod.volumes, volumes),
        }
    }
}

impl World {
    /// Whether the API server deletes the pod.
    pub(crate) fn guard_allows(&mut self, id: u32) -> bool {
        let layers = self.layers;
        if !layers.guard {
            return true;
        }
        let Some(pod) = self.pods.get_mut(&id) else { return true };
        let now = self.now;
        self.guard.catch_up(now);
        let moment = self.guard.moment(now);
        let facts = self.guard.facts(pod, &self.volumes, layers.remembers.then_some(moment));
        let settings = Settings {
            strict: layers.strict,
            max_hold: Duration::from_millis(layers.max_hold_ms),
            waiting_ready_limit: WAITING_READY_LIMIT,
        };
        let verdict = decide(&facts, time(now), &settings);
        *self.tally.verdicts.entry(verdict.reason).or_default() += 1;
        if verdict.allowed {
            self.guard.departures.note(&facts.pod.uid, moment);
        } else {
            self.tally.denied_again(pod.held, verdict.held, now);
            pod.held = Some(verdict.held);
        }
        self.tell(|| format!("deletion of pod {id}: {} of {:?}", verdict.reason, verdict.volumes));
        verdict.allowed
    }

    /// What a new pod exposes after the mutation.
    pub(crate) fn mutated(&self, volumes: &BTreeSet<usize>, mut exposes: BTreeSet<usize>) -> BTreeSet<usize> {
        if !self.layers.mutation {
            return exposes;
        }
        let new_pod = |exposes: &BTreeSet<usize>| {
            let paths = |block: bool| {
                let of_mode = exposes.iter().filter(|volume| self.volumes[**volume].block == block);
                Some(of_mode.map(|volume| (name(*volume), format!("/{volume}"))).collect())
            };
            NewPod {
                is_trigger: false,
                volumes: volumes.iter().map(|volume| (name(*volume), claim_name(*volume))).collect(),
                containers: vec![NewContainer { mounts: paths(false), devices: paths(true) }],
                claims: claims(volumes, &self.volumes),
            }
        };
        for operation in mutate(&new_pod(&exposes)) {
            let added = operation.value["name"].as_str().map(str::to_owned);
            exposes.extend(volumes.iter().copied().filter(|volume| added.as_ref() == Some(&name(*volume))));
        }
        assert!(mutate(&new_pod(&exposes)).is_empty(), "the mutation is not idempotent");
        exposes
    }
}

fn known<T>(value: Option<T>) -> Answer<T> {
    value.map_or(Answer::Absent, Answer::Known)
}

fn time(at: Ms) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(at)
}

/// So long before `now` it was.
pub(crate) fn ms_since(moment: SystemTime, now: Ms) -> Ms {
    let age = time(now).duration_since(moment).unwrap_or_default();
    Ms::try_from(age.as_millis()).expect("within a run")
}

fn name(volume: usize) -> String {
    format!("volume-{volume}")
}

fn claim_name(volume: usize) -> String {
    format!("claim-{volume}")
}

fn pod_uid(id: u32) -> String {
    format!("uid-pod-{id}")
}

fn node_id(node: usize) -> NodeId {
    NodeId::parse(&format!("node-{node}")).expect("a node's name")
}

fn claims(of: &BTreeSet<usize>, volumes: &[Volume]) -> BTreeMap<String, Answer<Claim>> {
    let claim = |volume: usize| Claim {
        uid: format!("uid-{volume}"),
        bound: true,
        ours: volumes[volume].ours,
        block: volumes[volume].block,
    };
    of.iter().map(|volume| (claim_name(*volume), Answer::Known(claim(*volume)))).collect()
}

fn attachment_pod(pod: &Pod) -> AttachmentPod {
    AttachmentPod {
        namespace: "vms".to_owned(),
        name: format!("hp-volume-{}", pod.id),
        uid: pod_uid(pod.id),
        // The API has whole seconds.
        created: Some(time(pod.created_at / 1_000 * 1_000)),
        terminating: false,
        phase: pod.phase,
        node: Some(node_id(pod.node)),
        is_trigger: false,
        containers_ready: pod.phase == PodPhase::Running && pod.ready,
        volumes: pod.volumes.iter().map(|volume| (name(*volume), claim_name(*volume))).collect(),
        exposes: pod.exposes.iter().map(|volume| name(*volume)).collect(),
    }
}

fn vmi(vmi: &Vmi) -> observer::hotplug::Vmi {
    let spec = SpecVolume { hotplug: true, never_ready: false };
    let status = |status: &crate::world::Status| VolumeStatus {
        phase: match status.phase {
            Phase::Ready => VolumePhase::Ready,
            Phase::MountedToPod => VolumePhase::MountedToPod,
            Phase::AttachedToNode => VolumePhase::AttachedToNode,
            Phase::Pending | Phase::Detaching | Phase::UnMounted => VolumePhase::Other,
        },
        target: if status.has_target { "sda".to_owned() } else { String::new() },
        attach_pod_uid: status.attach_pod.map(pod_uid),
        never_ready: false,
    };
    observer::hotplug::Vmi {
        name: "web".to_owned(),
        uid: "uid-vmi".to_owned(),
        finished: vmi.finished,
        deleting: vmi.deleting,
        node: Some(node_id(vmi.node)),
        spec_volumes: vmi.spec.iter().map(|volume| (name(*volume), spec)).collect(),
        volume_status: vmi.status.iter().map(|(volume, of)| (name(*volume), status(of))).collect(),
    }
}
