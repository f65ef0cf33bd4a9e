//! What people ask through `rds-csi ctl`; any replica answers. The server in front lets operators in only.

mod holds;
pub(crate) mod messages;

use std::time::{Duration, Instant};

use csi::status;
use observer::Webhook;
use proto::operator::v1;
use proto::operator::v1::operator_server::Operator;
use replica::{MemberStatus, MembershipError, PeerAddress, Replica, ReplicaStatus, Role};
use state_machine::{
    Command, Generation, IdError, LedgerTime, NodeId, OffProof, Response as LedgerResponse, State, VolumeId,
};
use tonic::{Request, Response, Status, Streaming};

use crate::orphans::Orphans;
use crate::recovery::{BackupStream, Recovery};
use messages::{all_migrations, history, volume_message};

/// The longest that an operator's request takes when the caller sets no limit.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The service that `ctl` dials.
#[derive(Clone)]
pub(crate) struct OperatorService {
    pub(crate) replica: Replica,
    pub(crate) orphans: Orphans,
    /// `None`: it is not served here.
    pub(crate) webhook: Option<Webhook>,
    pub(crate) recovery: Recovery,
}

impl OperatorService {
    async fn read<T, R>(&self, request: &Request<R>, read: impl FnOnce(&State) -> T) -> Result<T, Status> {
        let answer = self.replica.read(deadline(request), read).await;
        answer.map_err(|error| status::no_quorum(&error.to_string()))
    }

    /// The ledger's time for an answer, and whether it is the leader's, which runs.
    fn time(&self, applied: LedgerTime) -> (u64, bool) {
        let running = self.replica.ledger_time();
        (running.unwrap_or(applied).max(applied).0, running.is_some())
    }
}

#[tonic::async_trait]
impl Operator for OperatorService {
    type BackupStream = BackupStream;

    async fn backup(&self, request: Request<v1::BackupRequest>) -> Result<Response<BackupStream>, Status> {
        let state = self.read(&request, State::clone).await?;
        self.recovery.backup(state).map(Response::new)
    }

    async fn restore(
        &self,
        request: Request<Streaming<v1::RestorePart>>,
    ) -> Result<Response<v1::RestoreReply>, Status> {
        let who = replica::caller(&request)?;
        let deadline = deadline(&request);
        let reply = self.recovery.restore(request.into_inner(), deadline).await?;
        if reply.applied {
            tracing::warn!(by = %who, backup = reply.sha256, volumes = reply.volumes.len(), "a backup was restored");
        }
        Ok(Response::new(reply))
    }

    async fn take_in(
        &self,
        request: Request<Streaming<v1::TakeInPart>>,
    ) -> Result<Response<v1::TakeInReply>, Status> {
        let who = replica::caller(&request)?;
        let deadline = deadline(&request);
        let reply = self.recovery.take_in(request.into_inner(), &who.to_string(), deadline).await?;
        if reply.applied {
            tracing::warn!(by = %who, rows = reply.rows.len(), "volumes were taken in from the appliance");
        }
        Ok(Response::new(reply))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        let replica = self.replica.status();
        let hashed = self.replica.state_hash().await;
        let (applied_index, hash) = hashed.map_err(|error| status::no_quorum(&error.to_string()))?;
        let reply = self.replica.read_local(|state| v1::StatusReply {
            cluster_version: state.cluster_version(),
            ledger_time_ms: state.clock().0,
            volumes: state.volumes().len() as u64,
            attachments: state.volumes().values().map(|volume| volume.attachments.len() as u64).sum(),
            active_migrations: state.volumes().values().filter(|volume| volume.migration.is_some()).count()
                as u64,
            ..Default::default()
        });
        Ok(Response::new(v1::StatusReply {
            cluster_id: replica.cluster_id.map(|id| id.to_string()).unwrap_or_default(),
            leader_id: replica.leader,
            term: replica.term,
            last_log_index: replica.last_log_index,
            committed_index: replica.committed_index,
            applied_index: Some(applied_index),
            replicas: members(&replica),
            responder_id: replica.id,
            state_hash: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
            ..reply
        }))
    }

