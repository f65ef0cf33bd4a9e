//! The faults, chosen by the seed: several at once, each for a while, then healed.
//!
//! A fault that could not be (nobody holds a device, nobody came to the armed point) is recorded as skipped.

use std::sync::Arc;

use controller::cores::reaper::Standing;

use super::faults::{Appliance, Kind, Machine, Messages, Partition, Process};
use super::network::Endpoint;
use super::places::place_name;
use super::rng::SimRng;
use super::runtime::{
    GroupId, TRUE_RATE_PPM, freeze, is_dead, kill, kill_after, move_wall, random, set_rate, sleep_ms, spare,
    spawn,
};
use super::world::{Act, Point, REPLICAS, World};
use crate::history::Installed;

/// In this share of all choices, in a thousand, a fault that hits a replica hits the leader.
const LEADER_PER_MILLE: u64 = 500;
/// Of the kinds there are, a seed uses this share, in a thousand.
const KINDS_PER_MILLE: u64 = 600;
/// Of a thousand seeds, so many let the replicas be: what takes longer than a leader lives elsewhere happens there, while
/// nodes and the appliance fail.
const SPARES_REPLICAS_PER_MILLE: u64 = 250;
/// The least and the largest mean pause between two faults of a seed, in ms.
const PAUSE_MS: (u64, u64) = (700, 9_000);
/// How long a fault lasts that has no length of its own, in ms.
const LASTS_MS: (u64, u64) = (300, 15_000);
/// How long a replica is stopped, in ms: up to several leases.
const PAUSE_LASTS_MS: (u64, u64) = (200, 9_000);
/// How long a node is off that is off for good, or cut off from all controllers for long, in ms: beyond the silence that
/// makes its taint a proof, and that alone is none.
const OFF_LASTS_MS: (u64, u64) = (35_000, 90_000);
/// Nodes that are cut off for long, of a thousand that are cut off.
const CUT_OFF_LONG_PER_MILLE: u64 = 400;
/// How long a process may take to come to the await that ends it, in ms.
const AWAITS_LAST_MS: (u64, u64) = (100, 200);
/// How long somebody is waited for to come to an armed point, in ms.
const ARMED_MS: u64 = 5_000;
/// The largest error of a clock's rate, in parts of a million.
pub(crate) const DRIFT_PPM: u64 = 20_000;
/// Milliseconds in nanoseconds.
const MS_NS: i128 = 1_000_000;

/// What undoes a fault.
enum Undo {
    Nothing,
    Net,
    Blocked(Vec<(Endpoint, Endpoint)>),
    Thaw(GroupId),
    Up(Vec<usize>),
    Rate(GroupId),
    Disk(usize),
    Appliance,
    Boot(usize),
    BootOff(usize),
    Release(usize),
    Disarm(usize, Point),
    Spare(GroupId),
}

/// One run's faults.
pub(crate) struct Nemesis {
    world: Arc<World>,
    kinds: Vec<Kind>,
    pause_ms: u64,
    rng: SimRng,
}

impl Nemesis {
    /// The faults that the seed chooses.
    pub(crate) fn new(world: Arc<World>) -> Self {
        let mut rng = random(SimRng::fork);
        let spares_replicas = rng.per_mille(SPARES_REPLICAS_PER_MILLE);
        let possible = || Kind::all().into_iter().filter(|kind| !(spares_replicas && hits_replicas(*kind)));
        let mut kinds: Vec<Kind> = possible().filter(|_| rng.per_mille(KINDS_PER_MILLE)).collect();
        if kinds.is_empty() {
            kinds = possible().collect();
        }
        let pause_ms = rng.between(PAUSE_MS.0, PAUSE_MS.1);
        Self { world, kinds, pause_ms, rng }
    }

    /// Goes on until healing begins.
    pub(crate) async fn run(mut self) {
        loop {
            sleep_ms(self.rng.below(2 * self.pause_ms)).await;
            if self.world.act() != Act::Chaos {
                return;
            }
            if let Some(kind) = self.rng.pick(&self.kinds).copied() {
                self.inject(kind);
            }
        }
    }

