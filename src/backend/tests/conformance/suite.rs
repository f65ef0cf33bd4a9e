//! What every backend does, whatever the appliance.

use backend::{Backend, BackendError, Disk, Presence};
use state_machine::Nqn;

use super::support::{GIB, directory, disk_of, spec, volume};
use super::{Fixture, POOL_BYTES};

async fn leader<F: Fixture>(fixture: &F, term: u64) -> F::Backend {
    let leader = fixture.connect();
    leader.begin_term(term).await.unwrap();
    leader
}

#[track_caller]
fn assert_conflict(outcome: Result<(), BackendError>) {
    assert!(matches!(outcome, Err(BackendError::Conflict { .. })), "{outcome:?}");
}

pub(super) async fn makes_a_disk_exactly(fixture: &impl Fixture) {
    let leader = leader(fixture, 1).await;
    let spec = spec("pvc-1", 50 * GIB);
    assert_eq!(leader.look(&spec.volume, &directory()).await.unwrap(), Presence::Absent);
    leader.create(&spec).await.unwrap();
    assert_eq!(leader.look(&spec.volume, &directory()).await.unwrap(), Presence::Disk(disk_of(&spec)));
}

pub(super) async fn sizes_are_exact(fixture: &impl Fixture) {
    let leader = leader(fixture, 1).await;
    let sizes = [4096, 53_687_091_200, 3 << 39, 1_000_001_536, (1 << 40) + 4096];
    for (index, size_bytes) in sizes.into_iter().enumerate() {
        let spec = spec(&format!("pvc-{index}"), size_bytes);
        leader.create(&spec).await.unwrap();
        let Presence::Disk(disk) = leader.look(&spec.volume, &directory()).await.unwrap() else {
            panic!("gone")
        };
        assert_eq!(disk.size_bytes, size_bytes);
    }
}

pub(super) async fn create_twice_is_once(fixture: &impl Fixture) {
    let leader = leader(fixture, 1).await;
    let spec = spec("pvc-1", GIB);
    leader.create(&spec).await.unwrap();
    leader.create(&spec).await.unwrap();
    assert_eq!(leader.list().await.unwrap(), [disk_of(&spec)]);
}

pub(super) async fn finishes_a_disk_without_its_export(fixture: &impl Fixture) {
    let spec = spec("pvc-1", GIB);
    fixture.plant(Disk { exported: false, nqn: None, nvme_port: None, ..disk_of(&spec) });
    let leader = leader(fixture, 1).await;
    leader.create(&spec).await.unwrap();
    assert_eq!(leader.list().await.unwrap(), [disk_of(&spec)]);
}

pub(super) async fn takes_a_disk_from_the_appliances_hands(fixture: &impl Fixture) {
    let spec = spec("pvc-1", GIB);
    fixture.plant(Disk { mounted_by_appliance: true, ..disk_of(&spec) });
    let leader = leader(fixture, 1).await;
    assert!(leader.list().await.unwrap()[0].mounted_by_appliance);
    leader.create(&spec).await.unwrap();
    assert_eq!(leader.list().await.unwrap(), [disk_of(&spec)]);
}

pub(super) async fn exports_what_is_there_and_never_makes_it(fixture: &impl Fixture) {
    let leader = leader(fixture, 1).await;
    let (missing, file_only) = (spec("pvc-1", GIB), spec("pvc-2", GIB));
    let (unexported, larger, smaller) = (spec("pvc-3", GIB), spec("pvc-4", GIB), spec("pvc-5", 2 * GIB));
    fixture.plant_file(&file_only.file_path(), GIB);
    fixture.plant(Disk { exported: false, nqn: None, nvme_port: None, ..disk_of(&unexported) });
    fixture.plant(Disk { size_bytes: 2 * GIB, mounted_by_appliance: true, ..disk_of(&larger) });
    fixture.plant(Disk { size_bytes: GIB, exported: false, ..disk_of(&smaller) });
    for refused in [&missing, &file_only, &smaller] {
        assert_conflict(leader.export(refused).await);
    }
    leader.export(&unexported).await.unwrap();
    leader.export(&larger).await.unwrap();
    leader.export(&larger).await.unwrap();
    let larger = Disk { size_bytes: 2 * GIB, ..disk_of(&larger) };
    let untouched = Disk { size_bytes: GIB, exported: false, ..disk_of(&smaller) };
    let disks = leader.list().await.unwrap();
    assert_eq!(disks[..2], [disk_of(&unexported), larger]);
    assert_eq!((disks[2].size_bytes, disks[2].exported), (untouched.size_bytes, false));
    assert_eq!(disks.len(), 3);
}

