//! One question over HTTP/1.0, on a connection of its own: an answer ends where its connection does.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take, in seconds: the API server waits 2 s for a webhook, and the machine may be busy.
const ANSWER_S: u64 = 30;

/// What is asked.
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    /// Lines of the head, each with its end.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

/// The status and the body of the answer.
pub(crate) type Answer = (u16, Vec<u8>);

/// Asks on `stream`, which is used up.
pub(crate) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    request: Request<'_>,
) -> Result<Answer> {
    let Request { method, path, head, body } = request;
    let talk = async {
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.0\r\n{head}Content-Length: {length}\r\n\r\n");
        stream.write_all(&[head.as_bytes(), &body].concat()).await?;
        stream.flush().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let limit = Duration::from_secs(ANSWER_S);
    let answer = timeout(limit, talk).await.with_context(|| format!("{path}: no answer in {ANSWER_S} s"))?;
    let answer = answer.with_context(|| format!("ask for {path}"))?;
    let ends = answer.windows(4).position(|four| four == b"\r\n\r\n").context("an answer without a head")?;
    let (head, body) = answer.split_at(ends);
    let head = String::from_utf8_lossy(head);
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((
        status.with_context(|| format!("{head:?} has no status"))?,
        body.get(4..).unwrap_or_default().to_vec(),
    ))
}

/// What the server at `address` has at `path`, without TLS.
pub(crate) async fn get(address: &str, path: &str) -> Result<Answer> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("cannot reach {address}"))?;
    let head = format!("Host: {address}\r\n");
    ask(stream, Request { method: "GET", path, head, body: Vec::new() }).await
}
