//! Who may call what, on the port that peers, nodes and operators share: everything is called as everybody, with
//! certificates and with tokens, which a simulated API server reviews.

use std::fs;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::leader::v1::SightsRequest;
use proto::leader::v1::leader_client::LeaderClient;
use proto::node::v1::node_gateway_client::NodeGatewayClient;
use proto::node::v1::{
    DescribeVolumesRequest, NodeReport, PermitConnectRequest, RegisterRequest, ReportDisconnectedRequest,
};
use proto::operator::v1::operator_client::OperatorClient;
use proto::operator::v1::{
    AddReplicaRequest, BackupRequest, DetachVolumeRequest, GetVolumeRequest, ListHotplugHoldsRequest,
    ListMigrationsRequest, ListOrphansRequest, ListReplicasRequest, ListVolumesRequest, RemoveReplicaRequest,
    ReplaceReplicaRequest, RestorePart, StatusRequest, TakeInPart,
};
use proto::peer::v1::peer_client::PeerClient;
use proto::peer::v1::snapshot_part::Part;
use proto::peer::v1::{
    AdoptRequest, ChangeMembershipRequest, HandOverRequest, IdentifyRequest, JoinRequest, ProposeRequest,
    RaftMessage, ReadIndexRequest, SnapshotPart,
};
use rds_csi::certificates::{Authority, CertificateFiles, Owner};
use tests::kubernetes::objects::reviewed;
use tests::kubernetes::{SimulatedApiServer, watch_simulated};
use tests::requests::{eventually, within};
use tests::{Lab, tls_channel};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::sessions::wait_for_metric;

/// What each caller gives the driver, in milliseconds. Enough for an answer; some that are let in wait longer.
const LIMIT_MS: u64 = 2_000;

const LIMIT: Duration = Duration::from_millis(LIMIT_MS);

/// The node that speaks, and the one that it must not speak for.
const OWN_NODE: &str = "node-a";
const OTHER_NODE: &str = "node-b";

/// The replica that speaks.
const REPLICA: &str = "controller-1";

/// Whose calls an RPC takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Replica,
    Node,
    Operator,
    Nobody,
}

type Answer = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;

