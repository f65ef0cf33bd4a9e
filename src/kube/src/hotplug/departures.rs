//! Pods whose deletion was allowed a moment ago.
//!
//! A watch is late: it may show a pod as running for a while after its deletion was allowed. Two pods that hold the
//! same volume could both go then, each because of the other. So whoever allows a deletion notes it here, and shows
//! the pod as terminating to every decision that follows ([`Facts::siblings`](super::Facts::siblings)).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// For how long a pod is remembered. A deletion that somebody else stopped is not believed for longer.
pub const REMEMBERED: Duration = Duration::from_secs(30);

/// How many pods are remembered; beyond that the oldest are forgotten.
pub const MAX_REMEMBERED: usize = 4_096;

/// The pods that are about to go, oldest first.
#[derive(Debug, Default)]
pub struct Departures {
    pods: VecDeque<(Instant, String)>,
}

impl Departures {
    /// The deletion of the pod with this UID was allowed.
    pub fn note(&mut self, uid: &str, now: Instant) {
        while self.pods.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= REMEMBERED)
            || self.pods.len() >= MAX_REMEMBERED
        {
            self.pods.pop_front();
        }
        self.pods.push_back((now, uid.to_owned()));
    }

    /// Whether the pod with this UID is about to go.
    pub fn contains(&self, uid: &str, now: Instant) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < REMEMBERED;
        self.pods.iter().any(|(at, noted)| noted == uid && is_recent(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_remembered_for_a_while() {
        let start = Instant::now();
        let mut departures = Departures::default();
        departures.note("old", start);
        assert!(departures.contains("old", start + REMEMBERED - Duration::from_millis(1)));
        assert!(!departures.contains("new", start));
        assert!(!departures.contains("old", start + REMEMBERED));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let start = Instant::now();
        let mut departures = Departures::default();
        for n in 0..=MAX_REMEMBERED {
            departures.note(&n.to_string(), start);
        }
        assert_eq!(departures.pods.len(), MAX_REMEMBERED);
        assert!(!departures.contains("0", start) && departures.contains("1", start));
        departures.note("late", start + REMEMBERED);
        assert_eq!(departures.pods.len(), 1, "what is too old is forgotten");
    }
}
