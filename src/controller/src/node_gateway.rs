//! What node plugins ask: that they are known, that they may connect, that they are off, what the ledger knows.
//!
//! A node speaks for itself only: the name in its certificate, or in its token, is the node that the request may be
//! about.

use std::time::Duration;

use csi::status;
use proto::node::v1;
use proto::node::v1::node_gateway_server::NodeGateway;
use replica::Replica;
use state_machine::{
    AttachmentPhase, BootId, Command, Generation, IdError, NodeId, NodeMoment, Nqn, Refusal,
    Response as LedgerResponse, State, VolumeId,
};
use tonic::{Request, Response, Status, Streaming};

use crate::node_callers::{NodeCallers, Shown};
use crate::sessions::{NodeSessions, SessionStream};

/// The longest that a node waits for an answer; then it asks another replica.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How many volumes a node may ask about at once, and is told of beside them.
const MAX_DESCRIBED_VOLUMES: usize = 256;

/// The service that node plugins dial.
#[derive(Clone)]
pub(crate) struct Gateway {
    pub(crate) replica: Replica,
    pub(crate) sessions: NodeSessions,
    pub(crate) callers: NodeCallers,
}

impl Gateway {
    /// The node that the request is about, which has to be the caller's own.
    async fn own_node<T: Sync>(&self, request: &Request<T>, claimed: &str) -> Result<NodeId, Status> {
        own_node(self.callers.node(&Shown::by(request)?).await?, claimed)
    }

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
    type SessionStream = SessionStream;

