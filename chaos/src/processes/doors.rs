//! Whom clients and watchers talk to. Everything is connected when it is first used, and again after it broke.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context, Result};
use proto::csi::v1::controller_client::ControllerClient;
use proto::csi::v1::node_client::NodeClient;
use proto::operator::v1::operator_client::OperatorClient;
use rand::seq::SliceRandom;
use rds_csi::dev::Cluster;
use tonic::transport::Channel;

/// What a controller serves.
#[derive(Debug, Clone)]
struct Controller {
    csi: ControllerClient<Channel>,
    operator: OperatorClient<Channel>,
    socket: PathBuf,
}

/// All that is served.
#[derive(Debug, Clone)]
pub(super) struct Doors {
    controllers: BTreeMap<String, Controller>,
    nodes: BTreeMap<String, NodeClient<Channel>>,
    /// Where kubelet of each node has its directories.
    pub(super) kubelet: PathBuf,
}

impl Doors {
    pub(super) fn of(cluster: &Cluster) -> Result<Self> {
        let controller = |name: String| {
            let (csi, operator) = (cluster.csi_controller(&name)?, cluster.operator(&name)?);
            let socket = cluster.csi_socket(&name);
            Ok((name, Controller { csi, operator, socket }))
        };
        let node = |name: String| cluster.csi_node(&name).map(|client| (name, client));
        Ok(Self {
            controllers: cluster.controllers().into_iter().map(controller).collect::<Result<_>>()?,
            nodes: cluster.nodes().into_iter().map(node).collect::<Result<_>>()?,
            kubelet: cluster.directory().join("kubelet"),
        })
    }

    pub(super) fn controllers(&self) -> Vec<String> {
        self.controllers.keys().cloned().collect()
    }

    pub(super) fn nodes(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    /// CSI's Controller service of any replica whose socket is served, but `but`; none if there is none.
    pub(super) fn any_csi(
        &self,
        random: &mut impl rand::Rng,
        but: Option<&str>,
    ) -> Option<(String, ControllerClient<Channel>)> {
        let mut order: Vec<_> =
            self.controllers.iter().filter(|(name, _)| Some(name.as_str()) != but).collect();
        order.shuffle(random);
        let (name, found) = order.into_iter().find(|(_, one)| UnixStream::connect(&one.socket).is_ok())?;
        Some((name.clone(), found.csi.clone()))
    }

    pub(super) fn operator(&self, name: &str) -> Result<OperatorClient<Channel>> {
        let controller = self.controllers.get(name).with_context(|| format!("there is no {name}"))?;
        Ok(controller.operator.clone())
    }

    pub(super) fn node(&self, name: &str) -> Result<NodeClient<Channel>> {
        self.nodes.get(name).cloned().with_context(|| format!("there is no {name}"))
    }
}
