//! A line to a server that speaks HTTP/1.1, as kubelet, Prometheus and the API server have one: for `dev`, `bench` and
//! tests.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// The longest answer that is read, in bytes: all metrics of a controller, and a list of an API server, several times
/// over.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// How long a server may take to accept a line, and to answer, in seconds: it may be stopped, or the machine busy.
const PATIENCE_S: u64 = 30;

/// An open connection. It stays open from one question to the next.
#[derive(Debug)]
pub struct Line {
    requests: SendRequest<Full<Bytes>>,
    address: String,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The status, such as 200.
    pub status: u16,
    /// All of the body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text, as far as it is some.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Line {
    /// Connects to `host:port` without TLS.
    pub async fn open(address: &str) -> anyhow::Result<Self> {
        patiently(async { Self::over(connect(address).await?, address).await }).await
    }

    /// Connects to `host:port` over TLS: the server has to show a certificate of `authority`, a PEM file, that has
    /// `name`, which may be an IP address.
    pub async fn open_with_tls(address: &str, authority: &Path, name: &str) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        let unread = || format!("cannot read {}", authority.display());
        roots.add(CertificateDer::from_pem_file(authority).with_context(unread)?).with_context(unread)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned())?;
        let tls = TlsConnector::from(Arc::new(config));
        patiently(async {
            let stream = tls.connect(name, connect(address).await?).await;
            Self::over(stream.with_context(|| format!("no TLS with {address}"))?, address).await
        })
        .await
    }

    async fn over<Stream>(stream: Stream, address: &str) -> anyhow::Result<Self>
    where
        Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (requests, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends with the line; what goes wrong is said to who asks.
        tokio::spawn(connection);
        Ok(Self { requests, address: address.to_owned() })
    }

    /// Asks, with these fields in the head, and waits for the whole answer.
    pub async fn ask(
        &mut self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: Vec<u8>,
    ) -> anyhow::Result<Answer> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.address);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body))?;
        let answer = patiently(async {
            self.requests.ready().await?;
            let (head, body) = self.requests.send_request(request).await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| anyhow!(error)).context("cannot read the answer")?.to_bytes();
            Ok(Answer { status: head.status.as_u16(), body })
        });
        answer.await.with_context(|| format!("{method} {path} at {}", self.address))
    }

    /// Posts JSON.
    pub async fn post(&mut self, path: &str, json: &[u8]) -> anyhow::Result<Answer> {
        self.ask("POST", path, &[("content-type", "application/json")], json.to_vec()).await
    }
}

async fn connect(address: &str) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("cannot reach {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn patiently<Done>(work: impl Future<Output = anyhow::Result<Done>>) -> anyhow::Result<Done> {
    timeout(Duration::from_secs(PATIENCE_S), work)
        .await
        .with_context(|| format!("nothing came in {PATIENCE_S} s"))?
}

/// What the server at `host:port` has at `path`, without TLS.
pub async fn get(address: &str, path: &str) -> anyhow::Result<Answer> {
    Line::open(address).await?.ask("GET", path, &[], Vec::new()).await
}
