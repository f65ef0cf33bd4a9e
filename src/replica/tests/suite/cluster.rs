//! Forming a cluster, deciding and reading through any replica, restarts, and what happens without a quorum.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use replica::{ProposeError, ReadError};
use state_machine::Response;

use crate::harness::{Cluster, DEADLINE, deadline, register};

#[tokio::test]
async fn any_replica_decides_and_reads() {
    let cluster = Cluster::formed().await;
    for i in 0..3 {
        assert_eq!(cluster.propose(i, i).await.unwrap(), Response::Done);
        // What was decided through one is read through every other, at once.
        for reader in 0..3 {
            assert_eq!(cluster.count(reader).await.unwrap(), i + 1);
        }
    }
    let statuses: Vec<_> = (0..3).map(|i| cluster.replica(i).status()).collect();
    let cluster_id = statuses[0].cluster_id.expect("a cluster id");
    assert!(statuses.iter().all(|status| status.cluster_id == Some(cluster_id) && status.members.len() == 3));
    cluster
        .until("everyone is ready", || {
            (0..3).all(|i| {
                let status = cluster.replica(i).status();
                status.quorum_ok && status.trouble.is_none()
            })
        })
        .await;
    cluster.until_equal().await;
    let first = cluster.replica(0).state_hash().await.unwrap();
    assert_eq!(cluster.replica(1).state_hash().await.unwrap(), first);
}

