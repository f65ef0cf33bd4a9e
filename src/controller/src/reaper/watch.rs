//! What the reaper keeps in mind of one thing while it leads: when it looked, what it said.

use std::time::Duration;

use state_machine::{MigrationPhase, NodeId};

use super::decide::Verdict;
use super::{About, Effect, Report};

/// The first wait before a migration is looked at again; each further look doubles it.
const FIRST_LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The longest wait between looks.
const LONGEST_LOOK_AGAIN: Duration = Duration::from_secs(60);
/// So long nothing is proposed again after a refusal.
const HOLD_AFTER_REFUSAL: Duration = Duration::from_secs(10);

/// One migration past its deadline.
#[derive(Debug)]
pub(super) struct Watch {
    sides: [NodeId; 2],
    look: Look,
    look_at: Duration,
    looks: u32,
    /// The side that is stale, and since when without a break.
    stale: Option<(NodeId, Duration)>,
    pub(super) attention: Attention,
}

/// Which looks count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Nobody was asked yet.
    NotAsked,
    /// The asking is on its way to the sessions; its number is not known yet.
    Asking,
    /// Looks that answer this asking, or a later one, are newer than the deadline.
    Since(u64),
    /// The side is decided: nobody is asked any more, and any look is good enough to tell people.
    Decided,
}

impl Watch {
    pub(super) fn new(now: Duration, source: &NodeId, target: &NodeId) -> Self {
        Self {
            sides: [source.clone(), target.clone()],
            look: Look::NotAsked,
            look_at: now,
            looks: 0,
            stale: None,
            attention: Attention::default(),
        }
    }

    pub(super) fn note_phase(&mut self, phase: &MigrationPhase) {
        match phase {
            MigrationPhase::Active | MigrationPhase::Overdue => {}
            MigrationPhase::Reaping(_) => self.look = Look::Decided,
        }
    }

    /// Looks count that answer this asking or a later one.
    pub(super) fn asked_first(&self) -> Option<u64> {
        match self.look {
            Look::NotAsked | Look::Asking => None,
            Look::Since(number) => Some(number),
            Look::Decided => Some(0),
        }
    }

    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.look != Look::Decided && now >= self.look_at
    }

    pub(super) fn due_at(&self) -> Duration {
        self.look_at
    }

    /// The nodes to ask now.
    pub(super) fn ask(&mut self, now: Duration) -> [NodeId; 2] {
        let wait = FIRST_LOOK_AGAIN.saturating_mul(1 << self.looks.min(16)).min(LONGEST_LOOK_AGAIN);
        self.look_at = now + wait;
        self.looks = self.looks.saturating_add(1);
        if self.look == Look::NotAsked {
            self.look = Look::Asking;
        }
        self.sides.clone()
    }

    /// For how long the side has been stale that the verdict names.
    pub(super) fn stale_for(&mut self, now: Duration, verdict: &Verdict) -> Duration {
        let Verdict::Reap { decision, .. } = verdict else {
            self.stale = None;
            return Duration::ZERO;
        };
        if self.stale.as_ref().is_none_or(|(node, _)| *node != decision.stale) {
            self.stale = Some((decision.stale.clone(), now));
        }
        self.stale.as_ref().map_or(Duration::ZERO, |(_, since)| now.saturating_sub(*since))
    }

    /// What was so while nobody looked is not known.
    pub(super) fn forget_stale(&mut self) {
        self.stale = None;
    }

    /// The asking has its number.
    pub(super) fn asked(&mut self, number: u64) {
        if self.look == Look::Asking {
            self.look = Look::Since(number);
        }
    }
}

/// What was said of a thing, and until when nothing is proposed about it.
#[derive(Debug, Default)]
pub(super) struct Attention {
    said: Option<(String, bool)>,
    held_until: Option<Duration>,
}

impl Attention {
    /// Whether something may be proposed.
    pub(super) fn is_free(&self, now: Duration) -> bool {
        self.held_until.is_none_or(|until| now >= until)
    }

    pub(super) fn hold(&mut self, now: Duration) {
        self.held_until = Some(now + HOLD_AFTER_REFUSAL);
    }

    /// Says it, unless it was the last thing said.
    pub(super) fn say(&mut self, term: u64, about: About, what: String, loud: bool) -> Option<Effect> {
        if self.said.as_ref().is_some_and(|(said, was_loud)| *said == what && *was_loud == loud) {
            return None;
        }
        self.said = Some((what.clone(), loud));
        Some(Effect::Report(Report { term, about, what, loud }))
    }
}
