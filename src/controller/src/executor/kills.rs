//! The leader is killed at every moment of a create, an expand, a delete: between any two steps, and between a step
//! and the news of it. The next leader settles all of it; what the dead one still had in flight arrives last and does
//! nothing.

use std::sync::Arc;

use backend::{Backend, Disk, MemoryAppliance};
use state_machine::{
    AppliancePath, ByteSize, Entry, HostAddress, LedgerTime, Nqn, Response, State, VolumeName,
    VolumeParameters, plan,
};

use super::*;

const GIB: u64 = 1 << 30;

/// The ledger, the appliance and one leader after the other.
struct World {
    ledger: State,
    appliance: MemoryAppliance,
    term: u64,
    executor: Executor,
    hand: Hand,
    /// Moments that passed; the leader dies when `dies_at` is reached.
    moments: usize,
    dies_at: usize,
    /// What the dead leader had in flight.
    late: Option<(Hand, Effect)>,
}

fn hand(appliance: &MemoryAppliance) -> Hand {
    Hand {
        backend: Arc::new(appliance.connect()),
        nqn_prefix: Nqn::parse("nqn.2000-02.com.mikrotik").unwrap(),
    }
}

fn id() -> VolumeId {
    VolumeId::parse("pvc-00000000-0000-4000-8000-000000000001").unwrap()
}

fn parameters() -> VolumeParameters {
    VolumeParameters::with_defaults(
        AppliancePath::parse("/pool/csi").unwrap(),
        HostAddress::parse("127.0.0.1").unwrap(),
        4420,
    )
}

fn create() -> Command {
    Command::CreateVolume {
        id: id(),
        name: VolumeName::parse(id().as_str()).unwrap(),
        required: ByteSize::exactly(GIB).unwrap(),
        limit_bytes: None,
        parameters: parameters(),
    }
}

fn expand() -> Command {
    Command::ExpandVolume { volume: id(), required: ByteSize::exactly(2 * GIB).unwrap(), limit_bytes: None }
}

fn delete() -> Command {
    Command::DeleteVolume { volume: id() }
}

impl World {
    fn new(pool_bytes: u64, dies_at: usize) -> Self {
        let appliance = MemoryAppliance::new(pool_bytes);
        let hand = hand(&appliance);
        let (ledger, executor) = (State::default(), Executor::default());
        Self { ledger, appliance, term: 1, executor, hand, moments: 0, dies_at, late: None }
    }

    fn commit(&mut self, command: Command) -> Response {
        let response = self.ledger.apply(Entry { at: LedgerTime(0), command });
        assert_eq!(self.ledger.violations(), Vec::<String>::new());
        response
    }

    /// A moment at which the leader may die; says whether it did.
    fn dies(&mut self, in_flight: &Effect) -> bool {
        self.moments += 1;
        if self.moments != self.dies_at {
            return false;
        }
        self.late = Some((self.hand.clone(), in_flight.clone()));
        self.hand = hand(&self.appliance);
        self.executor = Executor::default();
        self.term += 1;
        true
    }

    /// Lets the leader of the day work until nothing is left to do.
    async fn settle(&mut self) {
        let mut effects = self.executor.step(Event::Leading { term: self.term });
        for _ in 0..100 {
            let Some(effect) = effects.pop() else { return };
            if self.dies(&effect) {
                effects = self.executor.step(Event::Leading { term: self.term });
                continue;
            }
            let event = self.perform(&self.hand.clone(), effect.clone()).await;
            if self.dies(&effect) {
                effects = self.executor.step(Event::Leading { term: self.term });
                continue;
            }
            effects.extend(self.executor.step(event));
            // Waits are over at once: time is not what is tested here.
            effects.extend(
                self.executor.step(Event::Planned { now_ms: u64::MAX / 2, steps: plan(&self.ledger) }),
            );
        }
        panic!("it does not settle");
    }

    async fn perform(&mut self, hand: &Hand, effect: Effect) -> Event {
        match effect {
            Effect::BeginTerm { term } => {
                Event::TermBegun { now_ms: 0, term, result: hand.begin_term(term).await }
            }
            Effect::Perform { term, step, action } => {
                Event::Performed { term, key: key_of(&step), outcome: hand.act(&step, &action).await }
            }
            Effect::Propose { term, key, command } => {
                // Raft commits in the present term only.
                let committed = term == self.term;
                if committed {
                    self.commit(command);
                }
                Event::Proposed { now_ms: 0, term, key, committed }
            }
        }
    }

