//! The node plugin's process: registers, and keeps its session with the leader, as `src/node/src/session/` does.

use std::sync::Arc;
use std::time::Duration;

use controller::cores::sessions::Report;
use openraft::async_runtime::WatchReceiver;
use proto::node::v1::{NodeReport, VolumeReport};

use super::network::Endpoint;
use super::node::{FromLeader, Order};
use super::replica::Replica;
use super::runtime::{SimInstant, random, sleep_ms, spawn, spawn_in, timeout};
use super::world::World;

/// How long a controller may take a report, in ms.
const REPORT_LIMIT_MS: u64 = 5_000;
/// How often a node reports at least, in ms.
const INTERVAL_MS: u64 = 10_000;
/// First and longest pause between two rounds of dialling, in ms.
const PAUSE_MS: (u64, u64) = (200, 5_000);
/// The least time from one look to the next, in ms.
const LOOK_PAUSE_MS: u64 = 50;

/// Runs as long as the plugin.
pub(crate) async fn run(world: Arc<World>, node: usize) {
    while !world.register(node).await {
        sleep_ms(random(|rng| rng.between(PAUSE_MS.0, PAUSE_MS.1))).await;
    }
    let mut pause_ms = PAUSE_MS.0;
    loop {
        for place in 0..world.places.len() {
            match talk(&world, node, place).await {
                Ended::NeverBegun => {}
                Ended::Over => pause_ms = PAUSE_MS.0,
                Ended::RegisterAgain => drop(world.register(node).await),
            }
        }
        sleep_ms(random(|rng| rng.between(pause_ms / 2, pause_ms))).await;
        pause_ms = (pause_ms * 2).min(PAUSE_MS.1);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    NeverBegun,
    Over,
    RegisterAgain,
}

/// What was seen, without what changes each time.
type Content = Vec<VolumeReport>;

struct Talk<'a> {
    world: &'a Arc<World>,
    node: usize,
    place: usize,
    line: u64,
    sequence: u64,
    echo: u64,
    said: Option<Content>,
}

/// A session with the replica in a place, until it is over.
async fn talk(world: &Arc<World>, node: usize, place: usize) -> Ended {
    let here = &world.nodes[node];
    let mut news = here.news();
    let line = here.new_line();
    let mut talk = Talk { world, node, place, line, sequence: 0, echo: 0, said: None };
    if !talk.report().await {
        return Ended::NeverBegun;
    }
    let mut due = SimInstant::now() + Duration::from_millis(INTERVAL_MS);
    let mut answered = false;
    loop {
        let woken = timeout(due.remaining(), news.changed()).await.is_some();
        let mut is_ordered = false;
        while let Some(word) = here.next_word() {
            match word {
                FromLeader::Closed { register_again: true } => return Ended::RegisterAgain,
                FromLeader::Closed { register_again: false } if answered => return Ended::Over,
                FromLeader::Closed { register_again: false } => return Ended::NeverBegun,
                FromLeader::Order(order) => {
                    talk.obey(order);
                    is_ordered = true;
                }
            }
        }
        if woken {
            sleep_ms(LOOK_PAUSE_MS).await;
        }
        let is_due = due.remaining().is_zero();
        if is_ordered || is_due || talk.said.as_ref() != Some(&talk.look()) {
            if !talk.report().await {
                talk.hang_up();
                return Ended::Over;
            }
            answered = true;
            due = SimInstant::now() + Duration::from_millis(INTERVAL_MS);
        }
    }
}

impl Talk<'_> {
    /// Operations first, connections then: what has ended shows among these.
    fn look(&self) -> Content {
        let here = &self.world.nodes[self.node];
        let busy = here.running();
        let connected = here.connected();
        let mut volumes: std::collections::BTreeSet<_> = connected.keys().cloned().collect();
        volumes.extend(busy.iter().cloned());
        let report = |volume: state_machine::VolumeId| {
            let used = connected.get(&volume);
            let mut held_by = Vec::new();
            if used.is_some_and(|used| used.open) {
                held_by.push("process 7 (qemu-kvm)".to_owned());
            }
            if used.is_some_and(|used| used.held) {
                held_by.push("device mapper".to_owned());
            }
            VolumeReport {
                volume_id: volume.to_string(),
                connected: used.is_some(),
                busy: busy.contains(&volume),
                held_by,
                unseen: String::new(),
            }
        };
        volumes.into_iter().map(report).collect()
    }

    /// Says what there is; whether it was heard.
    async fn report(&mut self) -> bool {
        let here = &self.world.nodes[self.node];
        let moment = here.moment();
        let content = self.look();
        let is_first = self.said.is_none();
        let unchanged = self.said.as_ref() == Some(&content);
        let message = NodeReport {
            node_id: here.id.to_string(),
            boot_id: moment.boot.to_string(),
            host_nqn: if is_first { here.host_nqn.to_string() } else { String::new() },
            since_boot_ns: moment.since_boot_ns,
            echo: self.echo,
            unchanged,
            incomplete: String::new(),
            volumes: if unchanged { Vec::new() } else { content.clone() },
        };
        self.said = Some(content);
        self.sequence += 1;
        let line = super::replica::Line { node: self.node, number: self.line };
        let (sequence, id) = (self.sequence, here.id.clone());
        let serve = move |replica: Arc<Replica>| {
            let (message, id) = (message.clone(), id.clone());
            async move {
                if let Ok(report) = Report::parse(message) {
                    replica.hear(line, sequence, id, report);
                }
            }
        };
        let limit = Duration::from_millis(REPORT_LIMIT_MS);
        self.world.call(Endpoint::Node(self.node), self.place, limit, serve).await.is_ok()
    }

    fn obey(&mut self, order: Order) {
        self.echo = self.echo.max(order.number);
        for (volume, generation) in order.cuts {
            let (world, node) = (self.world.clone(), self.node);
            spawn(async move {
                let cut = world.cut(node, &volume, generation).await;
                world.tell(|| format!("{} cuts {volume}: {cut:?}", world.nodes[node].id));
            });
        }
    }

    /// Tells the controller that the line is over.
    fn hang_up(&self) {
        let (node, place, number) = (self.node, self.place, self.line);
        let id = self.world.nodes[node].id.clone();
        self.world.send(Endpoint::Node(node), Endpoint::Replica(place), move |world| async move {
            if let Some(replica) = world.replica(place) {
                let line = super::replica::Line { node, number };
                spawn_in(replica.group, async move { replica.hung_up(line, id) });
            }
        });
    }
}
