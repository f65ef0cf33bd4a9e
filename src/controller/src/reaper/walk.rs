//! A random walk over the ledger and one leader after the other, in a world that knows who really has what open.
//!
//! What is never so, whatever happens: a side is reaped that is in use as of the newest look which the leader has; a
//! slot is freed while its node is really connected; a migration is reaped twice. And when the world calms down, each
//! stale side is gone within [`CALM_SECONDS`].
//!
//! The world is honest in one thing: nobody taints or deletes a node that runs and cannot speak. That is what the
//! proofs rest on. Whoever can speak again does so at once.

use std::collections::BTreeMap;

use state_machine::AttachmentPhase;

use super::testing::{FakeEvidence, Ledger, REAP_AFTER, in_use, node, volume};
use super::*;
use proptest::prelude::*;

const NODES: [&str; 3] = ["a", "b", "c"];
const VOLUMES: usize = 2;
/// A node speaks so often, at least.
const REPORT_SECONDS: u64 = 5;
/// A lost session, a deleted node's minute, a side that is stale for long enough, the cut, and a look again in between.
const CALM_SECONDS: u64 = 60 + 30 + REAP_AFTER.as_secs() + 2 * REPORT_SECONDS;

/// What a node really does.
#[derive(Debug, Clone)]
struct RealNode {
    runs: bool,
    speaks: bool,
    boot: u64,
    /// Connected volumes, and whether they are open there.
    connected: BTreeMap<usize, bool>,
    /// The number of the asking that it knows of.
    knows: u64,
}

#[derive(Debug, Clone)]
enum Act {
    Pass { seconds: u64 },
    Publish { volume: usize, node: usize },
    Unpublish { volume: usize, node: usize },
    Use { volume: usize, node: usize, open: bool },
    Power { node: usize, on: bool },
    Partition { node: usize, cut: bool },
    Stand { node: usize, standing: Standing },
    KubeVirt { volume: usize, says: KubeVirt },
    LeaderDies { after_commit: bool },
}

struct World {
    ledger: Ledger,
    evidence: FakeEvidence,
    nodes: BTreeMap<&'static str, RealNode>,
    reaper: Reaper,
    term: u64,
    /// The leader dies at its next proposal, before or after it is committed.
    dies: Option<bool>,
    reaped: BTreeMap<MigrationId, NodeId>,
}

impl World {
    /// Both volumes migrate from a to b, and are open on a.
    fn new() -> Self {
        let mut ledger = Ledger::with(VOLUMES, &NODES);
        let real = |open: Option<bool>| RealNode {
            runs: true,
            speaks: true,
            boot: 1,
            connected: open
                .map(|open| (0..VOLUMES).map(|volume| (volume, open)).collect())
                .unwrap_or_default(),
            knows: 0,
        };
        for number in 0..VOLUMES {
            assert!(ledger.attach(number, "a") && ledger.attach(number, "b"));
        }
        let nodes = BTreeMap::from([("a", real(Some(true))), ("b", real(Some(false))), ("c", real(None))]);
        let (evidence, reaper) = (FakeEvidence::default(), Reaper::new(REAP_AFTER));
        let mut world =
            Self { ledger, evidence, nodes, reaper, term: 0, dies: None, reaped: BTreeMap::new() };
        world.next_leader();
        world
    }

    fn next_leader(&mut self) {
        self.term += 1;
        self.reaper = Reaper::new(REAP_AFTER);
        self.evidence.forget_sessions();
        self.tell(Event::TookOffice { term: self.term });
    }

