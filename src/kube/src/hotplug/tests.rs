//! A test for every row of the guard's table and every boundary in it, and for the mutation.
//!
//! Each case changes one thing in facts that lead to row 13: a lone pod that exposes a volume in use.

mod hold;
mod mutation;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use state_machine::NodeId;

use super::*;
use crate::index::{Answer, Kind, NodeSeen, Why};

const NOW: SystemTime = SystemTime::UNIX_EPOCH;
const SETTINGS: Settings =
    Settings { strict: false, max_hold: Duration::from_secs(600), waiting_ready_limit: WAITING_READY_LIMIT };
const STRICT: Settings = Settings { strict: true, ..SETTINGS };

fn now() -> SystemTime {
    NOW + Duration::from_secs(100_000)
}

fn node(name: &str) -> NodeId {
    NodeId::parse(name).expect("a node's name")
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A running attachment pod on node `a`, ready, that lists and exposes `volumes`.
fn pod(name: &str, volumes: &[&str]) -> AttachmentPod {
    AttachmentPod {
        namespace: "vms".to_owned(),
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        created: None,
        terminating: false,
        phase: PodPhase::Running,
        node: Some(node("a")),
        is_trigger: false,
        containers_ready: true,
        volumes: volumes.iter().map(|volume| ((*volume).to_owned(), format!("{volume}-claim"))).collect(),
        exposes: set(volumes),
    }
}

fn claim(name: &str) -> Claim {
    Claim { uid: format!("uid-{name}"), bound: true, ours: true, block: false }
}

fn ready(pod: &str, target: &str) -> VolumeStatus {
    VolumeStatus {
        phase: VolumePhase::Ready,
        target: target.to_owned(),
        attach_pod_uid: Some(format!("uid-{pod}")),
        never_ready: false,
    }
}

/// A hold that began so many seconds ago, as the first of its row.
fn held(seconds_ago: u64) -> Held {
    let since = now() - Duration::from_secs(seconds_ago);
    Held { since, first: since }
}

const HOTPLUG: SpecVolume = SpecVolume { hotplug: true, never_ready: false };

/// Pod `old` is the only one that exposes `one` and `two`, which the running VM uses.
fn lone() -> Facts {
    let volumes = ["one", "two"];
    Facts {
        request: Request { deletes_attachment_pod: true, by_kubevirt: true, dry_run: false },
        pod: pod("old", &volumes),
        noted: None,
        remembered: None,
        namespace_terminating: Answer::Known(false),
        owner: Answer::Known(OwnerPod {
            terminating: false,
            phase: PodPhase::Running,
            vmi_uid: Some("uid-web".to_owned()),
        }),
        vmi: Answer::Known(Vmi {
            name: "web".to_owned(),
            uid: "uid-web".to_owned(),
            finished: false,
            deleting: false,
            node: Some(node("a")),
            spec_volumes: volumes.iter().map(|volume| ((*volume).to_owned(), HOTPLUG)).collect(),
            volume_status: volumes.iter().map(|volume| ((*volume).to_owned(), ready("old", "sda"))).collect(),
        }),
        migration_targets: Answer::Absent,
        node: Answer::Known(NodeSeen { uid: "uid-a".to_owned(), out_of_service: false, deleting: false }),
        siblings: Answer::Absent,
        claims: volumes
            .iter()
            .map(|volume| (format!("{volume}-claim"), Answer::Known(claim(volume))))
            .collect(),
    }
}

/// As [`lone`], and the pod `new` exposes both volumes, too.
fn covered() -> Facts {
    let mut facts = lone();
    facts.siblings = Answer::Known(vec![pod("new", &["one", "two"])]);
    facts
}

fn edit<T>(answer: &mut Answer<T>, change: impl FnOnce(&mut T)) {
    match answer {
        Answer::Known(value) => change(value),
        Answer::Absent | Answer::Unknown(_) => panic!("not known"),
    }
}

fn edit_vmi(facts: &mut Facts, change: impl FnOnce(&mut Vmi)) {
    edit(&mut facts.vmi, change);
}

fn edit_status(facts: &mut Facts, volume: &str, change: impl FnOnce(&mut VolumeStatus)) {
    edit_vmi(facts, |vmi| change(vmi.volume_status.get_mut(volume).expect("a status")));
}

fn edit_claim(facts: &mut Facts, volume: &str, change: impl FnOnce(&mut Claim)) {
    edit(facts.claims.get_mut(&format!("{volume}-claim")).expect("a claim"), change);
}

fn edit_sibling(facts: &mut Facts, change: impl FnOnce(&mut AttachmentPod)) {
    edit(&mut facts.siblings, |siblings| change(siblings.first_mut().expect("a sibling")));
}

fn not_known<T>() -> Answer<T> {
    Answer::Unknown(Why::NotListed(Kind::Pod))
}

fn gone_from_guest(status: &mut VolumeStatus) {
    status.phase = VolumePhase::Other;
    status.target.clear();
}

#[track_caller]
fn expect(reason: Reason, facts: &Facts, settings: &Settings) -> Verdict {
    let verdict = decide(facts, now(), settings);
    assert_eq!(verdict.reason, reason, "{}", verdict.message);
    let denies = matches!(reason, Reason::WaitingReady | Reason::LastHolder);
    assert_eq!(verdict.allowed, !denies, "{}", verdict.message);
    verdict
}

/// What becomes of `lone` when one thing in it is changed.
#[track_caller]
fn case(reason: Reason, change: impl FnOnce(&mut Facts)) {
    let mut facts = lone();
    change(&mut facts);
    expect(reason, &facts, &SETTINGS);
}

/// What becomes of `covered` when one thing in it is changed.
#[track_caller]
fn covered_case(reason: Reason, change: impl FnOnce(&mut Facts)) {
    let mut facts = covered();
    change(&mut facts);
    expect(reason, &facts, &SETTINGS);
}

#[test]
fn row_1_what_is_not_guarded() {
    case(Reason::NotGuarded, |facts| facts.request.deletes_attachment_pod = false);
    case(Reason::NotGuarded, |facts| facts.request.by_kubevirt = false);
    case(Reason::NotGuarded, |facts| {
        facts.request.by_kubevirt = false;
        facts.vmi = not_known();
    });
}

#[test]
fn row_2_a_pod_that_does_not_run_holds_nothing() {
    case(Reason::NotRunning, |facts| facts.pod.terminating = true);
    for phase in [PodPhase::Pending, PodPhase::Succeeded, PodPhase::Failed, PodPhase::Other] {
        case(Reason::NotRunning, |facts| facts.pod.phase = phase);
    }
    case(Reason::LastHolder, |facts| facts.pod.containers_ready = false);
}

#[test]
fn row_3_a_trigger_pod_may_go() {
    case(Reason::TriggerPod, |facts| facts.pod.is_trigger = true);
}

#[test]
fn row_4_a_terminating_namespace() {
    case(Reason::NamespaceGone, |facts| facts.namespace_terminating = Answer::Known(true));
    case(Reason::NamespaceGone, |facts| facts.namespace_terminating = Answer::Absent);
}

#[test]
fn row_5_an_owner_that_ends() {
    case(Reason::OwnerGone, |facts| facts.owner = Answer::Absent);
    case(Reason::OwnerGone, |facts| edit(&mut facts.owner, |owner| owner.terminating = true));
    for phase in [PodPhase::Succeeded, PodPhase::Failed] {
        case(Reason::OwnerGone, |facts| edit(&mut facts.owner, |owner| owner.phase = phase));
    }
    for phase in [PodPhase::Pending, PodPhase::Other] {
        case(Reason::LastHolder, |facts| edit(&mut facts.owner, |owner| owner.phase = phase));
    }
}

#[test]
fn row_6_a_vmi_that_ends_or_is_another_one() {
    case(Reason::VmiFinal, |facts| facts.vmi = Answer::Absent);
    case(Reason::VmiFinal, |facts| edit_vmi(facts, |vmi| vmi.uid = "uid-web-anew".to_owned()));
    case(Reason::VmiFinal, |facts| edit(&mut facts.owner, |owner| owner.vmi_uid = None));
    case(Reason::VmiFinal, |facts| edit_vmi(facts, |vmi| vmi.deleting = true));
    case(Reason::VmiFinal, |facts| edit_vmi(facts, |vmi| vmi.finished = true));
}

#[test]
fn row_7_a_vmi_that_migrated_away() {
    let to = |name| Answer::Known(BTreeSet::from([node(name)]));
    let away = |facts: &mut Facts| edit_vmi(facts, |vmi| vmi.node = Some(node("b")));
    case(Reason::MigratedAway, away);
    case(Reason::MigratedAway, |facts| edit_vmi(facts, |vmi| vmi.node = None));
    case(Reason::MigratedAway, |facts| {
        away(facts);
        facts.migration_targets = to("c");
    });
    case(Reason::LastHolder, |facts| {
        away(facts);
        facts.migration_targets = to("a");
    });
    // The source of a migration that runs: the VM still is there.
    case(Reason::LastHolder, |facts| facts.migration_targets = to("b"));
    case(Reason::Unknown, |facts| facts.pod.node = None);
}

#[test]
fn row_8_a_node_that_is_gone() {
    case(Reason::NodeGone, |facts| facts.node = Answer::Absent);
    case(Reason::NodeGone, |facts| edit(&mut facts.node, |node| node.out_of_service = true));
    // It may be drained, and its VMs still run.
    case(Reason::LastHolder, |facts| edit(&mut facts.node, |node| node.deleting = true));
}

#[test]
fn row_9_what_is_not_in_use() {
    let each = |facts: &mut Facts, change: fn(&mut VolumeStatus)| {
        for volume in ["one", "two"] {
            edit_status(facts, volume, change);
        }
    };
    case(Reason::NothingInUse, |facts| each(facts, gone_from_guest));
    case(Reason::NothingInUse, |facts| each(facts, |status| status.never_ready = true));
    case(Reason::NothingInUse, |facts| edit_vmi(facts, |vmi| vmi.volume_status.clear()));
    case(Reason::NothingInUse, |facts| {
        edit_vmi(facts, |vmi| vmi.spec_volumes.values_mut().for_each(|volume| volume.never_ready = true));
    });
    case(Reason::NothingInUse, |facts| facts.pod.volumes.clear());
    case(Reason::NothingInUse, |facts| {
        edit_claim(facts, "one", |claim| claim.ours = false);
        edit_claim(facts, "two", |claim| claim.ours = false);
    });
    case(Reason::NothingInUse, |facts| facts.claims.values_mut().for_each(|claim| *claim = Answer::Absent));
    // One that is left is enough, and each sign of use on its own.
    case(Reason::LastHolder, |facts| edit_claim(facts, "one", |claim| claim.ours = false));
    case(Reason::LastHolder, |facts| edit_status(facts, "two", gone_from_guest));
    for phase in [VolumePhase::Ready, VolumePhase::MountedToPod] {
        case(Reason::LastHolder, |facts| {
            edit_status(facts, "two", gone_from_guest);
            edit_status(facts, "one", |status| {
                status.phase = phase;
                status.target.clear();
            });
        });
    }
    case(Reason::LastHolder, |facts| {
        edit_status(facts, "two", gone_from_guest);
        edit_status(facts, "one", |status| status.phase = VolumePhase::Other);
    });
    // About to be mounted: through this pod, or through another.
    for (pod, reason) in [("old", Reason::LastHolder), ("new", Reason::NothingInUse)] {
        case(reason, |facts| {
            edit_status(facts, "two", gone_from_guest);
            edit_status(facts, "one", |status| {
                *status = VolumeStatus { phase: VolumePhase::AttachedToNode, ..ready(pod, "") };
            });
        });
    }
}

#[test]
fn row_10_another_pod_exposes_everything_in_use() {
    covered_case(Reason::Covered, |_| {});
    covered_case(Reason::LastHolder, |facts| edit_sibling(facts, |pod| pod.terminating = true));
    for phase in [PodPhase::Pending, PodPhase::Succeeded, PodPhase::Failed, PodPhase::Other] {
        covered_case(Reason::LastHolder, |facts| edit_sibling(facts, |pod| pod.phase = phase));
    }
    covered_case(Reason::LastHolder, |facts| edit_sibling(facts, |pod| pod.containers_ready = false));
    covered_case(Reason::LastHolder, |facts| edit_sibling(facts, |pod| pod.is_trigger = true));
    covered_case(Reason::LastHolder, |facts| edit_sibling(facts, |pod| pod.node = Some(node("b"))));
    // It lists the volume and does not expose it: kubelet ignores it.
    covered_case(Reason::LastHolder, |facts| edit_sibling(facts, |pod| pod.exposes = set(&["one"])));
    // What is not in use needs no cover.
    covered_case(Reason::Covered, |facts| {
        edit_status(facts, "two", gone_from_guest);
        edit_sibling(facts, |pod| pod.exposes = set(&["one"]));
    });
    // The same name, another claim: it was removed and added anew.
    covered_case(Reason::LastHolder, |facts| {
        edit_sibling(facts, |pod| {
            pod.volumes.insert("two".to_owned(), "other-claim".to_owned());
        });
    });
    // Two may share the cover.
    covered_case(Reason::Covered, |facts| {
        facts.siblings = Answer::Known(vec![pod("x", &["one"]), pod("y", &["two"])]);
    });
    // The pod itself among its siblings covers nothing.
    covered_case(Reason::LastHolder, |facts| facts.siblings = Answer::Known(vec![facts.pod.clone()]));
}

#[test]
fn row_11_strict_waits_until_the_volumes_are_ready_for_the_new_pod() {
    let facts = covered();
    let verdict = expect(Reason::WaitingReady, &facts, &STRICT);
    assert_eq!(verdict.volumes, ["one", "two"]);

    let mut of_new = covered();
    edit_status(&mut of_new, "one", |status| *status = ready("new", "sda"));
    let verdict = expect(Reason::WaitingReady, &of_new, &STRICT);
    assert_eq!(verdict.volumes, ["two"], "the status of the other one speaks of the pod that goes");
    edit_status(&mut of_new, "two", |status| *status = ready("new", "sdb"));
    expect(Reason::Covered, &of_new, &STRICT);
    edit_status(&mut of_new, "two", |status| status.phase = VolumePhase::MountedToPod);
    expect(Reason::WaitingReady, &of_new, &STRICT);
    edit_status(&mut of_new, "two", |status| *status = ready("new", "sdb"));
    edit_sibling(&mut of_new, |pod| pod.containers_ready = false);
    expect(Reason::WaitingReady, &of_new, &STRICT);

    let mut single = covered();
    edit_vmi(&mut single, |vmi| _ = vmi.spec_volumes.remove("two"));
    expect(Reason::Covered, &single, &STRICT);
    let mut never = covered();
    edit_vmi(&mut never, |vmi| {
        vmi.spec_volumes.insert("two".to_owned(), SpecVolume { hotplug: true, never_ready: true });
    });
    expect(Reason::Covered, &never, &STRICT);
    let mut fixed = covered();
    edit_vmi(&mut fixed, |vmi| _ = vmi.spec_volumes.insert("two".to_owned(), SpecVolume::default()));
    expect(Reason::Covered, &fixed, &STRICT);

    let mut alone = lone();
    expect(Reason::LastHolder, &alone, &STRICT);
    alone.siblings = Answer::Known(vec![pod("new", &["one"])]);
    expect(Reason::WaitingReady, &alone, &STRICT);
}

#[test]
fn row_11_ends_after_its_limit() {
    let at = |held_s: u64| {
        let mut facts = covered();
        facts.noted = Some(held(held_s));
        facts
    };
    expect(Reason::WaitingReady, &at(119), &STRICT);
    expect(Reason::Covered, &at(120), &STRICT);
    let short = Settings { max_hold: Duration::from_secs(30), ..STRICT };
    expect(Reason::WaitingReady, &at(29), &short);
    expect(Reason::Covered, &at(30), &short);
    let mut uncovered = at(120);
    edit_sibling(&mut uncovered, |pod| pod.exposes = set(&["one"]));
    expect(Reason::LastHolder, &uncovered, &STRICT);
}

#[test]
fn row_12_volumes_that_leave() {
    let mut unbound = lone();
    edit_claim(&mut unbound, "one", |claim| claim.bound = false);
    expect(Reason::LastHolder, &unbound, &SETTINGS);
    edit_claim(&mut unbound, "two", |claim| claim.bound = false);
    let verdict = expect(Reason::Leaving, &unbound, &SETTINGS);
    assert_eq!(verdict.event, Some(Severity::Normal));
    // Somebody else is there: it may come to expose them.
    unbound.siblings = Answer::Known(vec![pod("new", &["one"])]);
    expect(Reason::LastHolder, &unbound, &SETTINGS);
    edit_sibling(&mut unbound, |pod| pod.node = Some(node("b")));
    expect(Reason::Leaving, &unbound, &SETTINGS);
    // Removed from the spec: the guest still has it, and its status will say when it has not.
    case(Reason::LastHolder, |facts| edit_vmi(facts, |vmi| vmi.spec_volumes.clear()));
}

#[test]
fn rows_13_and_14_hold_and_let_go() {
    let at = |held_s: u64| {
        let mut facts = lone();
        facts.noted = Some(held(held_s));
        facts
    };
    let first = expect(Reason::LastHolder, &lone(), &SETTINGS);
    assert_eq!(first.event, Some(Severity::Normal), "the first denial is told");
    assert_eq!(first.volumes, ["one", "two"]);
    for word in ["vms/old", "one, two", "600 s"] {
        assert!(first.message.contains(word), "{word:?} is missing: {}", first.message);
    }
    assert_eq!(expect(Reason::LastHolder, &at(599), &SETTINGS).event, None, "the others are not");
    let last = expect(Reason::HoldExpired, &at(600), &SETTINGS);
    assert_eq!((last.event, last.volumes.len()), (Some(Severity::Warning), 2));
    let none = Settings { max_hold: Duration::ZERO, ..SETTINGS };
    expect(Reason::HoldExpired, &lone(), &none);
    // An expired hold does not hide that the pod is covered by now.
    let mut late = at(600);
    late.siblings = Answer::Known(vec![pod("new", &["one", "two"])]);
    expect(Reason::Covered, &late, &SETTINGS);
}

#[test]
fn a_first_denial_in_the_future_is_not_believed_for_ever() {
    let ahead = |by: Duration| {
        let mut facts = lone();
        facts.noted = Some(Held { since: now() + by, first: now() });
        facts
    };
    expect(Reason::LastHolder, &ahead(CLOCK_TOLERANCE), &SETTINGS);
    expect(Reason::HoldExpired, &ahead(CLOCK_TOLERANCE + Duration::from_millis(1)), &SETTINGS);
}

#[test]
fn what_is_not_known_allows_and_says_so() {
    let unknown: [fn(&mut Facts); 7] = [
        |facts| facts.namespace_terminating = not_known(),
        |facts| facts.owner = not_known(),
        |facts| facts.vmi = not_known(),
        |facts| facts.node = not_known(),
        |facts| facts.siblings = not_known(),
        |facts| facts.claims.values_mut().for_each(|claim| *claim = not_known()),
        |facts| facts.claims.clear(),
    ];
    for (index, change) in unknown.into_iter().enumerate() {
        let mut facts = lone();
        change(&mut facts);
        let verdict = expect(Reason::Unknown, &facts, &SETTINGS);
        let says = if index == 6 { "claim one-claim" } else { "not listed yet" };
        assert!(verdict.message.contains(says), "{}", verdict.message);
    }
    // Only if somebody asks: the VM is on the pod's node, or is not.
    case(Reason::LastHolder, |facts| facts.migration_targets = not_known());
    case(Reason::Unknown, |facts| {
        facts.migration_targets = not_known();
        edit_vmi(facts, |vmi| vmi.node = Some(node("b")));
    });
}

#[test]
fn a_dry_run_makes_no_event() {
    let mut facts = lone();
    facts.request.dry_run = true;
    assert_eq!(expect(Reason::LastHolder, &facts, &SETTINGS).event, None);
}

#[test]
fn a_sentence_names_some_volumes_and_counts_the_rest() {
    let names: Vec<_> = (0..12).map(|n| format!("volume-{n:02}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut facts = lone();
    facts.pod = pod("old", &names);
    for name in &names {
        facts.claims.insert(format!("{name}-claim"), Answer::Known(claim(name)));
        edit_vmi(&mut facts, |vmi| _ = vmi.volume_status.insert((*name).to_owned(), ready("old", "sda")));
    }
    let verdict = expect(Reason::LastHolder, &facts, &SETTINGS);
    assert!(verdict.message.contains("volume-07 and 4 more"), "{}", verdict.message);
    assert_eq!(verdict.volumes.len(), 12);
}

#[test]
fn reasons_have_names_of_their_own() {
    let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), Reason::ALL.len());
    assert_eq!(Reason::VmiFinal.to_string(), "VMIFinal");
}
