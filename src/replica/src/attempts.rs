//! Attempts that come too late: one that was held up on its way arrives after its asker was answered, or gave up, and
//! went on. The term does not shut it out if the leader is still the same, and what it asks for may undo what was
//! decided since: a deletion that is delivered after the volume was made anew, a publish after the unpublish.
//!
//! An asker that asked again numbers its questions and its attempts, and the leader takes no attempt once it has taken
//! a later one of the same question. First attempts are not remembered: nearly every question needs no other.
//!
//! An asker that gave up says beforehand when it will, by the ledger's time ([`given_up_at`]), and from then on the
//! leader takes no attempt of it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use state_machine::LedgerTime;

/// How many questions that were asked more than once are remembered.
const MOST_REMEMBERED: usize = 4_096;
/// By how much one machine's clock may run faster than another's, in percent. A clock that is being set right without a
/// jump runs wrong by 9 at most (chrony's limit), and quartz by far less.
const RATE_ERROR_PERCENT: u128 = 10;

/// The ledger's time at which an asker will have given up that waits for `patience` more, once it has heard from the
/// leader that it is `now`.
///
/// It is never later than that moment: `now` was so before the answer arrived, however long that took. The last part of
/// the patience is left out, since the two clocks may run at different rates.
pub fn given_up_at(now: LedgerTime, patience: Duration) -> LedgerTime {
    // Two times in whole milliseconds may be almost one further apart than they say.
    let counted_ms = (patience.as_millis() * (100 - RATE_ERROR_PERCENT) / 100).saturating_sub(1);
    LedgerTime(now.0.saturating_add(u64::try_from(counted_ms).unwrap_or(u64::MAX)))
}

/// One attempt at asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttemptId {
    /// The process that asks, by a number that it drew when it started; 0 if it does not say.
    pub asker: u64,
    /// Its question.
    pub question: u64,
    /// How often it asked that before.
    pub attempt: u32,
}

/// The latest attempts that were taken.
#[derive(Debug, Default)]
pub struct Attempts {
    latest: BTreeMap<(u64, u64), u32>,
    oldest_first: VecDeque<(u64, u64)>,
}

impl Attempts {
    /// Whether it may be taken; it is, then.
    pub fn take(&mut self, id: AttemptId) -> bool {
        let question = (id.asker, id.question);
        if id.asker == 0 {
            return true;
        }
        if let Some(latest) = self.latest.get_mut(&question) {
            let is_later = id.attempt > *latest;
            *latest = id.attempt.max(*latest);
            return is_later;
        }
        if id.attempt > 0 {
            if self.oldest_first.len() == MOST_REMEMBERED
                && let Some(oldest) = self.oldest_first.pop_front()
            {
                self.latest.remove(&oldest);
            }
            self.latest.insert(question, id.attempt);
            self.oldest_first.push_back(question);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(asker: u64, question: u64, attempt: u32) -> AttemptId {
        AttemptId { asker, question, attempt }
    }

    #[test]
    fn an_attempt_is_not_taken_after_a_later_one_of_its_question() {
        let mut attempts = Attempts::default();
        assert!(attempts.take(id(1, 1, 0)));
        assert!(attempts.take(id(1, 1, 2)));
        for late in [0, 1, 2] {
            assert!(!attempts.take(id(1, 1, late)), "{late}");
        }
        assert!(attempts.take(id(1, 1, 3)));
        assert!(attempts.take(id(1, 2, 0)), "another question");
        assert!(attempts.take(id(2, 1, 0)), "another asker");
    }

    #[test]
    fn who_does_not_say_is_always_heard() {
        let mut attempts = Attempts::default();
        assert!(attempts.take(id(0, 0, 0)) && attempts.take(id(0, 0, 0)));
    }

    /// On the leader's clock, whose rate is `percent` of the asker's, the asker gives up at `moment` or later.
    fn is_before_giving_up(moment: LedgerTime, now: LedgerTime, patience_ms: u64, percent: u64) -> bool {
        moment.0 - now.0 <= patience_ms * percent / 100
    }

    #[test]
    fn an_asker_has_given_up_by_no_earlier_moment_than_it_says() {
        let now = LedgerTime(7_000);
        for patience_ms in [0, 1, 9, 10, 11, 999, 10_000, 60_000] {
            let said = given_up_at(now, Duration::from_millis(patience_ms));
            for percent in [91, 100, 109] {
                assert!(is_before_giving_up(said, now, patience_ms, percent), "{patience_ms} at {percent} %");
            }
        }
        assert_eq!(given_up_at(now, Duration::from_secs(10)), LedgerTime(15_999), "most of it is used");
        assert_eq!(given_up_at(now, Duration::ZERO), now, "nothing is begun any more");
        assert_eq!(given_up_at(now, Duration::MAX), LedgerTime(u64::MAX));
    }

    #[test]
    fn only_so_many_questions_are_remembered() {
        let mut attempts = Attempts::default();
        for question in 0..=MOST_REMEMBERED as u64 {
            assert!(attempts.take(id(1, question, 0)) && attempts.take(id(1, question, 1)));
        }
        assert_eq!((attempts.latest.len(), attempts.oldest_first.len()), (MOST_REMEMBERED, MOST_REMEMBERED));
        assert!(!attempts.take(id(1, MOST_REMEMBERED as u64, 0)));
    }
}
