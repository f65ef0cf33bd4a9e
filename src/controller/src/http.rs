//! For Prometheus and kubelet: `/metrics`, `/healthz`, `/readyz`.
//!
//! Liveness never depends on quorum, appliance or API server: a restart would mend none of them. Readiness does: a
//! replica without a leader cannot answer.

use std::path::{Path, PathBuf};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use observer::Webhook;
use replica::Replica;
use state_machine::{MigrationOutcome, MigrationPhase, State as Ledger};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Gauges, Metrics};

#[derive(Clone)]
pub(crate) struct Http {
    pub(crate) replica: Replica,
    pub(crate) metrics: Metrics,
    /// Where Raft's log and snapshots are.
    pub(crate) data_dir: PathBuf,
    /// `None`: it is not served here.
    pub(crate) webhook: Option<Webhook>,
}

impl Http {
    /// Serves until `stop`.
    pub(crate) async fn serve(self, listener: TcpListener, stop: CancellationToken) -> std::io::Result<()> {
        let router = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self);
        axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
    }
}

async fn ready(State(http): State<Http>) -> (StatusCode, String) {
    let status = http.replica.status();
    match status.leader {
        Some(leader) if status.quorum_ok => {
            (StatusCode::OK, format!("ready; replica {leader} leads in term {}\n", status.term))
        }
        Some(_) | None => {
            let trouble =
                status.trouble.unwrap_or_else(|| "there is no leader that a quorum answers".to_owned());
            (StatusCode::SERVICE_UNAVAILABLE, format!("{trouble}\n"))
        }
    }
}

async fn metrics(State(http): State<Http>) -> Response {
    let status = http.replica.status();
    let expiry = http.replica.tls().expiry();
    // What is not known is not held: then nothing is denied.
    let holds = http.webhook.and_then(|webhook| webhook.holds().ok()).unwrap_or_default();
    let gauges = Gauges {
        // One that no quorum follows may have a successor already, and then everything would count twice.
        is_leader: status.leader == Some(status.id) && status.quorum_ok,
        term: status.term,
        last_log_index: status.last_log_index.unwrap_or(0),
        applied_index: status.applied_index.unwrap_or(0),
        certificates: expiry
            .own
            .map(|ends| ("replica", ends))
            .into_iter()
            .chain([("ca", expiry.ca)])
            .collect(),
        storage_bytes: bytes_under(&http.data_dir),
        hotplug_held: holds.len(),
        hotplug_longest_hold: holds
            .iter()
            .filter_map(|hold| hold.since.elapsed().ok())
            .max()
            .unwrap_or_default(),
        ..http.replica.read_local(ledger_gauges)
    };
    match http.metrics.text(&gauges) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// How much the files under `directory` take, as far as they can be seen: some are replaced meanwhile.
fn bytes_under(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        Some(if metadata.is_dir() { bytes_under(&entry.path()) } else { metadata.len() })
    });
    sizes.sum()
}

fn ledger_gauges(ledger: &Ledger) -> Gauges {
    let volumes = ledger.volumes().values();
    let migrations = volumes.clone().filter_map(|volume| volume.migration.as_ref());
    Gauges {
        volumes: ledger.volumes().len(),
        attachments: volumes.map(|volume| volume.attachments.len()).sum(),
        migrations: migrations.clone().count(),
        overdue_migrations: migrations.filter(|migration| migration.phase != MigrationPhase::Active).count(),
        migrations_ended: [MigrationOutcome::Success, MigrationOutcome::Failed, MigrationOutcome::Timeout]
            .map(|outcome| (outcome, ledger.migrations_ended(outcome)))
            .to_vec(),
        ..Gauges::default()
    }
}
