//! One seed, played: a cluster is formed, clients and faults run, everything is healed, and the end is read.

use std::sync::Arc;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use state_machine::{AttachmentPhase, plan};

use super::client::{Client, read_of};
use super::nemesis::{Nemesis, heal_all};
use super::recorder::Breach;
use super::runtime::{Room, now_micros, random, sleep_ms, spawn};
use super::world::{Act, World, in_process, spawn_world};
use crate::history::{FinalRead, History};

/// How many nodes there are.
const NODES: (u64, u64) = (3, 4);
/// How many clients with VMs there are; one that makes short-lived volumes and one that reads come with them.
const CLIENTS: (u64, u64) = (2, 4);
/// How long faults come, in seconds of simulated time.
const CHAOS_SECONDS: (u64, u64) = (120, 600);
/// How soon everything has to be at rest after it was healed, in ms: a lost session, a reap, and what waits behind it.
const CONVERGENCE_MS: u64 = 300_000;
/// How often it is looked whether it is, in ms.
const LOOK_MS: u64 = 500;
/// How long a first leader is waited for, in ms.
const FIRST_LEADER_MS: u64 = 60_000;

/// What came of a seed.
#[derive(Debug)]
pub struct Played {
    /// The seed.
    pub seed: u64,
    /// Everything that was recorded.
    pub history: History,
    /// What must not be and was seen while it ran.
    pub breaches: Vec<Breach>,
    /// The last lines of the story.
    pub story: Vec<String>,
    /// The hash of the whole story, and of how often tasks ran.
    pub digest: u64,
    /// How long it took in the simulated world, in microseconds.
    pub simulated_micros: u64,
    /// How many migrations were reaped.
    pub reaped: u64,
    /// How many messages were carried.
    pub messages: u64,
    /// How often a task ran.
    pub polls: u64,
}

/// Something wrong in the simulated world itself, which shows that the simulator sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing.
    #[default]
    None,
    /// A disk loses at a crash what it said to be durable.
    DiskForgets,
    /// A replica that lost its disk comes back under its old id.
    WipedKeepsId,
}

/// Plays one seed on this thread.
#[must_use]
pub fn play(seed: u64) -> Played {
    play_with(seed, Flaw::None)
}

/// The same, in a world with a flaw.
#[must_use]
pub fn play_with(seed: u64, flaw: Flaw) -> Played {
    let room = Room::new(seed);
    let nodes = random(|rng| rng.between(NODES.0, NODES.1));
    let world = World::new(usize::try_from(nodes).unwrap_or(1));
    for place in &world.places {
        place.disk().flaw = flaw;
    }
    let ended = room.run(run(world.clone()));
    if let Err(stuck) = ended {
        world.records().breach("stuck", format!("{stuck:?}: nothing happens any more"));
    }
    world.dissolve();
    let simulated_micros = now_micros();
    let polls = room.polls();
    drop(room);
    let messages = world.net().carried;
    let mut records = world.records();
    let digest = records.digest() ^ polls.rotate_left(32) ^ messages.rotate_left(16);
    Played {
        seed,
        story: records.story(),
        digest,
        breaches: std::mem::take(&mut records.breaches),
        reaped: records.reaped(),
        history: std::mem::take(&mut records.history),
        simulated_micros,
        messages,
        polls,
    }
}

async fn run(world: Arc<World>) {
    for place in 0..world.places.len() {
        spawn_world(world.clone().supervise_replica(place));
    }
    if !has_leader(&world).await {
        world.records().breach("start", "no cluster was formed".to_owned());
        return;
    }
    for node in 0..world.nodes.len() {
        world.nodes[node].boots();
        spawn_world(world.clone().supervise_plugin(node));
    }
    let clients = random(|rng| rng.between(CLIENTS.0, CLIENTS.1));
    let busy = Arc::new(());
    let client = |number: u64| Client::new(world.clone(), u32::try_from(number).unwrap_or(0));
    for number in 0..clients {
        let (client, busy) = (client(number), busy.clone());
        spawn(async move {
            client.run().await;
            drop(busy);
        });
    }
    let (maker, also_busy) = (client(clients), busy.clone());
    spawn(async move {
        maker.make_on().await;
        drop(also_busy);
    });
    spawn(client(clients + 1).read_on());
    spawn_world(Nemesis::new(world.clone()).run());
    sleep_ms(random(|rng| rng.between(CHAOS_SECONDS.0, CHAOS_SECONDS.1)) * 1_000).await;
    world.set_act(Act::Healing);
    heal_all(&world);
    let mut unrest = String::new();
    for _ in 0..CONVERGENCE_MS / LOOK_MS {
        sleep_ms(LOOK_MS).await;
        // What was under way when it was healed may still arm or stop something.
        match what_is_unrest(&world, Arc::strong_count(&busy) - 1) {
            None => return final_read(&world).await,
            Some(why) => unrest = why,
        }
    }
    world.records().breach("convergence", format!("not at rest after {CONVERGENCE_MS} ms: {unrest}"));
}

