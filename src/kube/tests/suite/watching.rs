//! Watches against a simulated API server.

use std::time::{Duration, Instant};

use observer::{Answer, Health, Index, Kind, LIST_PAGE, MigrationSeen, Observer, Settings, Users, Why};
use serde_json::json;
use state_machine::VmiObservation;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, DRIVER, SECOND, VOLUME, node, volume};
use crate::server::SimulatedApiServer;

/// How long anything may take before a test gives it up.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A server, who observes it, and what stops that.
struct Bench {
    server: SimulatedApiServer,
    observer: Observer,
    stop: CancellationToken,
}

impl Bench {
    async fn of(cluster: &Cluster, prepare: impl FnOnce(&SimulatedApiServer)) -> Self {
        let server = SimulatedApiServer::start(cluster).await;
        prepare(&server);
        let settings = Settings {
            first_pause: Duration::from_millis(10),
            longest_pause: Duration::from_millis(40),
            ..Settings::of_driver(DRIVER)
        };
        let stop = CancellationToken::new();
        let observer = Observer::start(&server.client(), &settings, &stop);
        Self { server, observer, stop }
    }

    async fn ready() -> Self {
        let bench = Self::of(&Cluster::recorded(), |_| ()).await;
        bench.until(|index| Kind::ALL.iter().all(|kind| is_current(index, *kind))).await;
        bench.server.until(|scene| scene.watching == Kind::ALL.len()).await;
        bench
    }

