//! Events against a simulated API server.

use std::time::Duration;

use observer::{ClaimRef, Event, EventOutcome, EventReason, Events};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, DRIVER};
use crate::server::SimulatedApiServer;
use crate::watching::DEADLINE;

type Outcomes = mpsc::UnboundedReceiver<(EventReason, EventOutcome)>;

fn start(server: &SimulatedApiServer, stop: CancellationToken) -> (Events, Outcomes) {
    let (outcomes, counted) = mpsc::unbounded_channel();
    let count = move |reason, outcome| {
        let _ = outcomes.send((reason, outcome));
    };
    (Events::start(server.client(), DRIVER, stop, count), counted)
}

fn event(key: &str) -> Event {
    Event {
        claim: ClaimRef {
            namespace: "vms".to_owned(),
            name: "web-disk".to_owned(),
            uid: Some("22222222-0000-4000-8000-000000000001".to_owned()),
        },
        reason: EventReason::MigrationOverdue,
        message: "The migration from worker-a to worker-b is overdue.".to_owned(),
        key: key.to_owned(),
    }
}

async fn next(counted: &mut Outcomes) -> EventOutcome {
    let (reason, outcome) = tokio::time::timeout(DEADLINE, counted.recv()).await.unwrap().unwrap();
    assert_eq!(reason, EventReason::MigrationOverdue);
    outcome
}

#[tokio::test]
async fn the_same_event_is_posted_once_whoever_posts_it() {
    let server = SimulatedApiServer::start(&Cluster { objects: Vec::new() }).await;
    let (first, mut counted) = start(&server, CancellationToken::new());
    first.post(event("migration-7"));
    assert_eq!(next(&mut counted).await, EventOutcome::Posted);
    let (second, mut counted) = start(&server, CancellationToken::new());
    second.post(Event { message: "In other words.".to_owned(), ..event("migration-7") });
    assert_eq!(next(&mut counted).await, EventOutcome::AlreadyThere);
    second.post(event("migration-8"));
    assert_eq!(next(&mut counted).await, EventOutcome::Posted);

    let events = server.scene(|scene| scene.of_path("/api/v1/events"));
    assert_eq!(events.len(), 2);
    for event in events {
        assert_eq!(event["metadata"]["namespace"], "vms");
        assert_eq!(event["involvedObject"]["kind"], "PersistentVolumeClaim");
        assert_eq!(event["involvedObject"]["uid"], "22222222-0000-4000-8000-000000000001");
        assert_eq!((&event["reason"], &event["type"]), (&"MigrationOverdue".into(), &"Warning".into()));
        assert_eq!(event["source"]["component"], DRIVER);
        assert_eq!(event["message"], "The migration from worker-a to worker-b is overdue.");
        assert!(event["firstTimestamp"].is_string() && event["lastTimestamp"].is_string());
    }
}

#[tokio::test]
async fn an_event_is_tried_for_minutes_unless_that_is_pointless() {
    let server = SimulatedApiServer::start(&Cluster { objects: Vec::new() }).await;
    let (events, mut counted) = start(&server, CancellationToken::new());
    server.scene(|scene| scene.refuse_creations = vec![500, 500]);
    events.post(event("1"));
    assert_eq!(next(&mut counted).await, EventOutcome::Posted);
    server.scene(|scene| scene.refuse_creations = vec![503; 1_000]);
    events.post(event("2"));
    let tried = || server.scene(|scene| scene.refuse_creations.len()) < 999;
    while !tried() {
        assert!(counted.try_recv().is_err(), "given up after the first attempt");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(300)).await;
    tokio::time::resume();
    assert_eq!(next(&mut counted).await, EventOutcome::Failed);
    // The namespace is being deleted: it would not help to ask again.
    server.scene(|scene| scene.refuse_creations = vec![500, 403]);
    events.post(event("3"));
    assert_eq!(next(&mut counted).await, EventOutcome::Failed);
    assert_eq!(server.scene(|scene| std::mem::take(&mut scene.refuse_creations)), [500]);
    events.post(event("4"));
    assert_eq!(next(&mut counted).await, EventOutcome::Posted, "others are not held up");
}

#[tokio::test]
async fn what_does_not_fit_is_counted_and_nobody_waits() {
    let server = SimulatedApiServer::start(&Cluster { objects: Vec::new() }).await;
    let (events, mut counted) = start(&server, CancellationToken::new());
    // No task but this one runs until it waits, so nothing leaves the queue.
    for number in 0..1_001 {
        events.post(event(&number.to_string()));
    }
    assert_eq!(counted.try_recv().unwrap(), (EventReason::MigrationOverdue, EventOutcome::Dropped));
    assert!(counted.try_recv().is_err());
}

#[tokio::test]
async fn after_the_stop_events_are_dropped_and_without_kubernetes_ignored() {
    let server = SimulatedApiServer::start(&Cluster { objects: Vec::new() }).await;
    let stop = CancellationToken::new();
    let (events, mut counted) = start(&server, stop.clone());
    stop.cancel();
    let ended = async {
        loop {
            events.post(event("late"));
            if next(&mut counted).await == EventOutcome::Dropped {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap();
    Events::none().post(event("1"));
    assert_eq!(server.scene(|scene| scene.of_path("/api/v1/events").len()), 0);
}