    async fn session(
        &self,
        request: Request<Streaming<v1::NodeReport>>,
    ) -> Result<Response<SessionStream>, Status> {
        self.sessions.serve(request, &self.callers).await
    }

    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterReply>, Status> {
        let message = request.get_ref();
        let node = self.own_node(&request, &message.node_id).await?;
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
        let node = self.own_node(&request, &message.node_id).await?;
        let volume = field("volume_id", VolumeId::parse(&message.volume_id))?;
        let generation = Generation(message.generation);
        let moment = moment(&message.boot_id, message.since_boot_ns)?;
        let command =
            Command::PermitConnect { volume: volume.clone(), node: node.clone(), generation, moment };
        let (stands, reason) = match self.propose(&request, command).await? {
            Ok(()) => (true, String::new()),
            Err(
                refusal @ (Refusal::PastMoment { .. } | Refusal::NodeNotFound { .. } | Refusal::Restoring),
            ) => {
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
        let node = self.own_node(&request, &message.node_id).await?;
        let volume = field("volume_id", VolumeId::parse(&message.volume_id))?;
        let moment = moment(&message.boot_id, message.since_boot_ns)?;
        let command = Command::ReportDisconnected { volume: volume.clone(), node: node.clone(), moment };
        self.propose(&request, command).await?.map_err(|refusal| status::of_refusal(&refusal))?;
        let term = self.replica.status().term;
        tracing::info!(%volume, %node, term, "node reported that it is not connected");
        Ok(Response::new(v1::ReportDisconnectedReply {}))
    }

    async fn describe_volumes(
        &self,
        request: Request<v1::DescribeVolumesRequest>,
    ) -> Result<Response<v1::DescribeVolumesReply>, Status> {
        let message = request.get_ref();
        let node = self.own_node(&request, &message.node_id).await?;
        let volumes = described_volumes(&message.volume_ids)?;
        let deadline = crate::deadline::of(&request, ANSWER_TIMEOUT);
        let reply = self.replica.read(deadline, |state| description(state, &node, &volumes));
        let reply = reply.await.map_err(|error| status::no_quorum(&error.to_string()))?;
        Ok(Response::new(reply))
    }
}

fn described_volumes(ids: &[String]) -> Result<Vec<VolumeId>, Status> {
    if ids.len() > MAX_DESCRIBED_VOLUMES {
        let problem = format!("volume_ids are {}; at most {MAX_DESCRIBED_VOLUMES} are answered", ids.len());
        return Err(Status::invalid_argument(problem));
    }
    ids.iter().map(|id| field("volume_ids", VolumeId::parse(id))).collect()
}

/// What the ledger says of `volumes` to `node`.
fn description(state: &State, node: &NodeId, volumes: &[VolumeId]) -> v1::DescribeVolumesReply {
    let described = |id: &VolumeId| {
        let volume = state.volume(id);
        let attachment = volume.and_then(|volume| volume.attachments.get(node));
        v1::VolumeDescription {
            volume_id: id.to_string(),
            known: volume.is_some(),
            attachment: attachment.map(|attachment| v1::NodeAttachment {
                generation: attachment.generation.0,
                phase: phase(attachment.phase).into(),
            }),
        }
    };
    v1::DescribeVolumesReply { volumes: volumes.iter().map(described).collect() }
}

fn phase(phase: AttachmentPhase) -> v1::AttachmentPhase {
    match phase {
        AttachmentPhase::Granting => v1::AttachmentPhase::Granting,
        AttachmentPhase::Granted => v1::AttachmentPhase::Granted,
        AttachmentPhase::Revoking => v1::AttachmentPhase::Revoking,
    }
}

/// The node that a message is about, which has to be the caller.
pub(crate) fn own_node(caller: NodeId, claimed: &str) -> Result<NodeId, Status> {
    let claimed = field("node_id", NodeId::parse(claimed))?;
    if caller == claimed {
        return Ok(caller);
    }
    tracing::warn!(%caller, node = %claimed, "refused: not this node");
    Err(Status::permission_denied(format!("node {caller} may not speak for node {claimed}")))
}

fn moment(boot: &str, since_boot_ns: u64) -> Result<NodeMoment, Status> {
    Ok(NodeMoment { boot: field("boot_id", BootId::parse(boot))?, since_boot_ns })
}

fn field<T>(name: &str, parsed: Result<T, IdError>) -> Result<T, Status> {
    parsed.map_err(|error| Status::invalid_argument(format!("{name} {error}")))
}

#[cfg(test)]
mod tests {
    use csi::parse::{ClassDefaults, CreateVolume};
    use proto::csi::v1::volume_capability::access_mode::Mode;
    use proto::csi::v1::volume_capability::{AccessMode as Access, AccessType as Type, BlockVolume};
    use proto::csi::v1::{CreateVolumeRequest, VolumeCapability};
    use state_machine::{
        AccessMode, AccessType, AppliancePath, AttachmentMode, ByteSize, Entry, HostAddress, LedgerTime,
        Observed,
    };

    use super::*;

    const NODES: [&str; 2] = ["node-a", "node-b"];

    fn volume(number: u16) -> VolumeId {
        VolumeId::parse(&format!("pvc-00000000-0000-4000-8000-{number:012}")).unwrap()
    }

    fn node(name: &str) -> NodeId {
        NodeId::parse(name).unwrap()
    }

    fn apply(state: &mut State, command: Command) -> LedgerResponse {
        state.apply(Entry { at: LedgerTime(0), command })
    }

    fn creation_of(name: &str) -> CreateVolumeRequest {
        let capability = VolumeCapability {
            access_type: Some(Type::Block(BlockVolume {})),
            access_mode: Some(Access { mode: Mode::MultiNodeMultiWriter.into() }),
        };
        let volume_capabilities = vec![capability];
        CreateVolumeRequest { name: name.to_owned(), volume_capabilities, ..Default::default() }
    }

    /// Both nodes, and as many volumes, ready.
    fn ledger(volumes: u16) -> State {
        let mut state = State::default();
        for name in NODES {
            let (boot, host_nqn) =
                (BootId::parse("boot-1").unwrap(), Nqn::parse(&format!("nqn.2014-08.{name}")).unwrap());
            let register =
                Command::RegisterNode { node: node(name), boot, replaces: None, host_nqn, max_volumes: 0 };
            assert_eq!(apply(&mut state, register), LedgerResponse::Done);
        }
        let defaults = ClassDefaults {
            volume_path: AppliancePath::parse("/pool/csi").unwrap(),
            nvme_address: HostAddress::parse("192.0.2.1").unwrap(),
            nvme_port: 4420,
        };
        for number in 0..volumes {
            let volume = volume(number);
            let asked = CreateVolume::parse(&creation_of(volume.as_str()), &defaults).unwrap();
            let create = Command::CreateVolume {
                id: asked.volume,
                name: asked.name,
                required: ByteSize::at_least(1 << 30).unwrap(),
                limit_bytes: None,
                parameters: asked.parameters,
            };
            let LedgerResponse::Pending { generation } = apply(&mut state, create) else {
                panic!("not created")
            };
            apply(&mut state, Command::SlotWasFree { volume: volume.clone(), generation });
            apply(&mut state, Command::VolumeCreated { volume, generation });
        }
        state
    }

    fn publish(state: &mut State, volume: &VolumeId, name: &str) -> Generation {
        let mode = AttachmentMode {
            access_mode: AccessMode::MultiNodeMultiWriter,
            access_type: AccessType::Block,
            read_only: false,
        };
        let (volume, node, observed) = (volume.clone(), node(name), Observed::default());
        let response = apply(state, Command::Publish { volume, node, mode, observed });
        let LedgerResponse::Attached { generation } = response else { panic!("not published: {response:?}") };
        generation
    }

    /// Publishes it, lets the node connect, and unpublishes it.
    fn revoke(state: &mut State, id: &VolumeId, name: &str) -> Generation {
        let generation = publish(state, id, name);
        let (volume, node) = (id.clone(), node(name));
        apply(state, Command::ExportConfirmed { volume: volume.clone(), node: node.clone(), generation });
        let moment = NodeMoment { boot: BootId::parse("boot-1").unwrap(), since_boot_ns: 1 };
        let permit =
            Command::PermitConnect { volume: volume.clone(), node: node.clone(), generation, moment };
        assert_eq!(apply(state, permit), LedgerResponse::Done);
        apply(state, Command::Unpublish { volume, node: Some(node), require_proof: true });
        generation
    }

    fn attachment(state: &State, id: &VolumeId, name: &str) -> Option<(u64, v1::AttachmentPhase)> {
        let reply = description(state, &node(name), std::slice::from_ref(id));
        let [described] = reply.volumes.as_slice() else { panic!("{reply:?}") };
        assert_eq!((described.volume_id.as_str(), described.known), (id.as_str(), true));
        described.attachment.as_ref().map(|attachment| (attachment.generation, attachment.phase()))
    }

    #[test]
    fn a_node_hears_of_its_own_attachment_only() {
        let mut state = ledger(1);
        let id = volume(0);
        assert_eq!(attachment(&state, &id, "node-a"), None);
        let generation = publish(&mut state, &id, "node-a");
        assert_eq!(attachment(&state, &id, "node-a"), Some((generation.0, v1::AttachmentPhase::Granting)));
        assert_eq!(attachment(&state, &id, "node-b"), None);
        apply(&mut state, Command::ExportConfirmed { volume: id.clone(), node: node("node-a"), generation });
        assert_eq!(attachment(&state, &id, "node-a"), Some((generation.0, v1::AttachmentPhase::Granted)));
        let other = revoke(&mut state, &id, "node-b");
        assert_eq!(attachment(&state, &id, "node-b"), Some((other.0, v1::AttachmentPhase::Revoking)));
        assert_eq!(attachment(&state, &id, "node-a"), Some((generation.0, v1::AttachmentPhase::Granted)));
    }

    #[test]
    fn what_the_ledger_does_not_know_is_said_so_and_in_order() {
        let state = ledger(1);
        let asked = [VolumeId::parse("elsewhere").unwrap(), volume(0), volume(1)];
        let reply = description(&state, &node("node-a"), &asked);
        let said: Vec<_> =
            reply.volumes.iter().map(|volume| (volume.volume_id.as_str(), volume.known)).collect();
        assert_eq!(said, [("elsewhere", false), (asked[1].as_str(), true), (asked[2].as_str(), false)]);
    }

    #[test]
    fn an_answer_is_bounded() {
        let most = u16::try_from(MAX_DESCRIBED_VOLUMES).unwrap();
        let ids = |count: u16| (0..count).map(|number| volume(number).to_string()).collect::<Vec<_>>();
        assert_eq!(described_volumes(&ids(most)).unwrap().len(), MAX_DESCRIBED_VOLUMES);
        let refused = described_volumes(&ids(most + 1)).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        let hostile = described_volumes(&["a/b".to_owned()]).unwrap_err();
        assert_eq!(hostile.code(), tonic::Code::InvalidArgument);
    }
}
