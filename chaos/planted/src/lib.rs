//! Bugs and failpoints that the chaos suite plants in the rooms; nothing at all in a program that is shipped.
//!
//! Both exist only with `--cfg planted`, which `chaos/planted-build` sets for our crates. Without it [`is`] is a
//! constant and [`point`] is empty, and the compiler removes what hangs on them.

/// A bug that can be planted. Its name on a command line is [`Bug::name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Bug {
    /// What is flushed stays with the kernel.
    NoFsync = 1,
    /// The vote is answered before it is written, and never written.
    VoteNotPersisted,
    /// A leader answers reads without asking a quorum whether it still leads.
    NoLeaseCheck,
    /// Commands are stamped by the wall clock.
    WallClockReaper,
    /// A follower judges the limit by its own state, and the leader believes it.
    LimitBeforeForwarding,
    /// An attachment that is being revoked does not count.
    RevokingNotCounted,
    /// A snapshot leaves out who was reaped and not yet unpublished.
    SnapshotWithoutTombstones,
    /// A command is answered when it is proposed.
    AnswerBeforeCommit,
    /// A retry is taken for a new command.
    RetryDuplicates,
    /// Scripts store the number of their fence on the appliance and do not compare it.
    NoFence,
    /// A node connects without asking whether its attachment stands.
    NoPermission,
    /// A lost session counts as proof that its node is off.
    LostSessionIsProof,
    /// A side is reaped while it is in use.
    ReapsInUse,
    /// A leader's clock begins at zero with each office.
    ClockRestarts,
    /// A creation whose answer was lost is taken back by its retry.
    CreateUndoneByRetry,
    /// A leader decides what was held up on its way, whatever was decided since.
    LateAttempts,
}

/// All of them.
pub const BUGS: &[Bug] = &[
    Bug::NoFsync,
    Bug::VoteNotPersisted,
    Bug::NoLeaseCheck,
    Bug::WallClockReaper,
    Bug::LimitBeforeForwarding,
    Bug::RevokingNotCounted,
    Bug::SnapshotWithoutTombstones,
    Bug::AnswerBeforeCommit,
    Bug::RetryDuplicates,
    Bug::NoFence,
    Bug::NoPermission,
    Bug::LostSessionIsProof,
    Bug::ReapsInUse,
    Bug::ClockRestarts,
    Bug::CreateUndoneByRetry,
    Bug::LateAttempts,
];

impl Bug {
    /// Its name, in words with hyphens.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoFsync => "no-fsync",
            Self::VoteNotPersisted => "vote-not-persisted",
            Self::NoLeaseCheck => "no-lease-check",
            Self::WallClockReaper => "wall-clock-reaper",
            Self::LimitBeforeForwarding => "limit-before-forwarding",
            Self::RevokingNotCounted => "revoking-not-counted",
            Self::SnapshotWithoutTombstones => "snapshot-without-tombstones",
            Self::AnswerBeforeCommit => "answer-before-commit",
            Self::RetryDuplicates => "retry-duplicates",
            Self::NoFence => "no-fence",
            Self::NoPermission => "no-permission",
            Self::LostSessionIsProof => "lost-session-is-proof",
            Self::ReapsInUse => "reaps-in-use",
            Self::ClockRestarts => "clock-restarts",
            Self::CreateUndoneByRetry => "create-undone-by-retry",
            Self::LateAttempts => "late-attempts",
        }
    }
}

#[cfg(planted)]
mod active;
#[cfg(planted)]
pub use active::{civil_time, is, lasting, once, plant, point};

/// Whether `bug` is planted: never.
#[cfg(not(planted))]
#[inline(always)]
#[must_use]
pub const fn is(_bug: Bug) -> bool {
    false
}

/// The time of day: nobody asks for it.
#[cfg(not(planted))]
#[inline(always)]
#[must_use]
pub const fn civil_time() -> std::time::Duration {
    std::time::Duration::ZERO
}

/// Whether a failpoint of this name is armed, and uses it up: never.
#[cfg(not(planted))]
#[inline(always)]
#[must_use]
pub const fn once(_name: &'static str) -> bool {
    false
}

/// Whether a failpoint of this name is armed: never.
#[cfg(not(planted))]
#[inline(always)]
#[must_use]
pub const fn lasting(_name: &'static str) -> bool {
    false
}

/// A failpoint: nothing.
#[cfg(not(planted))]
#[inline(always)]
pub const fn point(_name: &'static str) {}
