//! A node plugin on its real socket, and a scripted stand-in for the controllers' gateway.

pub(crate) mod gateway;
pub(crate) mod requests;
pub(crate) mod story;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use node::{Deadlines, FabricConfig, NodeConfig, RunError};
use proto::csi::v1::node_client::NodeClient;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// How long anything that a test waits for may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The boot id of nodes that are not told another one.
pub(crate) const BOOT: &str = "boot-1";

/// A node plugin that runs in this process.
pub(crate) struct TestNode {
    /// Where its files are.
    pub(crate) directory: PathBuf,
    /// Where it serves /metrics and the others.
    pub(crate) http: String,
    /// kubelet's view of it.
    pub(crate) client: NodeClient<Channel>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), RunError>>,
}

impl TestNode {
    /// Starts a node with a fake fabric and waits until its socket answers.
    pub(crate) async fn fake(directory: &Path, gateway: &gateway::Gateway) -> Self {
        Self::start(config(directory, gateway)).await
    }

    /// Starts a node and waits until its socket answers.
    pub(crate) async fn start(config: NodeConfig) -> Self {
        let started = Self::launch(config);
        let mut client = started.client.clone();
        wait_for("the node's socket", async || client.node_get_info(requests::info()).await.is_ok()).await;
        started
    }

    /// Starts a node and does not wait.
    pub(crate) fn launch(config: NodeConfig) -> Self {
        let stop = CancellationToken::new();
        let directory =
            PathBuf::from(config.csi_socket.trim_start_matches("unix://")).parent().unwrap().to_owned();
        let channel = Endpoint::from_shared(config.csi_socket.clone()).unwrap().connect_lazy();
        let http = config.metrics_address.clone();
        let running = tokio::spawn(node::run(config, stop.clone()));
        Self { directory, http, client: NodeClient::new(channel), stop, running }
    }

    /// Stops the node and waits until it has ended.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }

    /// Whether the fake fabric has a connection to the volume.
    pub(crate) fn is_connected(&self, volume: &str) -> bool {
        self.directory.join("machine/connected").join(volume).exists()
    }
}

/// The configuration of a node with a fake fabric.
pub(crate) fn config(directory: &Path, gateway: &gateway::Gateway) -> NodeConfig {
    let kubelet_directory = directory.join("kubelet");
    std::fs::create_dir_all(&kubelet_directory).unwrap();
    NodeConfig {
        node_id: "node-a".to_owned(),
        csi_socket: format!("unix://{}", directory.join("csi.sock").display()),
        controllers: vec![gateway.address()],
        tls: gateway.node_files(),
        fabric: FabricConfig::Fake { directory: directory.join("machine") },
        host_nqn: Some("nqn.2014-08.org.example:node-a".to_owned()),
        max_volumes: 0,
        metrics_address: free_address(),
        boot_id: Some(BOOT.to_owned()),
        deadlines: Deadlines { controllers_ms: 20_000, ..Deadlines::default() },
        topology: Default::default(),
        die_after_step: None,
        reconcile_interval_seconds: 300,
        session_interval_seconds: 10,
        kubelet_directory,
    }
}

/// An address where nobody listens.
pub(crate) fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// A directory with a path that is as the kernel prints it.
pub(crate) fn directory() -> (TempDir, PathBuf) {
    let guard = tempfile::tempdir().unwrap();
    let path = guard.path().canonicalize().unwrap();
    (guard, path)
}

/// The answer to a GET, with its head.
pub(crate) async fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Waits until `condition` holds; panics when patience is out.
pub(crate) async fn wait_for(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < until, "waited in vain for {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Asserts that the answer is an error of this code that says all of `words`.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, words: &[&str]) {
    let status = answer.expect_err("this had to be refused");
    assert_eq!(status.code(), code, "{}", status.message());
    for word in words {
        assert!(status.message().contains(word), "{word:?} is not in {:?}", status.message());
    }
}
