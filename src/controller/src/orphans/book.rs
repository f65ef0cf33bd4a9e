//! Since when each thing was seen, by the leader's monotonic clock: in each look since, or it is not in the book.

use std::collections::BTreeMap;
use std::time::Duration;

use state_machine::VolumeId;

/// What is remembered: a volume's name, and the path of its file.
pub(crate) type Key = (VolumeId, String);

/// First sights. A look that failed is not entered: it resets nothing, and proves nothing.
#[derive(Debug, Default)]
pub(crate) struct Book {
    first_seen: BTreeMap<Key, Duration>,
}

impl Book {
    /// A look found these, and nothing else.
    pub(crate) fn enter(&mut self, found: impl IntoIterator<Item = Key>, now: Duration) {
        let before = std::mem::take(&mut self.first_seen);
        let first = |key: Key| {
            let at = before.get(&key).copied().unwrap_or(now);
            (key, at)
        };
        self.first_seen = found.into_iter().map(first).collect();
    }

    /// For how long it has been seen.
    pub(crate) fn seen_for(&self, key: &Key, now: Duration) -> Duration {
        self.first_seen.get(key).map_or(Duration::ZERO, |first| now.saturating_sub(*first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        (VolumeId::parse(name).unwrap(), format!("/pool/{name}.img"))
    }

    #[test]
    fn age_is_counted_only_over_looks_that_all_saw_it() {
        let (mut book, at) = (Book::default(), Duration::from_secs);
        book.enter([key("pvc-1"), key("pvc-2")], at(10));
        assert_eq!(book.seen_for(&key("pvc-1"), at(10)), Duration::ZERO);
        book.enter([key("pvc-1")], at(70));
        book.enter([key("pvc-1"), key("pvc-2")], at(130));
        assert_eq!(book.seen_for(&key("pvc-1"), at(130)), at(120));
        assert_eq!(book.seen_for(&key("pvc-2"), at(130)), Duration::ZERO, "it was gone meanwhile");
        assert_eq!(book.seen_for(&key("pvc-3"), at(130)), Duration::ZERO);
    }
}
