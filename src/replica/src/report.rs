//! What replicas tell each other about themselves: who they are, and what they know of the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use proto::peer::v1::{IdentifyReply, IdentifyRequest, Member, Membership, ReplicaAddress};
use state_machine::CLUSTER_VERSION;
use storage::StoredMembership;
use uuid::Uuid;

use crate::config::PeerAddress;
use crate::replica::Inner;
use crate::status;

/// How long a replica may take to say who it is.
const IDENTIFY_TIMEOUT: Duration = Duration::from_millis(1_000);

/// What a replica says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its id.
    pub replica_id: u64,
    /// Its place.
    pub name: String,
    /// It has voted or has a log.
    pub initialized: bool,
    /// The cluster that it belongs to, or was promised to.
    pub cluster_id: Option<Uuid>,
    /// Who it is configured with, itself among them.
    pub configured: BTreeSet<PeerAddress>,
    /// The committed membership that it knows.
    pub membership: Option<Known>,
    /// It leads, and a quorum answers it.
    pub leads: bool,
    /// The newest cluster version that its program knows.
    pub newest_cluster_version: u32,
}

/// A committed membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The log index at which it was decided.
    pub index: u64,
    /// By id.
    pub members: BTreeMap<u64, KnownMember>,
}

/// A member of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownMember {
    /// Its place.
    pub name: String,
    /// It votes.
    pub voter: bool,
}

impl Report {
    pub(crate) fn has_member(&self, id: u64) -> bool {
        self.membership.as_ref().is_some_and(|known| known.members.contains_key(&id))
    }
}

impl Inner {
    /// What this replica says of itself; nothing once consensus has stopped.
    pub(crate) async fn report(&self) -> Option<Report> {
        let initialized = self.consensus.ask(|raft| async move { raft.is_initialized().await }).await.ok()?;
        let metrics = self.consensus.metrics();
        let seen = metrics.borrow_watched();
        Some(Report {
            replica_id: self.id,
            name: self.config.name.clone(),
            initialized,
            cluster_id: self.cluster_id.get().copied(),
            configured: self.config.peers.iter().cloned().collect(),
            membership: known(&seen.committed_membership_config),
            leads: status::leads_a_quorum(&seen, &self.config.timing),
            newest_cluster_version: CLUSTER_VERSION,
        })
    }

    /// Asks whoever lives at a place who it is.
    pub(crate) async fn identify(&self, place: &PeerAddress) -> Result<Report, String> {
        let mut client = self.peers.client(&place.name, &place.address)?;
        let asked = tokio::time::timeout(IDENTIFY_TIMEOUT, client.identify(IdentifyRequest {})).await;
        let reply = asked.map_err(|_| format!("{} does not answer", place.name))?;
        let reply =
            reply.map_err(|status| format!("{} does not answer ({})", place.name, status.message()))?;
        let report = Report::from_message(reply.into_inner())?;
        if report.name != place.name {
            let (address, found) = (&place.address, &report.name);
            return Err(format!("{address} is configured for {}, and {found} answers there", place.name));
        }
        Ok(report)
    }
}

/// A membership, if it is in the log.
pub fn known(stored: &StoredMembership) -> Option<Known> {
    let index = (*stored.log_id())?.index;
    let voters: BTreeSet<u64> = stored.voter_ids().collect();
    let member = |(id, node): (&u64, &storage::ReplicaNode)| {
        (*id, KnownMember { name: node.name.clone(), voter: voters.contains(id) })
    };
    Some(Known { index, members: stored.nodes().map(member).collect() })
}

/// A cluster id as it travels; empty stands for none.
pub(crate) fn parse_cluster_id(bytes: &[u8]) -> Result<Option<Uuid>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    Uuid::from_slice(bytes).map(Some).map_err(|_| "a cluster id has 16 bytes".to_owned())
}

impl Report {
    pub(crate) fn into_message(self) -> IdentifyReply {
        let address = |peer: PeerAddress| ReplicaAddress { name: peer.name, address: peer.address };
        let member = |(replica_id, member): (u64, KnownMember)| Member {
            replica_id,
            name: member.name,
            voter: member.voter,
        };
        IdentifyReply {
            replica_id: self.replica_id,
            name: self.name,
            initialized: self.initialized,
            cluster_id: self.cluster_id.map(|id| id.as_bytes().to_vec()).unwrap_or_default(),
            configured: self.configured.into_iter().map(address).collect(),
            membership: self.membership.map(|known| Membership {
                index: known.index,
                members: known.members.into_iter().map(member).collect(),
            }),
            leads: self.leads,
            newest_cluster_version: self.newest_cluster_version,
        }
    }

    pub(crate) fn from_message(message: IdentifyReply) -> Result<Self, String> {
        let member =
            |member: Member| (member.replica_id, KnownMember { name: member.name, voter: member.voter });
        Ok(Self {
            replica_id: message.replica_id,
            name: message.name,
            initialized: message.initialized,
            cluster_id: parse_cluster_id(&message.cluster_id)?,
            configured: message
                .configured
                .into_iter()
                .map(|peer| PeerAddress { name: peer.name, address: peer.address })
                .collect(),
            membership: message.membership.map(|known| Known {
                index: known.index,
                members: known.members.into_iter().map(member).collect(),
            }),
            leads: message.leads,
            // A program from before the field knows the first one.
            newest_cluster_version: message.newest_cluster_version.max(1),
        })
    }
}
