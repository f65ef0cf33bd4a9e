//! What the hotplug webhook counts.

use std::time::Duration;

use observer::hotplug::Reason;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Registry};

use super::counters;

/// Buckets of the durations of holds, in seconds: a hand-over takes seconds, a hold ends after minutes.
const HOLD_BUCKETS_SECONDS: [f64; 10] = [1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0];

/// The webhook's metrics; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct HotplugMetrics {
    decisions: IntCounterVec,
    held_pods: IntGauge,
    longest_hold: Gauge,
    hold_seconds: Histogram,
    mutations: IntCounter,
}

impl HotplugMetrics {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let decisions = counters(
            "rds_csi_hotplug_decisions_total",
            "Deletions of attachment pods that were judged, by reason.",
            &["reason"],
        )?;
        for reason in Reason::ALL {
            // From 0 on: an increase is not seen of what is there only from its first time on.
            decisions.with_label_values(&[reason.name()]).inc_by(0);
        }
        Ok(Self {
            decisions,
            held_pods: IntGauge::new(
                "rds_csi_hotplug_held_pods",
                "Attachment pods whose deletion is denied now; on the leader only.",
            )?,
            longest_hold: Gauge::new(
                "rds_csi_hotplug_longest_hold_seconds",
                "For how long the oldest of these holds has lasted, 0 if there is none; on the leader only.",
            )?,
            hold_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "rds_csi_hotplug_hold_duration_seconds",
                    "From the first denial of an attachment pod's deletion to its permission.",
                )
                .buckets(HOLD_BUCKETS_SECONDS.to_vec()),
            )?,
            mutations: IntCounter::new(
                "rds_csi_hotplug_mutations_total",
                "New attachment pods that were made to expose more of their volumes.",
            )?,
        })
    }

    pub(super) fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.decisions.clone()))?;
        registry.register(Box::new(self.held_pods.clone()))?;
        registry.register(Box::new(self.longest_hold.clone()))?;
        registry.register(Box::new(self.hold_seconds.clone()))?;
        registry.register(Box::new(self.mutations.clone()))
    }

    /// A deletion was judged.
    pub(crate) fn decided(&self, reason: &str) {
        self.decisions.with_label_values(&[reason]).inc();
    }

    /// A pod may go whose deletion was denied for so long.
    pub(crate) fn released(&self, held: Duration) {
        self.hold_seconds.observe(held.as_secs_f64());
    }

    /// A new pod was completed.
    pub(crate) fn mutated(&self) {
        self.mutations.inc();
    }

    /// So many are held, the first of them for so long.
    pub(super) fn held(&self, pods: usize, longest: Duration) {
        self.held_pods.set(i64::try_from(pods).unwrap_or(i64::MAX));
        self.longest_hold.set(longest.as_secs_f64());
    }
}
