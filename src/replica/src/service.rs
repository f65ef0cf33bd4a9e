//! The peer protocol's server: what the other replicas may ask of this one. Only replicas get this far.

use std::sync::Arc;
use std::time::Duration;

use openraft::alias::SnapshotOf;
use openraft::errors::RaftError;
use proto::peer::v1::peer_server::{Peer, PeerServer};
use proto::peer::v1::{
    AdoptReply, AdoptRequest, ChangeMembershipReply, ChangeMembershipRequest, HandOverReply, HandOverRequest,
    IdentifyReply, IdentifyRequest, JoinReply, JoinRequest, NotLeader, ProposeReply, ProposeRequest,
    RaftMessage, RaftReply, ReadIndexReply, ReadIndexRequest, SnapshotPart, TurnsReply, TurnsRequest,
    change_membership_reply, join_reply, propose_reply, read_index_reply, snapshot_part::Part, turns_reply,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use storage::TypeConfig;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Response, Status, Streaming};

use crate::codec::{self, MAX_MESSAGE_BYTES};
use crate::config::PeerAddress;
use crate::forward::{Attempt, Proposed, Question, ReadIndex, TurnsTaken};
use crate::identity::{RequireRole, RoleKind, caller};
use crate::membership::Change;
use crate::network::SnapshotHeader;
use crate::replica::Inner;
use crate::report::parse_cluster_id;

/// Longest time that a forwarded question is worked on, whatever its asker says.
const MAX_QUESTION_TIMEOUT: Duration = Duration::from_millis(60_000);
/// Longest time that a hand-over is worked on, whatever its asker says.
const MAX_HAND_OVER_TIMEOUT: Duration = Duration::from_millis(10_000);
/// How long taking in a replica may take; it asks again.
const JOIN_TIMEOUT: Duration = Duration::from_millis(5_000);

/// What is added to the gRPC server.
pub type PeerEndpoint = InterceptedService<PeerServer<PeerService>, RequireRole>;

pub(crate) fn endpoint(inner: Arc<Inner>) -> PeerEndpoint {
    let server = PeerServer::new(PeerService { inner })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    InterceptedService::new(server, RequireRole(RoleKind::Replica))
}

/// Answers the other replicas.
pub struct PeerService {
    inner: Arc<Inner>,
}

type Answer<T> = Result<Response<T>, Status>;

fn invalid(problem: impl ToString) -> Status {
    Status::invalid_argument(problem.to_string())
}

fn stopped() -> Status {
    Status::unavailable("this replica has stopped")
}

fn reply<T: Serialize, E>(answer: Result<T, E>) -> Answer<RaftReply> {
    // The only errors are fatal ones of this replica; the caller takes it for unreachable.
    let answer = answer.map_err(|_| stopped())?;
    let payload = codec::encode(&answer).map_err(|error| Status::internal(error.to_string()))?;
    Ok(Response::new(RaftReply { payload }))
}

impl PeerService {
    /// Whether a caller means this replica's cluster. A replica without one takes no part in anything.
    fn check_cluster(&self, claimed: &[u8]) -> Result<(), Status> {
        let claimed = parse_cluster_id(claimed).map_err(invalid)?;
        match self.inner.cluster_id.get() {
            Some(own) if claimed == Some(*own) => Ok(()),
            Some(own) => {
                tracing::warn!(own = %own, ?claimed, "refused a message from another cluster");
                Err(Status::failed_precondition(format!("this replica belongs to cluster {own}")))
            }
            None => Err(Status::failed_precondition("this replica belongs to no cluster yet")),
        }
    }

    /// Opens a Raft message that is meant for this replica. Whoever lives at the address now must not answer for the
    /// one that lived there before: its votes and acknowledgements would count as the other's.
    fn open<T: DeserializeOwned>(&self, message: RaftMessage) -> Result<T, Status> {
        self.check_cluster(&message.cluster_id)?;
        self.check_addressee(message.to)?;
        codec::decode(&message.payload).map_err(invalid)
    }

    fn check_addressee(&self, to: u64) -> Result<(), Status> {
        let own = self.inner.id;
        if to == own {
            return Ok(());
        }
        tracing::debug!(own, to, "refused a message for another replica");
        Err(Status::failed_precondition(format!("this is replica {own}, not {to}")))
    }

