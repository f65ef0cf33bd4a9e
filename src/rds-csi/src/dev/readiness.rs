//! Whether a process of the cluster is ready: it is asked as kubelet would ask it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::http;

/// How long one question may take, in ms.
const QUESTION_TIMEOUT_MS: u64 = 1_000;

/// How a process shows that it is ready.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Probe {
    /// It accepts connections.
    Accepts(SocketAddr),
    /// `/readyz` says so.
    Ready(SocketAddr),
}

impl Probe {
    /// Asks once; the error says why it is not ready.
    pub(crate) async fn ask(self) -> anyhow::Result<()> {
        let asked = async {
            match self {
                Self::Accepts(address) => {
                    TcpStream::connect(address).await.context("it does not accept connections")?;
                    Ok(())
                }
                Self::Ready(address) => is_ready(address).await,
            }
        };
        timeout(Duration::from_millis(QUESTION_TIMEOUT_MS), asked).await.context("it does not answer")?
    }
}

async fn is_ready(address: SocketAddr) -> anyhow::Result<()> {
    let answer = http::get(&address.to_string(), "/readyz").await?;
    if answer.status == 200 {
        return Ok(());
    }
    bail!("/readyz says {}: {}", answer.status, answer.text().trim())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn answers(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn only_200_is_ready() {
        let ready = answers("HTTP/1.1 200 OK\r\n\r\nready\n").await;
        Probe::Ready(ready).ask().await.unwrap();
        let not_ready = answers("HTTP/1.1 503 Service Unavailable\r\n\r\nno leader is known\n").await;
        let error = Probe::Ready(not_ready).ask().await.unwrap_err();
        assert!(error.to_string().contains("no leader is known"), "{error}");
    }
}
