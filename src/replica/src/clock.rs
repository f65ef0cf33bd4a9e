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
        self.origin.elapsed()
    }
}

/// The ledger's clock in one leader's term: where it stood, and when the leader saw it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LedgerClock {
    base: LedgerTime,
    taken_at: Duration,
}

impl LedgerClock {
    pub(crate) fn take(base: LedgerTime, clock: &dyn MonotonicClock) -> Self {
        Self { base, taken_at: clock.elapsed() }
    }

    /// The ledger's time now.
    pub(crate) fn stamp(&self, clock: &dyn MonotonicClock) -> LedgerTime {
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
}
