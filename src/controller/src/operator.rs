//! What people ask through `rds-csi ctl`; any replica answers. The server in front lets operators in only.

use std::time::{Duration, Instant};

use csi::status;
use proto::operator::v1;
use proto::operator::v1::operator_server::Operator;
use replica::{MemberStatus, MembershipError, PeerAddress, Replica, ReplicaStatus};
use state_machine::{
    Attachment, Connection, EndedMigration, Migration, MigrationPhase, NodeId, Problem, State, Volume,
    VolumeId,
};
use tonic::{Request, Response, Status};

/// The longest that an operator's request takes when the caller sets no limit.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The service that `ctl` dials.
#[derive(Clone)]
pub(crate) struct OperatorService {
    pub(crate) replica: Replica,
}

impl OperatorService {
    async fn read<T, R>(&self, request: &Request<R>, read: impl FnOnce(&State) -> T) -> Result<T, Status> {
        let answer = self.replica.read(deadline(request), read).await;
        answer.map_err(|error| status::no_quorum(&error.to_string()))
    }
}

#[tonic::async_trait]
impl Operator for OperatorService {
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
        let id = VolumeId::parse(&request.get_ref().id)
            .map_err(|error| Status::invalid_argument(format!("id {error}")))?;
        let find = |state: &State| state.volume(&id).map(|volume| volume_message(state, volume));
        let volume = self.read(&request, find).await?;
        volume.map(Response::new).ok_or_else(|| Status::not_found(format!("volume {id} is not known")))
    }

    async fn list_migrations(
        &self,
        request: Request<v1::ListMigrationsRequest>,
    ) -> Result<Response<v1::ListMigrationsReply>, Status> {
        let all = |state: &State| v1::ListMigrationsReply {
            migrations: all_migrations(state),
            ledger_time_ms: state.clock().0,
        };
        Ok(Response::new(self.read(&request, all).await?))
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

fn volume_message(state: &State, volume: &Volume) -> v1::Volume {
    v1::Volume {
        id: volume.id.to_string(),
        name: volume.name.to_string(),
        size_bytes: volume.size.bytes(),
        phase: volume.phase.name().to_owned(),
        generation: volume.generation.0,
        problem: problem_text(volume.problem.as_ref()),
        attachments: volume.attachments.iter().map(attachment_message).collect(),
        migration: volume.migration.as_ref().map(|migration| running_message(&volume.id, migration)),
        reaped_nodes: volume.reaped.iter().map(ToString::to_string).collect(),
        parameters: csi::context::class_parameters(&volume.parameters).into_iter().collect(),
        ledger_time_ms: state.clock().0,
    }
}

fn attachment_message((node, attachment): (&NodeId, &Attachment)) -> v1::Attachment {
    let connection = match attachment.connection {
        Connection::Disconnected => "not connected",
        Connection::Permitted => "permitted, may be connected",
    };
    v1::Attachment {
        node_id: node.to_string(),
        mode: attachment.mode.to_string(),
        phase: attachment.phase.name().to_owned(),
        generation: attachment.generation.0,
        connection: connection.to_owned(),
        problem: problem_text(attachment.problem.as_ref()),
        since_ms: attachment.since.0,
    }
}

fn problem_text(problem: Option<&Problem>) -> String {
    problem.map(|problem| problem.message.clone()).unwrap_or_default()
}

/// Running ones first, then those that ended, newest first.
fn all_migrations(state: &State) -> Vec<v1::Migration> {
    let running = state.volumes().values().filter_map(|volume| {
        volume.migration.as_ref().map(|migration| running_message(&volume.id, migration))
    });
    running.chain(state.ended_migrations().iter().rev().map(ended_message)).collect()
}

fn running_message(volume: &VolumeId, migration: &Migration) -> v1::Migration {
    let (decided_by, evidence) = match &migration.phase {
        MigrationPhase::Reaping(decision) => (decision.decided_by.clone(), decision.evidence.clone()),
        MigrationPhase::Active | MigrationPhase::Overdue => (String::new(), String::new()),
    };
    v1::Migration {
        id: migration.id.0,
        volume_id: volume.to_string(),
        source_node_id: migration.source.to_string(),
        target_node_id: migration.target.to_string(),
        phase: migration.phase.name().to_owned(),
        outcome: String::new(),
        started_ms: migration.started_at.0,
        timeout_ms: migration.deadline.millis_since(migration.started_at),
        deadline_ms: migration.deadline.0,
        ended_ms: None,
        decided_by,
        evidence,
    }
}

fn ended_message(ended: &EndedMigration) -> v1::Migration {
    v1::Migration {
        id: ended.id.0,
        volume_id: ended.volume.to_string(),
        source_node_id: ended.source.to_string(),
        target_node_id: ended.target.to_string(),
        phase: "Ended".to_owned(),
        outcome: ended.outcome.name().to_owned(),
        started_ms: ended.started_at.0,
        timeout_ms: ended.deadline.millis_since(ended.started_at),
        deadline_ms: ended.deadline.0,
        ended_ms: Some(ended.ended_at.0),
        decided_by: ended.decided_by.clone(),
        evidence: ended.evidence.clone(),
    }
}
