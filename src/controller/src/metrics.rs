//! Every metric of the controller. Names and meanings that the Go driver had are kept (docs say which).
//!
//! Counters are this replica's own. Gauges of the ledger are set from it when they are read, and only the leader
//! has them, so that a sum over the replicas counts each thing once.

use std::time::Duration;

use prometheus::{
    Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// Buckets of the durations of RPCs and attachments, in seconds.
const DURATION_BUCKETS_SECONDS: [f64; 12] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// The controller's metrics; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    registry: Registry,
    operations: IntCounterVec,
    operation_seconds: HistogramVec,
    attaches: IntCounterVec,
    detaches: IntCounterVec,
    conflicts: IntCounter,
    attachment_seconds: HistogramVec,
    appliance: GaugeVec,
    appliance_address: String,
    ledger: IntGaugeVec,
    active_migrations: IntGauge,
    raft: IntGaugeVec,
}

/// What is read for the gauges at each scrape.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    pub(crate) is_leader: bool,
    pub(crate) term: u64,
    pub(crate) last_log_index: u64,
    pub(crate) applied_index: u64,
    pub(crate) volumes: usize,
    pub(crate) attachments: usize,
    pub(crate) migrations: usize,
}

impl Metrics {
    /// Registers everything; `appliance_address` is the label of the appliance's connection.
    pub(crate) fn new(appliance_address: &str) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            registry: Registry::new(),
            operations: counters("rds_csi_volume_operations_total", "CSI calls.", &["operation", "status"])?,
            operation_seconds: seconds("rds_csi_operation_duration_seconds", "Duration of CSI calls.")?,
            attaches: counters("rds_csi_attachment_attach_total", "Publishes.", &["status"])?,
            detaches: counters("rds_csi_attachment_detach_total", "Unpublishes.", &["status"])?,
            conflicts: IntCounter::new(
                "rds_csi_attachment_conflicts_total",
                "Publishes refused because other nodes have the volume.",
            )?,
            attachment_seconds: seconds(
                "rds_csi_attachment_operation_duration_seconds",
                "Duration of publishes and unpublishes.",
            )?,
            appliance: GaugeVec::new(
                Opts::new("rds_csi_rds_connection_state", "1 if the appliance answered last time, else 0."),
                &["address"],
            )?,
            appliance_address: appliance_address.to_owned(),
            ledger: gauges("rds_csi_ledger_entries", "What the ledger holds; on the leader only.", "kind")?,
            active_migrations: IntGauge::new(
                "rds_csi_migration_active_migrations",
                "Migrations that have not ended; on the leader only.",
            )?,
            raft: gauges(
                "rds_csi_raft",
                "This replica: leader (0 or 1), term, log and applied index.",
                "fact",
            )?,
        };
        metrics.register()?;
        Ok(metrics)
    }

    fn register(&self) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(self.operations.clone()))?;
        self.registry.register(Box::new(self.operation_seconds.clone()))?;
        self.registry.register(Box::new(self.attaches.clone()))?;
        self.registry.register(Box::new(self.detaches.clone()))?;
        self.registry.register(Box::new(self.conflicts.clone()))?;
        self.registry.register(Box::new(self.attachment_seconds.clone()))?;
        self.registry.register(Box::new(self.appliance.clone()))?;
        self.registry.register(Box::new(self.ledger.clone()))?;
        self.registry.register(Box::new(self.active_migrations.clone()))?;
        self.registry.register(Box::new(self.raft.clone()))
    }

    /// A CSI call ended.
    pub(crate) fn operation(&self, operation: &str, took: Duration, ok: bool) {
        self.operations.with_label_values(&[operation, status(ok)]).inc();
        self.operation_seconds.with_label_values(&[operation]).observe(took.as_secs_f64());
    }

    /// A publish ended.
    pub(crate) fn attach(&self, took: Duration, ok: bool, conflict: bool) {
        self.attaches.with_label_values(&[status(ok)]).inc();
        self.attachment_seconds.with_label_values(&["attach"]).observe(took.as_secs_f64());
        if conflict {
            self.conflicts.inc();
        }
    }

    /// An unpublish ended.
    pub(crate) fn detach(&self, took: Duration, ok: bool) {
        self.detaches.with_label_values(&[status(ok)]).inc();
        self.attachment_seconds.with_label_values(&["detach"]).observe(took.as_secs_f64());
    }

    /// The appliance answered, or did not.
    pub(crate) fn appliance_reached(&self, reached: bool) {
        self.appliance.with_label_values(&[&self.appliance_address]).set(f64::from(u8::from(reached)));
    }

    /// All metrics in Prometheus' text format, with gauges as of now.
    pub(crate) fn text(&self, now: &Gauges) -> Result<Vec<u8>, prometheus::Error> {
        let facts = [
            ("leader", u64::from(now.is_leader)),
            ("term", now.term),
            ("last_log_index", now.last_log_index),
            ("applied_index", now.applied_index),
        ];
        for (fact, value) in facts {
            self.raft.with_label_values(&[fact]).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        self.ledger.reset();
        let led = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        if now.is_leader {
            self.ledger.with_label_values(&["volumes"]).set(led(now.volumes));
            self.ledger.with_label_values(&["attachments"]).set(led(now.attachments));
        }
        self.active_migrations.set(if now.is_leader { led(now.migrations) } else { 0 });
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

fn status(ok: bool) -> &'static str {
    if ok { "success" } else { "failure" }
}

fn counters(name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

fn gauges(name: &str, help: &str, label: &str) -> Result<IntGaugeVec, prometheus::Error> {
    IntGaugeVec::new(Opts::new(name, help), &[label])
}

fn seconds(name: &str, help: &str) -> Result<HistogramVec, prometheus::Error> {
    let buckets = DURATION_BUCKETS_SECONDS.to_vec();
    HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), &["operation"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_leader_has_the_ledgers_gauges() {
        let metrics = Metrics::new("127.0.0.1").unwrap();
        let text = |is_leader| {
            let gauges = Gauges { is_leader, volumes: 3, migrations: 1, ..Gauges::default() };
            String::from_utf8(metrics.text(&gauges).unwrap()).unwrap()
        };
        assert!(text(true).contains("rds_csi_ledger_entries{kind=\"volumes\"} 3"));
        assert!(text(true).contains("rds_csi_migration_active_migrations 1"));
        assert!(!text(false).contains("rds_csi_ledger_entries{"));
        assert!(text(false).contains("rds_csi_migration_active_migrations 0"));
    }

    #[test]
    fn operations_keep_the_go_drivers_names() {
        let metrics = Metrics::new("127.0.0.1").unwrap();
        metrics.operation("create_volume", Duration::from_millis(3), true);
        metrics.attach(Duration::from_millis(3), false, true);
        metrics.appliance_reached(true);
        let text = String::from_utf8(metrics.text(&Gauges::default()).unwrap()).unwrap();
        for line in [
            "rds_csi_volume_operations_total{operation=\"create_volume\",status=\"success\"} 1",
            "rds_csi_attachment_attach_total{status=\"failure\"} 1",
            "rds_csi_attachment_conflicts_total 1",
            "rds_csi_rds_connection_state{address=\"127.0.0.1\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
