//! A node's connection to one replica, and when it is given up: once the replica's host no longer acknowledges what was
//! said to it, or its process no longer answers checks.

use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use tonic::transport::{Channel, Endpoint};

/// How long a connection may take, in ms.
const CONNECT_LIMIT_MS: u64 = 1_000;
/// How long the kernel waits for the other host to acknowledge what was sent, in ms. A session says something each 10 s.
const ACKNOWLEDGE_LIMIT_MS: u64 = 5_000;
/// How often an idle connection is checked, in ms: for a process that no longer does anything on a host that lives. For a
/// leader with thousands of nodes these checks are most of what they cost.
const KEEP_ALIVE_MS: u64 = 20_000;
/// How long the check may take, in ms.
const KEEP_ALIVE_LIMIT_MS: u64 = 5_000;

/// A channel that connects when it is first used, and again whenever it was given up. Needs a runtime.
#[must_use]
pub fn connect_lazily(endpoint: Endpoint) -> Channel {
    with_limits(endpoint).connect_with_connector_lazy(connector())
}

/// Opens the TCP connections.
pub(crate) fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    // TLS is the endpoint's, around this.
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_tcp_user_timeout(Some(Duration::from_millis(ACKNOWLEDGE_LIMIT_MS)));
    connector
}

/// When an endpoint's connections are given up.
pub(crate) fn with_limits(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(Duration::from_millis(CONNECT_LIMIT_MS))
        .http2_keep_alive_interval(Duration::from_millis(KEEP_ALIVE_MS))
        .keep_alive_timeout(Duration::from_millis(KEEP_ALIVE_LIMIT_MS))
}