/// Shows a token with each call.
#[derive(Debug, Clone)]
struct Token(Option<&'static str>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = self.0 {
            let value = format!("Bearer {token}").parse().map_err(|_| Status::internal("no token"))?;
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

type Line = InterceptedService<Channel, Token>;

struct Call {
    rpc: &'static str,
    allowed: Role,
    send: fn(Line) -> Answer,
}

/// A row of the table: an RPC, whose it is, and how it is called. What is sent is harmless or nonsense, so that
/// whoever is let in changes nothing.
macro_rules! call {
    ($allowed:ident, $client:ident.$method:ident($message:expr)) => {
        Call {
            rpc: concat!(stringify!($client), "::", stringify!($method)),
            allowed: Role::$allowed,
            send: |line| {
                Box::pin(async move { $client::new(line).$method(within(LIMIT, $message)).await.map(drop) })
            },
        }
    };
}

fn nonsense() -> RaftMessage {
    RaftMessage { payload: vec![0xff; 16], ..Default::default() }
}

fn snapshot_of_nonsense() -> SnapshotPart {
    SnapshotPart { part: Some(Part::Begin(nonsense())) }
}

fn register(node: &str) -> RegisterRequest {
    RegisterRequest { node_id: node.to_owned(), boot_id: "not a boot id".to_owned(), ..Default::default() }
}

fn permit(node: &str) -> PermitConnectRequest {
    let volume_id = "pvc-unknown".to_owned();
    PermitConnectRequest {
        node_id: node.to_owned(),
        boot_id: "boot".to_owned(),
        volume_id,
        ..Default::default()
    }
}

fn report(node: &str) -> ReportDisconnectedRequest {
    let volume_id = "pvc-unknown".to_owned();
    ReportDisconnectedRequest {
        node_id: node.to_owned(),
        boot_id: "boot".to_owned(),
        volume_id,
        ..Default::default()
    }
}

fn describe(node: &str) -> DescribeVolumesRequest {
    DescribeVolumesRequest { node_id: node.to_owned(), ..Default::default() }
}

fn session(node: &str) -> impl tokio_stream::Stream<Item = NodeReport> + use<> {
    let report =
        NodeReport { node_id: node.to_owned(), boot_id: "another-boot".to_owned(), ..Default::default() };
    tokio_stream::iter([report])
}

fn sights() -> SightsRequest {
    SightsRequest { volume_id: "pvc-unknown".to_owned(), ..Default::default() }
}

fn calls() -> Vec<Call> {
    vec![
        call!(Replica, PeerClient.append_entries(nonsense())),
        call!(Replica, PeerClient.vote(nonsense())),
        call!(Replica, PeerClient.pre_vote(nonsense())),
        call!(Replica, PeerClient.install_snapshot(tokio_stream::iter([snapshot_of_nonsense()]))),
        call!(Replica, PeerClient.transfer_leader(nonsense())),
        call!(Replica, PeerClient.propose(ProposeRequest { command: vec![0xff; 16], ..Default::default() })),
        call!(Replica, PeerClient.read_index(ReadIndexRequest::default())),
        call!(Replica, PeerClient.identify(IdentifyRequest {})),
        call!(Replica, PeerClient.join(JoinRequest { name: REPLICA.to_owned(), ..Default::default() })),
        call!(Replica, PeerClient.change_membership(ChangeMembershipRequest::default())),
        call!(Replica, PeerClient.adopt(AdoptRequest::default())),
        call!(Replica, PeerClient.hand_over(HandOverRequest::default())),
        call!(Replica, LeaderClient.sights(sights())),
        call!(Node, NodeGatewayClient.register(register(OWN_NODE))),
        call!(Node, NodeGatewayClient.permit_connect(permit(OWN_NODE))),
        call!(Node, NodeGatewayClient.report_disconnected(report(OWN_NODE))),
        call!(Node, NodeGatewayClient.describe_volumes(describe(OWN_NODE))),
        call!(Node, NodeGatewayClient.session(session(OWN_NODE))),
        call!(Nobody, NodeGatewayClient.register(register(OTHER_NODE))),
        call!(Nobody, NodeGatewayClient.permit_connect(permit(OTHER_NODE))),
        call!(Nobody, NodeGatewayClient.report_disconnected(report(OTHER_NODE))),
        call!(Nobody, NodeGatewayClient.describe_volumes(describe(OTHER_NODE))),
        call!(Nobody, NodeGatewayClient.session(session(OTHER_NODE))),
        call!(Operator, OperatorClient.status(StatusRequest {})),
        call!(Operator, OperatorClient.list_volumes(ListVolumesRequest {})),
        call!(
            Operator,
            OperatorClient
                .get_volume(GetVolumeRequest { id: "pvc-unknown".to_owned(), ..Default::default() })
        ),
        call!(Operator, OperatorClient.detach_volume(DetachVolumeRequest::default())),
        call!(Operator, OperatorClient.list_migrations(ListMigrationsRequest {})),
        call!(Operator, OperatorClient.list_orphans(ListOrphansRequest {})),
        call!(Operator, OperatorClient.list_hotplug_holds(ListHotplugHoldsRequest {})),
        call!(Operator, OperatorClient.list_replicas(ListReplicasRequest {})),
        call!(
            Operator,
            OperatorClient.add_replica(AddReplicaRequest { name: String::new(), address: String::new() })
        ),
        call!(Operator, OperatorClient.remove_replica(RemoveReplicaRequest { replica_id: 0 })),
        call!(Operator, OperatorClient.replace_replica(ReplaceReplicaRequest { dead_replica_id: 0 })),
        call!(Operator, OperatorClient.backup(BackupRequest {})),
        call!(Operator, OperatorClient.restore(tokio_stream::iter([RestorePart::default()]))),
        call!(Operator, OperatorClient.take_in(tokio_stream::iter([TakeInPart::default()]))),
    ]
}

/// A line to a controller, as whoever the files and the token say.
fn line(
    lab: &Lab,
    name: &str,
    files: Option<&CertificateFiles>,
    token: Option<&'static str>,
) -> Result<Line> {
    let authority = Authority::open_or_create(&lab.certificates())?.certificate();
    let channel = tls_channel(&lab.address(name)?, &authority, files)?;
    Ok(InterceptedService::new(channel, Token(token)))
}

/// Whether the answer came from behind the door: of the service, not of TLS or of its guard.
fn is_let_in(answer: &Result<(), Status>) -> bool {
    match answer {
        Ok(()) => true,
        Err(status) => !is_refused(answer) && std::error::Error::source(status).is_none(),
    }
}

fn is_refused(answer: &Result<(), Status>) -> bool {
    answer
        .as_ref()
        .is_err_and(|status| matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rpc_takes_calls_of_its_own_role_only() -> Result<()> {
    Lab::tell(async |lab| {
        let authority = Authority::open_or_create(&lab.certificates())?;
        let before = lab.status(REPLICA).await?;
        let callers = [
            (Role::Replica, authority.files(&Owner::Replica(REPLICA.to_owned()), REPLICA)?),
            (Role::Node, authority.files(&Owner::Node(OWN_NODE.to_owned()), OWN_NODE)?),
            (Role::Operator, authority.files(&Owner::Operator("tester".to_owned()), "tester")?),
        ];
        for name in [lab.leader_name().await?, lab.follower_name().await?] {
            for (role, files) in &callers {
                let line = line(lab, &name, Some(files), None)?;
                for call in calls() {
                    let answer = (call.send)(line.clone()).await;
                    let right = if *role == call.allowed { is_let_in(&answer) } else { is_refused(&answer) };
                    ensure!(right, "{} by a {role:?} at {name}: {answer:?}", call.rpc);
                }
            }
        }
        let after = lab.status(REPLICA).await?;
        ensure!(before.replicas.len() == after.replicas.len() && after.volumes == 0, "changed: {after:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_and_no_certificate_at_all_stay_outside() -> Result<()> {
    Lab::tell(async |lab| {
        let authority = Authority::open_or_create(&lab.certificates())?.certificate();
        let elsewhere = tempfile::tempdir()?;
        let foreign = Authority::open_or_create(elsewhere.path())?;
        let address = lab.address(&lab.leader_name().await?)?;
        let owners = [
            Owner::Replica(REPLICA.to_owned()),
            Owner::Node(OWN_NODE.to_owned()),
            Owner::Operator("tester".to_owned()),
        ];
        let mut strangers = vec![None];
        for (index, owner) in owners.iter().enumerate() {
            strangers.push(Some(foreign.files(owner, &format!("stranger-{index}"))?));
        }
        for files in &strangers {
            for call in calls() {
                // A connection for each: TLS refuses them one by one.
                let channel = tls_channel(&address, &authority, files.as_ref())?;
                let answer = (call.send)(InterceptedService::new(channel, Token(None))).await;
                ensure!(answer.is_err() && !is_let_in(&answer), "{} by {files:?}: {answer:?}", call.rpc);
            }
        }
        Ok(())
    })
    .await
}

const AUDIENCE: &str = "rds-csi-controller";
const NODE_TOKENS: &str = r#"node_tokens = { audience = "rds-csi-controller", namespace = "storage", service_account = "rds-csi-node" }"#;

/// Tokens, and what the simulated API server says of them.
const OWN: &str = "token-of-node-a";
const EXPIRED: &str = "token-that-expired";
const OTHER_ACCOUNT: &str = "token-of-another-account";
const OTHER_NAMESPACE: &str = "token-of-the-same-name-elsewhere";
const OTHER_AUDIENCE: &str = "token-for-somebody-else";

async fn token_server() -> Result<SimulatedApiServer> {
    let server = SimulatedApiServer::start([]).await?;
    for (token, namespace, account, audience) in [
        (OWN, "storage", "rds-csi-node", AUDIENCE),
        (OTHER_ACCOUNT, "storage", "default", AUDIENCE),
        (OTHER_NAMESPACE, "default", "rds-csi-node", AUDIENCE),
        (OTHER_AUDIENCE, "storage", "rds-csi-node", "https://kubernetes.default.svc"),
    ] {
        server.review(token, Some(reviewed(namespace, account, audience, OWN_NODE)));
    }
    Ok(server)
}

/// What a caller without a certificate is answered; `None`: it is let in.
fn answer_to(token: Option<&str>, call: &Call) -> Option<Code> {
    let is_for_nodes = call.rpc.starts_with("NodeGateway");
    match token {
        Some(OWN) if call.allowed == Role::Node => None,
        Some(OWN | OTHER_ACCOUNT | OTHER_NAMESPACE) if is_for_nodes => Some(Code::PermissionDenied),
        Some(_) | None => Some(Code::Unauthenticated),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_speaks_for_its_node_only_and_for_nothing_else() -> Result<()> {
    Lab::tell(async |lab| {
        let server = token_server().await?;
        watch_simulated(lab, &server, NODE_TOKENS).await?;
        let authority = Authority::open_or_create(&lab.certificates())?;
        let certified = [
            (Role::Replica, authority.files(&Owner::Replica(REPLICA.to_owned()), REPLICA)?),
            (Role::Node, authority.files(&Owner::Node(OWN_NODE.to_owned()), OWN_NODE)?),
            (Role::Operator, authority.files(&Owner::Operator("tester".to_owned()), "tester")?),
        ];
        for name in [lab.leader_name().await?, lab.follower_name().await?] {
            let tokens = [OWN, EXPIRED, OTHER_ACCOUNT, OTHER_NAMESPACE, OTHER_AUDIENCE].map(Some);
            for token in tokens.into_iter().chain([None, Some("")]) {
                let line = line(lab, &name, None, token)?;
                for call in calls() {
                    let answer = (call.send)(line.clone()).await;
                    let expected = answer_to(token, &call);
                    let right = match expected {
                        None => is_let_in(&answer),
                        Some(code) => answer.as_ref().is_err_and(|status| status.code() == code),
                    };
                    ensure!(right, "{} with {token:?} at {name}: {answer:?}, not {expected:?}", call.rpc);
                }
            }
            // A certificate counts, whatever token is beside it.
            for (role, files) in &certified {
                let line = line(lab, &name, Some(files), Some(OWN))?;
                for call in calls() {
                    let answer = (call.send)(line.clone()).await;
                    let right = if *role == call.allowed { is_let_in(&answer) } else { is_refused(&answer) };
                    ensure!(right, "{} by a {role:?} with a token at {name}: {answer:?}", call.rpc);
                }
            }
        }

        server.set_away(true);
        let line = line(lab, &lab.leader_name().await?, None, Some("token-not-seen-before"))?;
        for call in calls().into_iter().filter(|call| call.rpc.starts_with("NodeGateway")) {
            let answer = (call.send)(line.clone()).await;
            let is_unknown = |status: &Status| {
                status.code() == Code::Unavailable && status.message().contains("cannot be checked now")
            };
            ensure!(answer.as_ref().is_err_and(is_unknown), "{} in an outage: {answer:?}", call.rpc);
        }
        Ok(())
    })
    .await
}

/// Has the node show the token in `file` from its next start on, in place of its certificate.
fn show_token(lab: &Lab, file: &std::path::Path) -> Result<()> {
    let settings = lab.config_path(OWN_NODE);
    let mut node: toml::Table = fs::read_to_string(&settings)?.parse()?;
    let tls = node.get_mut("tls").and_then(toml::Value::as_table_mut).context("[tls]")?;
    tls.retain(|key, _| key == "ca");
    tls.insert("token_file".to_owned(), file.display().to_string().into());
    Ok(fs::write(settings, toml::to_string(&node)?)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_plugin_needs_no_certificate_and_shows_the_token_of_now() -> Result<()> {
    const NEXT: &str = "next-token-of-node-a";
    Lab::tell(async |lab| {
        let server = token_server().await?;
        lab.terminate(OWN_NODE).await?;
        let file = lab.directory().join("token");
        fs::write(&file, OWN)?;
        show_token(lab, &file)?;
        watch_simulated(lab, &server, NODE_TOKENS).await?;
        lab.start_again(OWN_NODE).await?;
        wait_for_metric(lab, &lab.leader_name().await?, "rds_csi_sessions_active 2").await?;

        // Renewed, as kubelet does; the first one is over.
        fs::write(&file, NEXT)?;
        server.review(NEXT, Some(reviewed("storage", "rds-csi-node", AUDIENCE, OWN_NODE)));
        server.review(OWN, None);
        let leader = lab.leader_name().await?;
        lab.kill(&leader)?;
        eventually("the next leader", async || {
            ensure!(lab.leader_name().await? != leader, "still {leader}");
            Ok(())
        })
        .await?;
        lab.start_again(&leader).await?;
        wait_for_metric(lab, &lab.leader_name().await?, "rds_csi_sessions_active 2").await?;
        ensure!(server.reviewed() > 1, "nobody asked about the next token");

        for name in lab.controllers().into_iter().chain(lab.nodes()) {
            let log = fs::read_to_string(lab.log_path(&name))?;
            ensure!(!log.contains(OWN) && !log.contains(NEXT), "{name} has logged a token");
        }
        Ok(())
    })
    .await
}
