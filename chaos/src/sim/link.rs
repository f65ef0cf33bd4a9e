//! Raft's messages to the other replicas, over the simulated network: as `src/replica/src/network.rs` sends them.

use std::sync::Arc;
use std::time::Duration;

use openraft::OptionalSend;
use openraft::alias::SnapshotOf;
use openraft::errors::{RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use storage::{ReplicaNode, Vote};

use super::network::{Endpoint, NoAnswer};
use super::replica::Replica;
use super::types::SimTypeConfig;
use super::world::World;

/// How long a replica may take to store a batch of entries, as in production.
const APPEND_TIMEOUT: Duration = Duration::from_millis(1_000);

/// Makes openraft's clients.
pub(crate) struct Network {
    pub(crate) world: Arc<World>,
    pub(crate) from: usize,
}

/// A client of one replica.
pub(crate) struct Link {
    world: Arc<World>,
    from: usize,
    to: usize,
    to_id: u64,
}

impl RaftNetworkFactory<SimTypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _: &ReplicaNode) -> Link {
        let to = World::place_of(target);
        Link { world: self.world.clone(), from: self.from, to, to_id: target }
    }
}

type Rpc<T> = Result<T, RPCError<SimTypeConfig>>;

fn unreachable(problem: impl ToString) -> RPCError<SimTypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(problem))
}

impl Link {
    async fn ask<R, E, F>(
        &self,
        limit: Duration,
        serve: impl Fn(Arc<Replica>) -> F + Clone + Send + 'static,
    ) -> Rpc<R>
    where
        R: Send + 'static,
        E: Send + 'static,
        F: Future<Output = Result<R, E>> + Send,
    {
        let to_id = self.to_id;
        let Some(cluster) = self.world.places[self.from].disk().cluster else {
            return Err(unreachable("this replica has no cluster yet"));
        };
        let serve = move |replica: Arc<Replica>| {
            let serve = serve.clone();
            async move {
                // Whoever lives there now must not answer for the one that lived there before, and one that does not
                // know its cluster yet takes no part in anything: it would be a member that never learns it.
                let is_meant = replica.id == to_id && replica.cluster() == Some(cluster);
                if is_meant { serve(replica).await.ok() } else { None }
            }
        };
        match self.world.call(Endpoint::Replica(self.from), self.to, limit, serve).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(unreachable("the replica has stopped")),
            Err(NoAnswer::Refused) => Err(unreachable("connection refused")),
            Err(NoAnswer::Silence) => Err(unreachable("no answer")),
        }
    }
}

impl RaftNetworkV2<SimTypeConfig> for Link {
    type SnapshotData = Vec<u8>;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<SimTypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<SimTypeConfig>> {
        let limit = if request.entries.is_empty() { option.hard_ttl() } else { APPEND_TIMEOUT };
        let request = Arc::new(request);
        self.ask(limit, move |replica| {
            let request = AppendEntriesRequest::clone(&request);
            async move { replica.raft.append_entries(request).await }
        })
        .await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<SimTypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<SimTypeConfig>> {
        self.ask(option.hard_ttl(), move |replica| {
            let request = request.clone();
            async move { replica.raft.vote(request).await }
        })
        .await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<SimTypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<SimTypeConfig>> {
        self.ask(option.hard_ttl(), move |replica| {
            let request = request.clone();
            async move { replica.raft.pre_vote(request).await }
        })
        .await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<SimTypeConfig, Vec<u8>>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<SimTypeConfig>, StreamingError<SimTypeConfig>> {
        let (meta, body) = (snapshot.meta, Arc::new(snapshot.snapshot));
        let answer = self.ask(option.hard_ttl(), move |replica| {
            let snapshot =
                SnapshotOf::<SimTypeConfig, Vec<u8>> { meta: meta.clone(), snapshot: body.to_vec() };
            async move {
                let installed = replica.raft.install_full_snapshot(vote, snapshot).await;
                installed.map_err(RaftError::<SimTypeConfig>::from)
            }
        });
        Ok(answer.await?)
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<SimTypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<SimTypeConfig>> {
        self.ask(option.hard_ttl(), move |replica| {
            let request = request.clone();
            async move { replica.raft.handle_transfer_leader(request).await }
        })
        .await
    }
}
