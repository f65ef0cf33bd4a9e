//! What monitoring asks: `/metrics`, `/healthz` (the process answers) and `/readyz` (the controllers know the node).

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;

use crate::fabric::Fabric;
use crate::gateway::Gateway;
use crate::metrics::Metrics;

/// What the answers are made of.
#[derive(Clone)]
pub(crate) struct Observable {
    pub(crate) metrics: Metrics,
    pub(crate) fabric: Arc<dyn Fabric>,
    pub(crate) gateway: Arc<Gateway>,
}

pub(crate) fn routes(observable: Observable) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(observable)
}

async fn ready(State(observable): State<Observable>) -> (StatusCode, &'static str) {
    if observable.gateway.is_registered() {
        (StatusCode::OK, "registered\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not registered with the controllers yet\n")
    }
}

async fn metrics(State(observable): State<Observable>) -> Result<String, (StatusCode, String)> {
    match observable.fabric.connections().await {
        Ok(connections) => observable.metrics.connections(connections.volumes.len()),
        Err(error) => tracing::warn!(%error, "the connections are not counted at this scrape"),
    }
    let expiry = observable.gateway.certificates();
    observable.metrics.certificate_ends("ca", expiry.ca);
    if let Some(ends) = expiry.own {
        observable.metrics.certificate_ends("node", ends);
    }
    observable.metrics.render().map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}
