//! The server on a real unix socket, with a client of the same protocol.

#![allow(clippy::unwrap_used, reason = "in a test's own helpers too, a panic is the failure")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use csi::{CsiServer, DRIVER_NAME, Socket, SocketPath, Topology};
use proto::csi::v1;
use proto::csi::v1::controller_client::ControllerClient;
use proto::csi::v1::controller_server::Controller;
use proto::csi::v1::identity_client::IdentityClient;
use proto::csi::v1::node_client::NodeClient;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

/// Much longer than anything here takes, in ms.
const DEADLINE_MS: u64 = 20_000;

/// Deletes volumes for ever, until it is let go.
#[derive(Default)]
struct SlowController {
    begun: Arc<Notify>,
    go_on: Arc<Notify>,
}

#[tonic::async_trait]
impl Controller for SlowController {
    async fn delete_volume(
        &self,
        _: Request<v1::DeleteVolumeRequest>,
    ) -> Result<Response<v1::DeleteVolumeResponse>, Status> {
        self.begun.notify_one();
        self.go_on.notified().await;
        Ok(Response::new(v1::DeleteVolumeResponse {}))
    }
}

struct Running {
    path: SocketPath,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), csi::ServeError>>,
    _directory: tempfile::TempDir,
}

async fn start(server: CsiServer) -> Running {
    let directory = tempfile::tempdir().unwrap();
    let path = SocketPath::parse(&format!("unix://{}/csi.sock", directory.path().display())).unwrap();
    let socket = Socket::bind(&path).await.unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.serve(socket, stop.clone()));
    Running { path, stop, serving, _directory: directory }
}

async fn connect(path: &Path) -> Channel {
    Endpoint::from_shared(format!("unix://{}", path.display())).unwrap().connect().await.unwrap()
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_millis(DEADLINE_MS), what).await.unwrap()
}

#[tokio::test]
async fn identity_answers_until_the_server_stops() {
    let Running { path, stop, serving, _directory } = start(CsiServer::new()).await;
    let mut identity = IdentityClient::new(connect(path.as_path()).await);
    let who = identity.get_plugin_info(v1::GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((who.name.as_str(), who.vendor_version.is_empty()), (DRIVER_NAME, false));
    let what = identity.get_plugin_capabilities(v1::GetPluginCapabilitiesRequest {}).await.unwrap();
    assert!(!has_topology(&what.into_inner()));
    let probe = identity.probe(v1::ProbeRequest {}).await.unwrap().into_inner();
    assert_eq!(probe.ready, Some(true));

    stop.cancel();
    in_time(serving).await.unwrap().unwrap();
    assert!(!path.as_path().exists());
}

fn has_topology(answer: &v1::GetPluginCapabilitiesResponse) -> bool {
    use v1::plugin_capability::{Service, Type, service};
    let constraints = Service { r#type: service::Type::VolumeAccessibilityConstraints.into() };
    answer.capabilities.iter().any(|capability| capability.r#type == Some(Type::Service(constraints)))
}

#[tokio::test]
async fn a_plugin_with_a_place_says_so() {
    let segments = [("topology.kubernetes.io/zone".to_owned(), "a".to_owned())].into();
    let running = start(CsiServer::at(&Topology::parse(&segments).unwrap())).await;
    let mut identity = IdentityClient::new(connect(running.path.as_path()).await);
    let what = identity.get_plugin_capabilities(v1::GetPluginCapabilitiesRequest {}).await.unwrap();
    assert!(has_topology(&what.into_inner()));
}

#[tokio::test]
async fn what_is_not_served_is_unimplemented() {
    let running = start(CsiServer::new().controller(SlowController::default())).await;
    let channel = connect(running.path.as_path()).await;
    let snapshot =
        ControllerClient::new(channel.clone()).create_snapshot(v1::CreateSnapshotRequest::default()).await;
    assert_eq!(snapshot.unwrap_err().code(), Code::Unimplemented);
    let node = NodeClient::new(channel).node_get_info(v1::NodeGetInfoRequest {}).await;
    assert_eq!(node.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn an_overlong_request_is_refused() {
    let running = start(CsiServer::new().controller(SlowController::default())).await;
    let mut controller = ControllerClient::new(connect(running.path.as_path()).await);
    let volume_id = "a".repeat(csi::MAX_MESSAGE_BYTES + 1);
    let answer =
        in_time(controller.delete_volume(v1::DeleteVolumeRequest { volume_id, ..Default::default() })).await;
    assert_eq!(answer.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test]
async fn running_requests_end_before_the_server_does() {
    let controller = SlowController::default();
    let (begun, go_on) = (controller.begun.clone(), controller.go_on.clone());
    let running = start(CsiServer::new().controller(controller)).await;
    let mut client = ControllerClient::new(connect(running.path.as_path()).await);
    let call = tokio::spawn(async move { client.delete_volume(v1::DeleteVolumeRequest::default()).await });
    in_time(begun.notified()).await;
    running.stop.cancel();
    go_on.notify_one();
    in_time(call).await.unwrap().unwrap();
    in_time(running.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_request_that_never_ends_does_not_keep_the_server() {
    let controller = SlowController::default();
    let begun = controller.begun.clone();
    let running = start(CsiServer::new().controller(controller)).await;
    let mut client = ControllerClient::new(connect(running.path.as_path()).await);
    let call = tokio::spawn(async move { client.delete_volume(v1::DeleteVolumeRequest::default()).await });
    in_time(begun.notified()).await;
    running.stop.cancel();
    in_time(running.serving).await.unwrap().unwrap();
    assert!(!running.path.as_path().exists());
    call.abort();
}