    fn tell(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let view = View { state: &self.ledger.state, evidence: &self.evidence };
            for effect in self.reaper.step(event, self.ledger.now, view) {
                match effect {
                    Effect::AskSessionsAgain { nodes } => {
                        let number = self.evidence.ask_again(&nodes);
                        events.push(Event::Asked { number });
                    }
                    Effect::Propose { command, .. } => {
                        let dies = self.dies.take();
                        if dies == Some(false) {
                            return self.next_leader();
                        }
                        let answer = self.commit_proposal(command);
                        if dies == Some(true) {
                            return self.next_leader();
                        }
                        events.push(Event::Proposed { term: self.term, answer });
                    }
                    Effect::Report(_) => {}
                }
            }
        }
    }

    fn commit_proposal(&mut self, command: Command) -> Answer {
        if let Command::Reap { volume: id, migration, decision } = &command {
            let newest = self.evidence.seen(&self.ledger.state, id, &decision.stale);
            let used = matches!(&newest, Seen::Looked { sight: Sight::InUse { .. }, .. });
            assert!(!used, "{decision:?}: as of {newest:?}");
            assert_eq!(self.reaped.insert(*migration, decision.stale.clone()), None, "reaped twice");
        }
        Answer::from(self.commit(command))
    }

    /// Commits, and looks whether what was freed really is free.
    fn commit(&mut self, command: Command) -> Response {
        let what = format!("{command:?}");
        self.checked(&what, |ledger| ledger.commit(command))
    }

    fn checked<T>(&mut self, what: &str, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let held = |ledger: &Ledger| (0..VOLUMES).map(|number| ledger.holders(number)).collect::<Vec<_>>();
        let before = held(&self.ledger);
        let result = change(&mut self.ledger);
        let after = held(&self.ledger);
        for (number, holders) in before.iter().enumerate() {
            for name in holders.iter().filter(|name| !after[number].contains(name)) {
                let real = &self.nodes[name.as_str()];
                assert!(
                    !(real.runs && real.connected.contains_key(&number)),
                    "{what} frees volume {number} from {name}, which is connected"
                );
            }
        }
        result
    }

    /// One second: nodes cut and speak, the clock ticks, the reaper wakes.
    fn second(&mut self) {
        self.ledger.now += Duration::from_secs(1);
        self.evidence.now = self.ledger.now;
        for (place, name) in NODES.into_iter().enumerate() {
            let real = &self.nodes[name];
            if !(real.runs && real.speaks) {
                continue;
            }
            self.cut(name);
            if (self.ledger.now.as_secs() + place as u64).is_multiple_of(REPORT_SECONDS) {
                self.report(name);
            }
        }
        self.commit(Command::Tick);
        self.tell(Event::Changed);
        self.tell(Event::Timer);
    }

    /// What is being revoked and is connected and idle is disconnected, and the node says so.
    fn cut(&mut self, name: &'static str) {
        for number in 0..VOLUMES {
            let attachment = self.ledger.state.volume(&volume(number)).unwrap().attachments.get(&node(name));
            let revoking = attachment.is_some_and(|a| a.phase == AttachmentPhase::Revoking);
            let orphan = attachment.is_none();
            let real = self.nodes.get_mut(name).unwrap();
            if (revoking || orphan) && real.connected.get(&number) != Some(&true) {
                real.connected.remove(&number);
                if revoking {
                    self.checked("a report", |ledger| ledger.report_off(number, name));
                }
            }
        }
    }

    fn report(&mut self, name: &'static str) {
        let real = &self.nodes[name];
        for number in 0..VOLUMES {
            let sight = match real.connected.get(&number) {
                None => Sight::Absent,
                Some(false) => Sight::Idle,
                Some(true) => in_use(),
            };
            let seen = Seen::Looked { answers: real.knows, sight };
            self.evidence.seen.insert((volume(number), node(name)), seen);
        }
        self.evidence.heard_at.insert(node(name), self.evidence.now);
        // It hears of the newest asking with the answer, and looks after it from now on.
        let knows = self.evidence.asked.load(std::sync::atomic::Ordering::SeqCst);
        self.nodes.get_mut(name).unwrap().knows = knows;
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Pass { seconds } => (0..seconds).for_each(|_| self.second()),
            Act::Publish { volume, node } => {
                let name = NODES[node];
                if self.nodes[name].runs && self.nodes[name].speaks && self.ledger.attach(volume, name) {
                    self.nodes.get_mut(name).unwrap().connected.entry(volume).or_insert(false);
                }
            }
            Act::Unpublish { volume, node } => {
                self.checked("an unpublish", |ledger| ledger.unpublish(volume, NODES[node]));
            }
            Act::Use { volume, node, open } => {
                if let Some(used) = self.nodes.get_mut(NODES[node]).unwrap().connected.get_mut(&volume) {
                    *used = open;
                }
            }
            Act::Power { node, on } => self.power(NODES[node], on),
            Act::Partition { node, cut } => self.partition(NODES[node], cut),
            Act::Stand { node, standing } => {
                let real = &self.nodes[NODES[node]];
                if real.speaks || !real.runs {
                    self.evidence.standing.insert(super::testing::node(NODES[node]), standing);
                }
            }
            Act::KubeVirt { volume, says } => {
                self.evidence.kubevirt.insert(super::testing::volume(volume), says);
            }
            Act::LeaderDies { after_commit } => self.dies = Some(after_commit),
        }
    }

    fn partition(&mut self, name: &'static str, cut: bool) {
        let real = self.nodes.get_mut(name).unwrap();
        real.speaks = !cut;
        if real.runs && cut {
            self.evidence.standing.insert(node(name), Standing::Present);
        } else if real.runs {
            self.report(name);
        }
    }

    fn power(&mut self, name: &'static str, on: bool) {
        let real = self.nodes.get_mut(name).unwrap();
        if real.runs == on {
            return;
        }
        real.runs = on;
        real.connected.clear();
        if on {
            let before = real.boot;
            (real.boot, real.knows, real.speaks) = (before + 1, 0, true);
            self.checked("a reboot", |ledger| ledger.register(name, Some(before), before + 1));
            self.report(name);
        }
    }

    /// The VMs have moved: everything open is open on one node only, everybody speaks who runs, who does not run is
    /// known to be off. Then nothing stays overdue.
    fn calm_down(&mut self) {
        for number in 0..VOLUMES {
            self.evidence.kubevirt.remove(&volume(number));
            let mut kept = false;
            for real in self.nodes.values_mut().filter(|real| real.runs) {
                if let Some(open) = real.connected.get_mut(&number) {
                    *open = *open && !kept;
                    kept |= *open;
                }
            }
        }
        for (name, real) in &mut self.nodes {
            real.speaks = true;
            let standing = if real.runs { Standing::Present } else { Standing::Missing };
            self.evidence.standing.insert(node(name), standing);
        }
        self.dies = None;
        (0..CALM_SECONDS).for_each(|_| self.second());
        for number in 0..VOLUMES {
            let migration = self.ledger.migration(number);
            let late = self.ledger.is_overdue(number);
            let open = self.nodes.values().any(|real| real.connected.get(&number) == Some(&true));
            assert!(
                !late || self.is_leaving(number) && open,
                "volume {number} stays on two nodes: {migration:?}"
            );
        }
    }

    fn is_leaving(&self, number: usize) -> bool {
        let attachments = &self.ledger.state.volume(&volume(number)).unwrap().attachments;
        attachments.values().any(|attachment| attachment.phase == AttachmentPhase::Revoking)
    }
}

