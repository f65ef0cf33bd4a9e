//! A controller's life: start, serve, hand over, stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use backend::{Backend, RouterOs};
use csi::parse::ClassDefaults;
use csi::{CsiServer, Socket, SocketPath, Topology};
use observer::Webhook;
use proto::leader::v1::leader_server::LeaderServer;
use proto::node::v1::node_gateway_server::NodeGatewayServer;
use proto::operator::v1::operator_server::OperatorServer;
use replica::{DEFAULT_SNAPSHOT_EVERY, PeerAddress, Replica, ReplicaConfig, RequireRole, RoleKind, TlsFiles};
use thiserror::Error;
use tls::{Callers, Tls};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::chronicle::Chronicle;
use crate::config::ControllerConfig;
use crate::evidence::LeadersEvidence;
use crate::executor::{Hand, Shell};
use crate::hotplug;
use crate::http::Http;
use crate::kubernetes::Kubernetes;
use crate::metrics::Metrics;
use crate::node_callers::NodeCallers;
use crate::node_gateway::Gateway;
use crate::operator::OperatorService;
use crate::orphans;
use crate::reaper;
use crate::recovery::Recovery;
use crate::service::ControllerService;
use crate::sessions::{AskLeader, LeaderService, NodeSessions};

/// How long open connections may hold up the end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a controller could not start, or had to end.
#[derive(Debug, Error)]
pub enum RunError {
    /// The appliance's settings do not make sense.
    #[error("appliance: {0}")]
    Appliance(#[from] backend::ConfigErrors),
    /// The appliance's place makes no sense.
    #[error("topology: {}", .0.join("; "))]
    Topology(Vec<String>),
    /// The replica could not start.
    #[error(transparent)]
    Start(#[from] replica::StartError),
    /// Storage or consensus failed for good: the process ends and recovers at its next start.
    #[error("the replica ended: {0}")]
    Replica(#[from] replica::Failure),
    /// A part of the controller stopped without being told to.
    #[error("a task ended by itself: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// CSI's socket cannot be served.
    #[error("CSI socket: {0}")]
    Socket(#[from] csi::SocketError),
    /// CSI's server ended.
    #[error(transparent)]
    Csi(#[from] csi::ServeError),
    /// Certificates cannot be used.
    #[error("certificates: {0}")]
    Tls(#[from] replica::TlsError),
    /// The port for peers, nodes and operators cannot be served.
    #[error("serving peers on {address}: {reason}")]
    Peers {
        /// The address.
        address: String,
        /// Why not.
        reason: String,
    },
    /// The port for metrics and health cannot be served.
    #[error("serving metrics on {address}: {reason}")]
    Metrics {
        /// The address.
        address: String,
        /// Why not.
        reason: String,
    },
    /// The port for the hotplug webhook cannot be served.
    #[error("serving the hotplug webhook on {address}: {reason}")]
    Hotplug {
        /// The address.
        address: String,
        /// Why not.
        reason: String,
    },
    /// Kubernetes cannot be asked.
    #[error("kubernetes: {0}")]
    Kubernetes(#[from] observer::ConnectError),
    /// A metric is registered twice or misnamed.
    #[error("metrics: {0}")]
    Registry(#[from] prometheus::Error),
}

/// Runs a controller until `shutdown` is cancelled or something fails for good.
pub async fn run(config: ControllerConfig, shutdown: CancellationToken) -> Result<(), RunError> {
    let metrics = Metrics::new(config.appliance.address.as_str())?;
    let counted = metrics.clone();
    let told = move |ok, took| counted.appliance_connect(ok, took);
    let backend: Arc<dyn Backend> = Arc::new(RouterOs::telling(config.appliance.clone(), told)?);
    let topology = Topology::parse(&config.topology).map_err(RunError::Topology)?;
    let socket = Socket::bind(&SocketPath::parse(&config.csi_socket)?).await?;
    let http_listener =
        TcpListener::bind(config.metrics_address).await.map_err(|error| metrics_error(&config, error))?;
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|error| RunError::Peers { address: config.listen.to_string(), reason: error.to_string() })?;
    let replica = Replica::start(replica_config(&config)).await?;

    let mut tasks = Tasks::default();
    let stop = tasks.stop.clone();
    let sessions = NodeSessions::new(replica.clone(), metrics.clone());
    let kubernetes = Kubernetes::start(&config.kubernetes, metrics.clone(), &stop)?;
    let callers = kubernetes.node_callers.clone();
    let in_office = watch::Sender::new(None);
    let (orphans, orphan_shell) = orphans::Shell::new(
        orphans::LeadersWitnesses {
            replica: replica.clone(),
            sessions: sessions.clone(),
            observer: kubernetes.observer.clone(),
            volume_path: config.volumes.volume_path.clone(),
        },
        config.orphans.clone(),
        in_office.subscribe(),
        metrics.clone(),
    );
    let webhook = match &config.hotplug {
        Some(hotplug) => {
            let webhook = hotplug::webhook(hotplug, &kubernetes, &metrics);
            let serving = serve_webhook(webhook.clone(), hotplug.listen, replica.tls(), stop.clone()).await?;
            tasks.running.spawn(serving);
            Some(webhook)
        }
        None => None,
    };
    let leader = AskLeader { replica: replica.clone(), sessions: sessions.clone() };
    let recovery = Recovery {
        leader: leader.clone(),
        backend: backend.clone(),
        nqn_prefix: config.volumes.nqn_prefix.clone(),
        defaults: class_defaults(&config),
    };
    let operator = OperatorService { replica: replica.clone(), orphans, webhook: webhook.clone(), recovery };
    let peers = serve_peers(&config, listener, operator, sessions.clone(), callers, stop.clone())?;
    tasks.running.spawn(peers);
    tasks.run(|stop| sessions.clone().run(stop));
    let http = Http {
        replica: replica.clone(),
        metrics: metrics.clone(),
        data_dir: config.data_dir.clone(),
        webhook,
    };
    let (http_stop, http_config) = (stop.clone(), config.clone());
    tasks.running.spawn(async move {
        http.serve(http_listener, http_stop).await.map_err(|error| metrics_error(&http_config, error))
    });
    let shell = Shell {
        replica: replica.clone(),
        hand: Hand { backend: backend.clone(), nqn_prefix: config.volumes.nqn_prefix.clone() },
        metrics: metrics.clone(),
        in_office,
    };
    tasks.run(|stop| shell.run(stop));
    tasks.run(|stop| orphan_shell.run(stop));
    let evidence = Arc::new(LeadersEvidence::new(sessions.clone(), kubernetes.observer.clone()));
    let reaper = reaper::Shell { replica: replica.clone(), evidence, reap_after: config.reap_after() };
    tasks.run(|stop| reaper.run(stop));
    let chronicle = Chronicle {
        replica: replica.clone(),
        observer: kubernetes.observer.clone(),
        events: kubernetes.events.clone(),
        metrics: metrics.clone(),
    };
    tasks.run(|stop| chronicle.run(stop));
    let service = service(&config, leader, kubernetes, backend, topology.clone(), metrics);
    let server = CsiServer::at(&topology).controller(service);
    tasks.running.spawn(async move { Ok(server.serve(socket, stop).await?) });
    tasks.until_the_end(&replica, &shutdown).await
}

/// What a controller does at the same time, and what ends it.
#[derive(Default)]
struct Tasks {
    running: JoinSet<Result<(), RunError>>,
    stop: CancellationToken,
}

impl Tasks {
    /// Starts work that goes on until it is told to stop, and cannot fail.
    fn run<Work>(&mut self, work: impl FnOnce(CancellationToken) -> Work)
    where
        Work: Future<Output = ()> + Send + 'static,
    {
        let work = work(self.stop.clone());
        self.running.spawn(async move {
            work.await;
            Ok(())
        });
    }

    /// Waits for `shutdown`, or for something that ends by itself, and then ends everything else.
    async fn until_the_end(
        mut self,
        replica: &Replica,
        shutdown: &CancellationToken,
    ) -> Result<(), RunError> {
        let outcome = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            failure = replica.failed() => Err(failure.into()),
            Some(ended) = self.running.join_next() => ended.unwrap_or_else(|error| Err(error.into())),
        };
        // Leadership first, while this replica can still say who leads now.
        replica.shutdown().await;
        self.stop.cancel();
        // What still waits for a replica that failed is never answered: the sooner it comes back through recovery, the
        // better.
        outcome?;
        let drain = async { while self.running.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIMEOUT, drain).await.is_err() {
            tracing::warn!("connections are still open; leaving anyway");
        }
        Ok(())
    }
}

fn replica_config(config: &ControllerConfig) -> ReplicaConfig {
    let peers = config
        .peers
        .iter()
        .map(|peer| PeerAddress { name: peer.name.clone(), address: peer.address.clone() });
    ReplicaConfig {
        data_dir: config.data_dir.clone(),
        name: config.name.clone(),
        peers: peers.collect(),
        tls: tls_files(config),
        timing: config.timing.into(),
        snapshot_every: DEFAULT_SNAPSHOT_EVERY,
    }
}

pub(crate) fn tls_files(config: &ControllerConfig) -> TlsFiles {
    TlsFiles { ca: config.tls.ca.clone(), cert: config.tls.cert.clone(), key: config.tls.key.clone() }
}

/// One port for peers, nodes and operators: the caller's certificate says which it is. If nodes may show tokens, TLS lets
/// in callers without a certificate too; each service refuses them but the nodes'.
fn serve_peers(
    config: &ControllerConfig,
    listener: TcpListener,
    operator: OperatorService,
    sessions: NodeSessions,
    callers: NodeCallers,
    stop: CancellationToken,
) -> Result<impl Future<Output = Result<(), RunError>> + use<>, RunError> {
    let (admission, replica) = (callers.admission(), operator.replica.clone());
    let let_in = if admission.tokens_accepted { Callers::Anyone } else { Callers::Certified };
    let address = config.listen;
    let failed = move |reason: String| RunError::Peers { address: address.to_string(), reason };
    let incoming = replica.tls().incoming(listener, let_in)?;
    let server = Server::builder()
        .add_service(replica.peer_service())
        .add_service(NodeGatewayServer::with_interceptor(
            Gateway { replica, sessions: sessions.clone(), callers },
            admission,
        ))
        .add_service(LeaderServer::with_interceptor(
            LeaderService { sessions },
            RequireRole(RoleKind::Replica),
        ))
        .add_service(OperatorServer::with_interceptor(operator, RequireRole(RoleKind::Operator)));
    Ok(async move {
        let served = server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await;
        served.map_err(|error| failed(error.to_string()))
    })
}

/// Serves the webhook on a port of its own, as API servers show no certificate.
async fn serve_webhook(
    webhook: Webhook,
    address: SocketAddr,
    tls: &Tls,
    stop: CancellationToken,
) -> Result<impl Future<Output = Result<(), RunError>> + use<>, RunError> {
    let failed =
        |error: io::Error| RunError::Hotplug { address: address.to_string(), reason: error.to_string() };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    tracing::info!(address = ?listener.local_addr(), "the hotplug webhook is served");
    let incoming = tls.incoming(listener, Callers::Unasked)?;
    Ok(async move {
        webhook.serve(incoming, stop).await;
        Ok(())
    })
}

fn service(
    config: &ControllerConfig,
    leader: AskLeader,
    kubernetes: Kubernetes,
    backend: Arc<dyn Backend>,
    topology: Topology,
    metrics: Metrics,
) -> ControllerService {
    ControllerService {
        replica: leader.replica.clone(),
        leader,
        kubernetes,
        one_publish_per_vm: config.kubernetes.one_publish_per_vm,
        backend,
        defaults: class_defaults(config),
        topology,
        nqn_prefix: config.volumes.nqn_prefix.clone(),
        appliance: config.appliance.address.clone(),
        require_detach_proof: config.require_detach_proof,
        call_timeout: config.call_timeout(),
        metrics,
    }
}

fn class_defaults(config: &ControllerConfig) -> ClassDefaults {
    ClassDefaults {
        volume_path: config.volumes.volume_path.clone(),
        nvme_address: config.volumes.nvme_address.clone(),
        nvme_port: config.volumes.nvme_port,
    }
}

fn metrics_error(config: &ControllerConfig, error: std::io::Error) -> RunError {
    RunError::Metrics { address: config.metrics_address.to_string(), reason: error.to_string() }
}
