//! What node plugins ask: that they are known, that they may connect, that they are off.
//!
//! A node speaks for itself only: the name in its certificate is the node that the request may be about.

use std::time::Duration;

use csi::status;
use proto::node::v1;
use proto::node::v1::node_gateway_server::NodeGateway;
use replica::{Replica, Role};
use state_machine::{
    BootId, Command, Generation, IdError, NodeId, NodeMoment, Nqn, Refusal, Response as LedgerResponse,
    VolumeId,
};
use tonic::{Request, Response, Status};

/// The longest that a node waits for an answer; then it asks another replica.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The service that node plugins dial.
#[derive(Clone)]
pub(crate) struct Gateway {
    pub(crate) replica: Replica,
}

impl Gateway {
    async fn propose<T>(
        &self,
        request: &Request<T>,
        command: Command,
    ) -> Result<Result<(), Refusal>, Status> {
        let answer = self.replica.propose(command, crate::deadline::of(request, ANSWER_TIMEOUT)).await;
        match answer.map_err(|error| status::no_quorum(&error.to_string()))? {
            LedgerResponse::Refused(refusal) => Ok(Err(refusal)),
            LedgerResponse::Done
            | LedgerResponse::Pending { .. }
            | LedgerResponse::Exists { .. }
            | LedgerResponse::Attached { .. }
            | LedgerResponse::Revoking { .. } => Ok(Ok(())),
        }
    }
}

#[tonic::async_trait]
impl NodeGateway for Gateway {
    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterReply>, Status> {
        let message = request.get_ref();
        let node = own_node(&request, &message.node_id)?;
        let boot = field("boot_id", BootId::parse(&message.boot_id))?;
        let host_nqn = field("host_nqn", Nqn::parse(&message.host_nqn))?;
        let replaces = match message.replaces_boot_id.as_str() {
            "" => None,
            text => Some(field("replaces_boot_id", BootId::parse(text))?),
        };
        let max_volumes = message.max_volumes;
        let command =
            Command::RegisterNode { node: node.clone(), boot: boot.clone(), replaces, host_nqn, max_volumes };
        let present = match self.propose(&request, command).await? {
            Ok(()) => {
                tracing::info!(%node, %boot, max_volumes, "node registered");
                boot
            }
            Err(Refusal::OtherBoot { present, .. }) => {
                tracing::info!(%node, %boot, %present, "node did not know the recorded boot; it registers again");
                present
            }
            Err(refusal) => {
                tracing::warn!(%node, %boot, %refusal, "node not registered");
                return Err(status::of_refusal(&refusal));
            }
        };
        Ok(Response::new(v1::RegisterReply { present_boot_id: present.to_string() }))
    }

    async fn permit_connect(
        &self,
        request: Request<v1::PermitConnectRequest>,
    ) -> Result<Response<v1::PermitConnectReply>, Status> {
        let message = request.get_ref();
        let node = own_node(&request, &message.node_id)?;
        let volume = field("volume_id", VolumeId::parse(&message.volume_id))?;
        let generation = Generation(message.generation);
        let moment = moment(&message.boot_id, message.since_boot_ns)?;
        let command =
            Command::PermitConnect { volume: volume.clone(), node: node.clone(), generation, moment };
        let (stands, reason) = match self.propose(&request, command).await? {
            Ok(()) => (true, String::new()),
            Err(refusal @ (Refusal::PastMoment { .. } | Refusal::NodeNotFound { .. })) => {
                return Err(status::of_refusal(&refusal));
            }
            Err(refusal) => (false, refusal.to_string()),
        };
        let term = self.replica.status().term;
        tracing::info!(%volume, %node, generation = generation.0, term, stands, reason, "node asked whether it may connect");
        Ok(Response::new(v1::PermitConnectReply { stands, reason }))
    }

    async fn report_disconnected(
        &self,
        request: Request<v1::ReportDisconnectedRequest>,
    ) -> Result<Response<v1::ReportDisconnectedReply>, Status> {
        let message = request.get_ref();
        let node = own_node(&request, &message.node_id)?;
        let volume = field("volume_id", VolumeId::parse(&message.volume_id))?;
        let moment = moment(&message.boot_id, message.since_boot_ns)?;
        let command = Command::ReportDisconnected { volume: volume.clone(), node: node.clone(), moment };
        self.propose(&request, command).await?.map_err(|refusal| status::of_refusal(&refusal))?;
        let term = self.replica.status().term;
        tracing::info!(%volume, %node, term, "node reported that it is not connected");
        Ok(Response::new(v1::ReportDisconnectedReply {}))
    }
}

/// The node that the request is about, which has to be the caller's own.
fn own_node<T>(request: &Request<T>, claimed: &str) -> Result<NodeId, Status> {
    let claimed = field("node_id", NodeId::parse(claimed))?;
    let caller = replica::caller(request)?;
    if caller == Role::Node(claimed.clone()) {
        return Ok(claimed);
    }
    tracing::warn!(%caller, node = %claimed, "refused: not this node");
    Err(Status::permission_denied(format!("{caller} may not speak for node {claimed}")))
}

fn moment(boot: &str, since_boot_ns: u64) -> Result<NodeMoment, Status> {
    Ok(NodeMoment { boot: field("boot_id", BootId::parse(boot))?, since_boot_ns })
}

fn field<T>(name: &str, parsed: Result<T, IdError>) -> Result<T, Status> {
    parsed.map_err(|error| Status::invalid_argument(format!("{name} {error}")))
}
