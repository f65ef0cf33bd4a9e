//! Serves CSI on a unix socket until it is told to stop.
//!
//! Life cycle: services are added, [`CsiServer::serve`] runs until its token is cancelled; then no new request is
//! taken, running ones have [`DRAIN_TIMEOUT_MS`] to end, and the socket's file is removed.

use std::time::Duration;

use proto::csi::v1::controller_server::{Controller, ControllerServer};
use proto::csi::v1::identity_server::IdentityServer;
use proto::csi::v1::node_server::{Node, NodeServer};
use thiserror::Error;
use tokio::time::sleep;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::identity::PluginIdentity;
use crate::requests::{MAX_REQUESTS_IN_FLIGHT, Requests};
use crate::socket::Socket;
use crate::topology::Topology;

/// Largest request, in bytes. The specification bounds strings at 128 bytes and maps at 4 KiB.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Requests that one connection may have open.
const MAX_STREAMS_PER_CONNECTION: u32 = 256;
/// How long running requests may take to end after the stop, in ms; their callers try again.
const DRAIN_TIMEOUT_MS: u64 = 5_000;

/// Why serving ended early.
#[derive(Debug, Error)]
#[error("cannot serve CSI on the socket: {0}")]
pub struct ServeError(#[from] tonic::transport::Error);

/// The services of one socket.
#[derive(Debug, Clone)]
pub struct CsiServer {
    routes: Routes,
}

impl Default for CsiServer {
    fn default() -> Self {
        Self::new()
    }
}

impl CsiServer {
    /// A server with the Identity service only, of a plugin whose volumes are reachable from everywhere.
    pub fn new() -> Self {
        Self::at(&Topology::default())
    }

    /// A server with the Identity service only, of a plugin whose volumes are reachable at `place`.
    pub fn at(place: &Topology) -> Self {
        let identity = PluginIdentity { has_topology: !place.is_everywhere() };
        let identity = IdentityServer::new(identity).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Self { routes: Routes::new(identity) }
    }

    /// Adds the Controller service.
    pub fn controller(self, service: impl Controller) -> Self {
        let service = ControllerServer::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Self { routes: self.routes.add_service(service) }
    }

    /// Adds the Node service.
    pub fn node(self, service: impl Node) -> Self {
        let service = NodeServer::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Self { routes: self.routes.add_service(service) }
    }

    /// Answers on `socket` until `stop` is cancelled, then removes it.
    pub async fn serve(self, socket: Socket, stop: CancellationToken) -> Result<(), ServeError> {
        let Socket { listener, file } = socket;
        let path = file.path().display().to_string();
        tracing::info!(path, "serving CSI");
        let requests = Requests::new(self.routes.prepare(), MAX_REQUESTS_IN_FLIGHT);
        let serving = Server::builder()
            .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
            .serve_with_incoming_shutdown(
                requests,
                UnixListenerStream::new(listener),
                stop.clone().cancelled_owned(),
            );
        let out_of_time = async {
            stop.cancelled().await;
            sleep(Duration::from_millis(DRAIN_TIMEOUT_MS)).await;
        };
        tokio::select! {
            ended = serving => ended?,
            () = out_of_time => tracing::warn!(path, "requests still run; their callers will try again"),
        }
        Ok(())
    }
}