/// A process that leads in terms 1 and 3 while another led in 2: what is left of its first term is refused, although
/// the process has a term that is high enough.
pub(super) async fn an_earlier_terms_instance_changes_nothing(fixture: &impl Fixture) {
    let (first, other) = (leader(fixture, 1).await, leader(fixture, 2).await);
    let third = first.for_another_term();
    third.begin_term(3).await.unwrap();
    let spec = spec("pvc-1", GIB);
    third.create(&spec).await.unwrap();
    for late in
        [first.remove(&spec.volume, &directory()).await, other.remove(&spec.volume, &directory()).await]
    {
        assert!(matches!(late, Err(BackendError::StaleTerm { highest: 3 })), "{late:?}");
    }
    assert_eq!(third.list().await.unwrap(), [disk_of(&spec)]);
}

pub(super) async fn never_touches_what_differs(fixture: &impl Fixture) {
    let leader = leader(fixture, 1).await;
    let wanted = |index: usize| spec(&format!("pvc-{index}"), GIB);
    let other_nqn = Nqn::parse("nqn.2020-01.org.example:other").unwrap();
    let others = [
        Disk { file_path: "/storage-pool/elsewhere.img".to_owned(), ..disk_of(&wanted(0)) },
        Disk { size_bytes: 2 * GIB, ..disk_of(&wanted(1)) },
        Disk { size_bytes: GIB / 2, ..disk_of(&wanted(2)) },
        Disk { nqn: Some(other_nqn), ..disk_of(&wanted(3)) },
        Disk { nvme_port: Some(9), ..disk_of(&wanted(4)) },
        Disk { size_bytes: 2 * GIB, exported: false, ..disk_of(&wanted(5)) },
    ];
    for (index, other) in others.into_iter().enumerate() {
        fixture.plant(other.clone());
        assert_conflict(leader.create(&wanted(index)).await);
        let volume = wanted(index).volume;
        assert_eq!(leader.look(&volume, &directory()).await.unwrap(), Presence::Disk(other), "{index}");
    }
}

pub(super) async fn never_takes_over_a_file(fixture: &impl Fixture) {
    let leader = leader(fixture, 1).await;
    let spec = spec("pvc-1", GIB);
    fixture.plant_file(&spec.file_path(), GIB);
    assert_conflict(leader.create(&spec).await);
    assert_eq!(leader.look(&spec.volume, &directory()).await.unwrap(), Presence::FileOnly);
}

pub(super) async fn grows_and_never_shrinks(fixture: &impl Fixture) {
    let leader = leader(fixture, 1).await;
    assert_conflict(leader.resize(&spec("pvc-1", GIB)).await);
    leader.create(&spec("pvc-1", GIB)).await.unwrap();
    let grown = spec("pvc-1", 3 * GIB / 2 + 4096);
    leader.resize(&grown).await.unwrap();
    leader.resize(&grown).await.unwrap();
    assert_eq!(leader.list().await.unwrap(), [disk_of(&grown)]);
    assert_conflict(leader.resize(&spec("pvc-1", GIB)).await);
    let mut other_path = spec("pvc-1", 2 * GIB);
    other_path.directory = state_machine::AppliancePath::parse("/storage-pool/other").unwrap();
    assert_conflict(leader.resize(&other_path).await);
    assert_eq!(leader.list().await.unwrap(), [disk_of(&grown)]);
}

