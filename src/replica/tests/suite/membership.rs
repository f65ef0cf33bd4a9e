//! Changes of the membership on an operator's word.

use replica::{MembershipError, PeerAddress, StartError};

use crate::harness::{Cluster, deadline};

async fn add(cluster: &Cluster, through: usize, place: PeerAddress) -> Result<u64, MembershipError> {
    let deadline = deadline();
    cluster
        .running(through)
        .run(move |replica| async move { replica.add_replica(place, deadline).await })
        .await
}

async fn remove(cluster: &Cluster, through: usize, id: u64) -> Result<(), MembershipError> {
    let deadline = deadline();
    cluster
        .running(through)
        .run(move |replica| async move { replica.remove_replica(id, deadline).await })
        .await
}

async fn replace(cluster: &Cluster, through: usize, dead: u64) -> Result<u64, MembershipError> {
    let deadline = deadline();
    cluster
        .running(through)
        .run(move |replica| async move { replica.replace_replica(dead, deadline).await })
        .await
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, MembershipError>) -> String {
    match outcome {
        Err(MembershipError::Refused(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_replica_is_added_and_removed() {
    let mut cluster = Cluster::formed().await;
    cluster.propose(0, 1).await.unwrap();
    let follower = cluster.follower().await;
    let place = cluster.places[3].clone();
    assert!(refusal(add(&cluster, follower, place.clone()).await).contains("nobody to take in"));

    // It runs, finds the cluster, and is not let in before an operator says so.
    cluster.start(3).await;
    cluster
        .until("it says what to do", || {
            cluster.replica(3).status().trouble.unwrap_or_default().contains("ctl replicas add")
        })
        .await;
    let id = add(&cluster, follower, place).await.unwrap();
    assert_eq!(id, cluster.id(3));
    let ids: Vec<u64> = (0..4).map(|i| cluster.id(i)).collect();
    cluster.until_settled(&ids).await;
    assert_eq!(cluster.count(3).await.unwrap(), 1);

    // Removed again, it notices, and its directory is of no use any more.
    let leaving = cluster.replica(3).clone();
    remove(&cluster, 0, id).await.unwrap();
    let failure = tokio::time::timeout(std::time::Duration::from_secs(15), leaving.failed()).await.unwrap();
    assert!(matches!(failure, replica::Failure::Removed(_)), "{failure:?}");
    drop(leaving);
    cluster.stop(3).await;
    cluster.until_settled(&ids[..3]).await;
    let refused = cluster.try_start(3, cluster.config(3)).await;
    assert!(
        matches!(refused, Err(StartError::Removed { replica_id, .. }) if replica_id == id),
        "{refused:?}"
    );
}

#[tokio::test]
async fn one_that_was_removed_while_it_was_away_refuses_to_start_again() {
    let mut cluster = Cluster::formed().await;
    let away = cluster.follower().await;
    let id = cluster.id(away);
    // It has to know that it is a member: only then can it notice that it is none any more.
    let leader = cluster.leader().await;
    cluster.propose(leader, 3).await.unwrap();
    cluster.until_equal().await;
    cluster.crash(away).await;
    let leader = cluster.leader().await;
    remove(&cluster, leader, id).await.unwrap();
    cluster.propose(leader, 1).await.unwrap();

    cluster.start(away).await;
    let back = cluster.replica(away).clone();
    let failure = tokio::time::timeout(std::time::Duration::from_secs(15), back.failed()).await.unwrap();
    assert!(matches!(failure, replica::Failure::Removed(_)), "{failure:?}");
    drop(back);
    cluster.crash(away).await;
    let refused = cluster.try_start(away, cluster.config(away)).await.unwrap_err().to_string();
    assert!(refused.contains("empty that directory"), "{refused}");
    // It disturbed nobody.
    cluster.propose(leader, 2).await.unwrap();
}

#[tokio::test]
async fn the_leader_can_be_removed() {
    let mut cluster = Cluster::formed().await;
    let leader = cluster.leader().await;
    let id = cluster.id(leader);
    remove(&cluster, leader, id).await.unwrap();
    let failure = cluster.replica(leader).clone();
    let failure = tokio::time::timeout(std::time::Duration::from_secs(15), failure.failed()).await.unwrap();
    assert!(matches!(failure, replica::Failure::Removed(_)), "{failure:?}");
    cluster.stop(leader).await;
    let other = (leader + 1) % 3;
    cluster.propose(other, 1).await.unwrap();
    assert_eq!(cluster.replica(other).status().members.len(), 2);
}

#[tokio::test]
async fn no_removal_takes_the_quorum_away() {
    let mut cluster = Cluster::formed().await;
    let away = cluster.follower().await;
    let ids: Vec<u64> = (0..3).map(|i| cluster.id(i)).collect();
    cluster.crash(away).await;
    let leader = cluster.leader().await;
    cluster
        .until("the leader notices", || {
            let members = cluster.replica(leader).status().members;
            members.iter().any(|member| member.id == ids[away] && member.answering == Some(false))
        })
        .await;
    let healthy = (0..3).find(|i| *i != away && *i != leader).unwrap();
    let why = refusal(remove(&cluster, leader, ids[healthy]).await);
    assert!(why.contains("no quorum"), "{why}");
    // One that is not there is gone already.
    remove(&cluster, leader, 7).await.unwrap();
    assert_eq!(cluster.replica(leader).status().members.len(), 3);
    // The one that is away can go.
    remove(&cluster, healthy, ids[away]).await.unwrap();
    remove(&cluster, healthy, ids[away]).await.unwrap();
}

#[tokio::test]
async fn a_dead_replica_is_replaced() {
    let mut cluster = Cluster::formed().await;
    cluster.propose(0, 1).await.unwrap();
    let dead = cluster.follower().await;
    let dead_id = cluster.id(dead);
    let leader = cluster.leader().await;
    assert!(refusal(replace(&cluster, leader, dead_id).await).contains("is not dead"));
    cluster.crash(dead).await;
    assert!(refusal(replace(&cluster, leader, dead_id).await).contains("does not answer"));

    cluster.wipe(dead);
    cluster.start(dead).await;
    // It may have been taken in by itself before, and the dead one be gone already.
    assert_eq!(replace(&cluster, leader, dead_id).await.unwrap(), cluster.id(dead));
    let ids: Vec<u64> = (0..3).map(|i| cluster.id(i)).collect();
    cluster.until_settled(&ids).await;
    assert_eq!(cluster.count(dead).await.unwrap(), 1);
    // Asked once more, the answer is the same; one that never was a member has no place.
    assert_eq!(replace(&cluster, leader, dead_id).await.unwrap(), cluster.id(dead));
    assert!(refusal(replace(&cluster, leader, 7).await).contains("not a member"));
}
