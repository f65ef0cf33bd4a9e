//! The look and the removals over an appliance in memory, with an injected clock and witnesses who say what they are told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backend::{Backend, Disk, Memory, MemoryAppliance};
use state_machine::{AppliancePath, VolumeId};

use super::judge::{Connection, PersistentVolume, Verdict};
use super::pass::{Claims, Cleaned, Found, Reconciler, Witnesses};
use crate::config::OrphansConfig;

const OURS: &str = "/pool/ours";
const SHARED: &str = "/pool/shared";

/// What the witnesses say; changed while the story goes on.
#[derive(Debug, Default)]
struct Said {
    in_ledger: BTreeSet<VolumeId>,
    made_once: BTreeSet<VolumeId>,
    connected: BTreeMap<VolumeId, Connection>,
    persistent_volumes: BTreeMap<VolumeId, PersistentVolume>,
    /// Becomes known to the ledger when the claims of it are asked for so many times more.
    becomes_known_after: Option<(VolumeId, u32)>,
}

#[derive(Clone, Default)]
struct Told(Arc<Mutex<Said>>);

impl Told {
    fn now<T>(&self, change: impl FnOnce(&mut Said) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }
}

impl Witnesses for Told {
    fn claims(&self, volume: &VolumeId) -> Claims {
        self.now(|said| {
            match &mut said.becomes_known_after {
                Some((id, 0)) if id == volume => {
                    said.in_ledger.insert(volume.clone());
                }
                Some((id, left)) if id == volume => *left -= 1,
                Some(_) | None => {}
            }
            Claims {
                in_ledger: said.in_ledger.contains(volume),
                made_once: said.made_once.contains(volume),
                persistent_volume: said
                    .persistent_volumes
                    .get(volume)
                    .cloned()
                    .unwrap_or(PersistentVolume::Absent),
            }
        })
    }

    fn connection(&self, volume: &VolumeId) -> Connection {
        self.now(|said| said.connected.get(volume).cloned().unwrap_or(Connection::Nowhere))
    }

    fn directories(&self) -> BTreeSet<AppliancePath> {
        BTreeSet::from([path(SHARED)])
    }

    fn volumes(&self) -> usize {
        self.now(|said| said.in_ledger.len())
    }
}

fn path(text: &str) -> AppliancePath {
    AppliancePath::parse(text).unwrap()
}

fn id(name: &str) -> VolumeId {
    VolumeId::parse(name).unwrap()
}

fn disk(name: &str, directory: &str) -> Disk {
    Disk {
        volume: id(name),
        file_path: format!("{directory}/{name}.img"),
        size_bytes: 4096,
        exported: true,
        nqn: None,
        nvme_port: Some(4420),
        mounted_by_appliance: false,
    }
}

/// An appliance, its leader, and a reconciler that removes under `OURS` after 100 s.
struct Story {
    appliance: MemoryAppliance,
    leader: Memory,
    told: Told,
    reconciler: Reconciler<Told>,
}

impl Story {
    /// The ledger has as many volumes as are planted here in its own directory.
    async fn begin(change: impl FnOnce(&mut OrphansConfig)) -> Self {
        let appliance = MemoryAppliance::new(1 << 40);
        let leader = appliance.connect();
        leader.begin_term(1).await.unwrap();
        let mut settings = OrphansConfig {
            enabled: true,
            dry_run: false,
            grace_seconds: 100,
            exclusive_volume_paths: vec![path(OURS)],
            ..OrphansConfig::default()
        };
        change(&mut settings);
        let told = Told::default();
        for number in 0..8 {
            let name = format!("pvc-live-{number}");
            appliance.plant(disk(&name, OURS));
            told.now(|said| said.in_ledger.insert(id(&name)));
        }
        Self { appliance, leader, reconciler: Reconciler::new(settings, told.clone()), told }
    }

    async fn look(&mut self, at_seconds: u64) -> Vec<Found> {
        self.reconciler.look(&self.leader, Duration::from_secs(at_seconds)).await.unwrap()
    }

    /// A look and its removals: the names of what is gone.
    async fn pass(&mut self, at_seconds: u64) -> Vec<String> {
        let found = self.look(at_seconds).await;
        let cleaned = self.reconciler.clean(&self.leader, &found).await;
        let removed = cleaned.into_iter().filter(|(_, _, outcome)| matches!(outcome, Cleaned::Removed));
        removed.map(|(thing, _, _)| thing.volume.to_string()).collect()
    }

    async fn names(&self) -> Vec<String> {
        let disks = self.leader.list().await.unwrap();
        let orphans = disks.iter().filter(|disk| !disk.volume.as_str().starts_with("pvc-live"));
        let files = self.leader.lone_files(&path(OURS)).await.unwrap();
        orphans.map(|disk| disk.volume.to_string()).chain(files.iter().map(ToString::to_string)).collect()
    }
}

#[tokio::test]
async fn orphans_are_found_aged_and_removed_and_nothing_else() {
    let mut story = Story::begin(|_| ()).await;
    story.appliance.plant(disk("pvc-lost", OURS));
    story.appliance.plant(disk("pvc-theirs", SHARED));
    story.appliance.plant(disk("pvc-given-up", SHARED));
    story.appliance.plant(disk("pvc-bound", OURS));
    story.appliance.plant_file("/pool/ours/pvc-left.img");
    story.appliance.plant_file("/pool/ours/snap-1.img");
    story.told.now(|said| {
        said.made_once.insert(id("pvc-given-up"));
        said.persistent_volumes.insert(id("pvc-bound"), PersistentVolume::There);
    });
    let names: Vec<_> = story.look(0).await.iter().map(|found| found.thing.volume.to_string()).collect();
    assert_eq!(names, ["pvc-given-up", "pvc-left", "pvc-lost", "pvc-theirs"]);
    assert_eq!(story.pass(99).await, [""; 0]);
    assert_eq!(story.pass(100).await, ["pvc-given-up", "pvc-left", "pvc-lost"]);
    assert_eq!(story.names().await, ["pvc-bound", "pvc-theirs"]);
    assert_eq!(story.pass(10_000).await, [""; 0], "another installation's volume stays");
}

