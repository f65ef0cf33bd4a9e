//! The node plugin's metrics: every name is in this file. The Go driver's names keep their meaning.

use std::time::Duration;

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// Buckets of all durations, in seconds: from a look at a table to a format of a large volume.
const DURATION_BUCKETS_SECONDS: &[f64] =
    &[0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// What the node plugin counts and times.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    registry: Registry,
    volume_operations: IntCounterVec,
    operation_duration: HistogramVec,
    mount_operations: IntCounterVec,
    connects: IntCounterVec,
    connect_duration: Histogram,
    connections: IntGauge,
    step_duration: HistogramVec,
    stale_mounts: IntCounter,
    stale_recoveries: IntCounterVec,
    findings: IntGaugeVec,
    session_connected: IntGauge,
    certificates: IntGaugeVec,
}

impl Metrics {
    /// Registers all metrics with `registry`.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters =
            |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
                let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
                registry.register(Box::new(metric.clone()))?;
                Ok(metric)
            };
        let volume_operations = counters(
            "rds_csi_volume_operations_total",
            "CSI operations on volumes, by operation and outcome.",
            &["operation", "status"],
        )?;
        let mount_operations = counters(
            "rds_csi_mount_operations_total",
            "Mounts, bind mounts, formats and unmounts, by operation and outcome.",
            &["operation", "status"],
        )?;
        let connects = counters(
            "rds_csi_nvme_connects_total",
            "New connections to volumes over the configured fabric, by outcome.",
            &["status"],
        )?;
        let buckets = || DURATION_BUCKETS_SECONDS.to_vec();
        let durations =
            |name: &str, help: &str, labels: &[&str]| -> Result<HistogramVec, prometheus::Error> {
                let metric = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets()), labels)?;
                registry.register(Box::new(metric.clone()))?;
                Ok(metric)
            };
        let operation_duration = durations(
            "rds_csi_operation_duration_seconds",
            "Time taken by CSI operations on volumes.",
            &["operation"],
        )?;
        let step_duration = durations(
            "rds_csi_node_step_duration_seconds",
            "Time taken by the steps of staging and unstaging, of those that were needed and done.",
            &["step"],
        )?;
        let connect_duration = Histogram::with_opts(
            HistogramOpts::new(
                "rds_csi_nvme_connect_duration_seconds",
                "Time taken by new connections over the configured fabric.",
            )
            .buckets(buckets()),
        )?;
        registry.register(Box::new(connect_duration.clone()))?;
        let connections = IntGauge::new(
            "rds_csi_nvme_connections_active",
            "Volumes connected to this node over the configured fabric, looked up at each scrape.",
        )?;
        registry.register(Box::new(connections.clone()))?;
        let stale_mounts = IntCounter::new(
            "rds_csi_stale_mounts_detected_total",
            "Mounts found whose device is gone, or whose file system has stopped after I/O errors.",
        )?;
        registry.register(Box::new(stale_mounts.clone()))?;
        let stale_recoveries = counters(
            "rds_csi_stale_recoveries_total",
            "Attempts to take such mounts away, by outcome.",
            &["status"],
        )?;
        let findings = IntGaugeVec::new(
            Opts::new("rds_csi_node_findings", "What is amiss on this node as last looked at, by kind."),
            &["kind"],
        )?;
        registry.register(Box::new(findings.clone()))?;
        let session_connected = IntGauge::new(
            "rds_csi_node_session_connected",
            "1 while the leader of the controllers hears what this node has, else 0.",
        )?;
        registry.register(Box::new(session_connected.clone()))?;
        let certificates = IntGaugeVec::new(
            Opts::new(
                "rds_csi_certificate_expiry_timestamp_seconds",
                "Until when the certificates in use hold, in seconds since 1970.",
            ),
            &["role"],
        )?;
        registry.register(Box::new(certificates.clone()))?;
        let registry = registry.clone();
        Ok(Self {
            registry,
            volume_operations,
            operation_duration,
            mount_operations,
            connects,
            connect_duration,
            connections,
            step_duration,
            stale_mounts,
            stale_recoveries,
            findings,
            session_connected,
            certificates,
        })
    }

    pub(crate) fn operation(&self, operation: &str, succeeded: bool, took: Duration) {
        self.volume_operations.with_label_values(&[operation, status(succeeded)]).inc();
        self.operation_duration.with_label_values(&[operation]).observe(took.as_secs_f64());
    }

    pub(crate) fn mount_operation(&self, operation: &str, succeeded: bool) {
        self.mount_operations.with_label_values(&[operation, status(succeeded)]).inc();
    }

    pub(crate) fn connect(&self, succeeded: bool, took: Duration) {
        self.connects.with_label_values(&[status(succeeded)]).inc();
        self.connect_duration.observe(took.as_secs_f64());
    }

    pub(crate) fn connections(&self, count: usize) {
        self.connections.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn step(&self, step: &str, took: Duration) {
        self.step_duration.with_label_values(&[step]).observe(took.as_secs_f64());
    }

    pub(crate) fn stale_mount(&self) {
        self.stale_mounts.inc();
    }

    pub(crate) fn stale_recovery(&self, succeeded: bool) {
        self.stale_recoveries.with_label_values(&[status(succeeded)]).inc();
    }

    pub(crate) fn findings(&self, kind: &str, count: usize) {
        self.findings.with_label_values(&[kind]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn session_connected(&self, connected: bool) {
        self.session_connected.set(i64::from(connected));
    }

    /// Until when a certificate holds, in seconds since 1970.
    pub(crate) fn certificate_ends(&self, role: &str, ends: i64) {
        self.certificates.with_label_values(&[role]).set(ends);
    }

    /// Everything in the text format.
    pub(crate) fn render(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

fn status(succeeded: bool) -> &'static str {
    if succeeded { "success" } else { "failure" }
}
