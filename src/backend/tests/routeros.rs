//! RouterOS against the simulator where things go wrong: lost answers, late commands, keys, unreachable appliances.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use backend::{Backend, BackendError, Presence, RouterOs, RouterOsConfig};
use routeros_simulator::{
    Effect, Fault, Scope, SimulatedDisk, Simulator, SimulatorConfig, generate_client_key,
};

use support::{GIB, Lab, directory, disk_of, spec, volume, wait_until};

async fn lab() -> Lab {
    Lab::start(SimulatorConfig::default()).await
}

fn adds() -> Scope {
    Scope::Containing("/disk add".to_owned())
}

fn removes() -> Scope {
    Scope::Containing("/disk remove".to_owned())
}

#[track_caller]
fn assert_unavailable<T: std::fmt::Debug>(outcome: Result<T, BackendError>) -> String {
    match outcome {
        Err(BackendError::Unavailable { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

/// How often the appliance added a disk.
fn added(lab: &Lab) -> usize {
    lab.simulator.log().iter().filter(|entry| matches!(entry.effect, Effect::DiskAdded { .. })).count()
}

#[tokio::test]
async fn a_lost_answer_to_an_add_that_happened_is_a_success() {
    let lab = lab().await;
    let leader = lab.leader(1).await;
    lab.simulator.inject(Fault::DropAfterEffect, adds(), 1);
    leader.create(&spec("pvc-1", GIB)).await.unwrap();
    assert_eq!(added(&lab), 1);
}

#[tokio::test]
async fn an_add_that_was_lost_on_its_way_is_sent_again() {
    let lab = lab().await;
    let leader = lab.leader(1).await;
    lab.simulator.inject(Fault::DropBeforeEffect, adds(), 2);
    leader.create(&spec("pvc-1", GIB)).await.unwrap();
    assert_eq!(added(&lab), 1);
}

#[tokio::test]
async fn a_disk_that_was_left_half_done_is_finished() {
    let lab = lab().await;
    let leader = lab.leader(1).await;
    lab.simulator.inject(Fault::HalfDone, adds(), 1);
    leader.create(&spec("pvc-1", GIB)).await.unwrap();
    assert_eq!(leader.list().await.unwrap(), [disk_of(&spec("pvc-1", GIB))]);
    assert_eq!(added(&lab), 1);
}

#[tokio::test]
async fn a_removal_that_is_sent_again_asks_again_whether_it_is_wanted() {
    let lab = lab().await;
    let leader = lab.leader(1).await;
    let spec = spec("pvc-1", GIB);
    leader.create(&spec).await.unwrap();
    // The first attempt is lost on its way; before the second, somebody needs the volume.
    lab.simulator.inject(Fault::DropBeforeEffect, removes(), 1);
    let asked = std::sync::atomic::AtomicU32::new(0);
    let is_unneeded = || asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
    let outcome = leader.remove_unneeded(&spec.volume, &directory(), &is_unneeded).await;
    assert!(matches!(outcome, Err(BackendError::Conflict { .. })), "{outcome:?}");
    assert_eq!(leader.list().await.unwrap(), [disk_of(&spec)]);
}

#[tokio::test]
async fn a_lost_answer_to_a_remove_is_resolved_by_looking() {
    let lab = lab().await;
    let leader = lab.leader(1).await;
    for fault in [Fault::DropAfterEffect, Fault::DropBeforeEffect, Fault::Garbage(b"\xff\xfe[[[".to_vec())] {
        leader.create(&spec("pvc-1", GIB)).await.unwrap();
        lab.simulator.inject(fault, removes(), 1);
        leader.remove(&volume("pvc-1"), &directory()).await.unwrap();
        assert_eq!(lab.slots(), []);
        assert!(lab.simulator.files().is_empty());
    }
}

#[tokio::test]
async fn a_lost_answer_to_a_resize_is_resolved_by_looking() {
    let lab = lab().await;
    let leader = lab.leader(1).await;
    leader.create(&spec("pvc-1", GIB)).await.unwrap();
    for (size_bytes, fault) in [(2 * GIB, Fault::DropAfterEffect), (3 * GIB, Fault::DropBeforeEffect)] {
        lab.simulator.inject(fault, Scope::Containing("file-size".to_owned()), 1);
        leader.resize(&spec("pvc-1", size_bytes)).await.unwrap();
        assert_eq!(lab.slots(), [("pvc-1".to_owned(), size_bytes)]);
    }
}

#[tokio::test]
async fn a_lost_answer_to_a_new_term_is_asked_for_again() {
    let lab = lab().await;
    for (term, fault) in [(5, Fault::DropAfterEffect), (6, Fault::DropBeforeEffect)] {
        lab.simulator.inject(fault, Scope::Any, 1);
        let leader = lab.leader(term).await;
        leader.create(&spec("pvc-1", GIB)).await.unwrap();
    }
}

/// DESIGN.md: "an add delivered after the delete". The add was held on its way; the leader had given up and deleted.
#[tokio::test]
async fn an_add_delivered_after_the_delete_does_no_harm() {
    let lab = lab().await;
    let leader = lab.leader(1).await;
    lab.simulator.inject(Fault::DelayDelivery, adds(), 1);
    leader.create(&spec("pvc-1", GIB)).await.unwrap();
    leader.remove(&volume("pvc-1"), &directory()).await.unwrap();
    assert_eq!((lab.simulator.held(), added(&lab)), (1, 1));
    assert_eq!(lab.simulator.deliver_held(), 1);
    assert_eq!((lab.slots(), added(&lab)), (vec![], 1));
    assert_eq!(leader.look(&volume("pvc-1"), &directory()).await.unwrap(), Presence::Absent);
}

/// The same where the delete found nothing: an idempotent remove must still shut the late add out.
#[tokio::test]
async fn an_add_delivered_after_a_delete_that_found_nothing_does_no_harm() {
    let lab = lab().await;
    let leader = lab.leader(1).await;
    lab.simulator.inject(Fault::DelayDelivery, adds(), 1);
    // The caller loses patience as soon as the command is on its way.
    let spec = spec("pvc-1", GIB);
    tokio::select! {
        outcome = leader.create(&spec) => panic!("{outcome:?}"),
        () = wait_until("the add is held", || lab.simulator.held() == 1) => {}
    }
    leader.remove(&spec.volume, &directory()).await.unwrap();
    assert_eq!(added(&lab), 0);
    assert_eq!(lab.simulator.deliver_held(), 1);
    assert_eq!(lab.slots(), []);
}

/// DESIGN.md: "a remove delivered after a re-create".
#[tokio::test]
async fn a_remove_delivered_after_a_re_create_does_no_harm() {
    let lab = lab().await;
    let leader = lab.leader(1).await;
    leader.create(&spec("pvc-1", GIB)).await.unwrap();
    lab.simulator.inject(Fault::DelayDelivery, removes(), 1);
    leader.remove(&volume("pvc-1"), &directory()).await.unwrap();
    leader.create(&spec("pvc-1", GIB)).await.unwrap();
    assert_eq!(lab.simulator.deliver_held(), 1);
    assert_eq!(leader.list().await.unwrap(), [disk_of(&spec("pvc-1", GIB))]);
    assert_eq!(lab.simulator.files().len(), 1);
}

#[tokio::test]
async fn a_duplicate_of_any_change_does_no_harm() {
    let lab = lab().await;
    let leader = lab.leader(1).await;
    lab.simulator.inject(Fault::DuplicateLater, adds(), 1);
    leader.create(&spec("pvc-1", GIB)).await.unwrap();
    leader.remove(&volume("pvc-1"), &directory()).await.unwrap();
    assert_eq!(lab.simulator.deliver_held(), 1);
    assert_eq!(lab.slots(), []);

    leader.create(&spec("pvc-1", GIB)).await.unwrap();
    lab.simulator.inject(Fault::DuplicateLater, removes(), 1);
    leader.remove(&volume("pvc-1"), &directory()).await.unwrap();
    leader.create(&spec("pvc-1", GIB)).await.unwrap();
    lab.simulator.inject(Fault::DuplicateLater, Scope::Containing("file-size".to_owned()), 1);
    leader.resize(&spec("pvc-1", 2 * GIB)).await.unwrap();
    leader.resize(&spec("pvc-1", 3 * GIB)).await.unwrap();
    assert_eq!(lab.simulator.deliver_held(), 2);
    assert_eq!(lab.slots(), [("pvc-1".to_owned(), 3 * GIB)]);
}

/// A paused leader's command arrives after the next leader has begun, although nothing else has changed since.
#[tokio::test]
async fn a_late_command_of_a_deposed_leader_does_no_harm() {
    let lab = lab().await;
    let old = lab.leader(1).await;
    let spec = spec("pvc-1", GIB);
    lab.simulator.inject(Fault::DelayDelivery, adds(), 1);
    tokio::select! {
        outcome = old.create(&spec) => panic!("{outcome:?}"),
        () = wait_until("the add is held", || lab.simulator.held() == 1) => {}
    }
    let new = lab.leader(2).await;
    assert_eq!(lab.simulator.deliver_held(), 1);
    assert_eq!(lab.slots(), []);
    assert_eq!(old.create(&spec).await, Err(BackendError::StaleTerm { highest: 2 }));
    new.create(&spec).await.unwrap();
}

/// The same replica leads again while a call of its earlier term is still trying.
#[tokio::test]
async fn a_call_does_not_outlive_the_term_that_it_began_under() {
    let lab = lab().await;
    let leader = lab.leader(1).await;
    lab.simulator.inject(Fault::DropBeforeEffect, adds(), 100);
    let spec = spec("pvc-1", GIB);
    let (created, begun) = tokio::join!(leader.create(&spec), async {
        let seen = lab.simulator.commands_seen();
        wait_until("the create is trying", || lab.simulator.commands_seen() > seen + 3).await;
        leader.begin_term(2).await
    });
    begun.unwrap();
    assert_eq!(created, Err(BackendError::StaleTerm { highest: 2 }));
}

#[tokio::test]
async fn a_term_that_begins_late_is_refused() {
    let lab = lab().await;
    let old = lab.connect();
    lab.simulator.inject(Fault::DelayDelivery, Scope::Any, 1);
    tokio::select! {
        outcome = old.begin_term(1) => panic!("{outcome:?}"),
        () = wait_until("the term is held", || lab.simulator.held() == 1) => {}
    }
    let new = lab.leader(2).await;
    lab.simulator.deliver_held();
    new.create(&spec("pvc-1", GIB)).await.unwrap();
}

#[tokio::test]
async fn without_its_fence_the_appliance_changes_nothing() {
    let lab = lab().await;
    let leader = lab.leader(1).await;
    let other =
        RouterOs::new(RouterOsConfig { fence_name: "other-fence".to_owned(), ..lab.config() }).unwrap();
    let outcome = other.create(&spec("pvc-1", GIB)).await;
    assert!(matches!(outcome, Err(BackendError::Rejected { .. })), "{outcome:?}");
    // Two installations with two fences do not hold each other up.
    other.begin_term(1).await.unwrap();
    other.create(&spec("pvc-1", GIB)).await.unwrap();
    leader.create(&spec("pvc-2", GIB)).await.unwrap();
}

#[tokio::test]
async fn the_appliances_words_become_errors() {
    let lab = lab().await;
    let leader = lab.leader(1).await;
    leader.create(&spec("pvc-1", GIB)).await.unwrap();
    let fail = |words: &str, scope| lab.simulator.inject(Fault::Fail(words.to_owned()), scope, 1);
    fail("not enough space", adds());
    assert_eq!(leader.create(&spec("pvc-2", GIB)).await, Err(BackendError::Full));
    fail("disk is in use", removes());
    let outcome = leader.remove(&volume("pvc-1"), &directory()).await;
    assert!(matches!(outcome, Err(BackendError::Busy { .. })), "{outcome:?}");
    fail("words nobody knows", removes());
    let outcome = leader.remove(&volume("pvc-1"), &directory()).await;
    assert_eq!(outcome, Err(BackendError::Rejected { words: "words nobody knows".to_owned() }));
    assert_eq!(leader.list().await.unwrap(), [disk_of(&spec("pvc-1", GIB))]);
}

#[tokio::test]
async fn garbage_is_never_absent() {
    for knows_serialize in [true, false] {
        let lab = Lab::start(SimulatorConfig { knows_serialize, ..SimulatorConfig::default() }).await;
        let leader = lab.leader(1).await;
        leader.create(&spec("pvc-1", GIB)).await.unwrap();
        for garbage in
            ["", "\r\n", "failure: no such item\r\n", "{}", "[[]]", "Flags: X - disabled\r\n", "\u{1}\0"]
        {
            let reads = Scope::Containing("print detail".to_owned());
            lab.simulator.inject(Fault::Garbage(garbage.as_bytes().to_vec()), reads, 1);
            let outcome = leader.look(&volume("pvc-1"), &directory()).await;
            assert!(
                matches!(outcome, Err(BackendError::Unavailable { .. } | BackendError::Rejected { .. })),
                "{garbage:?}: {outcome:?}"
            );
        }
    }
}

#[tokio::test]
async fn what_cannot_be_looked_at_is_unknown() {
    let lab = lab().await;
    let leader = lab.leader(1).await;
    lab.simulator.inject(Fault::DropAfterEffect, adds(), 1);
    let reads = Scope::Containing("print detail".to_owned());
    let spec = spec("pvc-1", GIB);
    // The first look, at slot and file, is before the add: only the one that follows it fails, as often as it is tried.
    lab.simulator.inject(Fault::Slow(Duration::ZERO), reads.clone(), 2);
    lab.simulator.inject(Fault::DropBeforeEffect, reads, 3);
    assert_unavailable(leader.create(&spec).await);
    lab.simulator.clear_faults();
    leader.create(&spec).await.unwrap();
    assert_eq!(added(&lab), 1);
}

#[tokio::test]
async fn an_appliance_that_hangs_is_unavailable_in_time() {
    let lab = lab().await;
    let config = RouterOsConfig {
        read_timeout_ms: 200,
        change_timeout_ms: 200,
        operation_timeout_ms: 600,
        ..lab.config()
    };
    let leader = RouterOs::new(config).unwrap();
    leader.begin_term(1).await.unwrap();
    lab.simulator.inject(Fault::Hang, Scope::Any, 1);
    assert_unavailable(leader.probe().await);
    // The next command goes over a new connection, and the one after it over the same.
    let connections = lab.simulator.connections_seen();
    leader.probe().await.unwrap();
    leader.probe().await.unwrap();
    assert_eq!(lab.simulator.connections_seen(), connections + 1);
    lab.simulator.inject(Fault::Hang, adds(), 100);
    let started = Instant::now();
    assert_unavailable(leader.create(&spec("pvc-1", GIB)).await);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_slow_command_that_takes_effect_after_its_deadline_is_found_by_looking() {
    let lab = lab().await;
    let config = RouterOsConfig { change_timeout_ms: 300, ..lab.config() };
    let leader = RouterOs::new(config).unwrap();
    leader.begin_term(1).await.unwrap();
    lab.simulator.inject(Fault::Slow(Duration::from_millis(400)), adds(), 1);
    leader.create(&spec("pvc-1", GIB)).await.unwrap();
    leader.remove(&volume("pvc-1"), &directory()).await.unwrap();
    wait_until("the slow add has run", || lab.simulator.commands_run() == lab.simulator.commands_seen())
        .await;
    assert_eq!(lab.slots(), []);
}

/// Disk and file are asked for one after the other; an add in between must not look like a file without its disk.
#[tokio::test]
async fn a_disk_that_appears_while_looking_is_no_left_over_file() {
    let lab = lab().await;
    let leader = lab.leader(1).await;
    let spec = spec("pvc-1", GIB);
    lab.simulator.inject(Fault::DelayDelivery, adds(), 1);
    tokio::select! {
        outcome = leader.create(&spec) => panic!("{outcome:?}"),
        () = wait_until("the add is held", || lab.simulator.held() == 1) => {}
    }
    lab.simulator.inject(Fault::DelayDelivery, Scope::Containing("/file print".to_owned()), 1);
    lab.simulator.inject(
        Fault::Slow(Duration::from_millis(500)),
        Scope::Containing("/file print".to_owned()),
        1,
    );
    let directory = directory();
    let (seen, _) = tokio::join!(leader.look(&spec.volume, &directory), async {
        wait_until("the slot was empty", || lab.simulator.held() == 2).await;
        lab.simulator.deliver_held();
    });
    assert_eq!(seen, Ok(Presence::Disk(disk_of(&spec))));
}

#[tokio::test]
async fn nobody_listens() {
    let lab = lab().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = RouterOsConfig { port: free, read_timeout_ms: 1_000, ..lab.config() };
    let backend = RouterOs::new(config).unwrap();
    let started = Instant::now();
    for _ in 0..3 {
        assert_unavailable(backend.probe().await);
        assert_unavailable(backend.look(&volume("pvc-1"), &directory()).await);
        assert_unavailable(backend.begin_term(1).await);
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[tokio::test]
async fn an_appliance_that_comes_back_is_found_again() {
    let lab = lab().await;
    let leader = lab.leader(1).await;
    leader.create(&spec("pvc-1", GIB)).await.unwrap();
    lab.simulator.refuse_connections(true);
    lab.simulator.restart();
    assert_unavailable(leader.probe().await);
    lab.simulator.refuse_connections(false);
    assert_eq!(leader.list().await.unwrap(), [disk_of(&spec("pvc-1", GIB))]);
    lab.simulator.restart();
    leader.create(&spec("pvc-2", GIB)).await.unwrap();
}

#[tokio::test]
async fn a_wrong_host_key_is_refused_and_named() {
    let lab = lab().await;
    let other = generate_client_key(&lab.directory().join("other")).unwrap();
    let backend = RouterOs::new(RouterOsConfig { host_keys: vec![other], ..lab.config() }).unwrap();
    let reason = assert_unavailable(backend.probe().await);
    assert_eq!(reason.matches("SHA256:").count(), 2, "{reason}");
    assert_eq!(lab.simulator.commands_seen(), 0);
}

#[tokio::test]
async fn an_unknown_client_key_is_refused() {
    let lab = lab().await;
    let path = lab.directory().join("other");
    generate_client_key(&path).unwrap();
    let backend = RouterOs::new(RouterOsConfig { private_key_file: path, ..lab.config() }).unwrap();
    let reason = assert_unavailable(backend.probe().await);
    assert!(reason.contains("refused the key"), "{reason}");
    assert_eq!(lab.simulator.commands_seen(), 0);
}

#[tokio::test]
async fn all_mistakes_in_the_config_are_reported_together() {
    let lab = lab().await;
    let config = RouterOsConfig {
        private_key_file: "/nonexistent/key".into(),
        host_keys: vec!["no key".to_owned()],
        fence_name: "a\"b".to_owned(),
        user: String::new(),
        port: 0,
        max_sessions: 0,
        read_timeout_ms: 0,
        ..lab.config()
    };
    let Err(errors) = RouterOs::new(config) else { panic!("accepted") };
    assert_eq!(errors.0.len(), 7, "{errors}");
    let Err(errors) = RouterOs::new(RouterOsConfig { host_keys: vec![], ..lab.config() }) else {
        panic!("accepted")
    };
    assert!(errors.to_string().contains("host key is required"), "{errors}");
}

#[tokio::test]
async fn no_more_sessions_are_in_flight_than_allowed() {
    let lab = lab().await;
    let config = RouterOsConfig { max_sessions: 2, read_timeout_ms: 300, ..lab.config() };
    let backend = RouterOs::new(config).unwrap();
    backend.probe().await.unwrap();
    lab.simulator.inject(Fault::Hang, Scope::Any, 2);
    let (a, b, c, d) = tokio::join!(backend.probe(), backend.probe(), backend.probe(), backend.probe());
    // Two hang to their deadline and hold the sessions until then; the others wait out theirs.
    [a, b, c, d].into_iter().for_each(|outcome| drop(assert_unavailable(outcome)));
    assert_eq!(lab.simulator.commands_seen(), 3);
}

#[tokio::test]
async fn hostile_foreign_disks_do_not_disturb() {
    for knows_serialize in [true, false] {
        let lab = Lab::start(SimulatorConfig { knows_serialize, ..SimulatorConfig::default() }).await;
        let leader = lab.leader(1).await;
        leader.create(&spec("pvc-1", GIB)).await.unwrap();
        for slot in [
            "pvc-\" slot=\"pvc-1",
            "pvc-a b",
            "pvc-x file-path=/storage-pool/csi/pvc-1.img size=1",
            "pvc-\\",
            "pvc-\\\"",
            "pvc-$f",
            "pvc-[/disk remove [find]]",
            "pvc-x;;; comment",
            "pvc-\u{e9}\u{1f4be}",
        ] {
            lab.simulator.plant_disk(SimulatedDisk {
                slot: slot.to_owned(),
                file_path: "/storage-pool/odd.img".to_owned(),
                size_bytes: 7,
                mount_filesystem: true,
                compress: true,
                exported: true,
                nvme_port: 1,
                nqn: "not an NQN\"".to_owned(),
            });
        }
        assert_eq!(leader.list().await.unwrap(), [disk_of(&spec("pvc-1", GIB))]);
        leader.remove(&volume("pvc-1"), &directory()).await.unwrap();
        assert_eq!(lab.slots().len(), 9);
    }
}

#[tokio::test]
async fn a_file_that_another_disk_uses_stays() {
    let lab = lab().await;
    let leader = lab.leader(1).await;
    let path = spec("pvc-1", GIB).file_path();
    lab.simulator.plant_disk(SimulatedDisk {
        slot: "other".to_owned(),
        file_path: path,
        size_bytes: GIB,
        mount_filesystem: false,
        compress: false,
        exported: false,
        nvme_port: 4420,
        nqn: String::new(),
    });
    let outcome = leader.remove(&volume("pvc-1"), &directory()).await;
    assert!(matches!(outcome, Err(BackendError::Rejected { .. })), "{outcome:?}");
    assert_eq!(lab.simulator.files().len(), 1);
}

#[tokio::test]
async fn the_simulator_survives_its_process_with_real_files() {
    let kept = tempfile::tempdir().unwrap();
    let public = generate_client_key(&kept.path().join("key")).unwrap();
    let config = SimulatorConfig {
        authorized_keys: vec![public],
        host_key_file: Some(kept.path().join("host")),
        state_file: Some(kept.path().join("state.json")),
        backing_directory: Some(kept.path().join("backing")),
        ..SimulatorConfig::default()
    };
    let file = kept.path().join("backing/storage-pool/csi/pvc-1.img");
    let backend = |simulator: &Simulator| {
        let address = simulator.address();
        let host = state_machine::HostAddress::parse(&address.ip().to_string()).unwrap();
        let keys = vec![simulator.host_public_key().to_owned()];
        let config = RouterOsConfig::new(host, kept.path().join("key"), keys);
        RouterOs::new(RouterOsConfig { port: address.port(), ..config }).unwrap()
    };
    let first = Simulator::start(config.clone()).await.unwrap();
    let leader = backend(&first);
    leader.begin_term(3).await.unwrap();
    leader.create(&spec("pvc-1", GIB)).await.unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().len(), GIB);
    first.shutdown();

    let second = Simulator::start(config).await.unwrap();
    assert_eq!(second.host_public_key(), first.host_public_key());
    let leader = backend(&second);
    assert_eq!(leader.begin_term(2).await, Err(BackendError::StaleTerm { highest: 3 }));
    leader.begin_term(4).await.unwrap();
    leader.resize(&spec("pvc-1", 2 * GIB)).await.unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 2 * GIB);
    leader.remove(&volume("pvc-1"), &directory()).await.unwrap();
    assert!(!file.exists());
}