fn act() -> impl Strategy<Value = Act> {
    let (volumes, nodes) = (0..VOLUMES, 0..NODES.len());
    let standing = prop_oneof![
        Just(Standing::Unknown),
        Just(Standing::Present),
        Just(Standing::OutOfService),
        Just(Standing::Missing),
    ];
    let ended = |lost| KubeVirt::Ended { lost, how: "it says so".to_owned() };
    let says = prop_oneof![
        Just(KubeVirt::Unknown { why: "no Kubernetes".to_owned() }),
        Just(KubeVirt::Unfinished { phase: "Running".to_owned() }),
        Just(ended(Side::Source)),
        Just(ended(Side::Target)),
        Just(KubeVirt::NoVm),
    ];
    prop_oneof![
        6 => (1..40u64).prop_map(|seconds| Act::Pass { seconds }),
        2 => (volumes.clone(), nodes.clone()).prop_map(|(volume, node)| Act::Publish { volume, node }),
        1 => (volumes.clone(), nodes.clone()).prop_map(|(volume, node)| Act::Unpublish { volume, node }),
        4 => (volumes.clone(), nodes.clone(), any::<bool>())
            .prop_map(|(volume, node, open)| Act::Use { volume, node, open }),
        1 => (nodes.clone(), any::<bool>()).prop_map(|(node, on)| Act::Power { node, on }),
        2 => (nodes.clone(), any::<bool>()).prop_map(|(node, cut)| Act::Partition { node, cut }),
        2 => (nodes, standing).prop_map(|(node, standing)| Act::Stand { node, standing }),
        2 => (volumes, says).prop_map(|(volume, says)| Act::KubeVirt { volume, says }),
        1 => any::<bool>().prop_map(|after_commit| Act::LeaderDies { after_commit }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_held_is_lost_and_nothing_stale_stays(acts in prop::collection::vec(act(), 1..40)) {
        let mut world = World::new();
        for act in acts {
            world.act(act);
        }
        world.calm_down();
    }
}
