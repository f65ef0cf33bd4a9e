//! Raft's messages to the other replicas, over gRPC.
//!
//! Each message names the cluster and the replica that it is for. A failed call is `Unreachable`, so that openraft
//! waits a little before the next one.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, alias::SnapshotOf};
use proto::peer::v1::{RaftMessage, RaftReply, SnapshotPart, snapshot_part::Part};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use storage::{ReplicaNode, SnapshotMeta, TypeConfig, Vote};
use tonic::{Response, Status};
use uuid::Uuid;

use crate::codec::{self, SNAPSHOT_CHUNK_BYTES};
use crate::peers::{Client, Peers};

/// How long a replica may take to store a batch of entries. Heartbeats have their own, shorter time.
const APPEND_TIMEOUT: Duration = Duration::from_millis(1_000);

/// What precedes a snapshot's chunks.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotHeader {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
    pub(crate) body_bytes: u64,
}

/// Makes openraft's clients.
pub(crate) struct Network {
    pub(crate) peers: Arc<Peers>,
    pub(crate) cluster_id: Arc<OnceLock<Uuid>>,
}

/// A client of one replica.
pub(crate) struct Link {
    to: u64,
    client: Result<Client, String>,
    cluster_id: Arc<OnceLock<Uuid>>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &ReplicaNode) -> Link {
        let client = self.peers.client(&node.name, &node.address);
        Link { to: target, client, cluster_id: self.cluster_id.clone() }
    }
}

fn unreachable(problem: impl ToString) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(problem))
}

fn decoded<T: DeserializeOwned>(reply: Response<RaftReply>) -> Result<T, RPCError<TypeConfig>> {
    codec::decode(&reply.into_inner().payload)
        .map_err(|error| RPCError::Network(NetworkError::from_string(error)))
}

impl Link {
    fn client(&self) -> Result<Client, RPCError<TypeConfig>> {
        self.client.clone().map_err(unreachable)
    }

    fn message<T: Serialize>(&self, content: &T) -> Result<RaftMessage, RPCError<TypeConfig>> {
        let cluster_id =
            self.cluster_id.get().ok_or_else(|| unreachable("this replica has no cluster yet"))?;
        let payload = codec::encode(content).map_err(unreachable)?;
        Ok(RaftMessage { cluster_id: cluster_id.as_bytes().to_vec(), to: self.to, payload })
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        call: impl Future<Output = Result<Response<RaftReply>, Status>>,
        timeout: Duration,
    ) -> Result<T, RPCError<TypeConfig>> {
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok(reply)) => decoded(reply),
            Ok(Err(status)) => Err(unreachable(status)),
            Err(_) => Err(unreachable(format!("no answer from replica {} within {timeout:?}", self.to))),
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = Vec<u8>;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let timeout = if request.entries.is_empty() { option.hard_ttl() } else { APPEND_TIMEOUT };
        let (mut client, message) = (self.client()?, self.message(&request)?);
        self.answer(client.append_entries(message), timeout).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (mut client, message) = (self.client()?, self.message(&request)?);
        self.answer(client.vote(message), option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (mut client, message) = (self.client()?, self.message(&request)?);
        self.answer(client.pre_vote(message), option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, Vec<u8>>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let body = snapshot.snapshot;
        let header = SnapshotHeader { vote, meta: snapshot.meta, body_bytes: body.len() as u64 };
        let mut client = self.client()?;
        let begin = SnapshotPart { part: Some(Part::Begin(self.message(&header)?)) };
        let mut sent_bytes = 0;
        let chunks = std::iter::from_fn(move || {
            let rest = body.get(sent_bytes..).filter(|rest| !rest.is_empty())?;
            let chunk = rest[..rest.len().min(SNAPSHOT_CHUNK_BYTES)].to_vec();
            sent_bytes += chunk.len();
            Some(SnapshotPart { part: Some(Part::Chunk(chunk)) })
        });
        let parts = tokio_stream::iter(std::iter::once(begin).chain(chunks));
        tokio::select! {
            answer = self.answer(client.install_snapshot(parts), option.hard_ttl()) => Ok(answer?),
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (mut client, message) = (self.client()?, self.message(&request)?);
        self.answer(client.transfer_leader(message), option.hard_ttl()).await
    }
}
