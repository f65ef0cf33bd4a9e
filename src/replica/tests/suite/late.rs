//! Attempts that were held up on their way, while whoever asked went on: the leader is still the same, and decides
//! nothing of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bincode::Options;
use proto::peer::v1::change_membership_request::Change;
use proto::peer::v1::peer_client::PeerClient;
use proto::peer::v1::propose_reply::Outcome;
use proto::peer::v1::{
    ChangeMembershipRequest, LedgerTimeRequest, ProposeRequest, change_membership_reply, ledger_time_reply,
};
use replica::{MonotonicClock, ProposeError};
use tonic::transport::Channel;

use crate::harness::{Cluster, PLACES, register};
use crate::security::client;

/// How long an asker says that it waits.
const PATIENCE_MS: u64 = 10_000;

/// A replica as the leader sees it, by the messages that it sends.
struct Asker {
    leader: PeerClient<Channel>,
    cluster_id: Vec<u8>,
    term: u64,
}

impl Asker {
    async fn of(cluster: &Cluster) -> Self {
        let place = cluster.leader().await;
        let status = cluster.replica(place).status();
        let leader = client(cluster, place, &cluster.authority.issue("replica", "r1")).await.unwrap();
        Self { leader, cluster_id: status.cluster_id.unwrap().as_bytes().to_vec(), term: status.term }
    }

    async fn now_ms(&mut self) -> u64 {
        let (cluster_id, term) = (self.cluster_id.clone(), self.term);
        let request = LedgerTimeRequest { cluster_id, term, timeout_ms: PATIENCE_MS };
        match self.leader.ledger_time(request).await.unwrap().into_inner().outcome.unwrap() {
            ledger_time_reply::Outcome::NowMs(now_ms) => now_ms,
            ledger_time_reply::Outcome::NotLeader(refusal) => panic!("{}", refusal.reason),
        }
    }

    /// Asks for node `n` to be known; why it is not, if the leader takes no such attempt.
    async fn ask(&mut self, n: usize, question: u64, attempt: u32, until_ms: u64) -> Result<(), String> {
        let command = bincode::DefaultOptions::new().with_fixint_encoding().serialize(&register(n)).unwrap();
        let request = ProposeRequest {
            cluster_id: self.cluster_id.clone(),
            term: self.term,
            timeout_ms: PATIENCE_MS,
            command,
            asker: 7,
            question,
            attempt,
            until_ms,
        };
        match self.leader.propose(request).await.unwrap().into_inner().outcome.unwrap() {
            Outcome::Response(_) => Ok(()),
            Outcome::NotLeader(refusal) => Err(refusal.reason),
        }
    }
}

async fn nodes_known(cluster: &Cluster) -> usize {
    let leader = cluster.leader().await;
    cluster.replica(leader).read_local(|state| state.nodes().len())
}

#[tokio::test]
async fn an_attempt_that_arrives_after_a_later_one_decides_nothing() {
    let cluster = Cluster::formed().await;
    let mut asker = Asker::of(&cluster).await;
    let rows = [(1, 0, true), (2, 1, true), (2, 0, false), (2, 1, false), (2, 2, true), (3, 0, true)];
    for (node, (question, attempt, is_taken)) in rows.into_iter().enumerate() {
        let answer = asker.ask(node, question, attempt, u64::MAX).await;
        assert_eq!(answer.is_ok(), is_taken, "attempt {attempt} of question {question}: {answer:?}");
    }
    assert_eq!(nodes_known(&cluster).await, rows.iter().filter(|row| row.2).count());
}

#[tokio::test]
async fn an_attempt_that_arrives_after_its_asker_gave_up_decides_nothing() {
    let cluster = Cluster::formed().await;
    let mut asker = Asker::of(&cluster).await;
    let now_ms = asker.now_ms().await;
    for (node, until_ms) in [0, now_ms].into_iter().enumerate() {
        let why = asker.ask(node, node as u64, 0, until_ms).await.unwrap_err();
        assert!(why.contains("has given up"), "{why}");
    }
    assert_eq!(nodes_known(&cluster).await, 0);
    asker.ask(0, 10, 0, now_ms + PATIENCE_MS).await.unwrap();
    assert_eq!(nodes_known(&cluster).await, 1);

    let removed = cluster.id(cluster.follower().await);
    let request = ChangeMembershipRequest {
        cluster_id: asker.cluster_id.clone(),
        term: asker.term,
        timeout_ms: PATIENCE_MS,
        change: Some(Change::RemoveId(removed)),
        until_ms: now_ms,
    };
    let answer = asker.leader.change_membership(request).await.unwrap().into_inner().outcome;
    let Some(change_membership_reply::Outcome::NotLeader(refusal)) = answer else { panic!("{answer:?}") };
    assert!(refusal.reason.contains("has given up"), "{}", refusal.reason);
}

/// Leaps ahead whenever it is looked at.
#[derive(Default)]
struct LeapingClock {
    now_ms: AtomicU64,
    leap_ms: AtomicU64,
}

impl MonotonicClock for LeapingClock {
    fn elapsed(&self) -> Duration {
        let leap_ms = self.leap_ms.load(Ordering::SeqCst);
        Duration::from_millis(self.now_ms.fetch_add(leap_ms, Ordering::SeqCst) + leap_ms)
    }
}

/// The leader's clock says that each of a follower's attempts was under way for an hour, after it had said the time.
#[tokio::test]
async fn a_follower_says_until_when_it_waits() {
    let clock = Arc::new(LeapingClock::default());
    let mut cluster = Cluster::new();
    cluster.clocks = [(); PLACES].map(|()| clock.clone() as Arc<dyn MonotonicClock>);
    cluster.start_all().await;
    let follower = cluster.follower().await;
    clock.leap_ms.store(3_600_000, Ordering::SeqCst);
    let held_up = cluster.propose_until(follower, 0, Instant::now() + Duration::from_secs(2)).await;
    assert!(matches!(held_up, Err(ProposeError::Deadline(_))), "{held_up:?}");
    assert_eq!(nodes_known(&cluster).await, 0);
    clock.leap_ms.store(0, Ordering::SeqCst);
    cluster.propose(follower, 0).await.unwrap();
    assert_eq!(nodes_known(&cluster).await, 1);
}
