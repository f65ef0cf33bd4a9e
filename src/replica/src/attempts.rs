//! Attempts that come too late: one that was held up on its way arrives after its asker has asked again, was answered
//! and went on. The term does not shut it out if the leader is still the same, and what it asks for may undo what was
//! decided since: a deletion that is delivered after the volume was made anew.
//!
//! So an asker numbers its questions and its attempts, and the leader takes no attempt once it has taken a later one
//! of the same question. First attempts are not remembered: nearly every question needs no other.

use std::collections::{BTreeMap, VecDeque};

/// How many questions that were asked more than once are remembered.
const MOST_REMEMBERED: usize = 4_096;

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
