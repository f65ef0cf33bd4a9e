//! Durations of one thing, measured many times.

use std::time::Duration;

/// Durations, and how long it took to collect them.
#[derive(Debug, Default)]
pub(super) struct Samples {
    sorted: Vec<Duration>,
    /// The wall time of the whole row; without it the row has no rate.
    elapsed: Option<Duration>,
}

impl Samples {
    /// Samples that say nothing of a rate.
    pub(super) fn new(mut durations: Vec<Duration>) -> Self {
        durations.sort_unstable();
        Self { sorted: durations, elapsed: None }
    }

    /// Samples that were collected in `elapsed` altogether.
    pub(super) fn within(durations: Vec<Duration>, elapsed: Duration) -> Self {
        Self { elapsed: Some(elapsed), ..Self::new(durations) }
    }

    pub(super) fn len(&self) -> usize {
        self.sorted.len()
    }

    /// The duration that this share of the samples does not exceed, in ms; 1.0 is the longest.
    pub(super) fn quantile_ms(&self, share: f64) -> Option<f64> {
        let rank = (self.sorted.len() as f64 * share).ceil() as usize;
        let index = rank.clamp(1, self.sorted.len().max(1)) - 1;
        self.sorted.get(index).map(|duration| duration.as_secs_f64() * 1000.0)
    }

    pub(super) fn per_second(&self) -> Option<f64> {
        self.elapsed.map(|elapsed| self.sorted.len() as f64 / elapsed.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let samples =
            Samples::within((1..=100).rev().map(Duration::from_millis).collect(), Duration::from_secs(2));
        assert_eq!(samples.quantile_ms(0.5), Some(50.0));
        assert_eq!(samples.quantile_ms(0.99), Some(99.0));
        assert_eq!(samples.quantile_ms(1.0), Some(100.0));
        assert_eq!(samples.per_second(), Some(50.0));
        assert_eq!(Samples::new(Vec::new()).quantile_ms(0.5), None);
    }
}
