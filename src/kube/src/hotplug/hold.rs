//! Since when an attachment pod is held: one moment, the same for every replica.
//!
//! A first denial is noted on the pod. The note outlives the hold that it was written for: KubeVirt gives a deletion up
//! when the pod is wanted again, and may come back to it much later. So a note counts only while it can be that of the
//! deletion in question:
//!
//! - One that is [`FORMER_HOLD_AFTER`] older than the longest hold is forgotten.
//! - KubeVirt makes a new attachment pod for each change of the VM's volumes. If one of the pods beside this one is
//!   younger than the note, the deletion is for another set of volumes, or for the same one tried once more: the hold
//!   begins anew. Clocks of API servers and replicas differ, so [`CLOCK_TOLERANCE`] younger.
//!
//! Whoever may change a VM's volumes can make holds begin anew for ever. So the note has the beginning of the whole row
//! of holds as well: [`HOLDS_IN_A_ROW`] of the longest holds after it the pod may go, and nothing begins anew.

use std::time::{Duration, SystemTime};

use super::decide::siblings;
use super::facts::{Facts, Settings};

/// How far a moment that another machine wrote may lie in the future. A first denial that is further off is not
/// believed, and the pod counts as held for long enough.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// A hold that began so long before the longest one would have ended is a former one: KubeVirt tries again every 17
/// minutes at least, so it gave that deletion up long ago. The pod is held anew, if need be, from then on.
pub const FORMER_HOLD_AFTER: Duration = Duration::from_secs(1_800);

/// How many times the longest hold a pod may be held in all, however often its hold begins anew.
pub const HOLDS_IN_A_ROW: u32 = 4;

/// Since when a pod is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The first denial of this hold.
    pub since: SystemTime,
    /// The first denial of the row of holds that this one belongs to.
    pub first: SystemTime,
}

/// The hold that a decision belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Current {
    pub(super) held: Held,
    /// It begins with this decision, if that is a denial.
    pub(super) begins: bool,
}

impl Current {
    /// The hold that a decision at the time `now` belongs to.
    pub(super) fn of(facts: &Facts, now: SystemTime, settings: &Settings) -> Self {
        let former_after = settings.max_hold.saturating_add(FORMER_HOLD_AFTER);
        let is_former = |held: &Held| now.duration_since(held.since).is_ok_and(|age| age >= former_after);
        // What another replica wrote comes first: all count from the same moment.
        let noted: Vec<_> =
            [facts.noted, facts.remembered].into_iter().flatten().filter(|held| !is_former(held)).collect();
        let newest = newest_beside(facts, now);
        let is_of_this =
            |held: &&Held| newest.is_none_or(|created| !is_later(created, held.since, CLOCK_TOLERANCE));
        if let Some(held) = noted.iter().find(is_of_this) {
            return Self { held: *held, begins: false };
        }
        match noted.iter().min_by_key(|held| held.first) {
            Some(held) if age(held.first, now, settings.row()) >= settings.row() => {
                Self { held: *held, begins: false }
            }
            Some(Held { first, .. }) => Self { held: Held { since: now, first: *first }, begins: true },
            None => Self { held: Held { since: now, first: now }, begins: true },
        }
    }

    /// For how long the pod has been held; by the whole row, if that is over.
    pub(super) fn lasted(&self, now: SystemTime, settings: &Settings) -> Duration {
        let row = age(self.held.first, now, settings.row());
        if row >= settings.row() { row } else { age(self.held.since, now, settings.max_hold) }
    }
}

impl Settings {
    /// The longest row of holds.
    #[must_use]
    pub fn row(&self) -> Duration {
        self.max_hold.saturating_mul(HOLDS_IN_A_ROW)
    }
}

/// How long ago it was; `unbelievable` if it is too far ahead.
fn age(moment: SystemTime, now: SystemTime, unbelievable: Duration) -> Duration {
    match now.duration_since(moment) {
        Ok(age) => age,
        Err(ahead) if ahead.duration() <= CLOCK_TOLERANCE => Duration::ZERO,
        Err(_) => unbelievable,
    }
}

fn is_later(moment: SystemTime, than: SystemTime, by_more_than: Duration) -> bool {
    moment.duration_since(than).is_ok_and(|difference| difference > by_more_than)
}

/// When the youngest of the pods beside this one was made. One from the future says nothing: a hold that begins now
/// would begin anew with the next question.
fn newest_beside(facts: &Facts, now: SystemTime) -> Option<SystemTime> {
    let beside = siblings(facts).ok()?;
    let created = beside.iter().filter_map(|sibling| sibling.created);
    created.filter(|created| !is_later(*created, now, CLOCK_TOLERANCE)).max()
}