    fn inject(&mut self, kind: Kind) {
        let place = self.place();
        let (undo, target, hits) = match kind {
            Kind::Messages(what) => self.messages(what),
            Kind::Partition(how) => self.partition(how, place),
            Kind::Process(what) => self.process(what, place),
            Kind::CrashAt(point) => {
                self.world.arm(Some((place, point)));
                return self.lasts(None, Undo::Disarm(place, point), ARMED_MS);
            }
            Kind::Disk(what) if self.world.places[place].disk().begin(what) => {
                let ms = self.length_ms(kind);
                return self.lasts(None, Undo::Disk(place), ms);
            }
            Kind::Disk(_) => (None, place_name(place), None),
            Kind::Appliance(what) => self.appliance(what, place),
            Kind::Node(what) => self.node(what),
        };
        let installed = match undo {
            None => Installed::Skipped,
            // That is known when it is over.
            Some(Undo::Spare(_)) => Installed::Indeterminate,
            Some(_) => Installed::Yes,
        };
        let fault = self.world.record_fault(kind.name(), target, installed, hits);
        if let Some(undo) = undo {
            let ms = self.length_ms(kind);
            self.lasts(Some(fault), undo, ms);
        }
    }

    fn place(&mut self) -> usize {
        let any = usize::try_from(self.rng.below(REPLICAS as u64)).unwrap_or(0);
        if self.rng.per_mille(LEADER_PER_MILLE) { self.world.leader().unwrap_or(any) } else { any }
    }

    fn length_ms(&mut self, kind: Kind) -> u64 {
        let is_long = self.rng.per_mille(100);
        let usual = if is_long { (LASTS_MS.1, 3 * LASTS_MS.1) } else { LASTS_MS };
        let (least, most) = if kind == Kind::Process(Process::Pause) {
            PAUSE_LASTS_MS
        } else if kind == Kind::Node(Machine::Off)
            || kind == Kind::Node(Machine::CutOff) && self.rng.per_mille(CUT_OFF_LONG_PER_MILLE)
        {
            OFF_LASTS_MS
        } else if kind == Kind::Process(Process::CrashAtAwait) {
            AWAITS_LAST_MS
        } else {
            usual
        };
        self.rng.between(least, most)
    }

    /// Undoes it later.
    fn lasts(&self, fault: Option<usize>, undo: Undo, ms: u64) {
        let world = self.world.clone();
        spawn(async move {
            if !matches!(undo, Undo::Nothing) {
                sleep_ms(ms).await;
            }
            undo_it(&world, undo, fault);
            if let Some(fault) = fault {
                world.record_healed(fault);
            }
        });
    }

    fn messages(&mut self, what: Messages) -> (Option<Undo>, String, Option<usize>) {
        let mut net = self.world.net();
        match what {
            Messages::Loss => net.lost_per_mille = self.rng.between(20, 400),
            Messages::Delay => {
                net.late = (self.rng.between(50, 600), self.rng.between(50, 3_000));
                net.stuck_per_mille = self.rng.between(50, 600);
            }
            Messages::Twice => net.twice_per_mille = self.rng.between(20, 400),
        }
        (Some(Undo::Net), "all messages".to_owned(), None)
    }

    fn partition(&mut self, how: Partition, place: usize) -> (Option<Undo>, String, Option<usize>) {
        let others: Vec<usize> = (0..REPLICAS).filter(|other| *other != place).collect();
        let mut ways = Vec::new();
        match how {
            // The one in the middle sees both sides, which do not see each other.
            Partition::Bridge => {
                if let [one, other] = others[..] {
                    ways.extend([(one, other), (other, one)]);
                }
            }
            Partition::OneWay => {
                let outwards = self.rng.per_mille(500);
                ways.extend(others.iter().map(
                    |other| {
                        if outwards { (place, *other) } else { (*other, place) }
                    },
                ));
            }
            Partition::Both => {
                ways.extend(others.iter().flat_map(|other| [(place, *other), (*other, place)]));
            }
        }
        let mut blocked: Vec<(Endpoint, Endpoint)> =
            ways.into_iter().map(|(from, to)| (Endpoint::Replica(from), Endpoint::Replica(to))).collect();
        if self.rng.per_mille(300) {
            // The nodes are on the other side as well.
            for node in 0..self.world.nodes.len() {
                let (node, replica) = (Endpoint::Node(node), Endpoint::Replica(place));
                blocked.extend([(node, replica), (replica, node)]);
            }
        }
        self.world.net().blocked.extend(blocked.iter().copied());
        (Some(Undo::Blocked(blocked)), place_name(place), Some(place))
    }