    /// Works on a forwarded question, if this replica leads in the term that the asker saw.
    async fn decide<Q: Question>(
        &self,
        question: &Q,
        cluster_id: &[u8],
        term: u64,
        timeout_ms: u64,
    ) -> Result<Result<Q::Answer, NotLeader>, Status> {
        self.check_cluster(cluster_id)?;
        if !self.inner.leads_in(term) {
            return Ok(Err(NotLeader { reason: format!("it does not lead in term {term}") }));
        }
        let timeout = Duration::from_millis(timeout_ms).min(MAX_QUESTION_TIMEOUT);
        match tokio::time::timeout(timeout, question.here(&self.inner, term)).await {
            Ok(Attempt::Answered(answer)) => Ok(Ok(answer)),
            Ok(Attempt::Retry(reason)) => Ok(Err(NotLeader { reason })),
            Ok(Attempt::Stopped) => Err(stopped()),
            Err(_) => Err(Status::deadline_exceeded("no quorum answered in time")),
        }
    }

    /// Puts a snapshot's chunks together.
    async fn receive(&self, mut parts: Streaming<SnapshotPart>) -> Result<(SnapshotHeader, Vec<u8>), Status> {
        let Some(SnapshotPart { part: Some(Part::Begin(begin)) }) = parts.message().await? else {
            return Err(invalid("a snapshot begins with its description"));
        };
        let header: SnapshotHeader = self.open(begin)?;
        if header.body_bytes > storage::MAX_STATE_BYTES {
            return Err(invalid("the snapshot is too large"));
        }
        let mut body = Vec::new();
        while let Some(part) = parts.message().await? {
            let Some(Part::Chunk(chunk)) = part.part else { return Err(invalid("a chunk is expected")) };
            if (body.len() + chunk.len()) as u64 > header.body_bytes {
                return Err(invalid("the snapshot is longer than described"));
            }
            body.extend(chunk);
        }
        if body.len() as u64 != header.body_bytes {
            return Err(invalid("the snapshot is shorter than described"));
        }
        Ok((header, body))
    }

