//! openraft's types in the simulator: those of production, with another runtime.

use state_machine::Response;
use storage::{Proposal, ReplicaNode};

use super::runtime::SimRuntime;

openraft::declare_raft_types!(
    /// The simulator's instance of openraft.
    pub(crate) SimTypeConfig:
        D = Proposal,
        R = Response,
        NodeId = u64,
        Node = ReplicaNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
        AsyncRuntime = SimRuntime,
);
