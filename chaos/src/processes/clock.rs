//! The outside observer's clock: the machine's monotonic one, which the fake fabric's journal bears too.

use rustix::time::{ClockId, clock_gettime};

use crate::history::Micros;

/// When the run began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Epoch {
    began_ns: u64,
}

impl Epoch {
    /// A run that begins now.
    pub(super) fn begin() -> Self {
        Self { began_ns: monotonic_ns() }
    }

    /// How long it has run.
    pub(super) fn now(self) -> Micros {
        self.of(monotonic_ns())
    }

    /// A moment of the machine's monotonic clock.
    pub(super) fn of(self, monotonic_ns: u64) -> Micros {
        monotonic_ns.saturating_sub(self.began_ns) / 1_000
    }
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or_default())
}
