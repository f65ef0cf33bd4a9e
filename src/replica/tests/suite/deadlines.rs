//! What a deadline survives: leaders that pause, that follow each other, that are all away. Each replica has its own
//! monotonic clock, which stands still unless a test moves it, and began when it liked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use replica::{MonotonicClock, ProposeError};
use state_machine::{LedgerTime, MigrationPhase, State, VolumeId};

use crate::harness::{Cluster, DEADLINE, PLACES, register};
use crate::time::{FakeClock, MIGRATION_TIMEOUT_SECONDS, volume_on_two_nodes};

const TIMEOUT_MS: u64 = MIGRATION_TIMEOUT_SECONDS as u64 * 1000;
/// By how much a deadline may be late for each change of leader, beside the time without one.
const LATE_A_CHANGE_MS: u64 = 1_000;

/// Three replicas and a volume that migrates from time 0 on.
struct Migrating {
    cluster: Cluster,
    clocks: [Arc<FakeClock>; PLACES],
    volume: VolumeId,
    /// What has passed by a right clock.
    passed_ms: u64,
    /// What of it may be lost beside what a story loses: a busy machine may change leaders of its own accord.
    excused_ms: u64,
}

impl Migrating {
    async fn begin() -> Self {
        let clocks: [_; PLACES] =
            std::array::from_fn(|i| Arc::new(FakeClock(AtomicU64::new(31_000_000 * (i as u64 + 1)))));
        let mut cluster = Cluster::new();
        cluster.clocks = clocks.clone().map(|clock| clock as Arc<dyn MonotonicClock>);
        cluster.start_all().await;
        let volume = volume_on_two_nodes(&cluster).await;
        let begun = Self { cluster, clocks, volume, passed_ms: 0, excused_ms: 0 };
        let leader = begun.cluster.leader().await;
        assert_eq!(begun.applied_time(leader), LedgerTime(0), "nothing has passed");
        begun
    }

    fn pass(&mut self, ms: u64) {
        self.passed_ms += ms;
        for clock in &self.clocks {
            clock.0.fetch_add(ms, Ordering::SeqCst);
        }
    }

    /// Lets `ms` pass while `leader` is in office, and waits until a tick has brought them to the ledger.
    async fn pass_in_office(&mut self, leader: usize, ms: u64) {
        let term = self.term(leader);
        let Some(since) = self.cluster.replica(leader).ledger_time() else { return };
        self.pass(ms);
        let (expected, has_left) = (LedgerTime(since.0 + ms), || self.term(leader) != term);
        let what = format!("the ledger's time is {}", expected.0);
        self.cluster.until(&what, || self.applied_time(leader) >= expected || has_left()).await;
        let seen = self.applied_time(leader);
        assert!(seen <= expected || has_left(), "{} is more than {what}", seen.0);
        if seen < expected {
            self.excused_ms += ms;
        }
    }

    fn applied_time(&self, i: usize) -> LedgerTime {
        self.cluster.replica(i).read_local(State::clock)
    }

    /// In which term the replica is in office, if it is.
    fn term(&self, i: usize) -> Option<u64> {
        self.cluster.replica(i).watch_leadership().borrow().map(|leadership| leadership.term)
    }

    fn phase(&self, i: usize) -> MigrationPhase {
        let read = |state: &State| state.volume(&self.volume).and_then(|v| v.migration.clone());
        self.cluster.replica(i).read_local(read).unwrap().phase
    }

    /// Lets as much pass as the ledger still wants, the last millisecond by itself, until the deadline is over.
    /// Answers how late that is.
    async fn until_overdue(&mut self) -> u64 {
        loop {
            let leader = self.cluster.leader().await;
            if self.phase(leader) == MigrationPhase::Overdue {
                break;
            }
            let Some(now) = self.cluster.replica(leader).ledger_time() else { continue };
            let still_ms = TIMEOUT_MS.saturating_sub(now.0);
            self.pass_in_office(leader, if still_ms > 1 { still_ms - 1 } else { still_ms }).await;
        }
        assert!(self.passed_ms >= TIMEOUT_MS, "early: after {} ms", self.passed_ms);
        self.passed_ms - TIMEOUT_MS
    }

    /// The deadline is over after what the story has lost, and after nothing more.
    async fn expect_overdue_after_losing(&mut self, lost_ms: u64) {
        let late_ms = self.until_overdue().await;
        let most_ms = lost_ms + self.excused_ms;
        assert!((lost_ms..=most_ms).contains(&late_ms), "{late_ms} ms late, not {lost_ms} to {most_ms}");
    }
}

