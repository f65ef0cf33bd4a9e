//! A replica's place: forming a cluster, coming back after a lost disk, noticing its removal; as
//! `src/replica/src/bootstrap.rs`, with its rule.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{Instant, ServerState};
use replica::PeerAddress;
use replica::cores::{Course, Report, decide, known};
use state_machine::CLUSTER_VERSION;
use storage::ReplicaNode;
use uuid::Uuid;

use super::Replica;
use super::members::LATELY;
use super::office::Attempt;
use crate::sim::network::Endpoint;
use crate::sim::places::address_of;
use crate::sim::runtime::{die, random, sleep_ms, timeout};
use crate::sim::world::World;

/// Pause between two looks around, for a replica that has no place yet, and for one that has, in ms: the second is
/// longer than in production, where it is a second. A replica that was removed notices that later.
const SEEKING_MS: u64 = 200;
const SETTLED_MS: u64 = 5_000;
/// How long a replica may take to say who it is, and to note its cluster or to take another one in.
const IDENTIFY_LIMIT: Duration = Duration::from_millis(1_000);
const PLACE_LIMIT: Duration = Duration::from_millis(6_000);

/// Looks around and acts, as long as the process lives.
pub(crate) async fn keep_place(replica: Arc<Replica>) {
    let mut told = None;
    loop {
        // Read before the report: a membership that arrives in between must not look like a removal.
        let was_member = replica.was_member.load(Ordering::Relaxed);
        let Some(own) = replica.report().await else { return };
        let reports = replica.look_around().await;
        let course = decide(&own, was_member, &reports);
        let is_settled = matches!(course, Course::Member(_) | Course::Expected);
        let trouble = replica.follow(course).await;
        if trouble != told {
            if let Some(trouble) = &trouble {
                replica.world.tell(|| format!("replica {}: {trouble}", replica.id));
            }
            told = trouble;
        }
        sleep_ms(if is_settled { SETTLED_MS } else { SEEKING_MS }).await;
    }
}

impl Replica {
    /// The cluster that it belongs to, or was promised to.
    pub(crate) fn cluster(&self) -> Option<Uuid> {
        self.world.places[self.place].disk().cluster
    }

    /// What this replica says of itself; nothing once consensus has stopped.
    async fn report(&self) -> Option<Report> {
        let initialized = self.raft.is_initialized().await.ok()?;
        let metrics = self.raft.metrics();
        let seen = metrics.borrow_watched();
        let is_followed = seen.last_quorum_acked.as_ref().is_some_and(|acked| acked.elapsed() <= LATELY);
        Some(Report {
            replica_id: self.id,
            name: address_of(self.place).name,
            initialized,
            cluster_id: self.cluster(),
            configured: (0..self.world.places.len()).map(address_of).collect(),
            membership: known(&seen.committed_membership_config),
            leads: seen.state == ServerState::Leader && is_followed,
            newest_cluster_version: CLUSTER_VERSION,
        })
    }

    /// Asks everyone else who they are.
    async fn look_around(self: &Arc<Self>) -> BTreeMap<String, Result<Report, String>> {
        let mut reports = BTreeMap::new();
        for place in (0..self.world.places.len()).filter(|place| *place != self.place) {
            let from = Endpoint::Replica(self.place);
            let serve = |other: Arc<Self>| async move { other.report().await };
            let asked = self.world.call(from, place, IDENTIFY_LIMIT, serve).await;
            let name = address_of(place).name;
            let report = asked.ok().flatten().ok_or_else(|| format!("{name} does not answer"));
            reports.insert(name, report);
        }
        reports
    }

    /// Does it; says what is wrong, if something is.
    async fn follow(self: &Arc<Self>, course: Course) -> Option<String> {
        match course {
            Course::Member(trouble) => trouble,
            Course::Expected => None,
            Course::Wait(why) => Some(why),
            Course::Removed(why) => {
                self.world.tell(|| format!("replica {} was removed: {why}", self.id));
                self.world.places[self.place].disk().is_removed = true;
                die().await;
                None
            }
            Course::Join { ask, trouble } => {
                let refusal = self.ask_to_join(&ask).await.err();
                trouble.or(refusal)
            }
            Course::Form(members) => self.form_cluster(members).await.err(),
        }
    }

    async fn ask_to_join(self: &Arc<Self>, ask: &[String]) -> Result<(), String> {
        let (id, address) = (self.id, address_of(self.place));
        let places = (0..self.world.places.len()).filter(|place| ask.contains(&address_of(*place).name));
        let mut problems = Vec::new();
        for place in places {
            let serve = {
                let address = address.clone();
                move |other: Arc<Self>| {
                    let address = address.clone();
                    // Whoever answers gives up too: what it began may never be decided.
                    async move { timeout(PLACE_LIMIT, other.join(id, address)).await }
                }
            };
            match self.world.call(Endpoint::Replica(self.place), place, PLACE_LIMIT, serve).await {
                Ok(Some(Attempt::Answered(Ok(cluster)))) => {
                    self.world.places[self.place].adopt(cluster)?;
                    self.world.tell(|| format!("replica {id} is taken in as a learner"));
                    return Ok(());
                }
                Ok(Some(Attempt::Answered(Err(refused)))) => return Err(refused),
                Ok(Some(Attempt::Retry(why))) => problems.push(why),
                Ok(Some(Attempt::Stopped) | None) | Err(_) => problems.push("no answer".to_owned()),
            }
        }
        Err(format!("nobody takes this replica in: {}", problems.join("; ")))
    }

    async fn join(self: Arc<Self>, id: u64, address: PeerAddress) -> Attempt<Result<Uuid, String>> {
        let Some(term) = self.term_held() else { return Attempt::Retry("it does not lead".to_owned()) };
        let Some(cluster) = self.cluster() else {
            return Attempt::Retry("it has no cluster yet".to_owned());
        };
        match self.take_in(term, id, address).await {
            Attempt::Answered(taken) => Attempt::Answered(taken.map(|()| cluster)),
            Attempt::Retry(why) => Attempt::Retry(why),
            Attempt::Stopped => Attempt::Stopped,
        }
    }

    async fn form_cluster(self: &Arc<Self>, members: BTreeMap<u64, PeerAddress>) -> Result<(), String> {
        let cluster = self.cluster().unwrap_or_else(|| {
            let number = random(|rng| u128::from(rng.number()) << 64 | u128::from(rng.number()));
            uuid::Builder::from_random_bytes(number.to_be_bytes()).into_uuid()
        });
        self.world.places[self.place].adopt(cluster)?;
        for id in members.keys().copied().filter(|id| *id != self.id) {
            let serve = move |other: Arc<Self>| async move {
                if other.id == id {
                    other.world.places[other.place].adopt(cluster)
                } else {
                    Err("another replica lives there".to_owned())
                }
            };
            let place = World::place_of(id);
            let asked = self.world.call(Endpoint::Replica(self.place), place, PLACE_LIMIT, serve).await;
            asked.unwrap_or_else(|_| Err("it does not answer".to_owned()))?;
        }
        let node =
            |(id, place): (u64, PeerAddress)| (id, ReplicaNode { name: place.name, address: place.address });
        let nodes: BTreeMap<u64, ReplicaNode> = members.into_iter().map(node).collect();
        self.world.tell(|| format!("replica {} forms the cluster {cluster}", self.id));
        self.raft.initialize(nodes).await.map_err(|error| error.to_string())
    }
}
