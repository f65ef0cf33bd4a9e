//! Replicas that come back without their data, and those that were away for long.

use std::time::{Duration, Instant};

use replica::ProposeError;

use crate::harness::Cluster;

#[tokio::test]
async fn a_wiped_replica_comes_back_as_another_one() {
    let mut cluster = Cluster::formed().await;
    for n in 0..10 {
        cluster.propose(0, n).await.unwrap();
    }
    // A follower first, then the leader.
    for round in 0..2 {
        let lost = if round == 0 { cluster.follower().await } else { cluster.leader().await };
        let (dead, cluster_id) = (cluster.id(lost), cluster.replica(lost).status().cluster_id);
        cluster.crash(lost).await;
        cluster.wipe(lost);
        cluster.start(lost).await;
        let ids: Vec<u64> = (0..3).map(|i| cluster.id(i)).collect();
        assert!(!ids.contains(&dead));
        cluster.until_settled(&ids).await;
        assert_eq!(cluster.replica(lost).status().cluster_id, cluster_id);
        assert_eq!(cluster.count(lost).await.unwrap(), 10 + round);
        // It is a full member: with one of the others gone, it is needed for the quorum.
        let other = (0..3).find(|i| *i != lost).unwrap();
        cluster.crash(other).await;
        cluster.propose(lost, 10 + round).await.unwrap();
        cluster.start(other).await;
    }
}

/// The heart of it: what two wiped replicas decide would contradict what the third one holds.
#[tokio::test]
async fn two_wiped_replicas_never_form_a_cluster() {
    let mut cluster = Cluster::formed().await;
    for n in 0..5 {
        cluster.propose(0, n).await.unwrap();
    }
    let cluster_id = cluster.replica(0).status().cluster_id;
    cluster.until_equal().await;
    let end = cluster.replica(2).status().last_log_index;
    // The one with the data does not run: to the other two all looks new, but one does not answer.
    for i in 0..3 {
        cluster.crash(i).await;
    }
    cluster.wipe(0);
    cluster.wipe(1);
    cluster.start(0).await;
    cluster.start(1).await;
    let refused = cluster.propose_until(0, 9, Instant::now() + Duration::from_secs(3)).await;
    assert!(matches!(refused, Err(ProposeError::Deadline(_))), "{refused:?}");
    for i in 0..2 {
        let status = cluster.replica(i).status();
        assert!(status.members.is_empty() && status.cluster_id.is_none(), "{status:?}");
    }

    // With the one that has the data: still no quorum of those that hold it, and everyone says so.
    cluster.start(2).await;
    cluster
        .until("everyone says what is wrong", || {
            (0..3).all(|i| {
                let trouble = cluster.replica(i).status().trouble.unwrap_or_default();
                trouble.contains("no quorum: 1 of 3") && trouble.contains("came back without data")
            })
        })
        .await;
    let refused = cluster.propose_until(1, 9, Instant::now() + Duration::from_secs(3)).await;
    assert!(matches!(refused, Err(ProposeError::Deadline(_))), "{refused:?}");
    for i in 0..2 {
        assert!(cluster.replica(i).status().members.is_empty());
    }
    let keeper = cluster.replica(2).status();
    assert_eq!((keeper.cluster_id, keeper.members.len()), (cluster_id, 3));
    assert!(keeper.leader.is_none() || keeper.leader != Some(keeper.id));
    assert_eq!(keeper.last_log_index, end);
}

/// While the third is away, the wiped one must not stand in for its former self: a vote of an empty log would elect
/// a leader without what was decided.
#[tokio::test]
async fn a_wiped_replica_does_not_answer_for_its_former_self() {
    let mut cluster = Cluster::formed().await;
    for n in 0..5 {
        cluster.propose(0, n).await.unwrap();
    }
    cluster.crash(1).await;
    cluster.crash(2).await;
    cluster.wipe(1);
    cluster.start(1).await;
    // Replica 0 has data, replica 1 lost it, replica 2 is away: one of three.
    let refused = cluster.propose_until(0, 9, Instant::now() + Duration::from_secs(3)).await;
    assert!(matches!(refused, Err(ProposeError::Deadline(_))), "{refused:?}");
    cluster
        .until("they say what is wrong", || {
            [0, 1].iter().all(|i| {
                cluster.replica(*i).status().trouble.unwrap_or_default().contains("no quorum: 1 of 3")
            })
        })
        .await;

    // With the third back there is a quorum again, and the wiped one is taken in.
    cluster.start(2).await;
    let ids: Vec<u64> = (0..3).map(|i| cluster.id(i)).collect();
    cluster.until_settled(&ids).await;
    // The proposal that got no answer may have been decided after all.
    assert!((5..=6).contains(&cluster.count(1).await.unwrap()));
}

#[tokio::test]
async fn a_replica_that_was_away_gets_a_snapshot() {
    let mut cluster = Cluster::new();
    cluster.snapshot_every = 50;
    cluster.start_all().await;
    cluster.propose(0, 0).await.unwrap();
    let away = cluster.follower().await;
    let known = cluster.replica(away).status().last_log_index.unwrap();
    cluster.crash(away).await;
    let leader = cluster.leader().await;
    for n in 1..300 {
        cluster.propose(leader, n).await.unwrap();
    }
    cluster
        .until("the leader has a snapshot", || {
            cluster.replica(leader).status().snapshot_index.is_some_and(|index| index > known + 100)
        })
        .await;
    cluster.start(away).await;
    cluster
        .until("it has installed one", || {
            cluster.replica(away).status().snapshot_index.is_some_and(|index| index > known + 50)
        })
        .await;
    assert_eq!(cluster.count(away).await.unwrap(), 300);
    cluster.until_equal().await;

    // And it comes back from it.
    cluster.crash(away).await;
    cluster.start(away).await;
    assert_eq!(cluster.count(away).await.unwrap(), 300);
}