    /// Takes in the caller; it must be the replica that its certificate names.
    async fn join(&self, request: Request<JoinRequest>) -> Result<join_reply::Outcome, Status> {
        let role = caller(&request)?;
        let JoinRequest { replica_id, name, address } = request.into_inner();
        if !role.is_replica(&name) {
            tracing::warn!(caller = %role, name, "refused to take in a replica under another name");
            return Err(Status::permission_denied(format!("{role} cannot join as {name}")));
        }
        if replica_id == 0 {
            return Err(invalid("a replica joins with its id"));
        }
        let not_leader =
            |reason: &str| join_reply::Outcome::NotLeader(NotLeader { reason: reason.to_owned() });
        let (office, cluster_id) = (*self.inner.office.borrow(), self.inner.cluster_id.get());
        let (Some(office), Some(cluster_id)) = (office, cluster_id) else {
            return Ok(not_leader("it does not lead"));
        };
        let taken = self.inner.take_in(office.term, replica_id, PeerAddress { name, address });
        match tokio::time::timeout(JOIN_TIMEOUT, taken).await {
            Ok(Attempt::Answered(Ok(()))) => {
                Ok(join_reply::Outcome::ClusterId(cluster_id.as_bytes().to_vec()))
            }
            Ok(Attempt::Answered(Err(why))) => Ok(join_reply::Outcome::Refused(why)),
            Ok(Attempt::Retry(why)) => Ok(not_leader(&why)),
            Ok(Attempt::Stopped) => Err(stopped()),
            Err(_) => Ok(not_leader("no quorum answers it")),
        }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn append_entries(&self, request: Request<RaftMessage>) -> Answer<RaftReply> {
        let request = self.open(request.into_inner())?;
        reply(self.inner.consensus.ask(|raft| async move { raft.append_entries(request).await }).await)
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Answer<RaftReply> {
        let request = self.open(request.into_inner())?;
        reply(self.inner.consensus.ask(|raft| async move { raft.vote(request).await }).await)
    }

    async fn pre_vote(&self, request: Request<RaftMessage>) -> Answer<RaftReply> {
        let request = self.open(request.into_inner())?;
        reply(self.inner.consensus.ask(|raft| async move { raft.pre_vote(request).await }).await)
    }

    async fn transfer_leader(&self, request: Request<RaftMessage>) -> Answer<RaftReply> {
        let request = self.open(request.into_inner())?;
        reply(
            self.inner.consensus.ask(|raft| async move { raft.handle_transfer_leader(request).await }).await,
        )
    }

    async fn install_snapshot(&self, request: Request<Streaming<SnapshotPart>>) -> Answer<RaftReply> {
        let (header, body) = self.receive(request.into_inner()).await?;
        let snapshot = SnapshotOf::<TypeConfig, Vec<u8>> { meta: header.meta, snapshot: body };
        let installed = self
            .inner
            .consensus
            .ask(move |raft| async move { raft.install_full_snapshot(header.vote, snapshot).await });
        let installed = installed.await;
        reply(installed.map_err(RaftError::<TypeConfig>::from))
    }

    async fn turns(&self, request: Request<TurnsRequest>) -> Answer<TurnsReply> {
        let TurnsRequest { cluster_id, term, timeout_ms } = request.into_inner();
        let outcome = match self.decide(&TurnsTaken, &cluster_id, term, timeout_ms).await? {
            Ok(taken) => turns_reply::Outcome::Taken(taken),
            Err(not_leader) => turns_reply::Outcome::NotLeader(not_leader),
        };
        Ok(Response::new(TurnsReply { outcome: Some(outcome) }))
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Answer<ProposeReply> {
        let ProposeRequest { cluster_id, term, timeout_ms, command, since_turn } = request.into_inner();
        let command = codec::decode(&command).map_err(invalid)?;
        let proposed = Proposed::new(command).map_err(invalid)?.forwarded(since_turn);
        let outcome = match self.decide(&proposed, &cluster_id, term, timeout_ms).await? {
            Ok(response) => {
                let bytes = codec::encode(&response).map_err(|error| Status::internal(error.to_string()))?;
                propose_reply::Outcome::Response(bytes)
            }
            Err(not_leader) => propose_reply::Outcome::NotLeader(not_leader),
        };
        Ok(Response::new(ProposeReply { outcome: Some(outcome) }))
    }

    async fn read_index(&self, request: Request<ReadIndexRequest>) -> Answer<ReadIndexReply> {
        let ReadIndexRequest { cluster_id, term, timeout_ms } = request.into_inner();
        let outcome = match self.decide(&ReadIndex, &cluster_id, term, timeout_ms).await? {
            Ok(index) => read_index_reply::Outcome::Index(index),
            Err(not_leader) => read_index_reply::Outcome::NotLeader(not_leader),
        };
        Ok(Response::new(ReadIndexReply { outcome: Some(outcome) }))
    }

    async fn change_membership(
        &self,
        request: Request<ChangeMembershipRequest>,
    ) -> Answer<ChangeMembershipReply> {
        let ChangeMembershipRequest { cluster_id, term, timeout_ms, change } = request.into_inner();
        let change = Change::from_message(change).ok_or_else(|| invalid("the change is missing"))?;
        let outcome = match self.decide(&change, &cluster_id, term, timeout_ms).await? {
            Ok(Ok(id)) => change_membership_reply::Outcome::ReplicaId(id),
            Ok(Err(why)) => change_membership_reply::Outcome::Refused(why),
            Err(not_leader) => change_membership_reply::Outcome::NotLeader(not_leader),
        };
        Ok(Response::new(ChangeMembershipReply { outcome: Some(outcome) }))
    }

    async fn identify(&self, _request: Request<IdentifyRequest>) -> Answer<IdentifyReply> {
        let report = self.inner.report().await.ok_or_else(stopped)?;
        Ok(Response::new(report.into_message()))
    }

    async fn adopt(&self, request: Request<AdoptRequest>) -> Answer<AdoptReply> {
        let role = caller(&request)?;
        let AdoptRequest { cluster_id, to } = request.into_inner();
        self.check_addressee(to)?;
        let cluster_id = parse_cluster_id(&cluster_id).map_err(invalid)?;
        let cluster_id = cluster_id.ok_or_else(|| invalid("the cluster id is missing"))?;
        let adopted = self.inner.adopt(cluster_id).await;
        adopted.map_err(|error| Status::failed_precondition(error.to_string()))?;
        tracing::info!(replica = to, cluster = %cluster_id, by = %role, "belongs to a cluster now");
        Ok(Response::new(AdoptReply {}))
    }

    async fn hand_over(&self, request: Request<HandOverRequest>) -> Answer<HandOverReply> {
        let role = caller(&request)?;
        let limit = Duration::from_millis(request.into_inner().timeout_ms).min(MAX_HAND_OVER_TIMEOUT);
        if limit.is_zero() {
            return Err(invalid("timeout_ms: a hand-over takes some time, give it more than 0"));
        }
        tracing::info!(by = %role, "asked to hand the leadership over");
        let refused = self.inner.hand_over(limit).await.err().unwrap_or_default();
        Ok(Response::new(HandOverReply { refused }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Answer<JoinReply> {
        let outcome = PeerService::join(self, request).await?;
        Ok(Response::new(JoinReply { outcome: Some(outcome) }))
    }
}