#[tokio::test]
async fn what_is_under_another_path_of_the_same_beginning_is_not_exclusive() {
    let mut story = Story::begin(|_| ()).await;
    story.appliance.plant(disk("pvc-beside", "/pool/ours-too"));
    story.look(0).await;
    assert_eq!(story.pass(1_000).await, [""; 0]);
}

#[tokio::test]
async fn a_dry_run_and_a_reconciler_that_is_off_touch_nothing() {
    let changes: [fn(&mut OrphansConfig); 2] = [|s| s.dry_run = true, |s| s.enabled = false];
    for (change, would_be) in changes.into_iter().zip([1, 0]) {
        let mut story = Story::begin(change).await;
        story.appliance.plant(disk("pvc-lost", OURS));
        story.look(0).await;
        let found = story.look(100).await;
        assert!(found[0].verdict.is_removable(), "it is shown all the same");
        let cleaned = story.reconciler.clean(&story.leader, &found).await;
        assert_eq!(cleaned.len(), would_be);
        assert!(cleaned.iter().all(|(_, _, outcome)| matches!(outcome, Cleaned::WouldBe)), "{cleaned:?}");
        assert_eq!(story.names().await, ["pvc-lost"]);
    }
}

#[tokio::test]
async fn a_failed_look_neither_ages_nor_rejuvenates_and_a_gap_begins_anew() {
    let mut story = Story::begin(|_| ()).await;
    story.appliance.plant(disk("pvc-lost", OURS));
    story.look(0).await;
    story.appliance.set_reachable(false);
    assert!(story.reconciler.look(&story.leader, Duration::from_secs(200)).await.is_err());
    story.appliance.set_reachable(true);
    assert_eq!(story.look(201).await[0].seen_for, Duration::from_secs(201));

    story.told.now(|said| said.in_ledger.insert(id("pvc-lost")));
    story.look(300).await;
    story.told.now(|said| said.in_ledger.remove(&id("pvc-lost")));
    assert_eq!(story.look(400).await[0].seen_for, Duration::ZERO, "it was somebody's meanwhile");
    story.reconciler.forget();
    assert_eq!(story.look(900).await[0].seen_for, Duration::ZERO, "another office");
}

#[tokio::test]
async fn what_becomes_known_in_between_is_spared() {
    let mut story = Story::begin(|_| ()).await;
    story.appliance.plant(disk("pvc-lost", OURS));
    story.look(0).await;
    // Not in the look; in the question after the number of the removal was drawn.
    story.told.now(|said| said.becomes_known_after = Some((id("pvc-lost"), 1)));
    assert_eq!(story.pass(100).await, [""; 0]);
    assert_eq!(story.names().await, ["pvc-lost"]);
}

#[tokio::test]
async fn what_is_connected_or_may_be_stays() {
    let mut story = Story::begin(|_| ()).await;
    for name in ["pvc-on", "pvc-perhaps"] {
        story.appliance.plant(disk(name, OURS));
    }
    story.told.now(|said| {
        said.connected.insert(id("pvc-on"), Connection::On { nodes: "a".to_owned() });
        said.connected.insert(id("pvc-perhaps"), Connection::Unknown { why: "silent".to_owned() });
    });
    story.look(0).await;
    assert_eq!(story.pass(1_000).await, [""; 0]);
    story.told.now(|said| said.connected.clear());
    assert_eq!(story.pass(1_001).await, ["pvc-on", "pvc-perhaps"]);
}

#[tokio::test]
async fn the_oldest_go_first_and_no_more_than_the_bound_a_pass() {
    let mut story = Story::begin(|settings| settings.max_per_pass = 2).await;
    for (name, at) in [("pvc-c", 0), ("pvc-a", 10), ("pvc-b", 20)] {
        story.appliance.plant(disk(name, OURS));
        story.look(at).await;
    }
    assert_eq!(story.pass(500).await, ["pvc-c", "pvc-a"]);
    assert_eq!(story.pass(501).await, ["pvc-b"]);
}

#[tokio::test]
async fn a_ledger_that_was_lost_is_not_finished_off() {
    let mut story = Story::begin(|_| ()).await;
    story.told.now(|said| said.in_ledger.clear());
    story.look(0).await;
    let found = story.look(1_000).await;
    assert_eq!(found.len(), 8);
    for found in &found {
        let Verdict::Kept { why } = &found.verdict else { panic!("{found:?}") };
        assert!(why.contains("loss of a ledger"), "{why}");
    }
    assert_eq!(story.pass(2_000).await, [""; 0]);
}

#[tokio::test]
async fn a_later_leader_ends_the_pass() {
    let mut story = Story::begin(|_| ()).await;
    for name in ["pvc-a", "pvc-b"] {
        story.appliance.plant(disk(name, OURS));
    }
    story.look(0).await;
    let found = story.look(100).await;
    story.appliance.connect().begin_term(2).await.unwrap();
    let cleaned = story.reconciler.clean(&story.leader, &found).await;
    assert_eq!(cleaned.len(), 1, "{cleaned:?}");
    assert_eq!(story.names().await, ["pvc-a", "pvc-b"]);
}
