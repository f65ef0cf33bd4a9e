//! Whom tests and stories talk to, as sidecars, kubelet and operators do.

use std::time::Duration;

use anyhow::{Context, bail};
use proto::csi::v1::controller_client::ControllerClient;
use proto::csi::v1::identity_client::IdentityClient;
use proto::csi::v1::node_client::NodeClient;
use proto::operator::v1::operator_client::OperatorClient;
use proto::operator::v1::{StatusReply, StatusRequest};
use tokio::time::{Instant, sleep, timeout};
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use super::cluster::Cluster;
use crate::ctl::{Access, AccessFile};

/// How long one replica may take to tell its status, in ms.
const STATUS_TIMEOUT_MS: u64 = 500;
/// Pause between two rounds of asking, in ms.
const POLL_MS: u64 = 5;

/// The replica that leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// Its controller's name.
    pub name: String,
    /// Its id.
    pub id: u64,
    /// Its term.
    pub term: u64,
}

impl Cluster {
    fn csi_channel(&self, name: &str) -> anyhow::Result<Channel> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", self.csi_socket(name).display()))
            .with_context(|| format!("{name} has no usable socket"))?;
        Ok(endpoint.connect_lazy())
    }

    /// CSI's Controller service, on the socket of the controller `name`.
    pub fn csi_controller(&self, name: &str) -> anyhow::Result<ControllerClient<Channel>> {
        Ok(ControllerClient::new(self.csi_channel(name)?))
    }

    /// CSI's Identity service, on the socket of `name`.
    pub fn csi_identity(&self, name: &str) -> anyhow::Result<IdentityClient<Channel>> {
        Ok(IdentityClient::new(self.csi_channel(name)?))
    }

    /// CSI's Node service, on the socket of the node `name`.
    pub fn csi_node(&self, name: &str) -> anyhow::Result<NodeClient<Channel>> {
        Ok(NodeClient::new(self.csi_channel(name)?))
    }

    /// The operator's service of the controller `name`.
    pub fn operator(&self, name: &str) -> anyhow::Result<OperatorClient<Channel>> {
        let place = self.layout().controllers.iter().find(|place| place.name == name);
        let place = place.with_context(|| format!("there is no controller {name}"))?;
        let mut file = self.access_file()?;
        file.endpoints = vec![place.address().to_string()];
        let access = Access::load(&file).map_err(|mistakes| anyhow::anyhow!(mistakes.join("; ")))?;
        let (_, channel) = access.channels().next().context("the access has no endpoint")?;
        Ok(OperatorClient::new(channel))
    }

    fn access_file(&self) -> anyhow::Result<AccessFile> {
        AccessFile::read(&self.operator_access()).map_err(|mistakes| anyhow::anyhow!(mistakes.join("; ")))
    }

    /// What the controller `name` knows by itself.
    pub async fn status(&self, name: &str) -> anyhow::Result<StatusReply> {
        let mut operator = self.operator(name)?;
        let asked = operator.status(Request::new(StatusRequest {}));
        let reply = timeout(Duration::from_millis(STATUS_TIMEOUT_MS), asked)
            .await
            .with_context(|| format!("{name} does not tell its status"))?
            .with_context(|| format!("{name} does not tell its status"))?;
        Ok(reply.into_inner())
    }

    /// The leader, as the leader itself sees it, once one of the newest known term says so.
    pub async fn leader(&self, limit: Duration) -> anyhow::Result<Leader> {
        let deadline = Instant::now() + limit;
        loop {
            let mut newest: Option<(u64, Option<Leader>)> = None;
            for name in self.controllers() {
                let Ok(status) = self.status(&name).await else { continue };
                let leads = status.leader_id == Some(status.responder_id);
                let leader = leads.then_some(Leader { name, id: status.responder_id, term: status.term });
                if newest.as_ref().is_none_or(|(term, known)| {
                    status.term > *term || (status.term == *term && known.is_none())
                }) {
                    newest = Some((status.term, leader));
                }
            }
            match newest {
                Some((_, Some(leader))) => return Ok(leader),
                _ if Instant::now() >= deadline => {
                    bail!("no controller leads after {} ms", limit.as_millis())
                }
                _ => sleep(Duration::from_millis(POLL_MS)).await,
            }
        }
    }
}
