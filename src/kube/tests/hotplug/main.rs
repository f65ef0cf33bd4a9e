//! A model of KubeVirt's hotplug loop, with the real guard and the real mutation in it.
//!
//! virt-controller, virt-handler and kubelet are modelled as KUBEVIRT.md describes them: read from code, not run. A
//! seed decides which volumes are plugged in and out, when, how slowly they attach, whether the VM stops, migrates or
//! loses its node, and how late the guard's watches are. The node's in-use check is off unless a test says so: with
//! it a VM would not pause anyway, and nothing would be shown.

// A test fails by a panic, its helpers too; clippy sees only the tests themselves.
#![allow(clippy::unwrap_used)]

mod controller;
mod guard;
mod handler;
mod kubelet;
mod play;
mod tally;
mod world;

use std::collections::BTreeSet;

use observer::hotplug::{HOLDS_IN_A_ROW, PodPhase, Reason};

use play::{Failures, play, story};
use tally::Tally;
use world::{Generation, Layers, Ms, Phase, Status, Volume, World};

/// Runs of each setting.
const RUNS: u64 = 1_000;
/// The hold that the driver is shipped with.
const MAX_HOLD_MS: Ms = 600_000;
/// A hold that is over before an attachment that never comes, and long enough for a younger pod to begin it anew.
const SHORT_HOLD_MS: Ms = 90_000;

const NOTHING: Layers = Layers {
    guard: false,
    strict: false,
    remembers: true,
    mutation: false,
    in_use_check: false,
    max_hold_ms: MAX_HOLD_MS,
};
const GUARDED: Layers = Layers { guard: true, mutation: true, ..NOTHING };
const GENERATIONS: [Generation; 2] = [Generation::Before, Generation::After];

fn runs(generation: Generation, layers: Layers, failures: Failures) -> Tally {
    let mut total = Tally::default();
    for seed in 0..RUNS {
        total.add(seed, play(seed, generation, layers, failures));
    }
    total
}

/// One line of the report.
fn print(generation: Generation, what: &str, total: &Tally) {
    println!(
        "{:<7} {:<28} {:>5} runs {:>6} plugged {:>6} unplugged: {:>5} pauses (and {} unseen), {:>5} left alone, {:>6} denied, longest \
         hold {:>5.1} s, in a row {:>5.1} s ({} begun anew), {} stuck",
        format!("{generation:?}"),
        what,
        total.runs,
        total.plugged,
        total.unplugged,
        total.pauses,
        total.unseen_pauses,
        total.left_alone,
        total.denied(),
        total.longest_hold_ms as f64 / 1_000.0,
        total.longest_row_ms as f64 / 1_000.0,
        total.begun_anew,
        total.stuck.len(),
    );
}

/// No VM paused; else the first one's story is told.
#[track_caller]
fn expect_no_pause(total: &Tally, generation: Generation, layers: Layers) {
    if let Some(seed) = total.seeds_with_pauses.first() {
        panic!(
            "seeds {:?}; {seed}:\n{}",
            total.seeds_with_pauses,
            story(*seed, generation, layers, Failures::Heal)
        );
    }
    if generation == Generation::After {
        assert_eq!(total.unseen_pauses, 0, "since #10275 the API shows what is in use until it is not");
    }
}

#[track_caller]
fn expect_tidy(total: &Tally) {
    assert!(total.stuck.is_empty(), "{}", total.stuck.join("\n"));
    assert!(total.plugged > RUNS && total.unplugged > RUNS / 2, "too little happened");
}

#[test]
fn without_the_guard_vms_pause() {
    for generation in GENERATIONS {
        let total = runs(generation, NOTHING, Failures::Heal);
        print(generation, "nothing", &total);
        assert!(total.pauses > 0, "the bug does not show");
    }
}

