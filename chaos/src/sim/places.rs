//! The places of replicas and the machines of nodes: who runs there, what is left when that ends, and what starts again.

use std::sync::{Arc, Mutex, MutexGuard};

use replica::PeerAddress;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::disk::Disk;
use super::play::Flaw;
use super::plugin;
use super::replica::{Replica, start};
use super::runtime::{GroupId, kill, new_group, random, sleep_ms, spawn_in};
use super::world::{REPLICAS, World, lock};
use crate::history::{Connection, Installed};

/// How long a process that died is away, in ms.
const RESTART_MS: (u64, u64) = (300, 4_000);
/// How long a plugin that died is away, in ms.
const PLUGIN_RESTART_MS: (u64, u64) = (500, 5_000);
/// How often it is looked whether a process may start again, in ms.
const LOOK_MS: u64 = 100;
/// The largest age of a process's clock when it starts, in seconds.
const CLOCK_AGE_SECONDS: u64 = 1_000_000;

/// Where a replica runs, when it does.
#[derive(Default)]
pub(crate) struct Place {
    disk: Mutex<Disk>,
    running: Mutex<Option<Arc<Replica>>>,
    group: Mutex<Option<GroupId>>,
    down: Mutex<Down>,
}

/// What keeps a place's process away.
#[derive(Debug, Clone, Copy, Default)]
struct Down {
    is_held: bool,
    power_failed: bool,
    is_wiped: bool,
}

impl Place {
    /// Nobody has ever been here.
    pub(super) fn new(place: usize) -> Self {
        let here = Self::default();
        here.disk().id = place as u64 + 1;
        here
    }

    /// The replica there belongs to this cluster from now on, and to no other ever.
    pub(crate) fn adopt(&self, cluster: Uuid) -> Result<(), String> {
        let mut disk = self.disk();
        match disk.cluster.replace(cluster).filter(|present| *present != cluster) {
            None => Ok(()),
            Some(present) => {
                disk.cluster = Some(present);
                Err(format!("it belongs to {present}"))
            }
        }
    }

    pub(crate) fn disk(&self) -> MutexGuard<'_, Disk> {
        lock(&self.disk)
    }

    /// The process, if there is one, whether it has come far or not.
    pub(crate) fn group(&self) -> Option<GroupId> {
        *lock(&self.group)
    }

    /// Keeps the process away after its end, or lets it start again.
    pub(crate) fn hold_down(&self, is_held: bool) {
        lock(&self.down).is_held = is_held;
    }

    /// The disk is lost when the process ends.
    pub(crate) fn wipe_at_end(&self) {
        lock(&self.down).is_wiped = true;
    }

    /// Ends the process, and its power with it.
    pub(crate) fn cut_power(&self) {
        lock(&self.down).power_failed = true;
        if let Some(group) = self.group() {
            kill(group);
        }
    }
}

impl World {
    /// The id of the replica in a place.
    pub(crate) fn id_of(&self, place: usize) -> u64 {
        self.places[place].disk().id
    }

    /// The disk in a place is lost, and an empty one is there instead: the replica on it is another one, whose id has
    /// never been.
    pub(crate) fn wipe(&self, place: usize) {
        let mut disk = self.places[place].disk();
        let id = if disk.flaw == Flaw::WipedKeepsId { disk.id } else { disk.id + REPLICAS as u64 };
        disk.wipe(id);
    }

    /// Where the replica of this id is.
    pub(crate) fn place_of(id: u64) -> usize {
        usize::try_from(id.saturating_sub(1)).unwrap_or(0) % REPLICAS
    }

    /// The replica that runs in a place.
    pub(crate) fn replica(&self, place: usize) -> Option<Arc<Replica>> {
        lock(&self.places[place].running).clone()
    }

    /// Keeps a process running in a place as long as the world lasts.
    pub(crate) async fn supervise_replica(self: Arc<Self>, place: usize) {
        loop {
            let age_ns = random(|rng| rng.below(CLOCK_AGE_SECONDS)) * 1_000_000_000;
            let group = new_group(age_ns);
            *lock(&self.places[place].group) = Some(group);
            let (alive, ended) = oneshot::channel::<()>();
            spawn_in(group, async move {
                let _alive = alive;
                std::future::pending::<()>().await;
            });
            let world = self.clone();
            spawn_in(group, async move {
                match start(world.clone(), place).await {
                    Ok(replica) => {
                        world.tell(|| format!("replica {} runs", replica.id));
                        *lock(&world.places[place].running) = Some(replica);
                    }
                    Err(why) => {
                        world.records().breach("start", format!("{}: {why}", place_name(place)));
                    }
                }
            });
            let _ = ended.await;
            self.process_ended(place);
            sleep_ms(random(|rng| rng.between(RESTART_MS.0, RESTART_MS.1))).await;
            while lock(&self.places[place].down).is_held {
                sleep_ms(LOOK_MS).await;
            }
        }
    }

    fn process_ended(&self, place: usize) {
        let replica = lock(&self.places[place].running).take();
        *lock(&self.places[place].group) = None;
        let power_failed = std::mem::take(&mut lock(&self.places[place].down).power_failed);
        let lost = self.places[place].disk().crash(power_failed);
        self.tell(|| format!("replica {} is gone (writes lost: {lost})", self.id_of(place)));
        if std::mem::take(&mut lock(&self.places[place].down).is_wiped) {
            self.wipe(place);
        }
        if lost {
            let fault = self.record_fault("writes-lost", place_name(place), Installed::Yes, None);
            self.record_healed(fault);
        }
        drop(replica);
    }

    /// Keeps the plugin of a node running, when the machine is up.
    pub(crate) async fn supervise_plugin(self: Arc<Self>, node: usize) {
        loop {
            while !self.nodes[node].is_up() {
                sleep_ms(LOOK_MS).await;
            }
            let group = new_group(random(|rng| rng.below(CLOCK_AGE_SECONDS)) * 1_000_000_000);
            self.nodes[node].set_plugin(Some(group));
            let (alive, ended) = oneshot::channel::<()>();
            spawn_in(group, async move {
                let _alive = alive;
                std::future::pending::<()>().await;
            });
            spawn_in(group, plugin::run(self.clone(), node));
            let _ = ended.await;
            self.nodes[node].set_plugin(None);
            sleep_ms(random(|rng| rng.between(PLUGIN_RESTART_MS.0, PLUGIN_RESTART_MS.1))).await;
        }
    }

    /// A node's machine stops at once.
    pub(crate) fn node_down(&self, node: usize) {
        for (volume, used) in self.nodes[node].goes_down() {
            if used.open || used.held {
                self.record_connection(node, &volume, Connection::Closed);
            }
            self.record_connection(node, &volume, Connection::Disconnected);
        }
        if let Some(plugin) = self.nodes[node].plugin() {
            kill(plugin);
        }
    }

    /// Lets go of what keeps the world together.
    pub(crate) fn dissolve(&self) {
        for place in &self.places {
            drop(lock(&place.running).take());
        }
    }
}

/// Where a replica is found.
pub(crate) fn address_of(place: usize) -> PeerAddress {
    let name = place_name(place);
    PeerAddress { address: format!("{name}:1"), name }
}

/// A place's name.
pub(crate) fn place_name(place: usize) -> String {
    format!("controller-{place}")
}
