//! A line to an HTTPS server that speaks HTTP/1.1, as the API server has one to a webhook: for `bench`, and for tests.
//!
//! It stays open from one question to the next, and understands only answers that say their length.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The longest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 4 << 20;

/// An open connection.
#[derive(Debug)]
pub struct Line {
    stream: TlsStream<TcpStream>,
    /// What was read and not used yet.
    read: Vec<u8>,
}

impl Line {
    /// Connects to `host:port`, which has to show a controller's certificate of `authority`, a PEM file.
    pub async fn open(address: &str, authority: &Path) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        let name = || format!("cannot read {}", authority.display());
        roots.add(CertificateDer::from_pem_file(authority).with_context(name)?).with_context(name)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(address).await.with_context(|| format!("cannot reach {address}"))?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(replica::SERVER_NAME)?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        Ok(Self { stream, read: Vec::new() })
    }

    /// Posts JSON; the status and the body of the answer.
    pub async fn post(&mut self, path: &str, body: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: webhook\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        self.stream.write_all(&[head.as_bytes(), body].concat()).await.context("cannot ask")?;
        self.stream.flush().await.context("cannot ask")?;
        let head_ends = loop {
            if let Some(found) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break found + 4;
            }
            self.read_more().await?;
        };
        let head: Vec<u8> = self.read.drain(..head_ends).collect();
        let head = String::from_utf8(head).context("the answer's head is no text")?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.with_context(|| format!("{head:?} has no status"))?;
        let length = |line: &str| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
        };
        let length = head.lines().find_map(length).with_context(|| format!("{head:?} has no length"))?;
        ensure!(length <= MAX_ANSWER_BYTES, "the answer has {length} bytes");
        while self.read.len() < length {
            self.read_more().await?;
        }
        Ok((status, self.read.drain(..length).collect()))
    }

    async fn read_more(&mut self) -> anyhow::Result<()> {
        if self.stream.read_buf(&mut self.read).await.context("no answer")? == 0 {
            bail!("the line was closed instead of an answer");
        }
        Ok(())
    }
}
