//! Leadership is given away on request, by the process that is about to be stopped or by a person.

use std::time::{Duration, Instant};

use proto::peer::v1::HandOverRequest;
use replica::ask_to_hand_over;
use tonic::Code;

use crate::harness::Cluster;
use crate::security::client;

#[tokio::test]
async fn a_leader_that_is_asked_gives_its_office_away_and_stays_a_follower() {
    let cluster = Cluster::formed().await;
    for round in 0..5 {
        let leader = cluster.leader().await;
        let files = cluster.authority.issue("replica", "r0");
        let begun = Instant::now();
        ask_to_hand_over(files.clone(), &cluster.places[leader].address).await.unwrap();
        let took = begun.elapsed();
        let next = cluster.leader().await;
        assert_ne!(next, leader);
        assert!(cluster.replica(leader).status().leader.is_some_and(|id| id != cluster.id(leader)));
        // Whoever does not lead has nothing to give.
        ask_to_hand_over(files, &cluster.places[leader].address).await.unwrap();
        assert_eq!(cluster.leader().await, next);
        cluster.propose(leader, round).await.unwrap();
        println!("round {round}: another leads after {took:?}");
    }
    assert_eq!(cluster.count(0).await.unwrap(), 5);
}

#[tokio::test]
async fn nobody_to_take_over_is_said_within_the_time() {
    let mut cluster = Cluster::formed().await;
    let leader = cluster.leader().await;
    let tls = cluster.authority.issue("replica", "r0");
    let mut client = client(&cluster, leader, &tls).await.unwrap();
    let no_time = client.hand_over(HandOverRequest { timeout_ms: 0 }).await.unwrap_err();
    assert_eq!(no_time.code(), Code::InvalidArgument, "{no_time}");

    for follower in (0..3).filter(|i| *i != leader) {
        cluster.crash(follower).await;
    }
    cluster
        .until("the followers are missed", || {
            let members = cluster.replica(leader).status().members;
            members.iter().filter(|member| member.answering == Some(true)).count() == 1
        })
        .await;
    let begun = Instant::now();
    let reply = client.hand_over(HandOverRequest { timeout_ms: 500 }).await.unwrap().into_inner();
    assert!(reply.refused.contains("no other voter answered it within 500 ms"), "{}", reply.refused);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn nobody_at_the_address_is_said() {
    let cluster = Cluster::new();
    let files = cluster.authority.issue("replica", "r0");
    let error = ask_to_hand_over(files, "127.0.0.1:1").await.unwrap_err();
    assert!(error.starts_with("127.0.0.1:1 does not answer"), "{error}");
}
