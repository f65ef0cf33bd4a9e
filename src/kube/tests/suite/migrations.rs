//! VMs, their migrations, and how long those may take.

use std::time::{Duration, Instant};

use observer::{Answer, Health, Index, Kind, MigrationSeen, Why};
use serde_json::json;
use state_machine::VmiObservation;

use crate::cluster::{Cluster, FIRST, SECOND, node, volume};

const VMI: &str = "VirtualMachineInstance";
const VMIM: &str = "VirtualMachineInstanceMigration";

/// What a row expects.
#[derive(Debug, PartialEq, Eq)]
enum Expect {
    Running(&'static str),
    /// The VM is on the target; with the UID that the VMI names.
    Completed(Option<&'static str>),
    /// The VM stayed on the source.
    Failed(Option<&'static str>),
    Absent,
    /// Unclear, for a reason with these words.
    Unclear(&'static str),
}

fn migration(index: &Index) -> Answer<MigrationSeen> {
    let long_ago = Instant::now() - Duration::from_secs(60);
    index.migration(&volume(), &node("worker-a"), &node("worker-b"), long_ago)
}

fn check(name: &str, cluster: &Cluster, expect: &Expect) {
    let answer = migration(&cluster.index(Instant::now()));
    let is_so = match (&answer, expect) {
        (Answer::Known(MigrationSeen::Running { uid }), Expect::Running(expect)) => uid == expect,
        (Answer::Known(MigrationSeen::Ended { completed: true, lost, uid }), Expect::Completed(expect)) => {
            *lost == node("worker-a") && uid.as_deref() == *expect
        }
        (Answer::Known(MigrationSeen::Ended { completed: false, lost, uid }), Expect::Failed(expect)) => {
            *lost == node("worker-b") && uid.as_deref() == *expect
        }
        (Answer::Absent, Expect::Absent) => true,
        (Answer::Unknown(Why::Unclear(text)), Expect::Unclear(words)) => text.contains(words),
        _ => false,
    };
    assert!(is_so, "{name}: {answer:?}, not {expect:?}");
}

#[test]
fn a_migration_runs_as_long_as_any_of_the_vmi_is_unfinished() {
    let base = Cluster::recorded();
    for phase in
        ["", "Pending", "Scheduling", "Scheduled", "PreparingTarget", "TargetReady", "Running", "New"]
    {
        check(phase, &base.clone().phase("web-migration-2", phase), &Expect::Running(SECOND));
    }
    let fresh = base.clone().set(VMIM, "web-migration-2", "/status", json!({}));
    check("no phase yet", &fresh, &Expect::Running(SECOND));
    // The trap: until the hand-off the VMI still tells of the first one, which failed between the same nodes.
    let previous = base.state(FIRST, "worker-a", "worker-b", "failed");
    check("migrationState is the previous one", &previous, &Expect::Running(SECOND));
    let handed_off = previous.state(SECOND, "worker-a", "worker-b", "completed").runs_on("worker-b");
    check("not final yet", &handed_off, &Expect::Running(SECOND));
}

#[test]
fn a_migration_ended_as_both_objects_say() {
    let base = Cluster::recorded();
    let succeeded = base.clone().phase("web-migration-2", "Succeeded");
    let failed = base.clone().phase("web-migration-2", "Failed");
    let (a, b, c) = ("worker-a", "worker-b", "worker-c");
    let rows = [
        (
            "completed",
            succeeded.clone().state(SECOND, a, b, "completed").runs_on(b),
            Expect::Completed(Some(SECOND)),
        ),
        ("failed", failed.clone().state(SECOND, a, b, "failed"), Expect::Failed(Some(SECOND))),
        ("failed before the hand-off, the first in the VMI's life", failed.clone(), Expect::Failed(None)),
        (
            "failed before the hand-off, after one from elsewhere",
            failed.clone().state(FIRST, c, a, "completed"),
            Expect::Failed(None),
        ),
        (
            "succeeded, and the VMI still tells of the one before",
            succeeded.clone().state(FIRST, a, b, "failed"),
            Expect::Unclear("does not tell yet"),
        ),
        ("succeeded, and the VMI tells of none", succeeded.clone(), Expect::Unclear("does not tell yet")),
        (
            "succeeded, and the VMI says failed",
            succeeded.clone().state(SECOND, a, b, "failed"),
            Expect::Unclear("does not tell yet"),
        ),
        (
            "failed, and the VMI says completed",
            failed.clone().state(SECOND, a, b, "completed").runs_on(b),
            Expect::Unclear("does not tell yet"),
        ),
        (
            "the object is gone, and the VMI says that it runs",
            base.clone().without(VMIM, "web-migration-2").state(SECOND, a, b, "running"),
            Expect::Unclear("has not ended"),
        ),
        (
            "completed, and the VM is on the source",
            succeeded.clone().state(SECOND, a, b, "completed"),
            Expect::Unclear("says otherwise"),
        ),
        (
            "the VM is on neither",
            succeeded.clone().state(SECOND, a, c, "completed").runs_on(c),
            Expect::Unclear("neither"),
        ),
        (
            "the VM does not run",
            failed.clone().set(VMI, "web", "/status/phase", json!("Scheduling")),
            Expect::Unclear("does not run"),
        ),
        (
            "the VM is over",
            failed.clone().set(VMI, "web", "/status/phase", json!("Failed")),
            Expect::Unclear("does not run"),
        ),
        (
            "the VM was restarted on the target",
            succeeded
                .clone()
                .set(VMI, "web", "/metadata/creationTimestamp", json!("2026-11-20T10:00:00Z"))
                .runs_on(b),
            Expect::Completed(None),
        ),
        ("no VM", failed.clone().without(VMI, "web"), Expect::Absent),
    ];
    for (name, cluster, expect) in rows {
        check(name, &cluster, &expect);
    }
}

#[test]
fn evidence_older_than_asked_for_is_none() {
    let listed = Instant::now();
    let deadline = listed + Duration::from_millis(1);
    let ended = Cluster::recorded()
        .phase("web-migration-2", "Succeeded")
        .state(SECOND, "worker-a", "worker-b", "completed")
        .runs_on("worker-b");
    let mut index = ended.index(listed);
    let ask = |index: &Index| index.migration(&volume(), &node("worker-a"), &node("worker-b"), deadline);
    assert_eq!(ask(&index), Answer::Unknown(Why::TooOld(Kind::Vmi)));
    index.set_health(Kind::Vmi, Health::Current { as_of: deadline });
    assert_eq!(ask(&index), Answer::Unknown(Why::TooOld(Kind::Vmim)));
    index.set_health(Kind::Vmim, Health::Current { as_of: deadline });
    assert!(matches!(ask(&index), Answer::Known(MigrationSeen::Ended { completed: true, .. })));
    // That there is no VM is evidence too.
    let none = ended.without(VMI, "web").index(listed);
    assert_eq!(ask(&none), Answer::Unknown(Why::TooOld(Kind::Vmi)));
}

#[test]
fn without_kubevirt_there_is_no_vm_and_without_its_migrations_nothing_is_known_of_them() {
    let now = Instant::now();
    let mut index = Cluster::recorded().index(now);
    index.set_health(Kind::Vmim, Health::NotInstalled { as_of: now });
    assert_eq!(migration(&index), Answer::Unknown(Why::NotInstalled(Kind::Vmim)));
    assert_eq!(index.vmi_observation(&volume()), VmiObservation::Unknown);
    index.set_health(Kind::Vmi, Health::NotInstalled { as_of: now });
    assert_eq!(index.vm(&volume()), Answer::Absent);
    assert_eq!(migration(&index), Answer::Absent);
    assert_eq!(index.vmi_observation(&volume()), VmiObservation::Unknown);
}

#[test]
fn a_publish_is_told_whether_the_vm_migrates() {
    let base = Cluster::recorded();
    let observed = |cluster: &Cluster| cluster.index(Instant::now()).vmi_observation(&volume());
    assert_eq!(observed(&base), VmiObservation::Migrating);
    assert_eq!(observed(&base.clone().phase("web-migration-2", "Pending")), VmiObservation::Migrating);
    let restarted = base.clone().phase("web-migration-2", "Succeeded");
    assert_eq!(observed(&restarted), VmiObservation::NotMigrating);
    let of_another = base.clone().set(VMIM, "web-migration-2", "/spec/vmiName", json!("mail"));
    assert_eq!(observed(&of_another), VmiObservation::NotMigrating, "another VM's migration");
    let elsewhere = base.clone().set(VMIM, "web-migration-2", "/metadata/namespace", json!("other"));
    assert_eq!(observed(&elsewhere), VmiObservation::NotMigrating, "another namespace's migration");
    let made_anew =
        base.clone().set(VMI, "web", "/metadata/creationTimestamp", json!("2026-11-20T10:00:00Z"));
    assert_eq!(observed(&made_anew), VmiObservation::NotMigrating, "the migration of one that is gone");
    assert_eq!(observed(&base.clone().without(VMI, "web")), VmiObservation::Unknown);
    let mut broken = base.index(Instant::now());
    broken.set_health(Kind::Vmim, Health::Broken { since: Instant::now(), reason: "503".to_owned() });
    assert_eq!(broken.vmi_observation(&volume()), VmiObservation::Unknown);
}

#[test]
fn the_vm_of_a_volume_is_found_however_it_names_the_claim() {
    let base = Cluster::recorded().set(VMI, "web", "/status/volumeStatus", json!([]));
    let vm = |cluster: &Cluster| cluster.index(Instant::now()).vm(&volume());
    let volumes = [
        json!([{"name": "d", "persistentVolumeClaim": {"claimName": "web-disk"}}]),
        json!([{"name": "d", "persistentVolumeClaim": {"claimName": "web-disk", "hotpluggable": true}}]),
        json!([{"name": "d", "dataVolume": {"name": "web-disk", "hotpluggable": true}}]),
        json!([{"name": "d", "memoryDump": {"claimName": "web-disk"}}]),
        json!([{"name": "d", "ephemeral": {"persistentVolumeClaim": {"claimName": "web-disk"}}}]),
    ];
    for volumes in volumes {
        let seen = vm(&base.clone().set(VMI, "web", "/spec/volumes", volumes.clone())).known();
        assert!(seen.is_some_and(|vm| vm.name == "web" && vm.node == Some(node("worker-a"))), "{volumes}");
    }
    let none = base.set(VMI, "web", "/spec/volumes", json!([]));
    assert_eq!(vm(&none), Answer::Absent);
    let status = json!([{"name": "state", "persistentVolumeClaimInfo": {"claimName": "web-disk"}}]);
    assert!(vm(&none.set(VMI, "web", "/status/volumeStatus", status)).known().is_some());
}

#[test]
fn of_several_vms_the_one_that_is_not_over_counts() {
    let two = Cluster::recorded().copy(VMI, "web", "mail");
    let vm = |cluster: &Cluster| cluster.index(Instant::now()).vm(&volume());
    assert!(matches!(vm(&two), Answer::Unknown(Why::Unclear(_))));
    let one_over = two.set(VMI, "web", "/status/phase", json!("Succeeded"));
    assert_eq!(vm(&one_over).known().map(|vm| vm.name), Some("mail".to_owned()));
    let both_over = one_over.set(VMI, "mail", "/status/phase", json!("Failed"));
    assert!(matches!(vm(&both_over), Answer::Unknown(Why::Unclear(_))));
}

#[test]
fn the_completion_timeout_is_kubevirts() {
    let guest = |cluster: &Cluster, memory: &str| {
        cluster.clone().set(VMI, "web", "/spec/domain/memory", json!({"guest": memory}))
    };
    let seconds = |cluster: &Cluster| cluster.index(Instant::now()).completion_timeout_seconds(&volume());
    let plain = Cluster::recorded().without("KubeVirt", "kubevirt");
    // KUBEVIRT.md, "Timeouts": 7.5 min, 45 min, 2 h 52 min.
    for (memory, expect) in [("2Gi", 450), ("16Gi", 2_700), ("64Gi", 10_350)] {
        assert_eq!(seconds(&guest(&plain, memory)), Answer::Known(expect), "{memory}");
    }
    let requested = plain.clone().set(VMI, "web", "/spec/domain/memory", json!(null));
    assert_eq!(seconds(&requested), Answer::Known(750), "4Gi are requested");
    let nothing = requested.set(VMI, "web", "/spec/domain/resources", json!({}));
    assert!(matches!(seconds(&nothing), Answer::Unknown(Why::Unclear(_))));

    let of_cluster = Cluster::recorded();
    assert_eq!(seconds(&of_cluster), Answer::Known(3_600), "200 s a GiB");
    let migrations = json!({"completionTimeoutPerGiB": 200, "allowWorkloadDisruption": true});
    let disrupting = of_cluster.set("KubeVirt", "kubevirt", "/spec/configuration/migrations", migrations);
    assert_eq!(seconds(&disrupting), Answer::Known(7_200));
    let policy = json!({"completionTimeoutPerGiB": 100, "allowWorkloadDisruption": false});
    let of_vmi = disrupting.state(FIRST, "worker-a", "worker-b", "failed").set(
        VMI,
        "web",
        "/status/migrationState/migrationConfiguration",
        policy,
    );
    assert_eq!(seconds(&of_vmi), Answer::Known(1_800), "what the VMI got goes before");
    assert_eq!(seconds(&plain.without(VMI, "web")), Answer::Absent);
}
