//! How any replica learns what the leader knows of the nodes: DESIGN.md, "Requests" and "Unpublish".

use std::time::{Duration, Instant};

use proto::leader::v1;
use proto::leader::v1::leader_client::LeaderClient;
use proto::leader::v1::leader_server::Leader;
use replica::{LeaderPlace, Replica};
use state_machine::{NodeId, VolumeId};
use tonic::{Request, Response, Status};

use super::shell::NodeSessions;
use super::sight::{Sight, Told};

/// How long a node that is asked to look again is waited for.
const LOOK_AGAIN_TIMEOUT: Duration = Duration::from_millis(3_000);
/// Kept back from the asker's time for the answer's way.
const ANSWER_MARGIN: Duration = Duration::from_millis(100);
/// Between two questions, while there is no leader or it has not taken office.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Most nodes that are asked about at once.
const MAX_NODES: usize = 256;

/// Answers the other replicas.
#[derive(Clone)]
pub(crate) struct LeaderService {
    pub(crate) sessions: NodeSessions,
}

#[tonic::async_trait]
impl Leader for LeaderService {
    async fn sights(&self, request: Request<v1::SightsRequest>) -> Result<Response<v1::SightsReply>, Status> {
        let deadline = crate::deadline::of(&request, LOOK_AGAIN_TIMEOUT);
        let asked = request.into_inner();
        if asked.node_ids.len() > MAX_NODES {
            let problem = format!("node_ids are {}; at most {MAX_NODES} are answered", asked.node_ids.len());
            return Err(Status::invalid_argument(problem));
        }
        let invalid = |error| Status::invalid_argument(format!("{error}"));
        let volume = VolumeId::parse(&asked.volume_id).map_err(invalid)?;
        let nodes: Result<Vec<_>, _> = asked.node_ids.iter().map(|id| NodeId::parse(id)).collect();
        let sights =
            self.sessions.sights(&volume, &nodes.map_err(invalid)?, asked.look_again, deadline).await;
        let sights = sights.ok_or_else(|| Status::unavailable("this replica is not in office"))?;
        let message = |(node, told): (NodeId, Told)| v1::NodeSight {
            node_id: node.to_string(),
            sight: Some(told.into()),
        };
        Ok(Response::new(v1::SightsReply { sights: sights.into_iter().map(message).collect() }))
    }
}

impl NodeSessions {
    /// What is known of the volume on these nodes, or, if there are none, on all that report it. `None` if this replica
    /// is not in office, at the beginning or at the end.
    async fn sights(
        &self,
        volume: &VolumeId,
        nodes: &[NodeId],
        look_again: bool,
        deadline: Instant,
    ) -> Option<Vec<(NodeId, Told)>> {
        let office = self.in_office_since()?;
        let nodes = if nodes.is_empty() { self.nodes_with(volume) } else { nodes.to_vec() };
        // An absence may have ended since; of an unknown one nothing more is learnt.
        let may_tell = |node: &NodeId| !matches!(self.sight(volume, node), Sight::Unknown { .. });
        // All are asked before one is waited for.
        let asked: Vec<_> = nodes
            .into_iter()
            .map(|node| ((look_again && may_tell(&node)).then(|| self.ask([&node])), node))
            .collect();
        let mut sights = Vec::new();
        for (number, node) in asked {
            let sight = match number {
                Some(number) => self.sight_after(number, volume, &node, deadline).await,
                None => self.sight(volume, &node),
            };
            sights.push((node, sight.into()));
        }
        (self.in_office_since() == Some(office)).then_some(sights)
    }
}

/// Asks the leader, wherever it is.
#[derive(Clone)]
pub(crate) struct AskLeader {
    pub(crate) replica: Replica,
    pub(crate) sessions: NodeSessions,
}

impl AskLeader {
    /// How the volume stands on these nodes, or, if there are none, on all that report a connection of it. With
    /// `look_again`, nodes that report one look once more. Elections are waited for until `deadline`; the error says why
    /// there was no answer.
    pub(crate) async fn sights(
        &self,
        volume: &VolumeId,
        nodes: &[NodeId],
        look_again: bool,
        deadline: Instant,
    ) -> Result<Vec<(NodeId, Told)>, String> {
        loop {
            let why = match self.replica.leader_place() {
                LeaderPlace::Nowhere => "there is no leader".to_owned(),
                LeaderPlace::Here => {
                    let until = deadline.min(Instant::now() + LOOK_AGAIN_TIMEOUT);
                    match self.sessions.sights(volume, nodes, look_again, until).await {
                        Some(sights) => return Ok(sights),
                        None => "this replica has not taken office yet".to_owned(),
                    }
                }
                LeaderPlace::There(channel) => {
                    match sights_there(LeaderClient::new(channel), volume, nodes, look_again, deadline).await
                    {
                        Ok(sights) => return Ok(sights),
                        Err(status) => format!("the leader says {:?}: {}", status.code(), status.message()),
                    }
                }
            };
            if Instant::now() + RETRY_PAUSE >= deadline {
                return Err(why);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

async fn sights_there(
    mut leader: LeaderClient<tonic::transport::Channel>,
    volume: &VolumeId,
    nodes: &[NodeId],
    look_again: bool,
    deadline: Instant,
) -> Result<Vec<(NodeId, Told)>, Status> {
    let limit = deadline.saturating_duration_since(Instant::now()).min(LOOK_AGAIN_TIMEOUT + ANSWER_MARGIN);
    let mut request = Request::new(v1::SightsRequest {
        volume_id: volume.to_string(),
        node_ids: nodes.iter().map(ToString::to_string).collect(),
        look_again,
    });
    request.set_timeout(limit);
    let asked = tokio::time::timeout(limit, leader.sights(request)).await;
    let reply = asked.map_err(|_| Status::deadline_exceeded("no answer in time"))??.into_inner();
    let understood = |sight: v1::NodeSight| {
        let node =
            NodeId::parse(&sight.node_id).map_err(|error| Status::internal(format!("node_id {error}")))?;
        Ok((node, Told::from(sight.sight)))
    };
    reply.sights.into_iter().map(understood).collect()
}
