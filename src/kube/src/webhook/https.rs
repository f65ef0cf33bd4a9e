//! HTTPS for the API server: HTTP/1.1, which is what it speaks to webhooks, over TLS with the replica's own certificate.
//!
//! API servers show webhooks no certificate, so whoever reaches the port may ask. What a stranger can do is bounded: each
//! caller costs a place among a number of them, a silent one loses it, and a question has at most one annotation written,
//! on a pod whose UID and version it knows.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Connections that are open at once; more wait to be accepted. An API server has one for each question under way.
pub const MAX_CONNECTIONS: usize = 256;
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may be without a question, and how long the head of one may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(100);
/// How old the certificate may be in memory before the files are read again.
const CERTIFICATE_KEPT: Duration = Duration::from_secs(10);
/// The pause after a connection could not be accepted: there are no file descriptors, as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why there is no HTTPS.
#[derive(Debug, Error)]
pub enum HttpsError {
    /// A file is not there, or holds no certificate or key.
    #[error("cannot read {}: {reason}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Certificate and key do not belong together, or are of a kind that is not understood.
    #[error("cannot serve with this certificate and key: {0}")]
    Pair(#[from] rustls::Error),
}

/// The server's certificate, read again from its files when they have changed.
#[derive(Debug)]
pub struct ServerCertificate {
    cert: PathBuf,
    key: PathBuf,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    acceptor: Acceptor,
    /// What the files held that it was made of.
    chain: Vec<CertificateDer<'static>>,
    read_at: Instant,
}

#[derive(Clone)]
struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor(..)")
    }
}

impl ServerCertificate {
    /// Reads the PEM files.
    pub fn read(cert: PathBuf, key: PathBuf) -> Result<Self, HttpsError> {
        let chain = chain_of(&cert)?;
        let acceptor = acceptor(chain.clone(), &key)?;
        Ok(Self { cert, key, current: Mutex::new(Current { acceptor, chain, read_at: Instant::now() }) })
    }

    /// What accepts connections now. A certificate that cannot be used is not taken: the one before stays.
    fn acceptor(&self) -> TlsAcceptor {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.read_at.elapsed() >= CERTIFICATE_KEPT {
            current.read_at = Instant::now();
            match self.changed(&current.chain) {
                Ok(None) => {}
                Ok(Some((acceptor, chain))) => {
                    info!(cert = %self.cert.display(), "the webhook serves with a new certificate");
                    (current.acceptor, current.chain) = (acceptor, chain);
                }
                Err(error) => warn!(%error, "the webhook's certificate is not renewed"),
            }
        }
        current.acceptor.0.clone()
    }

    fn changed(
        &self,
        chain: &[CertificateDer<'static>],
    ) -> Result<Option<(Acceptor, Vec<CertificateDer<'static>>)>, HttpsError> {
        let now = chain_of(&self.cert)?;
        if now == chain {
            return Ok(None);
        }
        Ok(Some((acceptor(now.clone(), &self.key)?, now)))
    }
}

fn chain_of(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, HttpsError> {
    let wrong = |reason: String| HttpsError::File { path: path.clone(), reason };
    let found = CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    let chain: Vec<_> = found.collect::<Result<_, _>>().map_err(|error| wrong(error.to_string()))?;
    if chain.is_empty() { Err(wrong("there is no certificate in it".to_owned())) } else { Ok(chain) }
}

fn acceptor(chain: Vec<CertificateDer<'static>>, key: &PathBuf) -> Result<Acceptor, HttpsError> {
    let wrong = |error: rustls::pki_types::pem::Error| HttpsError::File {
        path: key.clone(),
        reason: error.to_string(),
    };
    let key = PrivateKeyDer::from_pem_file(key).map_err(wrong)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Acceptor(TlsAcceptor::from(Arc::new(config))))
}

/// Serves `router` until `stop`, and then lets the answers under way go out.
pub(super) async fn serve(
    listener: TcpListener,
    certificate: ServerCertificate,
    router: Router,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let Some((place, accepted)) = stop.run_until_cancelled(next).await else { break };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let serving = serve_one(stream, certificate.acceptor(), router.clone(), stop.clone());
                connections.spawn(async move {
                    let _place = place;
                    if let Err(error) = serving.await {
                        debug!(%error, "a connection to the webhook ended");
                    }
                });
            }
            Err(error) => {
                warn!(%error, "the webhook cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn serve_one(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let handshake = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
    let Some(shaken) = stop.run_until_cancelled(handshake).await else { return Ok(()) };
    let stream = shaken.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let mut builder = auto::Builder::new(hyper_util::rt::TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write_new(directory: &std::path::Path) {
        let made = rcgen::generate_simple_self_signed(["rds-csi".to_owned()]).unwrap();
        fs::write(directory.join("tls.crt"), made.cert.pem()).unwrap();
        fs::write(directory.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    }

    impl ServerCertificate {
        /// What it serves with once the files may be looked at again.
        fn later(&self) -> Vec<CertificateDer<'static>> {
            let long_ago = Instant::now().checked_sub(CERTIFICATE_KEPT).unwrap();
            self.current.lock().unwrap().read_at = long_ago;
            let _ = self.acceptor();
            self.current.lock().unwrap().chain.clone()
        }
    }

    #[test]
    fn a_new_certificate_is_taken_and_a_broken_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let (cert, key) = (directory.path().join("tls.crt"), directory.path().join("tls.key"));
        assert!(ServerCertificate::read(cert.clone(), key.clone()).is_err());
        write_new(directory.path());
        let served = ServerCertificate::read(cert.clone(), key.clone()).unwrap();
        let first = chain_of(&cert).unwrap();
        assert_eq!(served.later(), first);

        let old_key = fs::read(&key).unwrap();
        write_new(directory.path());
        let (second, new_key) = (chain_of(&cert).unwrap(), fs::read(&key).unwrap());
        fs::write(&key, old_key).unwrap();
        assert_eq!(served.later(), first, "a certificate without its key is no use");
        fs::write(&key, new_key).unwrap();
        assert_eq!(served.later(), second);
        fs::write(&cert, "nothing").unwrap();
        assert_eq!(served.later(), second);
    }
}
