//! What is being done at the moment and must not be begun a second time.
//!
//! A call into the kernel can outlive the operation that made it. Whoever makes one takes a [`Mark`] along and drops
//! it when the call has really ended; until then others see it and keep off.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// What is being done, by whatever it is done to.
#[derive(Debug)]
pub(crate) struct UnderWay<K> {
    keys: Arc<Mutex<BTreeSet<K>>>,
}

impl<K> Default for UnderWay<K> {
    fn default() -> Self {
        Self { keys: Arc::default() }
    }
}

impl<K: Ord + Clone> UnderWay<K> {
    /// Marks that work on `key` begins; `None` if some is under way.
    pub(crate) fn begin(&self, key: K) -> Option<Mark<K>> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.insert(key.clone()).then(|| Mark { keys: self.keys.clone(), key })
    }

    /// All that is under way.
    pub(crate) fn all(&self) -> BTreeSet<K> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Work that is under way until this is dropped.
#[derive(Debug)]
pub(crate) struct Mark<K: Ord> {
    keys: Arc<Mutex<BTreeSet<K>>>,
    key: K,
}

impl<K: Ord> Drop for Mark<K> {
    fn drop(&mut self) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_begun_twice() {
        let under_way = UnderWay::default();
        let mark = under_way.begin("a").unwrap();
        assert!(under_way.begin("a").is_none());
        let other = under_way.begin("b").unwrap();
        assert_eq!(under_way.all(), BTreeSet::from(["a", "b"]));
        drop(mark);
        assert_eq!(under_way.all(), BTreeSet::from(["b"]));
        assert!(under_way.begin("a").is_some());
        drop(other);
    }
}
