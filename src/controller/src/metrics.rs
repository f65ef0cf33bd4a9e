//! Every metric of the controller. Names and meanings that the Go driver had are kept (docs say which).
//!
//! Counters are this replica's own. Gauges of the ledger are set from it when they are read, and only the leader
//! has them, so that a sum over the replicas counts each thing once.

mod hotplug;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use state_machine::MigrationOutcome;

pub(crate) use hotplug::HotplugMetrics;

/// Buckets of the durations of RPCs and attachments, in seconds.
const DURATION_BUCKETS_SECONDS: [f64; 12] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// Buckets of the durations of migrations, in seconds: up to an hour, as large VMs take.
const MIGRATION_BUCKETS_SECONDS: [f64; 10] =
    [15.0, 30.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0, 1_800.0, 3_600.0];

/// The controller's metrics; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    registry: Registry,
    scrape: Arc<Mutex<()>>,
    operations: IntCounterVec,
    operation_seconds: HistogramVec,
    attaches: IntCounterVec,
    detaches: IntCounterVec,
    conflicts: IntCounter,
    attachment_seconds: HistogramVec,
    appliance: GaugeVec,
    appliance_connects: IntCounterVec,
    appliance_connect_seconds: Histogram,
    storage: IntGauge,
    appliance_address: String,
    ledger: IntGaugeVec,
    active_migrations: IntGauge,
    overdue_migrations: IntGauge,
    migrations: IntCounterVec,
    migration_seconds: Histogram,
    stale_cleared: IntCounter,
    reconciled: IntCounterVec,
    events: IntCounterVec,
    raft: IntGaugeVec,
    sessions_active: IntGauge,
    session_reports: IntCounter,
    session_cuts: IntCounterVec,
    orphans: IntGaugeVec,
    orphans_cleaned: IntCounter,
    pub(crate) hotplug: HotplugMetrics,
    certificates: IntGaugeVec,
}

/// What is read for the gauges at each scrape.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    pub(crate) is_leader: bool,
    pub(crate) term: u64,
    pub(crate) last_log_index: u64,
    pub(crate) applied_index: u64,
    pub(crate) storage_bytes: u64,
    pub(crate) volumes: usize,
    pub(crate) attachments: usize,
    pub(crate) migrations: usize,
    pub(crate) overdue_migrations: usize,
    /// Attachment pods whose deletion is denied.
    pub(crate) hotplug_held: usize,
    /// For how long the oldest of these holds has lasted.
    pub(crate) hotplug_longest_hold: Duration,
    /// Until when certificates hold, in seconds since 1970, by role.
    pub(crate) certificates: Vec<(&'static str, i64)>,
    /// How many have ended, by outcome.
    pub(crate) migrations_ended: Vec<(MigrationOutcome, u64)>,
}

