//! The ledger's clock, as its leader keeps it (DESIGN.md, "Time").
//!
//! Wall clocks have no part in it. A leader takes the ledger's clock from the applied state once an entry of its
//! own term is applied, and lets it run with its monotonic clock; each command is stamped when it is proposed.

use std::time::{Duration, Instant};

use state_machine::LedgerTime;

/// A clock that never goes back; only differences of it mean anything.
pub trait MonotonicClock: Send + Sync + 'static {
    /// The time since an origin that stays the same while the process lives.
    fn elapsed(&self) -> Duration;
}

/// The machine's monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock that begins now.
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl MonotonicClock for SystemClock {
    fn elapsed(&self) -> Duration {
        if planted::is(planted::Bug::WallClockReaper) {
            return planted::civil_time();
        }
        self.origin.elapsed()
    }
}

/// The ledger's clock in one leader's term: where it stood, and when the leader saw it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerClock {
    base: LedgerTime,
    taken_at: Duration,
}

impl LedgerClock {
    /// It stands at `base` now, by `clock`.
    pub fn take(base: LedgerTime, clock: &dyn MonotonicClock) -> Self {
        Self { base, taken_at: clock.elapsed() }
    }

    /// The ledger's time now.
    pub fn stamp(&self, clock: &dyn MonotonicClock) -> LedgerTime {
        let millis = clock.elapsed().saturating_sub(self.taken_at).as_millis();
        LedgerTime(self.base.0.saturating_add(u64::try_from(millis).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    struct FakeClock(AtomicU64);

    impl MonotonicClock for FakeClock {
        fn elapsed(&self) -> Duration {
            Duration::from_micros(self.0.load(Ordering::SeqCst))
        }
    }

    #[test]
    fn the_ledgers_clock_goes_on_from_where_it_stood() {
        // The leader's own clock has run for an hour; the ledger's stands at five seconds.
        let clock = FakeClock(AtomicU64::new(3_600_000_000));
        let office = LedgerClock::take(LedgerTime(5_000), &clock);
        assert_eq!(office.stamp(&clock), LedgerTime(5_000));
        clock.0.fetch_add(999, Ordering::SeqCst);
        assert_eq!(office.stamp(&clock), LedgerTime(5_000), "a millisecond counts when it is over");
        clock.0.fetch_add(1_501_001, Ordering::SeqCst);
        assert_eq!(office.stamp(&clock), LedgerTime(6_502));

        // The next leader's clock began much later; the ledger's does not go back.
        let other = FakeClock(AtomicU64::new(0));
        let next = LedgerClock::take(LedgerTime(6_502), &other);
        assert_eq!(next.stamp(&other), LedgerTime(6_502));
    }

    /// Another machine's clock: it began when it liked, and runs at its own rate.
    struct Crooked {
        real_ms: &'static AtomicU64,
        origin_ms: u64,
        percent: u64,
    }

    impl MonotonicClock for Crooked {
        fn elapsed(&self) -> Duration {
            let real_ms = self.real_ms.load(Ordering::SeqCst);
            Duration::from_millis(self.origin_ms + real_ms * self.percent / 100)
        }
    }

    const TIMEOUT_MS: u64 = 300_000;
    const TICK_MS: u64 = 1_000;

    /// The real time at which a deadline is seen to be over, from when the first leader set it: leaders in a row, each
    /// with a clock of one of these rates and in office for so long, and nobody between two for so long.
    fn seen_after_ms(percents: &[u64], office_ms: u64, leaderless_ms: u64) -> u64 {
        let real_ms: &'static AtomicU64 = Box::leak(Box::default());
        let mut ledger = LedgerTime(7_000);
        let deadline = LedgerTime(ledger.0 + TIMEOUT_MS);
        for (n, percent) in percents.iter().cycle().enumerate() {
            let clock = Crooked { real_ms, origin_ms: n as u64 * 86_400_000, percent: *percent };
            let office = LedgerClock::take(ledger, &clock);
            for _ in 0..office_ms / TICK_MS {
                real_ms.fetch_add(TICK_MS, Ordering::SeqCst);
                ledger = ledger.max(office.stamp(&clock));
                if ledger >= deadline {
                    return real_ms.load(Ordering::SeqCst);
                }
            }
            real_ms.fetch_add(leaderless_ms, Ordering::SeqCst);
        }
        unreachable!("the leaders never end")
    }

    #[test]
    fn a_wrong_rate_moves_a_deadline_by_its_error_and_no_more() {
        for percent in [80, 100, 120] {
            let seen = seen_after_ms(&[percent], 86_400_000, 0);
            let expected = TIMEOUT_MS * 100 / percent;
            assert!((expected..=expected + TICK_MS).contains(&seen), "{percent} %: {seen}, not {expected}");
        }
    }

    #[test]
    fn leaders_in_a_row_are_late_by_the_time_without_one_and_never_early() {
        for percents in [[100, 100, 100], [80, 100, 120], [120, 80, 100], [120, 120, 120]] {
            let (office_ms, leaderless_ms) = (30_000, 4_000);
            let seen = seen_after_ms(&percents, office_ms, leaderless_ms);
            let changes = seen / (office_ms + leaderless_ms);
            let (fastest, slowest) = (percents.iter().max().unwrap(), percents.iter().min().unwrap());
            let least = TIMEOUT_MS * 100 / fastest;
            let most = TIMEOUT_MS * 100 / slowest + changes * (leaderless_ms + TICK_MS) + TICK_MS;
            assert!((least..=most).contains(&seen), "{percents:?}: {seen}, not {least} to {most}");
        }
    }
}