    fn process(&mut self, what: Process, place: usize) -> (Option<Undo>, String, Option<usize>) {
        let (target, hits) = (place_name(place), Some(place));
        let Some(group) = self.world.places[place].group() else { return (None, target, None) };
        let undo = match what {
            Process::Crash => {
                let world = self.world.clone();
                world.places[place].hold_down(true);
                spawn(async move { kill(group) });
                Undo::Up(vec![place])
            }
            Process::CrashAtAwait => {
                kill_after(group, self.rng.between(1, 60));
                Undo::Spare(group)
            }
            Process::CrashAll | Process::PowerCutAll => {
                let world = self.world.clone();
                let has_power = what == Process::CrashAll;
                spawn(async move {
                    for place in &world.places {
                        match place.group() {
                            Some(group) if has_power => kill(group),
                            Some(_) => place.cut_power(),
                            None => {}
                        }
                    }
                });
                Undo::Nothing
            }
            Process::PowerCut => {
                let world = self.world.clone();
                world.places[place].hold_down(true);
                spawn(async move { world.places[place].cut_power() });
                Undo::Up(vec![place])
            }
            Process::Wiped => {
                // Two lost disks of three are a lost cluster; so is one before the last one's place is taken again.
                let leader = self.world.leader().and_then(|place| self.world.replica(place));
                if leader.is_none_or(|leader| leader.lacks().is_some()) {
                    return (None, target, None);
                }
                self.world.places[place].hold_down(true);
                self.world.places[place].wipe_at_end();
                spawn(async move { kill(group) });
                Undo::Up(vec![place])
            }
            Process::Pause => {
                freeze(group, true);
                Undo::Thaw(group)
            }
            Process::WallJump => {
                let by_ms = i128::from(self.rng.between(1_000, 100_000_000));
                let sign = if self.rng.per_mille(700) { 1 } else { -1 };
                move_wall(group, sign * by_ms * MS_NS);
                Undo::Nothing
            }
            Process::ClockDrift => {
                let least = TRUE_RATE_PPM - DRIFT_PPM;
                set_rate(group, self.rng.between(least, TRUE_RATE_PPM + DRIFT_PPM));
                Undo::Rate(group)
            }
        };
        (Some(undo), target, hits)
    }

    fn appliance(&mut self, what: Appliance, place: usize) -> (Option<Undo>, String, Option<usize>) {
        let appliance = &self.world.appliance;
        let often = self.rng.between(100, 800);
        match what {
            Appliance::Hang => appliance.trouble(|trouble| trouble.hangs = true),
            Appliance::HalfDone => appliance.trouble(|trouble| trouble.half_done_per_mille = often),
            Appliance::AnswerLost => appliance.trouble(|trouble| trouble.answer_lost_per_mille = often),
            Appliance::Twice => appliance.trouble(|trouble| trouble.twice_per_mille = often),
            Appliance::Late => appliance.trouble(|trouble| trouble.late_per_mille = often),
            Appliance::CutOff => {
                let ways = [
                    (Endpoint::Replica(place), Endpoint::Appliance),
                    (Endpoint::Appliance, Endpoint::Replica(place)),
                ];
                self.world.net().blocked.extend(ways);
                return (Some(Undo::Blocked(ways.to_vec())), place_name(place), Some(place));
            }
            Appliance::Restart => {
                appliance.restart();
                appliance.trouble(|trouble| trouble.is_down = true);
            }
        }
        (Some(Undo::Appliance), "the appliance".to_owned(), None)
    }