impl Metrics {
    /// Registers everything; `appliance_address` is the label of the appliance's connection.
    pub(crate) fn new(appliance_address: &str) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            registry: Registry::new(),
            scrape: Arc::default(),
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
            appliance_connects: counters(
                "rds_csi_rds_reconnect_total",
                "Attempts to connect to the appliance over SSH, the first one too.",
                &["status"],
            )?,
            appliance_connect_seconds: Histogram::with_opts(
                HistogramOpts::new("rds_csi_rds_reconnect_duration_seconds", "How long they took.")
                    .buckets(DURATION_BUCKETS_SECONDS.to_vec()),
            )?,
            storage: IntGauge::new(
                "rds_csi_storage_bytes",
                "What Raft's log, vote and snapshots take on this replica's disk.",
            )?,
            ledger: gauges("rds_csi_ledger_entries", "What the ledger holds; on the leader only.", "kind")?,
            active_migrations: IntGauge::new(
                "rds_csi_migration_active_migrations",
                "Migrations that have not ended; on the leader only.",
            )?,
            overdue_migrations: IntGauge::new(
                "rds_csi_migration_overdue_migrations",
                "Migrations past their timeout that have not ended; on the leader only.",
            )?,
            migrations: counters(
                "rds_csi_migration_migrations_total",
                "Migrations that ended, since the ledger began; on the leader only.",
                &["result"],
            )?,
            migration_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "rds_csi_migration_duration_seconds",
                    "From the second node's admission to the end of the migration; those that ended under this leader.",
                )
                .buckets(MIGRATION_BUCKETS_SECONDS.to_vec()),
            )?,
            stale_cleared: IntCounter::new(
                "rds_csi_attachment_stale_cleared_total",
                "Attachments freed because their node is off, by this leader.",
            )?,
            reconciled: counters(
                "rds_csi_attachment_reconcile_total",
                "What this leader did about attachments unasked: a side reaped, a stale one cleared.",
                &["action"],
            )?,
            events: counters("rds_csi_events_posted_total", "Events posted to Kubernetes.", &["reason"])?,
            raft: gauges(
                "rds_csi_raft",
                "This replica: leader (0 or 1), term, log and applied index.",
                "fact",
            )?,
            sessions_active: IntGauge::new(
                "rds_csi_sessions_active",
                "Node plugins that have a session with this replica; on the leader only.",
            )?,
            session_reports: IntCounter::new(
                "rds_csi_session_reports_total",
                "Reports of node plugins that were heard.",
            )?,
            session_cuts: counters(
                "rds_csi_session_cuts_total",
                "Cuts: ordered of a node, held back because the volume is in use, proven by a node's report.",
                &["status"],
            )?,
            orphans: gauges(
                "rds_csi_orphans",
                "Volumes and files on the appliance that nobody knows, as of the last look; on the leader only.",
                "verdict",
            )?,
            orphans_cleaned: IntCounter::new(
                "rds_csi_orphans_cleaned_total",
                "Volumes and files on the appliance that nobody knew, removed by this leader.",
            )?,
            hotplug: HotplugMetrics::new()?,
            certificates: gauges(
                "rds_csi_certificate_expiry_timestamp_seconds",
                "Until when the certificates in use hold, in seconds since 1970.",
                "role",
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
        self.registry.register(Box::new(self.appliance_connects.clone()))?;
        self.registry.register(Box::new(self.appliance_connect_seconds.clone()))?;
        self.registry.register(Box::new(self.storage.clone()))?;
        self.registry.register(Box::new(self.ledger.clone()))?;
        self.registry.register(Box::new(self.active_migrations.clone()))?;
        self.registry.register(Box::new(self.overdue_migrations.clone()))?;
        self.registry.register(Box::new(self.migrations.clone()))?;
        self.registry.register(Box::new(self.migration_seconds.clone()))?;
        self.registry.register(Box::new(self.stale_cleared.clone()))?;
        self.registry.register(Box::new(self.reconciled.clone()))?;
        self.registry.register(Box::new(self.events.clone()))?;
        self.registry.register(Box::new(self.raft.clone()))?;
        self.registry.register(Box::new(self.sessions_active.clone()))?;
        self.registry.register(Box::new(self.session_reports.clone()))?;
        self.registry.register(Box::new(self.session_cuts.clone()))?;
        self.registry.register(Box::new(self.orphans.clone()))?;
        self.registry.register(Box::new(self.orphans_cleaned.clone()))?;
        self.registry.register(Box::new(self.certificates.clone()))?;
        self.hotplug.register(&self.registry)
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

    /// A migration ended.
    pub(crate) fn migration_took(&self, took: Duration) {
        self.migration_seconds.observe(took.as_secs_f64());
    }

    /// A side of an overdue migration is to go.
    pub(crate) fn reaped(&self) {
        self.reconciled.with_label_values(&["reaped"]).inc();
    }

    /// An attachment was freed whose node is off.
    pub(crate) fn stale_cleared(&self) {
        self.stale_cleared.inc();
        self.reconciled.with_label_values(&["stale_cleared"]).inc();
    }

    /// An event was posted.
    pub(crate) fn event_posted(&self, reason: &str) {
        self.events.with_label_values(&[reason]).inc();
    }

    /// It was tried to connect to the appliance.
    pub(crate) fn appliance_connect(&self, ok: bool, took: Duration) {
        self.appliance_connects.with_label_values(&[status(ok)]).inc();
        self.appliance_connect_seconds.observe(took.as_secs_f64());
    }

    /// The appliance answered, or did not.
    pub(crate) fn appliance_reached(&self, reached: bool) {
        self.appliance.with_label_values(&[&self.appliance_address]).set(f64::from(u8::from(reached)));
    }

    /// So many node plugins have a session.
    pub(crate) fn sessions_active(&self, count: usize) {
        self.sessions_active.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A node plugin's report was heard.
    pub(crate) fn session_report(&self) {
        self.session_reports.inc();
    }

    /// A cut came this far: `ordered`, `held` or `proven`.
    pub(crate) fn session_cut(&self, status: &str) {
        self.session_cuts.with_label_values(&[status]).inc();
    }

    /// So many orphans there are; `None`: this replica does not look.
    pub(crate) fn orphans(&self, kept_and_removable: Option<(usize, usize)>) {
        self.orphans.reset();
        if let Some((kept, removable)) = kept_and_removable {
            for (verdict, count) in [("kept", kept), ("removable", removable)] {
                self.orphans.with_label_values(&[verdict]).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }

    /// An orphan was removed.
    pub(crate) fn orphan_cleaned(&self) {
        self.orphans_cleaned.inc();
    }

    /// All metrics in Prometheus' text format, with gauges as of now.
    pub(crate) fn text(&self, now: &Gauges) -> Result<Vec<u8>, prometheus::Error> {
        // What is derived from the ledger is set anew: not by two at once.
        let _one_at_a_time = self.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        let facts = [
            ("leader", u64::from(now.is_leader)),
            ("term", now.term),
            ("last_log_index", now.last_log_index),
            ("applied_index", now.applied_index),
        ];
        for (fact, value) in facts {
            self.raft.with_label_values(&[fact]).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        for (role, ends) in &now.certificates {
            self.certificates.with_label_values(&[role]).set(*ends);
        }
        self.storage.set(i64::try_from(now.storage_bytes).unwrap_or(i64::MAX));
        self.ledger.reset();
        let led = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        if now.is_leader {
            self.ledger.with_label_values(&["volumes"]).set(led(now.volumes));
            self.ledger.with_label_values(&["attachments"]).set(led(now.attachments));
        }
        self.active_migrations.set(if now.is_leader { led(now.migrations) } else { 0 });
        self.overdue_migrations.set(if now.is_leader { led(now.overdue_migrations) } else { 0 });
        let (held, longest) =
            if now.is_leader { (now.hotplug_held, now.hotplug_longest_hold) } else { Default::default() };
        self.hotplug.held(held, longest);
        self.migrations.reset();
        for (outcome, ended) in now.migrations_ended.iter().filter(|_| now.is_leader) {
            self.migrations.with_label_values(&[outcome.name()]).inc_by(*ended);
        }
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
        let ended = [MigrationOutcome::Success, MigrationOutcome::Failed, MigrationOutcome::Timeout];
        let gauges = Gauges {
            is_leader: true,
            migrations_ended: ended.map(|outcome| (outcome, 4)).to_vec(),
            overdue_migrations: 2,
            certificates: vec![("replica", 7), ("ca", 8)],
            ..Gauges::default()
        };
        metrics.migration_took(Duration::from_secs(20));
        metrics.reaped();
        metrics.stale_cleared();
        metrics.event_posted("VolumeAttached");
        let text = String::from_utf8(metrics.text(&gauges).unwrap()).unwrap();
        for line in [
            "rds_csi_migration_migrations_total{result=\"success\"} 4",
            "rds_csi_migration_migrations_total{result=\"failed\"} 4",
            "rds_csi_migration_migrations_total{result=\"timeout\"} 4",
            "rds_csi_migration_duration_seconds_bucket{le=\"15\"} 0",
            "rds_csi_migration_duration_seconds_bucket{le=\"30\"} 1",
            "rds_csi_migration_duration_seconds_bucket{le=\"600\"} 1",
            "rds_csi_migration_overdue_migrations 2",
            "rds_csi_attachment_reconcile_total{action=\"reaped\"} 1",
            "rds_csi_attachment_reconcile_total{action=\"stale_cleared\"} 1",
            "rds_csi_attachment_stale_cleared_total 1",
            "rds_csi_events_posted_total{reason=\"VolumeAttached\"} 1",
            "rds_csi_volume_operations_total{operation=\"create_volume\",status=\"success\"} 1",
            "rds_csi_attachment_attach_total{status=\"failure\"} 1",
            "rds_csi_attachment_conflicts_total 1",
            "rds_csi_certificate_expiry_timestamp_seconds{role=\"ca\"} 8",
            "rds_csi_rds_connection_state{address=\"127.0.0.1\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