    /// Waits until the index is so.
    async fn until(&self, is_so: impl Fn(&Index) -> bool) {
        let mut changes = self.observer.changes();
        let waiting = async {
            while !is_so(&self.observer.index()) {
                changes.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(DEADLINE, waiting).await.is_err() {
            let index = self.observer.index();
            panic!("never seen: {:?}", Kind::ALL.map(|kind| (kind, index.health(kind).clone())));
        }
    }
}

fn is_current(index: &Index, kind: Kind) -> bool {
    matches!(index.health(kind), Health::Current { .. })
}

fn is_broken(index: &Index, kind: Kind) -> bool {
    matches!(index.health(kind), Health::Broken { .. })
}

#[tokio::test]
async fn what_is_listed_is_followed() {
    let bench = Bench::ready().await;
    {
        let index = bench.observer.index();
        assert!(index.node(&node("worker-b")).known().is_some());
        assert_eq!(index.claim(&volume()).known().unwrap().name, "web-disk");
        assert!(matches!(index.users(&volume()), Answer::Known(Users::OneVm { .. })));
        assert_eq!(index.vmi_observation(&volume()), VmiObservation::Migrating);
        // Pods without a claim and other drivers' volumes are not kept.
        assert_eq!((index.facts_of(Kind::Pod), index.facts_of(Kind::PersistentVolume)), (4, 1));
    }
    let tainted = Cluster::recorded().set(
        "Node",
        "worker-b",
        "/spec/taints",
        json!([{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]),
    );
    bench.server.put(tainted.find("Node", "worker-b"));
    bench.until(|index| index.node(&node("worker-b")).known().is_some_and(|node| node.out_of_service)).await;
    bench.server.delete(tainted.find("Node", "worker-b"));
    bench.until(|index| index.node(&node("worker-b")) == Answer::Absent).await;
    bench.server.delete(tainted.find("PersistentVolume", VOLUME));
    bench.until(|index| index.claim(&volume()) == Answer::Absent).await;
    assert_eq!(bench.server.lists("/nodes"), 1);
}

#[tokio::test]
async fn nothing_is_absent_before_the_last_page() {
    let mut cluster = Cluster::recorded();
    for number in 0..=LIST_PAGE {
        cluster = cluster.copy("Node", "worker-c", &format!("aaa-{number}"));
    }
    let bench = Bench::of(&cluster, |server| server.scene(|scene| scene.holds_pages = true)).await;
    bench.server.until(|scene| scene.lists("/nodes") == 2).await;
    let seen = bench.observer.index().node(&node("worker-a"));
    assert_eq!(seen, Answer::Unknown(Why::NotListed(Kind::Node)));
    bench.server.scene(|scene| scene.holds_pages = false);
    bench.until(|index| is_current(index, Kind::Node)).await;
    assert!(bench.observer.index().node(&node("worker-a")).known().is_some());
    assert_eq!(bench.observer.index().facts_of(Kind::Node), 3 + LIST_PAGE as usize + 1);
}

#[tokio::test]
async fn what_was_deleted_behind_an_expired_version_is_gone() {
    let bench = Bench::ready().await;
    let cluster = Cluster::recorded();
    // The watch sleeps through a deletion, and its place in the history is gone.
    bench.server.scene(|scene| scene.mute = Some("/nodes".to_owned()));
    bench.server.delete(cluster.find("Node", "worker-c"));
    bench.server.scene(|scene| {
        scene.forget();
        scene.mute = None;
    });
    bench.until(|index| index.node(&node("worker-c")) == Answer::Absent).await;
    assert!(bench.observer.index().node(&node("worker-a")).known().is_some());
    assert!(bench.server.lists("/nodes") >= 2);
}

#[tokio::test]
async fn an_outage_makes_everything_unknown_and_loses_nothing() {
    let bench = Bench::ready().await;
    let cluster = Cluster::recorded();
    bench.server.scene(|scene| scene.refused.insert("/".to_owned(), 503));
    bench.server.cut();
    bench.until(|index| Kind::ALL.iter().all(|kind| is_broken(index, *kind))).await;
    let since = {
        let index = bench.observer.index();
        assert!(matches!(
            index.node(&node("worker-c")),
            Answer::Unknown(Why::Broken { kind: Kind::Node, .. })
        ));
        assert!(matches!(index.users(&volume()), Answer::Unknown(_)));
        assert_eq!(index.vmi_observation(&volume()), VmiObservation::Unknown);
        assert_eq!(index.claim(&volume()).known().unwrap().name, "web-disk", "kept");
        assert_eq!(index.facts_of(Kind::Node), 3, "kept");
        index.health(Kind::Node).clone()
    };
    let tries = bench.server.lists("/nodes");
    bench.server.until(|scene| scene.lists("/nodes") > tries + 3).await;
    let (Health::Broken { since, .. }, Health::Broken { since: now, .. }) =
        (since, bench.observer.index().health(Kind::Node).clone())
    else {
        panic!("not broken any longer")
    };
    assert_eq!(since, now, "since when does not move with the attempts");

    bench.server.delete(cluster.find("Node", "worker-c"));
    bench.server.scene(|scene| scene.refused.clear());
    bench.until(|index| Kind::ALL.iter().all(|kind| is_current(index, *kind))).await;
    let index = bench.observer.index();
    assert_eq!(index.node(&node("worker-c")), Answer::Absent);
    assert!(index.node(&node("worker-a")).known().is_some());
}

#[tokio::test]
async fn kubevirt_may_come_later_and_is_not_believed_to_go() {
    let bench = Bench::of(&Cluster::recorded(), |server| {
        server.scene(|scene| scene.refused.insert("/kubevirt.io/".to_owned(), 404));
    })
    .await;
    let is_absent = |index: &Index, kind| matches!(index.health(kind), Health::NotInstalled { .. });
    let of_kubevirt = [Kind::Vmi, Kind::Vmim, Kind::KubeVirt];
    bench.until(|index| of_kubevirt.iter().all(|kind| is_absent(index, *kind))).await;
    bench.until(|index| is_current(index, Kind::PersistentVolume) && is_current(index, Kind::Claim)).await;
    assert_eq!(bench.observer.index().vm(&volume()), Answer::Absent);

    bench.server.scene(|scene| scene.refused.clear());
    bench.until(|index| index.vmi_observation(&volume()) == VmiObservation::Migrating).await;

    bench.server.scene(|scene| scene.refused.insert("/kubevirt.io/".to_owned(), 404));
    bench.server.cut();
    bench.until(|index| is_broken(index, Kind::Vmi) && is_broken(index, Kind::Vmim)).await;
    // Also after the listing itself was denied.
    let lists = bench.server.lists("/virtualmachineinstances");
    bench.server.until(|scene| scene.lists("/virtualmachineinstances") > lists + 1).await;
    assert!(matches!(bench.observer.index().vm(&volume()), Answer::Unknown(_)));
}

#[tokio::test]
async fn a_kind_that_must_not_be_read_is_unknown_and_the_others_are_not() {
    let bench = Bench::of(&Cluster::recorded(), |server| {
        server.scene(|scene| scene.refused.insert("/pods".to_owned(), 403));
    })
    .await;
    bench.until(|index| is_broken(index, Kind::Pod) && is_current(index, Kind::Vmi)).await;
    bench.until(|index| index.vm(&volume()).known().is_some()).await;
    assert!(matches!(
        bench.observer.index().users(&volume()),
        Answer::Unknown(Why::Broken { kind: Kind::Pod, .. })
    ));
}

#[tokio::test]
async fn an_object_that_cannot_be_read_is_not_passed_over() {
    let bench = Bench::ready().await;
    let base = Cluster::recorded();
    let odd =
        base.clone().set("VirtualMachineInstanceMigration", "web-migration-2", "/spec/vmiName", json!(7));
    bench.server.put(odd.find("VirtualMachineInstanceMigration", "web-migration-2"));
    bench.until(|index| is_broken(index, Kind::Vmim)).await;
    // What comes after it does not make the rest whole.
    bench.server.put(base.find("VirtualMachineInstanceMigration", "web-migration-1"));
    let lists = bench.server.lists("/virtualmachineinstancemigrations");
    bench.server.until(|scene| scene.lists("/virtualmachineinstancemigrations") > lists + 1).await;
    assert!(is_broken(&bench.observer.index(), Kind::Vmim));
    bench.server.put(base.find("VirtualMachineInstanceMigration", "web-migration-2"));
    bench.until(|index| is_current(index, Kind::Vmim)).await;
}

#[tokio::test]
async fn a_refresh_sees_what_a_dead_watch_did_not() {
    let bench = Bench::ready().await;
    bench.server.scene(|scene| scene.mute = Some("/kubevirt.io/".to_owned()));
    let ended = Cluster::recorded()
        .phase("web-migration-2", "Succeeded")
        .state(SECOND, "worker-a", "worker-b", "completed")
        .runs_on("worker-b");
    bench.server.put(ended.find("VirtualMachineInstanceMigration", "web-migration-2"));
    bench.server.put(ended.find("VirtualMachineInstance", "web"));
    let deadline = Instant::now();
    let ask = |index: &Index| index.migration(&volume(), &node("worker-a"), &node("worker-b"), deadline);
    // An old "unfinished" only has somebody wait.
    let running = MigrationSeen::Running { uid: SECOND.to_owned() };
    assert_eq!(ask(&bench.observer.index()), Answer::Known(running));
    assert_eq!(bench.observer.index().vmi_observation(&volume()), VmiObservation::Migrating, "as it was");
    bench.observer.refresh();
    let expect =
        MigrationSeen::Ended { completed: true, lost: node("worker-a"), uid: Some(SECOND.to_owned()) };
    bench.until(|index| ask(index) == Answer::Known(expect.clone())).await;
    assert_eq!(bench.server.lists("/pods"), 1, "the large kinds are not listed for that");
}

#[tokio::test]
async fn watching_ends_when_stopped() {
    let bench = Bench::ready().await;
    bench.stop.cancel();
    bench.server.until(|scene| scene.watching == 0).await;
}

#[tokio::test]
async fn a_simulated_cluster_shows_what_it_is_told() {
    let (observer, kubernetes) = Observer::simulated(Index::new());
    let mut changes = observer.changes();
    assert!(matches!(observer.index().node(&node("worker-a")), Answer::Unknown(Why::NotListed(_))));
    kubernetes.show(Cluster::recorded().index(Instant::now()));
    tokio::time::timeout(DEADLINE, changes.changed()).await.unwrap().unwrap();
    assert!(observer.index().node(&node("worker-a")).known().is_some());
    assert_eq!(Observer::none().index().node(&node("worker-a")), Answer::Unknown(Why::NoKubernetes));
}
