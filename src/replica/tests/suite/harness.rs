//! Starts, stops, crashes and wipes replicas.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use replica::{
    MonotonicClock, PeerAddress, ProposeError, ReadError, Replica, ReplicaConfig, StartError, SystemClock,
    Timing, TlsFiles,
};
use state_machine::{BootId, Command, NodeId, Nqn, Response};
use tempfile::TempDir;
use tls::Callers;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tower::layer::layer_fn;

use crate::late::Road;

/// How long anything may take that is waited for; generous, since the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// Deadline of a single proposal or read.
pub(crate) const DEADLINE: Duration = Duration::from_secs(15);
/// Threads of a replica.
const WORKERS: usize = 2;
/// Slower than by default, so that a busy machine causes no elections.
const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(100),
    election_min: Duration::from_millis(300),
    election_max: Duration::from_millis(600),
};

/// Three that are configured, and one more.
pub(crate) const PLACES: usize = 4;

pub(crate) fn deadline() -> Instant {
    Instant::now() + DEADLINE
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A runtime may not be waited for where a test runs.
        for (_, running) in std::mem::take(&mut self.running) {
            running.runtime.shutdown_background();
        }
    }
}

/// Signs certificates.
pub(crate) struct Authority {
    dir: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(dir: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("ca.pem"), issuer.pem()).unwrap();
        Self { dir: dir.to_owned(), issuer }
    }

    /// Its own certificate.
    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for `<role>/<name>`; only replicas get the server's name.
    pub(crate) fn issue(&self, role: &str, name: &str) -> TlsFiles {
        let names = if role == "replica" { vec!["rds-csi".to_owned()] } else { Vec::new() };
        let mut params = CertificateParams::new(names).unwrap();
        let uri = format!("spiffe://rds-csi/{role}/{name}");
        params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().unwrap()));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |kind: &str| self.dir.join(format!("{role}-{name}.{kind}.pem"));
        fs::write(file("cert"), certificate.pem()).unwrap();
        fs::write(file("key"), key.serialize_pem()).unwrap();
        TlsFiles { ca: self.dir.join("ca.pem"), cert: file("cert"), key: file("key") }
    }
}

/// A replica that runs.
pub(crate) struct Running {
    pub(crate) replica: Replica,
    runtime: Runtime,
    serving: CancellationToken,
}

impl Running {
    /// Runs something on the replica's own runtime, as its process would.
    pub(crate) async fn run<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        work: impl FnOnce(Replica) -> F,
    ) -> T {
        self.runtime.spawn(work(self.replica.clone())).await.unwrap()
    }

    /// Stops all of the replica's threads where they are, as SIGSTOP would, until the answer is dropped.
    pub(crate) async fn paused(&self) -> Paused {
        let mut wake = Vec::new();
        for _ in 0..WORKERS {
            let (sender, held) = std::sync::mpsc::channel::<()>();
            let (says, stopped) = tokio::sync::oneshot::channel();
            self.runtime.spawn(async move {
                let _ = says.send(());
                // A thread that is blocked here runs no other task; it is over when the sender is dropped.
                let _ = held.recv();
            });
            stopped.await.unwrap();
            wake.push(sender);
        }
        Paused { _wake: wake }
    }
}

/// A replica's threads stand still as long as this lives.
pub(crate) struct Paused {
    _wake: Vec<std::sync::mpsc::Sender<()>>,
}

/// The next port to try. Below what Linux takes for outgoing connections: one of those could take a crashed
/// replica's port before it is back.
static NEXT_PORT: AtomicU16 = AtomicU16::new(30_000);

