//! Questions to a process's HTTP port, as kubelet and Prometheus ask them.

use std::net::SocketAddr;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::cluster::Cluster;

/// Largest answer that is read, in bytes: all metrics of a controller, several times over.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// What came back.
pub(crate) struct Page {
    /// The first line.
    pub(crate) status: String,
    pub(crate) body: String,
}

/// Asks for `path`.
pub(crate) async fn get(address: SocketAddr, path: &str) -> anyhow::Result<Page> {
    let mut stream =
        TcpStream::connect(address).await.with_context(|| format!("it does not serve {path} yet"))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.with_context(|| format!("cannot ask {path}"))?;
    let mut answer = Vec::new();
    let read = stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await;
    read.with_context(|| format!("cannot read the answer of {path}"))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or("no answer").to_owned();
    Ok(Page { status, body: body.to_owned() })
}

impl Cluster {
    /// The value of the metric `name`, without labels, of the controller `controller`.
    pub(crate) async fn metric(&self, controller: &str, name: &str) -> anyhow::Result<String> {
        let place = self.layout().controllers.iter().find(|place| place.name == controller);
        let place = place.with_context(|| format!("there is no controller {controller}"))?;
        let page = get(place.metrics_address(), "/metrics").await?;
        let value = page.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map(str::to_owned).with_context(|| format!("{controller} has no metric {name}"))
    }
}
