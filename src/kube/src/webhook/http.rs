//! HTTP/1.1, which is what API servers speak to webhooks, over connections that somebody else accepts and secures.
//!
//! API servers show webhooks no certificate, so whoever reaches the port may ask. What a stranger can do is bounded: each
//! caller costs a place among a number of them, a silent one loses it, and a question has at most one note written, on
//! a pod whose UID and version it knows.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures::{Stream, StreamExt};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Connections that are open at once; more wait to be accepted. An API server has one for each question under way.
pub const MAX_CONNECTIONS: usize = 256;
/// How long a connection may be without a question, and how long the head of one may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(100);

/// Serves `router` until `stop`, and then lets the answers under way go out.
pub(super) async fn serve<Connection>(
    incoming: impl Stream<Item = io::Result<Connection>>,
    router: Router,
    stop: CancellationToken,
) where
    Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut incoming = pin!(incoming);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (place, incoming.next().await)
        };
        let Some((place, Some(accepted))) = stop.run_until_cancelled(next).await else { break };
        while connections.try_join_next().is_some() {}
        let (router, stop) = (router.clone(), stop.clone());
        connections.spawn(async move {
            let _place = place;
            let served = async { serve_one(accepted?, router, stop).await };
            if let Err(error) = served.await {
                debug!(%error, "a connection to the webhook ended");
            }
        });
    }
    while connections.join_next().await.is_some() {}
}

async fn serve_one<Connection>(
    stream: Connection,
    router: Router,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