#[tokio::test]
async fn a_leader_that_paused_for_a_minute_makes_nothing_early() {
    let mut story = Migrating::begin().await;
    let leader = story.cluster.leader().await;
    story.pass_in_office(leader, 10_000).await;
    story.cluster.until_equal().await;
    let old = story.cluster.leader().await;
    let term = story.term(old).unwrap();
    let before = story.applied_time(old);

    let paused = story.cluster.running(old).paused().await;
    let others: Vec<usize> = (0..3).filter(|i| *i != old).collect();
    story.cluster.until("another one leads", || others.iter().any(|i| story.term(*i).is_some())).await;
    let next = others.into_iter().find(|i| story.term(*i).is_some()).unwrap();
    story.pass_in_office(next, 60_000).await;
    let after = story.applied_time(next);

    // It still believes in its office, and its clock has run away: were anything that it stamps taken, it would show.
    assert_eq!(story.term(old), Some(term));
    story.clocks[old].0.fetch_add(3_600_000, Ordering::SeqCst);
    let replica = story.cluster.replica(old).clone();
    assert_eq!(replica.ledger_time(), Some(LedgerTime(before.0 + 3_660_000)));
    let late = tokio::spawn(async move { replica.propose_as_leader(term, register(7)).await });
    // It stamps here, and waits for the threads that stand still.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    drop(paused);
    let refused = tokio::time::timeout(DEADLINE, late).await.expect("it is told that it leads no more");
    assert!(matches!(refused.unwrap(), Err(ProposeError::NotLeader { .. })), "taken");
    story.cluster.until("the old leader knows", || story.term(old) != Some(term)).await;
    story.cluster.until_equal().await;
    for i in 0..3 {
        assert_eq!(story.applied_time(i), after, "replica {i} took a stamp of the old office");
        assert_eq!(story.phase(i), MigrationPhase::Active);
    }
    story.expect_overdue_after_losing(0).await;
}

#[tokio::test]
async fn ten_leaders_in_a_row_are_late_by_the_time_without_one_and_never_early() {
    const CHANGES: u64 = 10;
    const OFFICE_MS: u64 = 40_000;
    /// Passes after the last tick of an office.
    const UNTICKED_MS: u64 = 900;
    const LEADERLESS_MS: u64 = 5_000;
    let mut story = Migrating::begin().await;
    for n in 0..CHANGES {
        let leader = story.cluster.leader().await;
        story.pass_in_office(leader, OFFICE_MS).await;
        story.cluster.until_equal().await;
        story.pass(UNTICKED_MS);
        if n % 2 == 0 {
            story.cluster.crash(leader).await;
        } else {
            story.cluster.stop(leader).await;
        }
        story.pass(LEADERLESS_MS);
        story.cluster.leader().await;
        story.cluster.start(leader).await;
        story.cluster.until_equal().await;
        let ledger_ms = story.applied_time(leader).0;
        let most_lost_ms = (n + 1) * (LEADERLESS_MS + LATE_A_CHANGE_MS) + story.excused_ms;
        assert!(ledger_ms <= story.passed_ms, "{ledger_ms} after {}", story.passed_ms);
        assert!(ledger_ms + most_lost_ms >= story.passed_ms, "{ledger_ms} after {}", story.passed_ms);
    }
    let late_ms = story.until_overdue().await;
    let most_ms = CHANGES * (LEADERLESS_MS + LATE_A_CHANGE_MS) + story.excused_ms;
    assert!(late_ms <= most_ms, "late by {late_ms} ms");
    println!("late by {late_ms} ms of at most {most_ms} ms, of which {} ms are excused", story.excused_ms);
}

#[tokio::test]
async fn an_hour_without_any_replica_makes_a_deadline_late_by_that_hour() {
    const HOUR_MS: u64 = 3_600_000;
    let mut story = Migrating::begin().await;
    let leader = story.cluster.leader().await;
    story.pass_in_office(leader, 100_000).await;
    story.cluster.until_equal().await;
    let before = story.applied_time(leader);
    for i in 0..3 {
        story.cluster.crash(i).await;
    }
    story.pass(HOUR_MS);
    // The machines started again too: their monotonic clocks begin anew.
    for (i, clock) in story.clocks.iter().enumerate() {
        clock.0.store(i as u64 * 5, Ordering::SeqCst);
    }
    story.cluster.start_all().await;
    let told = || (0..3).filter_map(|i| story.cluster.replica(i).ledger_time()).collect::<Vec<_>>();
    story.cluster.until("one tells the time, where it stood", || told() == [before]).await;
    let leader = story.cluster.leader().await;
    assert_eq!(story.phase(leader), MigrationPhase::Active);
    story.expect_overdue_after_losing(HOUR_MS).await;
}