/// The replicas do it by themselves.
async fn has_leader(world: &Arc<World>) -> bool {
    for _ in 0..FIRST_LEADER_MS / LOOK_MS {
        sleep_ms(LOOK_MS).await;
        if world.leader().is_some() {
            return true;
        }
    }
    false
}

/// What is not at rest yet.
fn what_is_unrest(world: &Arc<World>, busy_clients: usize) -> Option<String> {
    if busy_clients > 0 {
        return Some(format!("{busy_clients} clients are busy"));
    }
    let Some(leader) = world.leader().and_then(|place| world.replica(place)) else {
        return Some("there is no leader".to_owned());
    };
    if let Some(lack) = leader.lacks() {
        return Some(lack);
    }
    let last = leader.machine.last();
    for place in 0..world.places.len() {
        let Some(replica) = world.replica(place) else { return Some(format!("place {place} is empty")) };
        if replica.machine.last() != last {
            let behind = replica.machine.last();
            return Some(format!("replica {} has applied {behind:?}, the leader {last:?}", replica.id));
        }
        let state = replica.raft.metrics().borrow_watched().state;
        if !matches!(state, ServerState::Leader | ServerState::Follower) {
            return Some(format!("replica {} is {state:?}", replica.id));
        }
    }
    leader.read_local(|state| {
        if let Some(step) = plan(state).first() {
            return Some(format!("{:?} of {} is to be done", step.kind, step.volume));
        }
        let attachments = state.volumes().iter().flat_map(|(id, volume)| {
            volume.attachments.iter().map(move |(node, held)| (id, node, held.phase))
        });
        for (volume, node, phase) in attachments {
            if phase == AttachmentPhase::Revoking {
                return Some(format!("{volume} is being revoked from {node}"));
            }
        }
        for node in &world.nodes {
            for volume in node.connected().keys() {
                let held = state.volume(volume).and_then(|known| known.attachments.get(&node.id));
                if held.is_none() {
                    return Some(format!("{} is connected to {volume}, unattached", node.id));
                }
            }
        }
        None
    })
}

async fn final_read(world: &Arc<World>) {
    let Some(leader) = world.leader().and_then(|place| world.replica(place)) else {
        return world.records().breach("convergence", "the leader is gone again".to_owned());
    };
    for place in 0..world.places.len() {
        if let Some(replica) = world.replica(place) {
            let index = replica.machine.last().map_or(0, |last| last.index);
            replica.read_local(|state| world.records().hash(replica.id, index, state));
        }
    }
    let asked = leader.clone();
    let read = in_process(leader.group, async move {
        let until = super::runtime::SimInstant::now() + std::time::Duration::from_secs(10);
        asked
            .read(until, |state| {
                state.volumes().iter().map(|(id, volume)| (id.to_string(), read_of(volume))).collect()
            })
            .await
    });
    let Some(Ok(ledger)) = read.await else {
        return world.records().breach("convergence", "the final read was not answered".to_owned());
    };
    let connected = world.nodes.iter().flat_map(|node| {
        node.connected().into_keys().map(|volume| (node.id.to_string(), volume.to_string()))
    });
    let clusters = world.places.iter().filter_map(|place| place.disk().cluster);
    let end = FinalRead {
        at: now_micros(),
        ledger,
        appliance: world.appliance.volumes(),
        connected: connected.collect(),
        clusters: clusters.map(|cluster| cluster.to_string()).collect(),
    };
    world.records().history.end = Some(end);
}
