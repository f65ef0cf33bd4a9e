//! The fence: one number on the appliance that every change must exceed.
//!
//! A change carries `term << 32 | sequence`. The appliance keeps the highest number that it has accepted; the same
//! command that makes the change first compares and stores it, and does nothing unless its own number is strictly
//! greater. Therefore
//!
//! - a leader of a lower term is refused as soon as a later one has begun;
//! - a late copy of any change is refused once a later change was accepted: the add that arrives after the delete,
//!   the remove that arrives after a re-create;
//! - a lost answer is made harmless by trying again, with a higher number.
//!
//! The last one needs that every idempotent call sends its change, even where looking says that nothing is left to
//! do: only an accepted number shuts out the copies that are still on their way.
//!
//! Implements DESIGN.md, "Who does side effects". That an appliance runs the comparison and the change without
//! another script in between is an **assumption that was never tried on hardware**.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::BackendError;

/// Bits of a fence number that count the changes of one term.
const SEQUENCE_BITS: u32 = 32;
/// The highest term that a fence number can carry: the appliance's numbers are signed and have 64 bits.
pub const MAX_TERM: u64 = (1 << (63 - SEQUENCE_BITS)) - 1;

/// `term << 32 | sequence`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FenceNumber(u64);

impl FenceNumber {
    /// The number that begins `term`.
    pub fn of_term(term: u64) -> Option<Self> {
        (term <= MAX_TERM).then_some(Self(term << SEQUENCE_BITS))
    }

    /// A number as the appliance keeps it.
    pub fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    pub fn raw(self) -> u64 {
        self.0
    }

    pub fn term(self) -> u64 {
        self.0 >> SEQUENCE_BITS
    }

    /// The next number of the same term, if there is one.
    fn next(self) -> Option<Self> {
        let next = Self(self.0 + 1);
        (next.term() == self.term()).then_some(next)
    }
}

/// Hands out this instance's numbers: strictly growing, of the term that has begun.
#[derive(Debug, Default)]
pub struct FenceIssuer {
    last: Mutex<Option<FenceNumber>>,
}

impl FenceIssuer {
    fn last(&self) -> MutexGuard<'_, Option<FenceNumber>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands out nothing until [`begin`](Self::begin): a new term is being announced.
    pub fn suspend(&self) {
        *self.last() = None;
    }

    /// A term has begun; `stored` is the appliance's number, above which this instance goes on.
    pub fn begin(&self, stored: FenceNumber) {
        *self.last() = Some(stored);
    }

    /// The term that has begun.
    pub fn term(&self) -> Result<u64, BackendError> {
        self.last().map(FenceNumber::term).ok_or_else(no_term)
    }

    /// The number of the next change.
    pub fn next(&self) -> Result<FenceNumber, BackendError> {
        let mut last = self.last();
        let current = last.ok_or_else(no_term)?;
        let next =
            current.next().ok_or_else(|| BackendError::rejected("this term's fence numbers are used up"))?;
        *last = Some(next);
        Ok(next)
    }

    /// The appliance refused `ours` because it has `stored`. Says whether another number of our term can succeed.
    pub fn refused(&self, ours: FenceNumber, stored: FenceNumber) -> Result<(), BackendError> {
        if stored.term() > ours.term() {
            return Err(BackendError::StaleTerm { highest: stored.term() });
        }
        if stored < ours {
            return Err(BackendError::unavailable(format!(
                "the appliance refused number {} although it has {}",
                ours.raw(),
                stored.raw()
            )));
        }
        let mut last = self.last();
        if let Some(current) = *last
            && current.term() == stored.term()
        {
            *last = Some(current.max(stored));
        }
        Ok(())
    }
}

fn no_term() -> BackendError {
    BackendError::rejected("no term has begun on this appliance")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_grow_within_a_term_and_stay_below_the_next() {
        let issuer = FenceIssuer::default();
        assert!(matches!(issuer.next(), Err(BackendError::Rejected { .. })));
        issuer.begin(FenceNumber::of_term(7).unwrap());
        let first = issuer.next().unwrap();
        let second = issuer.next().unwrap();
        assert!(first < second && second < FenceNumber::of_term(8).unwrap());
        assert_eq!(second.term(), 7);
        issuer.suspend();
        assert!(issuer.next().is_err());
    }

    #[test]
    fn the_last_number_of_a_term_is_not_followed_by_the_next_term() {
        let issuer = FenceIssuer::default();
        issuer.begin(FenceNumber::from_raw(FenceNumber::of_term(8).unwrap().raw() - 1));
        assert!(matches!(issuer.next(), Err(BackendError::Rejected { .. })));
    }

    #[test]
    fn the_highest_term_fits_the_appliances_signed_numbers() {
        let highest = FenceNumber::of_term(MAX_TERM).unwrap();
        assert!(highest.raw() | u64::from(u32::MAX) <= i64::MAX as u64);
        assert_eq!(FenceNumber::of_term(MAX_TERM + 1), None);
    }

    #[test]
    fn a_refusal_tells_a_later_term_from_a_later_change() {
        let issuer = FenceIssuer::default();
        issuer.begin(FenceNumber::of_term(7).unwrap());
        let ours = issuer.next().unwrap();
        let later = FenceNumber::from_raw(ours.raw() + 10);
        issuer.refused(ours, later).unwrap();
        assert!(issuer.next().unwrap() > later);
        let other_term = FenceNumber::of_term(9).unwrap();
        assert_eq!(issuer.refused(ours, other_term), Err(BackendError::StaleTerm { highest: 9 }));
    }
}
