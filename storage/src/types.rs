//! The types that openraft is instantiated with.

use std::fmt;

use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf};
use serde::{Deserialize, Serialize};
use state_machine::{Entry, Response};

openraft::declare_raft_types!(
    /// Our instance of openraft. Standard leader ids: at most one leader a term.
    pub TypeConfig:
        D = Proposal,
        R = Response,
        NodeId = u64,
        Node = ReplicaNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
);

/// A log entry as openraft sees it: an id and a [`Proposal`], a membership or nothing.
pub type LogEntry = EntryOf<TypeConfig>;
/// Term, which stands for its one leader, and index.
pub type LogId = LogIdOf<TypeConfig>;
/// Whom a replica voted for, and whether that one leads.
pub type Vote = VoteOf<TypeConfig>;
/// Who votes, in one set or, during a change, two; and how everyone is reached.
pub type Membership = openraft::Membership<u64, ReplicaNode>;
/// The members, with the log id at which they became so.
pub type StoredMembership = StoredMembershipOf<TypeConfig>;
/// What a snapshot contains, without its bytes.
pub type SnapshotMeta = SnapshotMetaOf<TypeConfig>;

/// What is proposed: the ledger's entry in the form that openraft asks for, which is with a short text for logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Proposal(pub Entry);

impl From<Entry> for Proposal {
    fn from(entry: Entry) -> Self {
        Self(entry)
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?}", self.0.command, self.0.at)
    }
}

/// How a replica is reached. It is part of the membership, so it is replicated with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaNode {
    /// The pod's name, for people.
    pub name: String,
    /// `host:port` of its peer service.
    pub address: String,
}

impl fmt::Display for ReplicaNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.address)
    }
}