    async fn disks(&self) -> Vec<Disk> {
        self.appliance.connect().list().await.unwrap()
    }

    /// Ledger and appliance have the same volumes, and nothing is under way.
    async fn expect_agreement(&self) {
        assert_eq!(plan(&self.ledger), []);
        let recorded: Vec<_> =
            self.ledger.volumes().values().map(|v| (v.id.clone(), v.size.bytes(), true)).collect();
        let disks = self.disks().await;
        let there: Vec<_> =
            disks.iter().map(|disk| (disk.volume.clone(), disk.size_bytes, disk.exported)).collect();
        assert_eq!(recorded, there, "the leader died at moment {}", self.dies_at);
        for volume in self.ledger.volumes().values() {
            assert_eq!(volume.problem, None);
        }
    }
}

/// Tells the story once for each moment of it; returns how many moments it has.
async fn kill_at_every_moment(story: &[Command], pool_bytes: u64) -> usize {
    let mut dies_at = 1;
    loop {
        let mut world = World::new(pool_bytes, dies_at);
        for command in story {
            world.commit(command.clone());
            world.settle().await;
        }
        world.expect_agreement().await;
        let Some((dead, effect)) = world.late.take() else { return dies_at - 1 };
        let before = (world.disks().await, world.ledger.clone());
        world.perform(&dead, effect).await;
        assert_eq!(
            (world.disks().await, world.ledger.clone()),
            before,
            "a dead leader's late effect did something"
        );
        dies_at += 1;
    }
}

#[tokio::test]
async fn a_leader_killed_at_any_moment_leaves_nothing_half_done() {
    // Each effect has two moments; the least that a story has is its term, its steps and their outcomes.
    assert!(kill_at_every_moment(&[create()], 10 * GIB).await >= 10);
    assert!(kill_at_every_moment(&[create(), expand()], 10 * GIB).await >= 14);
    assert!(kill_at_every_moment(&[create(), delete()], 10 * GIB).await >= 14);
    assert!(kill_at_every_moment(&[create(), expand(), delete(), create()], 10 * GIB).await >= 28);
}

#[tokio::test]
async fn a_leader_killed_while_the_appliance_is_full_leaves_nothing_behind() {
    assert!(kill_at_every_moment(&[create()], GIB / 2).await >= 12);
    assert!(kill_at_every_moment(&[create(), expand()], GIB).await >= 14);
}

#[tokio::test]
async fn a_file_that_an_earlier_attempt_left_does_not_keep_the_volume_from_being_created() {
    let mut world = World::new(10 * GIB, 0);
    let Response::Pending { generation } = world.commit(create()) else { panic!("no intent") };
    world.commit(Command::SlotWasFree { volume: id(), generation });
    world.appliance.plant_file(&format!("/pool/csi/{}.img", id()));
    world.settle().await;
    world.expect_agreement().await;
    assert_eq!(world.ledger.volumes().len(), 1);
}

#[tokio::test]
async fn a_disk_that_went_missing_is_reported_and_never_made_anew() {
    let mut world = World::new(10 * GIB, 0);
    world.commit(create());
    world.settle().await;
    world.perform(&world.hand.clone(), Effect::BeginTerm { term: 1 }).await;
    let (hand, volume) = (world.hand.clone(), world.ledger.volumes()[&id()].clone());
    hand.backend.remove(&id(), &volume.parameters.volume_path).await.unwrap();
    let confirm = Step {
        volume: id(),
        generation: volume.generation,
        parameters: volume.parameters,
        size: volume.size,
        problem: None,
        kind: StepKind::ConfirmExport { node: state_machine::NodeId::parse("a").unwrap() },
    };
    let outcome = hand.act(&confirm, &Action::Step).await;
    assert!(matches!(outcome, Outcome::Failed(BackendError::Conflict { .. })), "{outcome:?}");
    assert_eq!(world.disks().await, []);
}
