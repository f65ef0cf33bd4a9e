//! What the sessions of many nodes cost the leader: memory and CPU of a real controller process, with a TLS connection
//! and a stream for each node.
//!
//! The nodes are simulated by this process: they register, say what they have connected, and go on saying that nothing
//! has changed, or, in the last row, all of it each time. Their volumes are in no ledger, so nothing is to be cut.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use proto::node::v1::node_gateway_client::NodeGatewayClient;
use proto::node::v1::{NodeReport, RegisterRequest, VolumeReport};
use rand::Rng;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::certificates::{Authority, Owner};
use crate::dev::Cluster;
use crate::open_files;
use crate::table::Table;

/// How long an election may take before the run is given up.
const LEADER_LIMIT: Duration = Duration::from_secs(30);
/// How long one node may take to register and to begin its session, all others at it too.
const BEGIN_LIMIT: Duration = Duration::from_secs(300);
/// How long an idle leader is looked at.
const IDLE: Duration = Duration::from_secs(10);
/// Nodes that begin at once.
const BEGINNING_AT_ONCE: usize = 64;
/// Unit of CPU time in proc(5): Linux shows hundredths of a second to all programs.
const TICKS_PER_SECOND: f64 = 100.0;
/// The boot of all simulated nodes.
const BOOT: &str = "bench-boot";
/// Files that a process has open beside its connections, with room.
const OTHER_FILES: u64 = 1_000;

/// Measures what the sessions of many nodes cost the leader
///
/// The limit of open files has to allow a connection for each node, in this process and in the leader's.
#[derive(Debug, Args)]
pub(super) struct SessionsArguments {
    /// How many nodes have a session
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    nodes: u32,
    /// How many volumes each has connected
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    volumes: u32,
    /// How often each reports, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10))]
    interval: u64,
    /// How long each row is measured, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(10..=600))]
    seconds: u64,
}

/// What the nodes say in their reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Talk {
    Unchanged,
    Everything,
}

/// Runs the measurement and prints the table.
pub(super) async fn measure(arguments: &SessionsArguments) -> anyhow::Result<()> {
    open_files::allow(u64::from(arguments.nodes) + OTHER_FILES)?;
    // One replica: no election on a busy machine takes the sessions elsewhere in the middle.
    let builder = Cluster::builder().controllers(1).nodes(0).log_filter("error").instant_appliance();
    let mut cluster = builder.start().await?;
    let leader = cluster.leader(LEADER_LIMIT).await?.name;
    let place = cluster.layout().controllers.iter().find(|place| place.name == leader);
    let address = place.context("the leader has no address")?.address().to_string();
    let pid = cluster.pid(&leader).context("the leader does not run")?;

    let mib_new = resident_mib(pid)?;
    eprintln!("{} nodes register", arguments.nodes);
    let nodes = Nodes::new(&cluster, address, arguments)?;
    nodes.all(SimulatedNode::register).await?;
    eprintln!("the leader without sessions, {} s", IDLE.as_secs());
    let idle = cpu_share(pid, IDLE).await?;
    let mib_before = resident_mib(pid)?;

    eprintln!("they begin their sessions");
    let (talk, listen) = watch::channel(Talk::Unchanged);
    let begun = Instant::now();
    let mut talking = JoinSet::new();
    for node in nodes.all(SimulatedNode::begin).await? {
        talking.spawn(node.talk(listen.clone()));
    }
    let begin_seconds = begun.elapsed().as_secs_f64();

    // All have reported once more by then, and what their beginnings cost is over.
    sleep(Duration::from_secs(2 * arguments.interval)).await;
    let mut rows = Vec::new();
    for row in [Talk::Unchanged, Talk::Everything] {
        eprintln!("reports: {row:?}, {} s", arguments.seconds);
        talk.send_replace(row);
        sleep(Duration::from_secs(arguments.interval)).await;
        let share = cpu_share(pid, Duration::from_secs(arguments.seconds)).await?;
        rows.push(Row { talk: row, cpu_share: share, mib: resident_mib(pid)? - mib_before });
    }
    if let Some(ended) = talking.try_join_next() {
        return ended?.context("a session ended during the measurement");
    }
    print!("{}", table(arguments, begin_seconds, idle, &rows, [mib_new, mib_before]));
    Ok(())
}

/// What the sessions cost while nodes talk like this.
struct Row {
    talk: Talk,
    cpu_share: f64,
    mib: f64,
}

fn table(
    arguments: &SessionsArguments,
    begin_seconds: f64,
    idle: f64,
    rows: &[Row],
    [mib_new, mib_before]: [f64; 2],
) -> String {
    let mut table = Table::new(["WHAT", "CPU, % OF A CORE", "MEMORY, MIB"]);
    let mut row = |what: String, share: Option<f64>, mib: Option<f64>| {
        let percent = share.map(|share| format!("{:.1}", share * 100.0)).unwrap_or_default();
        table.row([what, percent, mib.map(|mib| format!("{mib:.1}")).unwrap_or_default()]);
    };
    row("the leader, new".to_owned(), None, Some(mib_new));
    row("the leader, nodes registered".to_owned(), Some(idle), Some(mib_before));
    let SessionsArguments { nodes, volumes, interval, .. } = arguments;
    for Row { talk, cpu_share, mib } in rows {
        let what = match talk {
            Talk::Unchanged => "nothing changes",
            Talk::Everything => "each report says everything",
        };
        row(format!("its sessions: {what}"), Some(cpu_share - idle), Some(*mib));
    }
    format!(
        "{nodes} nodes with {volumes} volumes each report every {interval} s; all sessions begun in {begin_seconds:.1} s\n{}",
        table.render()
    )
}

/// All simulated nodes.
struct Nodes {
    nodes: Vec<SimulatedNode>,
}