/// With guard and mutation no VM pauses, and everything that should go goes.
#[track_caller]
fn expect_safe(generation: Generation, strict: bool) {
    let layers = Layers { strict, ..GUARDED };
    let total = runs(generation, layers, Failures::Heal);
    print(generation, if strict { "guard and mutation, strict" } else { "guard and mutation" }, &total);
    expect_no_pause(&total, generation, layers);
    expect_tidy(&total);
    assert!(total.count(Reason::LastHolder) > 0, "the guard had nothing to do");
    assert_eq!(total.count(Reason::WaitingReady) > 0, strict);
    assert_eq!((total.count(Reason::HoldExpired), total.count(Reason::Unknown)), (0, 0));
}

#[test]
fn before_10275_no_vm_pauses() {
    expect_safe(Generation::Before, false);
}

#[test]
fn before_10275_no_vm_pauses_in_strict_mode() {
    expect_safe(Generation::Before, true);
}

#[test]
fn since_10275_no_vm_pauses() {
    expect_safe(Generation::After, false);
}

#[test]
fn since_10275_no_vm_pauses_in_strict_mode() {
    expect_safe(Generation::After, true);
}

/// Two running pods hold the same volume in use: which of them may go, if both are to, before the watch shows it?
fn delete_both(remembers: bool) -> [bool; 2] {
    let mut world = World::new(0, Generation::After, Layers { remembers, ..GUARDED });
    world.volumes.push(Volume { block: true, ours: true, attach_ms: 0, fails_until: 0 });
    world.vmi.spec.insert(0);
    let status = Status { phase: Phase::Ready, has_target: true, attach_pod: None };
    world.vmi.status.insert(0, status);
    world.vmi_changed();
    let pods = [(); 2].map(|()| world.create_pod(1, &BTreeSet::from([0])));
    for id in pods {
        world.pods.get_mut(&id).unwrap().phase = PodPhase::Running;
        world.pod_ready(id);
    }
    world.now += 1_000;
    pods.map(|id| world.guard_allows(id) && world.remove_pod(id).is_some())
}

#[test]
fn two_pods_do_not_go_for_each_others_sake() {
    assert_eq!(delete_both(true), [true, false]);
    assert_eq!(delete_both(false), [true, true], "without its memory the guard would be fooled");
}

#[test]
fn neither_part_is_enough_alone() {
    for generation in GENERATIONS {
        let total = runs(generation, Layers { guard: false, ..GUARDED }, Failures::Heal);
        print(generation, "mutation alone", &total);
        assert!(total.pauses > 0 || generation == Generation::After, "the guard is not needed");
        let total =
            runs(generation, Layers { mutation: false, max_hold_ms: 60_000, ..GUARDED }, Failures::Heal);
        print(generation, "guard alone, hold of 60 s", &total);
        assert!(total.pauses > 0, "the mutation is not needed");
    }
}

#[test]
fn the_nodes_in_use_check_is_a_layer_of_its_own() {
    for generation in GENERATIONS {
        let total = runs(generation, Layers { in_use_check: true, ..NOTHING }, Failures::Heal);
        print(generation, "in-use check alone", &total);
        assert_eq!(total.pauses, 0);
        assert!(total.unstages_refused > 0, "it had nothing to do");
    }
}

#[test]
fn no_hold_outlives_its_limit() {
    for generation in GENERATIONS {
        let layers = Layers { max_hold_ms: SHORT_HOLD_MS, in_use_check: true, ..GUARDED };
        let total = runs(generation, layers, Failures::Last);
        print(generation, "all, attachments never come", &total);
        assert!(total.longest_hold_ms < SHORT_HOLD_MS, "denied for {} ms", total.longest_hold_ms);
        let row_ms = SHORT_HOLD_MS * Ms::from(HOLDS_IN_A_ROW);
        assert!(total.longest_row_ms < row_ms, "denied for {} ms in a row", total.longest_row_ms);
        assert!(total.denied() > 0);
        assert_eq!(total.pauses, 0, "the in-use check is left, and holds");
        expect_tidy(&total);
    }
    let total = runs(Generation::Before, Layers { max_hold_ms: SHORT_HOLD_MS, ..GUARDED }, Failures::Last);
    print(Generation::Before, "the same without in-use check", &total);
    assert!(total.count(Reason::HoldExpired) > 0 && total.pauses > 0, "no hold expired");
}
