//! The simulator itself: a seed reproduces its run, the fixed list and some fresh seeds break nothing, and what is not
//! right in the simulated world is seen.

use std::panic::catch_unwind;

use chaos::sim::{Flaw, judge, listed, play, play_with};
use rand::Rng;

/// Fresh seeds that are played beside the list.
const FRESH_SEEDS: u64 = 2;
/// A flaw is seen within so many seeds.
const SEEDS_TO_SEE: u64 = 5;
/// The same, where the seed has to choose a disk to be lost first.
const SEEDS_TO_SEE_A_WIPE: u64 = 30;

fn broken(seed: u64) -> Vec<String> {
    let played = play(seed);
    let (broken, _) = judge(&played);
    if !broken.is_empty() {
        played.story.iter().for_each(|line| println!("{line}"));
    }
    broken.into_iter().map(|breach| format!("seed {seed}: {}: {}", breach.invariant, breach.what)).collect()
}

#[test]
fn a_seed_reproduces_its_run() {
    for seed in [3, 5] {
        let (one, other) = (play(seed), play(seed));
        assert_eq!(one.digest, other.digest, "the stories of seed {seed}");
        assert_eq!(one.history, other.history, "the histories of seed {seed}");
        assert_eq!((one.polls, one.messages), (other.polls, other.messages));
    }
    assert_ne!(play(3).digest, play(5).digest, "another seed is another story");
}

#[test]
fn a_seed_reproduces_its_run_on_every_thread_at_once() {
    let played = || play(3).digest;
    let others: Vec<_> = (0..2).map(|_| std::thread::spawn(played)).collect();
    for other in others {
        assert_eq!(other.join().unwrap(), played());
    }
}

#[test]
fn the_list_breaks_nothing() {
    for seed in listed().unwrap() {
        assert_eq!(broken(seed), [""; 0]);
    }
}

#[test]
fn fresh_seeds_break_nothing() {
    let first = u64::from(rand::rng().random::<u32>()) << 16;
    println!("first seed {first}");
    for seed in first..first + FRESH_SEEDS {
        assert_eq!(broken(seed), [""; 0]);
    }
}

#[test]
fn a_disk_that_forgets_is_seen() {
    // openraft may notice it first, and panics then.
    let seen =
        |seed: u64| catch_unwind(|| !judge(&play_with(seed, Flaw::DiskForgets)).0.is_empty()).unwrap_or(true);
    assert!((1..=SEEDS_TO_SEE).any(seen), "{SEEDS_TO_SEE} seeds showed nothing");
}

#[test]
fn a_wiped_replica_under_its_old_id_is_seen() {
    // openraft may notice it first, and panics then: a log that it knows is gone.
    let seen = |seed: u64| {
        catch_unwind(|| !judge(&play_with(seed, Flaw::WipedKeepsId)).0.is_empty()).unwrap_or(true)
    };
    assert!((1..=SEEDS_TO_SEE_A_WIPE).any(seen), "{SEEDS_TO_SEE_A_WIPE} seeds showed nothing");
}

#[test]
fn a_run_has_what_it_is_for() {
    let played = play(3);
    let history = &played.history;
    assert!(!history.operations.is_empty() && !history.appliance.is_empty());
    assert!(!history.connections.is_empty() && !history.ledger.is_empty());
    assert!(!history.hashes.is_empty() && !history.votes.is_empty() && !history.faults.is_empty());
    assert!(history.end.is_some(), "it comes to its end");
    let replicas: std::collections::BTreeSet<_> = history.hashes.iter().map(|hash| hash.replica).collect();
    assert_eq!(replicas.len(), 3);
}