impl Nodes {
    fn new(cluster: &Cluster, address: String, arguments: &SessionsArguments) -> anyhow::Result<Self> {
        let authority = Authority::open_or_create(&cluster.directory().join("certificates"))?;
        let ca = Certificate::from_pem(fs::read(authority.certificate())?);
        let node = |number: u32| {
            let name = format!("bench-node-{number}");
            let files = authority.files(&Owner::Node(name.clone()), &name)?;
            let tls = ClientTlsConfig::new()
                .domain_name(replica::SERVER_NAME)
                .ca_certificate(ca.clone())
                .identity(Identity::from_pem(fs::read(files.cert)?, fs::read(files.key)?));
            let endpoint = Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?;
            let interval = Duration::from_secs(arguments.interval);
            Ok(SimulatedNode { name, endpoint, volumes: arguments.volumes, interval })
        };
        Ok(Self { nodes: (0..arguments.nodes).map(node).collect::<anyhow::Result<_>>()? })
    }

    /// Has all do the same, some at a time.
    async fn all<T: Send + 'static, F>(&self, work: impl Fn(SimulatedNode) -> F) -> anyhow::Result<Vec<T>>
    where
        F: Future<Output = anyhow::Result<T>> + Send + 'static,
    {
        let (mut at_it, mut done) = (JoinSet::new(), Vec::new());
        let mut nodes = self.nodes.iter().cloned();
        loop {
            while at_it.len() < BEGINNING_AT_ONCE
                && let Some(node) = nodes.next()
            {
                at_it.spawn(tokio::time::timeout(BEGIN_LIMIT, work(node)));
            }
            match at_it.join_next().await {
                Some(ended) => done.push(ended?.context("a node could not begin in time")??),
                None => return Ok(done),
            }
        }
    }
}

/// A node that is nothing but its words.
#[derive(Clone)]
struct SimulatedNode {
    name: String,
    endpoint: Endpoint,
    volumes: u32,
    interval: Duration,
}

/// One that has a session.
struct Talking {
    node: SimulatedNode,
    reports: mpsc::Sender<NodeReport>,
    orders: tonic::Streaming<proto::node::v1::LeaderOrder>,
}

impl SimulatedNode {
    fn host_nqn(&self) -> String {
        format!("nqn.2014-08.org.example:{}", self.name)
    }

    async fn register(self) -> anyhow::Result<()> {
        let mut client = NodeGatewayClient::new(node::connect_lazily(self.endpoint.clone()));
        let register = RegisterRequest {
            node_id: self.name.clone(),
            boot_id: BOOT.to_owned(),
            host_nqn: self.host_nqn(),
            ..RegisterRequest::default()
        };
        client.register(register).await.with_context(|| format!("register {}", self.name))?;
        Ok(())
    }

    async fn begin(self) -> anyhow::Result<Talking> {
        let mut client = NodeGatewayClient::new(node::connect_lazily(self.endpoint.clone()));
        let (reports, outgoing) = mpsc::channel(1);
        reports.send(NodeReport { host_nqn: self.host_nqn(), ..self.report(1, Talk::Everything) }).await?;
        let session = client.session(ReceiverStream::new(outgoing)).await;
        let orders = session.with_context(|| format!("session of {}", self.name))?.into_inner();
        Ok(Talking { node: self, reports, orders })
    }

    fn report(&self, since_boot_ns: u64, talk: Talk) -> NodeReport {
        let volume = |number: u32| VolumeReport {
            volume_id: format!("pvc-{}", uuid::Uuid::from_u128(u128::from(number))),
            connected: true,
            held_by: vec![format!("process {} (qemu-kvm)", 1_000 + number)],
            ..VolumeReport::default()
        };
        let volumes = match talk {
            Talk::Unchanged => Vec::new(),
            Talk::Everything => (0..self.volumes).map(volume).collect(),
        };
        NodeReport {
            node_id: self.name.clone(),
            boot_id: BOOT.to_owned(),
            since_boot_ns,
            unchanged: talk == Talk::Unchanged,
            volumes,
            ..NodeReport::default()
        }
    }
}

impl Talking {
    async fn talk(mut self, talk: watch::Receiver<Talk>) -> anyhow::Result<()> {
        // As nodes that began at different times.
        let mut due = Instant::now() + self.node.interval.mul_f64(rand::rng().random());
        let mut since_boot_ns = 1;
        loop {
            tokio::select! {
                order = self.orders.message() => {
                    order.context("a session ended")?.context("a session ended")?;
                }
                () = tokio::time::sleep_until(due) => {
                    since_boot_ns += 1;
                    let said = *talk.borrow();
                    self.reports.send(self.node.report(since_boot_ns, said)).await.context("a session ended")?;
                    due += self.node.interval;
                }
            }
        }
    }
}

/// The process' memory that is in RAM, in MiB.
fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("the leader's memory")?;
    let kib = text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
    Ok(kib.context("no VmRSS")?.parse::<f64>()? / 1024.0)
}

/// The share of one core that the process takes during this time.
async fn cpu_share(pid: u32, time: Duration) -> anyhow::Result<f64> {
    let (begun, before) = (Instant::now(), cpu_ticks(pid)?);
    sleep(time).await;
    Ok((cpu_ticks(pid)? - before) / TICKS_PER_SECOND / begun.elapsed().as_secs_f64())
}

/// The CPU time that the process has taken, in user and system mode.
fn cpu_ticks(pid: u32) -> anyhow::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).context("the leader's CPU time")?;
    // The name, in brackets, may have blanks in it.
    let fields = text.rsplit_once(')').map(|(_, rest)| rest.split_whitespace()).context("no fields")?;
    let times: Vec<f64> = fields.skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(times.iter().sum())
}