fn free_port() -> u16 {
    loop {
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub(crate) struct Cluster {
    pub(crate) dir: TempDir,
    pub(crate) authority: Authority,
    /// All places; the first three are configured.
    pub(crate) places: Vec<PeerAddress>,
    pub(crate) snapshot_every: u64,
    /// Each place's own clock.
    pub(crate) clocks: [Arc<dyn MonotonicClock>; PLACES],
    /// On which they forward commands to each other.
    pub(crate) road: Road,
    running: BTreeMap<usize, Running>,
}

impl Cluster {
    /// Places for three replicas and one more; nobody runs.
    pub(crate) fn new() -> Self {
        static LOGS: Once = Once::new();
        LOGS.call_once(|| {
            let filter = tracing_subscriber::EnvFilter::from_default_env();
            tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().init();
        });
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new(&dir.path().join("tls"));
        let place = |i| PeerAddress { name: format!("r{i}"), address: format!("127.0.0.1:{}", free_port()) };
        let places = (0..PLACES).map(place).collect();
        let clocks = std::array::from_fn(|_| Arc::new(SystemClock::new()) as Arc<dyn MonotonicClock>);
        Self {
            dir,
            authority,
            places,
            snapshot_every: 10_000,
            clocks,
            road: Road::default(),
            running: BTreeMap::new(),
        }
    }

    /// Three replicas that have formed a cluster.
    pub(crate) async fn formed() -> Self {
        let mut cluster = Self::new();
        cluster.start_all().await;
        cluster
    }

    pub(crate) async fn start_all(&mut self) {
        for i in 0..3 {
            self.start(i).await;
        }
        let leader = self.leader().await;
        self.until("all answer the leader", || {
            self.replica(leader).status().members.iter().all(|member| member.answering == Some(true))
        })
        .await;
    }

    pub(crate) fn config(&self, i: usize) -> ReplicaConfig {
        let mut peers = self.places[..3].to_vec();
        if i >= 3 {
            peers.push(self.places[i].clone());
        }
        let name = self.places[i].name.clone();
        ReplicaConfig {
            data_dir: self.data_dir(i),
            tls: self.authority.issue("replica", &name),
            name,
            peers,
            timing: TIMING,
            snapshot_every: self.snapshot_every,
        }
    }

    fn data_dir(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("data-{i}"))
    }

    pub(crate) async fn start(&mut self, i: usize) {
        self.try_start(i, self.config(i)).await.unwrap();
    }

    pub(crate) async fn try_start(&mut self, i: usize, config: ReplicaConfig) -> Result<(), StartError> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().unwrap();
        let address = self.places[i].address.clone();
        let (clock, road) = (self.clocks[i].clone(), self.road.clone());
        let started = runtime
            .spawn(async move {
                let replica = Replica::start_with_clock(config, clock).await?;
                let listener = tokio::net::TcpListener::bind(address).await.unwrap();
                let serving = CancellationToken::new();
                let mut server = Server::builder().layer(layer_fn(move |service| road.to(service)));
                let server = server.add_service(replica.peer_service());
                let incoming = replica.tls().incoming(listener, Callers::Certified).unwrap();
                let stop = serving.clone().cancelled_owned();
                tokio::spawn(server.serve_with_incoming_shutdown(incoming, stop));
                Ok((replica, serving))
            })
            .await
            .unwrap();
        match started {
            Ok((replica, serving)) => {
                self.running.insert(i, Running { replica, runtime, serving });
                Ok(())
            }
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// Ends a replica as SIGKILL would, as far as one process allows.
    pub(crate) async fn crash(&mut self, i: usize) {
        let Running { replica, runtime, .. } = self.running.remove(&i).unwrap();
        drop(replica);
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await.unwrap();
    }

    /// Ends a replica as SIGTERM would.
    pub(crate) async fn stop(&mut self, i: usize) {
        let Running { replica, runtime, serving } = self.running.remove(&i).unwrap();
        runtime.spawn(async move { replica.shutdown().await }).await.unwrap();
        serving.cancel();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await.unwrap();
    }

    /// Takes a stopped replica's disk away.
    pub(crate) fn wipe(&self, i: usize) {
        assert!(!self.running.contains_key(&i));
        fs::remove_dir_all(self.data_dir(i)).unwrap();
    }

    pub(crate) fn replica(&self, i: usize) -> &Replica {
        &self.running[&i].replica
    }

    pub(crate) fn running(&self, i: usize) -> &Running {
        &self.running[&i]
    }

    pub(crate) fn id(&self, i: usize) -> u64 {
        self.replica(i).status().id
    }

    /// Waits for a leader in office, and says which place it has.
    pub(crate) async fn leader(&self) -> usize {
        let mut leader = 0;
        self.until("there is a leader", || {
            let in_office = |i: &usize| self.replica(*i).watch_leadership().borrow().is_some();
            let found = self.running.keys().copied().find(in_office);
            leader = found.unwrap_or(leader);
            found.is_some()
        })
        .await;
        leader
    }

    /// Some replica that runs and does not lead.
    pub(crate) async fn follower(&self) -> usize {
        let leader = self.leader().await;
        self.running.keys().copied().find(|i| *i != leader).unwrap()
    }

    /// Waits until a condition holds.
    pub(crate) async fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition() {
            if Instant::now() > end {
                let status =
                    |(i, running): (&usize, &Running)| format!("{i}: {:#?}", running.replica.status());
                let all: Vec<String> = self.running.iter().map(status).collect();
                panic!("not so in time: {what}\n{}", all.join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until everyone who runs has the same members, all of them voters, and the same state.
    pub(crate) async fn until_settled(&self, members: &[u64]) {
        let mut expected = members.to_vec();
        expected.sort_unstable();
        self.until("the members are the expected ones", || {
            self.running.values().all(|running| {
                let status = running.replica.status();
                let voters = status.members.iter().filter(|member| member.voter).map(|member| member.id);
                let mut voters: Vec<u64> = voters.collect();
                voters.sort_unstable();
                voters == expected && status.members.len() == expected.len()
            })
        })
        .await;
        self.until_equal().await;
    }

    /// Waits until everyone who runs has applied as much as the others, and compares their states.
    pub(crate) async fn until_equal(&self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut hashes = Vec::new();
            for running in self.running.values() {
                hashes.push(running.replica.state_hash().await.unwrap());
            }
            if hashes.windows(2).all(|pair| pair[0].0 == pair[1].0) {
                assert!(hashes.windows(2).all(|pair| pair[0].1 == pair[1].1), "states differ: {hashes:?}");
                return;
            }
            assert!(Instant::now() < end, "not all have applied the same: {hashes:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn propose(&self, i: usize, n: usize) -> Result<Response, ProposeError> {
        self.propose_until(i, n, deadline()).await
    }

    pub(crate) async fn propose_until(
        &self,
        i: usize,
        n: usize,
        deadline: Instant,
    ) -> Result<Response, ProposeError> {
        self.running(i).run(move |replica| async move { replica.propose(register(n), deadline).await }).await
    }

    /// How many nodes the ledger has, read linearizably through replica `i`.
    pub(crate) async fn count(&self, i: usize) -> Result<usize, ReadError> {
        let deadline = deadline();
        self.running(i)
            .run(move |replica| async move { replica.read(deadline, |state| state.nodes().len()).await })
            .await
    }
}

/// A command that leaves a trace of its number.
pub(crate) fn register(n: usize) -> Command {
    Command::RegisterNode {
        node: NodeId::parse(&format!("node-{n}")).unwrap(),
        boot: BootId::parse(&format!("boot-{n}")).unwrap(),
        replaces: None,
        host_nqn: Nqn::parse(&format!("nqn.2014-08.org.nvmexpress:uuid:{n}")).unwrap(),
        max_volumes: 0,
    }
}