    fn node(&mut self, what: Machine) -> (Option<Undo>, String, Option<usize>) {
        let node = usize::try_from(self.rng.below(self.world.nodes.len() as u64)).unwrap_or(0);
        let here = &self.world.nodes[node];
        let target = here.id.to_string();
        if !here.is_up() {
            return (None, target, None);
        }
        let undo = match what {
            Machine::Reboot => {
                self.world.node_down(node);
                Some(Undo::Boot(node))
            }
            Machine::Off => {
                self.world.node_down(node);
                self.world.set_standing(&here.id, Standing::OutOfService);
                Some(Undo::BootOff(node))
            }
            Machine::PluginRestart => here.plugin().map(|plugin| {
                spawn(async move { kill(plugin) });
                Undo::Nothing
            }),
            Machine::CutOff => {
                let ways: Vec<_> = (0..REPLICAS)
                    .flat_map(|place| {
                        let (node, replica) = (Endpoint::Node(node), Endpoint::Replica(place));
                        [(node, replica), (replica, node)]
                    })
                    .collect();
                self.world.net().blocked.extend(ways.iter().copied());
                Some(Undo::Blocked(ways))
            }
            Machine::DeviceHeld => {
                let connected: Vec<_> = here.connected().into_keys().collect();
                self.rng.pick(&connected).map(|volume| {
                    self.world.use_device(node, volume, |used| used.held = true);
                    Undo::Release(node)
                })
            }
        };
        (undo, target, None)
    }
}

/// Whether it may end a leader's office.
fn hits_replicas(kind: Kind) -> bool {
    match kind {
        Kind::Partition(_) | Kind::Process(_) | Kind::CrashAt(_) | Kind::Disk(_) => true,
        Kind::Messages(_) | Kind::Appliance(_) | Kind::Node(_) => false,
    }
}

fn undo_it(world: &Arc<World>, undo: Undo, fault: Option<usize>) {
    match undo {
        Undo::Nothing => {}
        Undo::Net => calm_net(world),
        Undo::Blocked(ways) => {
            let mut net = world.net();
            for way in ways {
                net.blocked.remove(&way);
            }
        }
        Undo::Thaw(group) => {
            if !is_dead(group) {
                freeze(group, false);
            }
        }
        Undo::Up(places) => places.into_iter().for_each(|place| world.places[place].hold_down(false)),
        Undo::Rate(group) => set_rate(group, TRUE_RATE_PPM),
        Undo::Disk(place) => {
            let ended = world.places[place].disk().end();
            match ended {
                (_, Some(fault)) => world.record_healed(fault),
                (Some(unmet), None) => {
                    let kind = Kind::Disk(unmet).name();
                    world.record_fault(kind, place_name(place), Installed::Skipped, None);
                }
                (None, None) => {}
            }
        }
        Undo::Spare(group) => {
            let installed = if spare(group) { Installed::Skipped } else { Installed::Yes };
            fault.into_iter().for_each(|fault| world.record_struck(fault, installed));
        }
        Undo::Appliance => world.appliance.trouble(|trouble| *trouble = Default::default()),
        Undo::Boot(node) => boot(world, node),
        Undo::BootOff(node) => {
            world.set_standing(&world.nodes[node].id, Standing::Present);
            boot(world, node);
        }
        Undo::Release(node) => release(world, node),
        Undo::Disarm(place, point) => {
            if world.arm(None) {
                world.record_fault(point.fault(), place_name(place), Installed::Skipped, None);
            }
        }
    }
}

fn calm_net(world: &World) {
    let mut net = world.net();
    (net.lost_per_mille, net.twice_per_mille, net.late, net.stuck_per_mille) = (0, 0, (0, 0), 0);
}

fn boot(world: &World, node: usize) {
    if !world.nodes[node].is_up() {
        world.nodes[node].boots();
        world.tell(|| format!("{} boots", world.nodes[node].id));
    }
}

fn release(world: &World, node: usize) {
    for volume in world.nodes[node].connected().into_keys() {
        world.use_device(node, &volume, |used| used.held = false);
    }
}

/// Ends every fault at once.
pub(crate) fn heal_all(world: &Arc<World>) {
    world.arm(None);
    calm_net(world);
    world.net().blocked.clear();
    for (place, here) in world.places.iter().enumerate() {
        here.hold_down(false);
        here.disk().end();
        if let Some(group) = world.places[place].group() {
            set_rate(group, TRUE_RATE_PPM);
            freeze(group, false);
        }
    }
    world.appliance.trouble(|trouble| *trouble = Default::default());
    for node in 0..world.nodes.len() {
        world.set_standing(&world.nodes[node].id, Standing::Present);
        boot(world, node);
        release(world, node);
    }
    let mut records = world.records();
    let now = super::runtime::now_micros();
    for fault in &mut records.history.faults {
        fault.healed.get_or_insert(now);
    }
    records.tell("everything is healed");
}
