//! The simulated network: who reaches whom, how late, and how often twice.
//!
//! A message is carried by the world, not by its sender: it arrives after its sender's death, and twice or late if the
//! faults say so. Where it is lost, nobody is told: who waits has a time limit. A dead receiver refuses.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::replica::Replica;
use super::runtime::{WORLD, random, sleep, sleep_ms, spawn_in, timeout};
use super::world::World;

/// The usual way of a message, in microseconds.
const DELAY_US: (u64, u64) = (100, 900);
/// How much later the second copy of a message may arrive, in ms.
const DUPLICATE_LATER_MS: u64 = 3_000;
/// How long a connection may be stuck, in ms: longer than whoever asks waits.
const STUCK_MS: u64 = 20_000;
/// How long a refused connection takes to be noticed at most, in ms.
const REFUSED_MS: u64 = 1;

/// Who sends and receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Endpoint {
    /// The replica in this place.
    Replica(usize),
    /// This node.
    Node(usize),
    /// The appliance.
    Appliance,
}

/// What is wrong with the network now.
#[derive(Debug, Default)]
pub(crate) struct Net {
    /// Ways on which nothing gets through, each in one direction.
    pub(crate) blocked: BTreeSet<(Endpoint, Endpoint)>,
    /// Messages lost, of a thousand.
    pub(crate) lost_per_mille: u64,
    /// Messages that arrive twice, of a thousand.
    pub(crate) twice_per_mille: u64,
    /// Messages that are late, of a thousand, and by how much at most, in ms.
    pub(crate) late: (u64, u64),
    /// Questions that a stuck connection delivers long after whoever asked has given up, or died, of a thousand.
    pub(crate) stuck_per_mille: u64,
    /// How many messages were carried.
    pub(crate) carried: u64,
}

/// No answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// Nobody is there.
    Refused,
    /// Nothing was heard in time.
    Silence,
}

impl World {
    /// Carries one message; false if it is lost.
    pub(crate) async fn carry(&self, from: Endpoint, to: Endpoint) -> bool {
        let (lost_per_mille, (late_per_mille, late_ms)) = {
            let mut net = self.net();
            net.carried += 1;
            (net.lost_per_mille, net.late)
        };
        let (delay_us, is_lost) = random(|rng| {
            let mut delay_us = rng.between(DELAY_US.0, DELAY_US.1);
            if rng.per_mille(late_per_mille) {
                delay_us += rng.below(late_ms * 1000);
            }
            (delay_us, rng.per_mille(lost_per_mille))
        });
        sleep(Duration::from_micros(delay_us)).await;
        !is_lost && !self.net().blocked.contains(&(from, to))
    }

    /// Asks the replica in place `to`: what `serve` answers there, if question and answer get through in time.
    pub(crate) async fn call<R, F>(
        self: &Arc<Self>,
        from: Endpoint,
        to: usize,
        limit: Duration,
        serve: impl Fn(Arc<Replica>) -> F + Clone + Send + 'static,
    ) -> Result<R, NoAnswer>
    where
        R: Send + 'static,
        F: Future<Output = R> + Send,
    {
        let per_mille = self.net().twice_per_mille;
        if random(|rng| rng.per_mille(per_mille)) {
            let (world, serve) = (self.clone(), serve.clone());
            spawn_in(WORLD, async move {
                sleep_ms(random(|rng| rng.below(DUPLICATE_LATER_MS))).await;
                if world.carry(from, Endpoint::Replica(to)).await
                    && let Some(replica) = world.replica(to)
                {
                    let served = replica.clone();
                    spawn_in(replica.group, async move { drop(serve(served).await) });
                }
            });
        }
        self.exchange(from, to, limit, serve).await
    }

    /// The same, on a connection: what it carries does not arrive twice, and it may be stuck for a while.
    pub(crate) async fn call_on_connection<R, F>(
        self: &Arc<Self>,
        from: Endpoint,
        to: usize,
        limit: Duration,
        serve: impl Fn(Arc<Replica>) -> F + Send + 'static,
    ) -> Result<R, NoAnswer>
    where
        R: Send + 'static,
        F: Future<Output = R> + Send,
    {
        let per_mille = self.net().stuck_per_mille;
        let stuck_ms = random(|rng| if rng.per_mille(per_mille) { rng.below(STUCK_MS) } else { 0 });
        let (world, (sender, answer)) = (self.clone(), oneshot::channel());
        spawn_in(WORLD, async move {
            sleep_ms(stuck_ms).await;
            let _ = sender.send(world.exchange(from, to, limit, serve).await);
        });
        match timeout(limit, answer).await {
            Some(Ok(answer)) => answer,
            Some(Err(_)) | None => Err(NoAnswer::Silence),
        }
    }

    async fn exchange<R, F>(
        self: &Arc<Self>,
        from: Endpoint,
        to: usize,
        limit: Duration,
        serve: impl Fn(Arc<Replica>) -> F + Send + 'static,
    ) -> Result<R, NoAnswer>
    where
        R: Send + 'static,
        F: Future<Output = R> + Send,
    {
        let (sender, answer) = oneshot::channel();
        let world = self.clone();
        spawn_in(WORLD, async move {
            if !world.carry(from, Endpoint::Replica(to)).await {
                return hold(sender, limit).await;
            }
            let Some(replica) = world.replica(to) else {
                sleep_ms(random(|rng| rng.below(REFUSED_MS + 1))).await;
                let _ = sender.send(Err(NoAnswer::Refused));
                return;
            };
            let served = replica.clone();
            spawn_in(replica.group, async move {
                let reply = serve(served).await;
                spawn_in(WORLD, async move {
                    if world.carry(Endpoint::Replica(to), from).await {
                        let _ = sender.send(Ok(reply));
                    } else {
                        hold(sender, limit).await;
                    }
                });
            });
        });
        match timeout(limit, answer).await {
            Some(Ok(answer)) => answer,
            // The receiver died with the question in its hands: its connections are closed.
            Some(Err(_)) => Err(NoAnswer::Refused),
            None => Err(NoAnswer::Silence),
        }
    }

    /// Sends something to whoever is there; nobody waits for it.
    pub(crate) fn send<F>(
        self: &Arc<Self>,
        from: Endpoint,
        to: Endpoint,
        deliver: impl FnOnce(Arc<Self>) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send,
    {
        let world = self.clone();
        spawn_in(WORLD, async move {
            if world.carry(from, to).await {
                deliver(world).await;
            }
        });
    }
}

/// Keeps whoever waits in the dark until it gives up.
async fn hold<T>(sender: oneshot::Sender<T>, limit: Duration) {
    sleep(limit).await;
    drop(sender);
}