pub(super) async fn removes_disk_and_file(fixture: &impl Fixture) {
    let leader = leader(fixture, 1).await;
    let (one, two) = (spec("pvc-1", GIB), spec("pvc-2", GIB));
    leader.create(&one).await.unwrap();
    leader.create(&two).await.unwrap();
    leader.remove(&one.volume, &directory()).await.unwrap();
    leader.remove(&one.volume, &directory()).await.unwrap();
    assert_eq!(leader.look(&one.volume, &directory()).await.unwrap(), Presence::Absent);
    assert_eq!(leader.list().await.unwrap(), [disk_of(&two)]);
    leader.create(&one).await.unwrap();
    assert_eq!(leader.look(&one.volume, &directory()).await.unwrap(), Presence::Disk(disk_of(&one)));
}

pub(super) async fn removes_a_file_that_was_left(fixture: &impl Fixture) {
    let leader = leader(fixture, 1).await;
    let spec = spec("pvc-1", GIB);
    fixture.plant_file(&spec.file_path(), GIB);
    leader.remove(&spec.volume, &directory()).await.unwrap();
    assert_eq!(leader.look(&spec.volume, &directory()).await.unwrap(), Presence::Absent);
}

pub(super) async fn never_removes_another_file(fixture: &impl Fixture) {
    let leader = leader(fixture, 1).await;
    let spec = spec("pvc-1", GIB);
    let other = Disk { file_path: "/storage-pool/precious.img".to_owned(), ..disk_of(&spec) };
    fixture.plant(other.clone());
    assert_conflict(leader.remove(&spec.volume, &directory()).await);
    assert_eq!(leader.look(&spec.volume, &directory()).await.unwrap(), Presence::Disk(other));
}

pub(super) async fn removes_only_while_unneeded(fixture: &impl Fixture) {
    let leader = leader(fixture, 1).await;
    let spec = spec("pvc-1", GIB);
    leader.create(&spec).await.unwrap();
    assert_conflict(leader.remove_unneeded(&spec.volume, &directory(), &|| false).await);
    assert_eq!(leader.list().await.unwrap(), [disk_of(&spec)]);
    leader.remove_unneeded(&spec.volume, &directory(), &|| true).await.unwrap();
    assert_eq!(leader.look(&spec.volume, &directory()).await.unwrap(), Presence::Absent);
}

/// The appliance may print and keep a path with and without its leading slash.
pub(super) async fn never_removes_the_file_of_another_slot(fixture: &impl Fixture) {
    let leader = leader(fixture, 1).await;
    for (name, path) in [("pvc-1", "/storage-pool/csi/pvc-1.img"), ("pvc-2", "storage-pool/csi/pvc-2.img")] {
        let theirs = disk_of(&spec(&format!("vm-{name}"), GIB));
        fixture.plant(Disk { file_path: path.to_owned(), ..theirs });
        fixture.plant_file(&spec(name, GIB).file_path(), GIB);
        assert!(leader.remove(&volume(name), &directory()).await.is_err(), "{name} is used");
        assert_eq!(leader.look(&volume(name), &directory()).await.unwrap(), Presence::FileOnly, "{name}");
        assert_eq!(leader.lone_files(&directory()).await.unwrap(), [], "{name}");
    }
}

pub(super) async fn finds_files_without_a_disk(fixture: &impl Fixture) {
    let leader = leader(fixture, 1).await;
    leader.create(&spec("pvc-1", GIB)).await.unwrap();
    for path in [
        "/storage-pool/csi/pvc-3.img",
        "/storage-pool/csi/pvc-2.img",
        "/storage-pool/csi/snap-1.img",
        "/storage-pool/csi/pvc-4.iso",
        "/storage-pool/csi/deeper/pvc-5.img",
        "/storage-pool/csi-too/pvc-6.img",
        "/other/storage-pool/csi/pvc-7.img",
    ] {
        fixture.plant_file(path, GIB);
    }
    assert_eq!(leader.lone_files(&directory()).await.unwrap(), [volume("pvc-2"), volume("pvc-3")]);
    leader.remove_unneeded(&volume("pvc-2"), &directory(), &|| true).await.unwrap();
    assert_eq!(leader.lone_files(&directory()).await.unwrap(), [volume("pvc-3")]);
    assert_eq!(leader.list().await.unwrap(), [disk_of(&spec("pvc-1", GIB))]);
}