    async fn list_volumes(
        &self,
        request: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesReply>, Status> {
        let all =
            |state: &State| state.volumes().values().map(|volume| volume_message(state, volume)).collect();
        let volumes = self.read(&request, all).await?;
        Ok(Response::new(v1::ListVolumesReply { volumes }))
    }

    async fn get_volume(
        &self,
        request: Request<v1::GetVolumeRequest>,
    ) -> Result<Response<v1::Volume>, Status> {
        let id = field("id", VolumeId::parse(&request.get_ref().id))?;
        let with_history = request.get_ref().with_history;
        let find = |state: &State| {
            let volume = state.volume(&id)?;
            let history = if with_history { history(volume) } else { Vec::new() };
            Some((v1::Volume { history, ..volume_message(state, volume) }, state.clock()))
        };
        let found = self.read(&request, find).await?;
        let (volume, clock) = found.ok_or_else(|| Status::not_found(format!("volume {id} is not known")))?;
        let (ledger_time_ms, by_leader) = self.time(clock);
        Ok(Response::new(v1::Volume { ledger_time_ms, by_leader, ..volume }))
    }

    async fn detach_volume(
        &self,
        request: Request<v1::DetachVolumeRequest>,
    ) -> Result<Response<v1::DetachVolumeReply>, Status> {
        let Role::Operator(name) = replica::caller(&request)? else {
            return Err(Status::permission_denied("only a person may say that a node is off"));
        };
        let message = request.get_ref();
        let volume = field("volume_id", VolumeId::parse(&message.volume_id))?;
        let node = field("node_id", NodeId::parse(&message.node_id))?;
        if !message.node_is_off {
            return Err(Status::failed_precondition(unproven(&volume, &node)));
        }
        let held = |state: &State| {
            let words = state.nodes().get(&node).map_or(0, |known| known.words);
            let attachments = &state.volume(&volume)?.attachments;
            Some(attachments.get(&node).map(|attachment| (attachment.generation, words)))
        };
        let held: Option<Option<(Generation, u64)>> = self.read(&request, held).await?;
        let held = held.ok_or_else(|| Status::not_found(format!("volume {volume} is not known")))?;
        let Some((up_to, words)) = held else {
            return Ok(Response::new(v1::DetachVolumeReply { was_attached: false }));
        };
        let command = Command::NodeIsOff {
            node: node.clone(),
            volume: Some(volume.clone()),
            up_to,
            words,
            proof: OffProof::Operator { name: name.clone() },
        };
        let answer = self.replica.propose(command, deadline(&request)).await;
        match answer.map_err(|error| status::no_quorum(&error.to_string()))? {
            LedgerResponse::Done => {}
            LedgerResponse::Refused(refusal) => return Err(status::of_refusal(&refusal)),
            other @ (LedgerResponse::Pending { .. }
            | LedgerResponse::Exists { .. }
            | LedgerResponse::Attached { .. }
            | LedgerResponse::Revoking { .. }) => {
                return Err(Status::internal(format!("detach answered {other:?}")));
            }
        }
        tracing::warn!(by = name, %volume, %node, generation = up_to.0, "volume taken from a node on a person's word");
        Ok(Response::new(v1::DetachVolumeReply { was_attached: true }))
    }

    async fn list_migrations(
        &self,
        request: Request<v1::ListMigrationsRequest>,
    ) -> Result<Response<v1::ListMigrationsReply>, Status> {
        let all = |state: &State| (all_migrations(state), state.clock());
        let (migrations, clock) = self.read(&request, all).await?;
        let (ledger_time_ms, by_leader) = self.time(clock);
        Ok(Response::new(v1::ListMigrationsReply { migrations, ledger_time_ms, by_leader }))
    }

    async fn list_orphans(
        &self,
        request: Request<v1::ListOrphansRequest>,
    ) -> Result<Response<v1::ListOrphansReply>, Status> {
        // Who does not lead says so, and another replica is asked.
        let reply = self.orphans.look(deadline(&request)).await.map_err(Status::unavailable)?;
        Ok(Response::new(reply))
    }

    async fn list_hotplug_holds(
        &self,
        _: Request<v1::ListHotplugHoldsRequest>,
    ) -> Result<Response<v1::ListHotplugHoldsReply>, Status> {
        holds::list(self.webhook.as_ref()).map(Response::new)
    }

    async fn list_replicas(
        &self,
        _: Request<v1::ListReplicasRequest>,
    ) -> Result<Response<v1::ListReplicasReply>, Status> {
        Ok(Response::new(v1::ListReplicasReply { replicas: members(&self.replica.status()) }))
    }

    async fn add_replica(
        &self,
        request: Request<v1::AddReplicaRequest>,
    ) -> Result<Response<v1::AddReplicaReply>, Status> {
        let who = replica::caller(&request)?;
        let (deadline, wanted) = (deadline(&request), request.into_inner());
        let replica_id = self
            .replica
            .add_replica(PeerAddress { name: wanted.name.clone(), address: wanted.address }, deadline)
            .await
            .map_err(of_membership)?;
        tracing::info!(by = %who, replica = replica_id, name = wanted.name, "replica added");
        Ok(Response::new(v1::AddReplicaReply { replica_id }))
    }

    async fn remove_replica(
        &self,
        request: Request<v1::RemoveReplicaRequest>,
    ) -> Result<Response<v1::RemoveReplicaReply>, Status> {
        let who = replica::caller(&request)?;
        let (deadline, replica_id) = (deadline(&request), request.into_inner().replica_id);
        self.replica.remove_replica(replica_id, deadline).await.map_err(of_membership)?;
        tracing::info!(by = %who, replica = replica_id, "replica removed");
        Ok(Response::new(v1::RemoveReplicaReply {}))
    }

    async fn replace_replica(
        &self,
        request: Request<v1::ReplaceReplicaRequest>,
    ) -> Result<Response<v1::ReplaceReplicaReply>, Status> {
        let who = replica::caller(&request)?;
        let (deadline, dead) = (deadline(&request), request.into_inner().dead_replica_id);
        self.replica.replace_replica(dead, deadline).await.map_err(of_membership)?;
        tracing::info!(by = %who, replica = dead, "replica replaced");
        Ok(Response::new(v1::ReplaceReplicaReply {}))
    }
}

fn deadline<T>(request: &Request<T>) -> Instant {
    crate::deadline::of(request, ANSWER_TIMEOUT)
}

fn field<T>(name: &str, parsed: Result<T, IdError>) -> Result<T, Status> {
    parsed.map_err(|error| Status::invalid_argument(format!("{name} {error}")))
}

/// Why nothing is taken from a node that nobody has seen to be off.
fn unproven(volume: &VolumeId, node: &NodeId) -> String {
    format!(
        "volume {volume} is taken from node {node} at once only if somebody has seen that the node is off \
         (--node-is-off): powered off, or cut off from the appliance; if it still runs, it goes on writing beside \
         the next node, and the volume is destroyed"
    )
}

fn of_membership(error: MembershipError) -> Status {
    match error {
        MembershipError::Refused(_) => Status::failed_precondition(error.to_string()),
        MembershipError::Deadline(_) | MembershipError::Fatal => Status::unavailable(error.to_string()),
    }
}

fn members(status: &ReplicaStatus) -> Vec<v1::ReplicaStatus> {
    let leads = status.leader == Some(status.id);
    let last = status.last_log_index.filter(|_| leads);
    let role = |member: &MemberStatus| match member {
        _ if status.leader == Some(member.id) => "leader",
        MemberStatus { answering: Some(false), .. } => "unreachable",
        MemberStatus { voter: false, .. } => "learner",
        MemberStatus { .. } => "follower",
    };
    let one = |member: &MemberStatus| v1::ReplicaStatus {
        id: member.id,
        name: member.name.clone(),
        address: member.address.clone(),
        role: role(member).to_owned(),
        voter: member.voter,
        matched_index: member.matched_index,
        lag: last.zip(member.matched_index).map(|(last, matched)| last.saturating_sub(matched)),
    };
    status.members.iter().map(one).collect()
}