#[tokio::test]
async fn nothing_is_formed_until_everybody_answers() {
    let mut cluster = Cluster::new();
    cluster.start(0).await;
    cluster.start(1).await;
    cluster
        .until("they say whom they wait for", || {
            let trouble = |i| cluster.replica(i).status().trouble.unwrap_or_default();
            (0..2).all(|i| trouble(i).contains("all configured replicas answer") && trouble(i).contains("r2"))
        })
        .await;
    let refused = cluster.propose_until(0, 1, Instant::now() + Duration::from_millis(300)).await;
    let Err(ProposeError::Deadline(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("r2"), "{why}");
    assert!(cluster.replica(0).status().members.is_empty());

    cluster.start(2).await;
    cluster.propose(2, 1).await.unwrap();
}

#[tokio::test]
async fn nothing_is_formed_from_different_configurations() {
    let mut cluster = Cluster::new();
    cluster.start(0).await;
    cluster.start(1).await;
    // It believes in a replica more than the others.
    let mut config = cluster.config(2);
    config.peers.push(cluster.places[3].clone());
    cluster.try_start(2, config).await.unwrap();
    cluster
        .until("the first says so", || {
            cluster.replica(0).status().trouble.unwrap_or_default().contains("configured with other replicas")
        })
        .await;
    assert!(cluster.replica(0).status().members.is_empty());
}

#[tokio::test]
async fn restarts_lose_nothing() {
    let mut cluster = Cluster::formed().await;
    for n in 0..20 {
        cluster.propose(n % 3, n).await.unwrap();
    }
    // One after another, crashed and stopped, the leader among them.
    for i in 0..3 {
        if i % 2 == 0 {
            cluster.crash(i).await
        } else {
            cluster.stop(i).await
        }
        let other = (i + 1) % 3;
        cluster.propose(other, 20 + i).await.unwrap();
        cluster.start(i).await;
        assert_eq!(cluster.count(i).await.unwrap(), 21 + i);
    }
    // All at once.
    let ids: Vec<u64> = (0..3).map(|i| cluster.id(i)).collect();
    for i in 0..3 {
        cluster.crash(i).await;
    }
    cluster.start_all().await;
    assert_eq!(cluster.count(1).await.unwrap(), 23);
    assert_eq!((0..3).map(|i| cluster.id(i)).collect::<Vec<_>>(), ids);
    cluster.until_settled(&ids).await;
}

#[tokio::test]
async fn without_a_quorum_callers_get_their_answer_in_time() {
    let mut cluster = Cluster::formed().await;
    cluster.propose(0, 1).await.unwrap();
    let leader = cluster.leader().await;
    for i in (0..3).filter(|i| *i != leader) {
        cluster.crash(i).await;
    }
    let patience = Duration::from_millis(700);
    let begun = Instant::now();
    let refused = cluster.propose_until(leader, 2, begun + patience).await;
    let took = begun.elapsed();
    let Err(ProposeError::Deadline(why)) = refused else { panic!("{refused:?}") };
    assert!(!why.is_empty());
    assert!(took >= patience && took < patience * 2, "{took:?}");

    let deadline = Instant::now() + patience;
    let read = cluster
        .running(leader)
        .run(move |replica| async move { replica.read(deadline, |state| state.nodes().len()).await })
        .await;
    assert!(matches!(read, Err(ReadError::Deadline(_))), "{read:?}");
    // What it has applied can still be looked at.
    assert_eq!(cluster.replica(leader).read_local(|state| state.nodes().len()), 1);
    cluster
        .until("it says what is missing", || {
            let status = cluster.replica(leader).status();
            !status.quorum_ok && status.trouble.unwrap_or_default().contains("1 of 3 members answer")
        })
        .await;
}

#[tokio::test]
async fn a_leaders_word_is_bound_to_its_term() {
    let cluster = Cluster::formed().await;
    let leader = cluster.leader().await;
    let term = cluster.replica(leader).watch_leadership().borrow().unwrap().term;
    let propose = |i: usize, term: u64| {
        cluster
            .running(i)
            .run(move |replica| async move { replica.propose_as_leader(term, register(term as usize)).await })
    };
    assert_eq!(propose(leader, term).await.unwrap(), Response::Done);
    assert!(matches!(propose(leader, term + 1).await, Err(ProposeError::NotLeader { .. })));
    assert!(matches!(propose(leader, term - 1).await, Err(ProposeError::NotLeader { .. })));
    let follower = cluster.follower().await;
    assert!(matches!(propose(follower, term).await, Err(ProposeError::NotLeader { .. })));
    assert_eq!(cluster.count(follower).await.unwrap(), 1);
}

#[tokio::test]
async fn a_leader_without_a_quorum_keeps_its_word_until_it_has_one_again() {
    let mut cluster = Cluster::formed().await;
    let leader = cluster.leader().await;
    let mut leadership = cluster.replica(leader).watch_leadership();
    let term = leadership.borrow_and_update().unwrap().term;
    let others: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
    for i in &others {
        cluster.crash(*i).await;
    }
    cluster.until("its lease is over", || !cluster.replica(leader).status().quorum_ok).await;
    let replica = cluster.replica(leader).clone();
    let proposal = tokio::spawn(async move { replica.propose_as_leader(term, register(1)).await });
    tokio::pin!(proposal);
    let early = tokio::time::timeout(Duration::from_millis(500), &mut proposal).await;
    assert!(early.is_err() || leadership.has_changed().unwrap(), "refused in office: {early:?}");

    for i in others {
        cluster.start(i).await;
    }
    match tokio::time::timeout(Duration::from_secs(15), proposal).await.unwrap().unwrap() {
        Ok(response) => assert_eq!(response, Response::Done),
        Err(ProposeError::NotLeader { .. }) => assert!(leadership.has_changed().unwrap(), "still in office"),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_command_that_the_log_would_not_take_stops_nobody() {
    let cluster = Cluster::formed().await;
    let huge = state_machine::Command::Reap {
        volume: state_machine::VolumeId::parse("pvc-1").unwrap(),
        migration: state_machine::MigrationId(1),
        decision: state_machine::ReapDecision {
            stale: state_machine::NodeId::parse("node-1").unwrap(),
            decided_by: "nobody".to_owned(),
            evidence: "x".repeat(70_000),
        },
    };
    let deadline = deadline();
    let refused =
        cluster.running(0).run(move |replica| async move { replica.propose(huge, deadline).await }).await;
    assert!(matches!(refused, Err(ProposeError::TooLarge(_))), "{refused:?}");
    cluster.propose(0, 1).await.unwrap();
}

/// Clients that loop notice nothing of a leader that leaves in good order.
#[tokio::test]
async fn a_leader_that_stops_hands_over() {
    let mut cluster = Cluster::formed().await;
    let leader = cluster.leader().await;
    let client = cluster.follower().await;
    let replica = cluster.replica(client).clone();
    let (stop, decided) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (stopped, counter) = (stop.clone(), decided.clone());
    let looping = tokio::spawn(async move {
        let (mut n, mut longest) = (0, Duration::ZERO);
        while !stopped.load(Ordering::SeqCst) {
            let begun = Instant::now();
            replica.propose(register(n), begun + DEADLINE).await.unwrap();
            longest = longest.max(begun.elapsed());
            n += 1;
            counter.store(n, Ordering::SeqCst);
        }
        longest
    });
    cluster.until("the client is going", || decided.load(Ordering::SeqCst) > 20).await;
    cluster.stop(leader).await;
    let then = decided.load(Ordering::SeqCst);
    cluster.until("the client goes on", || decided.load(Ordering::SeqCst) > then + 20).await;
    stop.store(true, Ordering::SeqCst);
    let longest = looping.await.unwrap();
    // An election without a transfer begins after 900 ms at the earliest, with these timers.
    assert!(longest < Duration::from_millis(800), "the longest proposal took {longest:?}");
    assert_eq!(cluster.count(client).await.unwrap(), decided.load(Ordering::SeqCst));
}
