//! The node plugin's life: build, serve, drain.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use csi::{CsiServer, ServeError, Socket, SocketError};
use prometheus::Registry;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::config::{FabricSettings, NodeConfig, Settings};
use crate::fabric::{Fabric, FakeFabric, LoopFabric, NvmeFabric};
use crate::fake_machine::FakeMachine;
use crate::gateway::{Gateway, LineError};
use crate::http::{Observable, routes};
use crate::metrics::Metrics;
use crate::mounts::{FakeMounts, KernelMounts, Mounts};
use crate::needed::missing_tools;
use crate::operations::Operations;
use crate::reconcile::Reconciler;
use crate::service::NodeService;
use crate::session::Session;
use crate::steps::Steps;
use crate::volumes::NodeVolumes;

/// How often a predecessor's lock is tried, in ms.
const PREDECESSOR_POLL_MS: u64 = 100;

/// Why the node plugin could not run.
#[derive(Debug, Error)]
pub enum RunError {
    /// The configuration is wrong in these ways.
    #[error("the configuration is wrong: {}", .0.join("; "))]
    Config(Vec<String>),
    /// Programs that it runs are not installed.
    #[error("these programs are missing: {}; install them where the node plugin runs, in its image", .0.join(", "))]
    Tools(Vec<String>),
    /// The lock that keeps two plugins of one node apart.
    #[error("cannot lock {}: {source}", path.display())]
    Lock {
        /// The lock's file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The fabric's directory cannot be used.
    #[error("cannot use the fabric's directory: {0}")]
    Fabric(io::Error),
    /// The line to the controllers could not be prepared.
    #[error(transparent)]
    Line(#[from] LineError),
    /// The metrics could not be registered.
    #[error("cannot register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The socket could not be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Serving CSI ended early.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Serving metrics and health failed.
    #[error("cannot serve metrics and health: {0}")]
    Http(io::Error),
}

/// Runs the node plugin until `stop` is cancelled.
pub async fn run(config: NodeConfig, stop: CancellationToken) -> Result<(), RunError> {
    let settings = config.check().map_err(RunError::Config)?;
    if matches!(settings.fabric, FabricSettings::Nvme(_)) {
        let missing = missing_tools();
        if !missing.is_empty() {
            return Err(RunError::Tools(missing));
        }
    }
    let Some(_lock) = lock(&settings, &stop).await? else { return Ok(()) };
    let (fabric, mounts) = fabric_and_mounts(&settings).await?;
    let metrics = Metrics::new(&Registry::new())?;
    let identity = settings.identity.clone();
    let gateway = Arc::new(Gateway::new(identity.clone(), &config.controllers, &config.tls)?);
    let operations = Arc::new(Operations::new(identity.node.clone(), metrics.clone()));
    let server = CsiServer::at(&settings.topology);
    let volumes = NodeVolumes {
        identity,
        fabric: fabric.clone(),
        mounts,
        gateway: gateway.clone(),
        metrics: metrics.clone(),
        steps: Steps::new(metrics.clone(), settings.die_after_step),
    };
    let reconciler = Reconciler::new(
        volumes.clone(),
        operations.clone(),
        settings.kubelet_directory.clone(),
        settings.reconcile_interval,
    );
    let session = Session::new(
        volumes.clone(),
        operations.clone(),
        settings.kubelet_directory,
        settings.session_interval,
    );
    let service = NodeService {
        volumes,
        operations: operations.clone(),
        controllers_limit: settings.controllers_limit,
        topology: settings.topology,
    };
    let http = TcpListener::bind(settings.metrics_address).await.map_err(RunError::Http)?;
    let socket = Socket::bind(&settings.socket).await?;

    // Whatever ends first, ends all.
    let ending = stop.child_token();
    let observable = Observable { metrics, fabric, gateway: gateway.clone() };
    let (registering, serving) = (ending.clone(), ending.clone());
    let register = tokio::spawn(async move {
        let _end_the_others = registering.clone().drop_guard();
        gateway.keep_registered(registering).await;
    });
    let (reconciling, reporting) = (ending.clone(), ending.clone());
    let tells_nodes_apart = tells_nodes_apart(&settings.fabric);
    let reconcile = tokio::spawn(async move {
        if tells_nodes_apart {
            let _end_the_others = reconciling.clone().drop_guard();
            reconciler.run(reconciling).await;
        }
    });
    let report = tokio::spawn(async move {
        if tells_nodes_apart {
            let _end_the_others = reporting.clone().drop_guard();
            session.run(reporting).await;
        }
    });
    let served = async {
        let _end_the_others = serving.clone().drop_guard();
        server.node(service).serve(socket, serving).await
    };
    let observed = async {
        let _end_the_others = ending.clone().drop_guard();
        tokio::select! {
            ended = axum::serve(http, routes(observable)) => ended,
            () = ending.cancelled() => Ok(()),
        }
    };
    let (served, observed) = tokio::join!(served, observed);
    operations.drain(settings.drain_limit).await;
    // They end with the token, and a panic in them has been logged.
    register.await.ok();
    reconcile.await.ok();
    report.await.ok();
    served?;
    observed.map_err(RunError::Http)
}

/// Keeps a successor waiting while this process lives: until an operation of its has ended, nobody may claim that
/// a volume is not being connected. `None` if the stop came first.
async fn lock(settings: &Settings, stop: &CancellationToken) -> Result<Option<File>, RunError> {
    let mut path = settings.socket.as_path().as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let failed = |source: io::Error| RunError::Lock { path: path.clone(), source };
    let file = File::create(&path).map_err(failed)?;
    let mut waited = false;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(file)),
            Err(Errno::WOULDBLOCK) if !waited => {
                tracing::warn!(lock = %path.display(), "waiting for another node plugin on this socket to end");
                waited = true;
            }
            Err(Errno::WOULDBLOCK) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = sleep(Duration::from_millis(PREDECESSOR_POLL_MS)) => {}
        }
    }
}

/// Whether a connection that is seen can only be this node's own. Nodes that share a machine's loop devices would
/// put right, and report, what is another's.
fn tells_nodes_apart(fabric: &FabricSettings) -> bool {
    match fabric {
        FabricSettings::Fake(_) | FabricSettings::Nvme(_) => true,
        FabricSettings::Loop(_) => false,
    }
}

async fn fabric_and_mounts(settings: &Settings) -> Result<(Arc<dyn Fabric>, Arc<dyn Mounts>), RunError> {
    match &settings.fabric {
        FabricSettings::Fake(directory) => {
            let machine =
                FakeMachine::boot(directory, &settings.identity.boot).await.map_err(RunError::Fabric)?;
            Ok((Arc::new(FakeFabric::new(machine.clone())), Arc::new(FakeMounts::new(machine))))
        }
        FabricSettings::Loop(backing_directory) => {
            let fabric = LoopFabric::new(backing_directory).map_err(RunError::Fabric)?;
            Ok((Arc::new(fabric), Arc::new(KernelMounts::default())))
        }
        FabricSettings::Nvme(nvme) => {
            let mounts = KernelMounts::new(nvme.roots.clone());
            Ok((Arc::new(NvmeFabric::new(nvme.clone())), Arc::new(mounts)))
        }
    }
}
