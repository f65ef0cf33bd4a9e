//! The client that speaks to the API server from inside the cluster.

use std::time::Duration;

use kube::{Client, Config};
use thiserror::Error;

use crate::watch::WATCH_TIMEOUT_SECONDS;

/// How long the API server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may be silent: longer than any watch is, which the API server ends by itself.
const READ_TIMEOUT: Duration = Duration::from_secs(WATCH_TIMEOUT_SECONDS as u64 + 15);

/// Why there is no client.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The process does not run in a pod with a ServiceAccount.
    #[error("cannot find the API server and the ServiceAccount of this pod")]
    NotInCluster(#[source] kube::config::InClusterError),
    /// The API server's URL is none.
    #[error("cannot read the API server's URL: {0}")]
    Url(String),
    /// The client cannot be made, of the certificate authority for instance.
    #[error("cannot make a client for the API server")]
    Client(#[source] kube::Error),
}

/// A client for the API server of the cluster that this pod runs in, as the pod's ServiceAccount. It does not
/// connect yet, and must be made inside an async runtime.
pub fn connect() -> Result<Client, ConnectError> {
    client(Config::incluster().map_err(ConnectError::NotInCluster)?)
}

/// A client for the API server at this URL, as nobody: for simulated API servers.
pub fn connect_as_nobody(api_server: &str) -> Result<Client, ConnectError> {
    match api_server.parse() {
        Ok(url) => client(Config::new(url)),
        Err(error) => Err(ConnectError::Url(error.to_string())),
    }
}

fn client(mut config: Config) -> Result<Client, ConnectError> {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    // Else the time that a pooled connection was idle would count as well.
    config.reset_reader_on_write = true;
    // An API server that is not available has to be seen as such at once. Who asked tries again.
    config.default_retry = false;
    Client::try_from(config).map_err(ConnectError::Client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_speaks_tls_with_the_ring_provider() {
        assert!(connect_as_nobody("https://127.0.0.1:1").is_ok());
        assert!(matches!(connect_as_nobody("no url"), Err(ConnectError::Url(_))));
    }
}