pub(super) async fn full_is_full(fixture: &impl Fixture) {
    let leader = leader(fixture, 1).await;
    assert_eq!(leader.create(&spec("pvc-1", POOL_BYTES + 4096)).await, Err(BackendError::Full));
    assert_eq!(leader.look(&volume("pvc-1"), &directory()).await.unwrap(), Presence::Absent);
    leader.create(&spec("pvc-2", GIB)).await.unwrap();
    assert_eq!(leader.resize(&spec("pvc-2", POOL_BYTES + 4096)).await, Err(BackendError::Full));
    assert_eq!(leader.list().await.unwrap(), [disk_of(&spec("pvc-2", GIB))]);
}

pub(super) async fn lists_ours_and_foreign(fixture: &impl Fixture) {
    let leader = leader(fixture, 1).await;
    let (ours, foreign) = (spec("pvc-1", GIB), spec("pvc-foreign", 2 * GIB));
    leader.create(&ours).await.unwrap();
    fixture.plant(disk_of(&foreign));
    fixture.plant(disk_of(&spec("vm-storage-001", GIB)));
    fixture.plant(disk_of(&spec("my-pvc-1", GIB)));
    assert_eq!(leader.list().await.unwrap(), [disk_of(&ours), disk_of(&foreign)]);
}

pub(super) async fn knows_its_capacity(fixture: &impl Fixture) {
    let leader = leader(fixture, 1).await;
    leader.create(&spec("pvc-1", GIB)).await.unwrap();
    let capacity = leader.capacity(&directory()).await.unwrap();
    assert_eq!(capacity.total_bytes, POOL_BYTES);
    assert_eq!(capacity.free_bytes, POOL_BYTES - GIB);
}

pub(super) async fn changes_nothing_before_a_term(fixture: &impl Fixture) {
    let nobody = fixture.connect();
    let spec = spec("pvc-1", GIB);
    for outcome in [nobody.create(&spec).await, nobody.remove(&spec.volume, &directory()).await] {
        assert!(matches!(outcome, Err(BackendError::Rejected { .. })), "{outcome:?}");
    }
    assert_eq!(nobody.look(&spec.volume, &directory()).await.unwrap(), Presence::Absent);
}

pub(super) async fn refuses_a_deposed_leader(fixture: &impl Fixture) {
    let old = leader(fixture, 7).await;
    old.create(&spec("pvc-1", GIB)).await.unwrap();
    let new = leader(fixture, 8).await;
    let stale = Err(BackendError::StaleTerm { highest: 8 });
    assert_eq!(old.create(&spec("pvc-2", GIB)).await, stale);
    assert_eq!(old.resize(&spec("pvc-1", 2 * GIB)).await, stale);
    assert_eq!(old.remove(&volume("pvc-1"), &directory()).await, stale);
    assert_eq!(old.begin_term(7).await, stale);
    assert_eq!(new.list().await.unwrap(), [disk_of(&spec("pvc-1", GIB))]);
    new.remove(&volume("pvc-1"), &directory()).await.unwrap();
}

pub(super) async fn a_term_begins_twice(fixture: &impl Fixture) {
    let leader = leader(fixture, 7).await;
    leader.create(&spec("pvc-1", GIB)).await.unwrap();
    leader.begin_term(7).await.unwrap();
    leader.create(&spec("pvc-2", GIB)).await.unwrap();
    assert_eq!(leader.list().await.unwrap().len(), 2);
}

pub(super) async fn many_calls_at_once(fixture: &impl Fixture) {
    let leader = leader(fixture, 1).await;
    let specs: Vec<_> = (0..6).map(|index| spec(&format!("pvc-{index}"), GIB)).collect();
    let (a, b, c, d, e, f) = tokio::join!(
        leader.create(&specs[0]),
        leader.create(&specs[1]),
        leader.create(&specs[2]),
        leader.create(&specs[3]),
        leader.create(&specs[4]),
        leader.create(&specs[5]),
    );
    for outcome in [a, b, c, d, e, f] {
        outcome.unwrap();
    }
    assert_eq!(leader.list().await.unwrap(), specs.iter().map(disk_of).collect::<Vec<_>>());
}

pub(super) async fn probes(fixture: &impl Fixture) {
    fixture.connect().probe().await.unwrap();
}
