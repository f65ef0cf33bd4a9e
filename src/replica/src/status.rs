//! What a replica knows of the cluster by itself, for the person on call and for choosing among the others.

use std::time::Duration;

use openraft::{Instant as _, ServerState};
use uuid::Uuid;

use crate::config::Timing;
use crate::consensus::Metrics;
use crate::replica::Inner;

/// A member counts as answering if it acknowledged something within this many longest election timeouts.
const ANSWERING_TIMEOUTS: u32 = 3;

/// How a replica takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaRole {
    /// It decides.
    Leader,
    /// It votes and follows.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It follows without a vote, or is in no cluster yet.
    Learner,
    /// It has stopped.
    Stopped,
}

/// A replica's own view.
#[derive(Debug, Clone)]
pub struct ReplicaStatus {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// The cluster it belongs to, once it does.
    pub cluster_id: Option<Uuid>,
    /// Its part.
    pub role: ReplicaRole,
    /// Its term.
    pub term: u64,
    /// The leader that it knows of.
    pub leader: Option<u64>,
    /// The end of its log.
    pub last_log_index: Option<u64>,
    /// What it knows to be committed.
    pub committed_index: Option<u64>,
    /// What it has applied.
    pub applied_index: Option<u64>,
    /// Up to where its newest snapshot goes.
    pub snapshot_index: Option<u64>,
    /// Whether there is a leader that a quorum answers, as of the last look around, which is at most a few seconds
    /// old. Readiness depends on it.
    pub quorum_ok: bool,
    /// Why the replica is not in a working cluster, if it is not, and what to do.
    pub trouble: Option<String>,
    /// Everyone in the membership.
    pub members: Vec<MemberStatus>,
}

/// One member, as this replica knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where it is reached.
    pub address: String,
    /// Whether it votes; otherwise it is a learner.
    pub voter: bool,
    /// The end of its log as far as it equals the leader's; only the leader knows.
    pub matched_index: Option<u64>,
    /// Whether it answered the leader lately; only the leader knows.
    pub answering: Option<bool>,
}

pub(crate) fn status(inner: &Inner) -> ReplicaStatus {
    let metrics = inner.metrics();
    let surroundings = inner.surroundings.borrow().clone();
    let role = match metrics.state {
        ServerState::Leader => ReplicaRole::Leader,
        ServerState::Follower => ReplicaRole::Follower,
        ServerState::Candidate => ReplicaRole::Candidate,
        ServerState::Learner => ReplicaRole::Learner,
        ServerState::Shutdown => ReplicaRole::Stopped,
    };
    let quorum_ok = match role {
        ReplicaRole::Leader => leads_a_quorum(&metrics, &inner.config.timing),
        ReplicaRole::Follower | ReplicaRole::Candidate | ReplicaRole::Learner => surroundings.leader_answers,
        ReplicaRole::Stopped => false,
    };
    ReplicaStatus {
        id: inner.id,
        name: inner.config.name.clone(),
        cluster_id: inner.cluster_id.get().copied(),
        role,
        term: metrics.current_term,
        leader: metrics.current_leader,
        last_log_index: metrics.last_log_index,
        committed_index: metrics.local_committed.map(|id| id.index),
        applied_index: metrics.last_applied.map(|id| id.index),
        snapshot_index: metrics.snapshot.map(|id| id.index),
        quorum_ok,
        trouble: surroundings.trouble,
        members: members(&metrics, &inner.config.timing),
    }
}

/// Whether the replica leads and a quorum answered it lately. The only voter is its own quorum, whom nobody answers.
pub(crate) fn leads_a_quorum(metrics: &Metrics, timing: &Timing) -> bool {
    let alone = metrics.membership_config.voter_ids().eq([metrics.id]);
    let acked = metrics.last_quorum_acked.as_ref().map(|acked| acked.elapsed());
    metrics.state == ServerState::Leader && (alone || acked.is_some_and(|ago| ago <= lately(timing)))
}

pub(crate) fn members(metrics: &Metrics, timing: &Timing) -> Vec<MemberStatus> {
    let stored = &metrics.membership_config;
    let leads = metrics.state == ServerState::Leader;
    let voters: Vec<u64> = stored.voter_ids().collect();
    let member = |(id, node): (&u64, &storage::ReplicaNode)| {
        let matched = metrics.replication.as_ref().and_then(|all| *all.get(id)?).map(|log_id| log_id.index);
        let heard = metrics.heartbeat.as_ref().and_then(|all| all.get(id)?.as_ref());
        let answering = *id == metrics.id || heard.is_some_and(|heard| heard.elapsed() <= lately(timing));
        MemberStatus {
            id: *id,
            name: node.name.clone(),
            address: node.address.clone(),
            voter: voters.contains(id),
            matched_index: matched.filter(|_| leads),
            answering: leads.then_some(answering),
        }
    };
    stored.nodes().map(member).collect()
}

fn lately(timing: &Timing) -> Duration {
    timing.election_max * ANSWERING_TIMEOUTS
}

/// The voter, other than the leader, that holds the most of its log among those that answer it. One that is gone may
/// have been the furthest, and would never take over.
pub(crate) fn successor(leader: u64, members: &[MemberStatus]) -> Option<u64> {
    let others = members.iter().filter(|member| member.voter && member.id != leader);
    let answering = others.filter(|member| member.answering == Some(true));
    answering.max_by_key(|member| member.matched_index).map(|member| member.id)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_leader_needs_answers_unless_it_is_the_only_voter() {
        let leads = |voters: &[u64]| {
            let voters: BTreeSet<u64> = voters.iter().copied().collect();
            let nodes = [1, 2, 3].map(|id| (id, storage::ReplicaNode::default()));
            let membership = storage::Membership::new(vec![voters], BTreeMap::from(nodes)).unwrap();
            let mut metrics = Metrics::new_initial(1);
            metrics.state = ServerState::Leader;
            metrics.membership_config = Arc::new(storage::StoredMembership::new(None, membership));
            leads_a_quorum(&metrics, &Timing::default())
        };
        assert!(leads(&[1]));
        assert!(!leads(&[1, 2, 3]));
        assert!(!leads(&[2]));
    }

    fn member(id: u64, voter: bool, matched_index: Option<u64>, answers: bool) -> MemberStatus {
        let (name, address) = (format!("r{id}"), format!("r{id}:1"));
        MemberStatus { id, name, address, voter, matched_index, answering: Some(answers) }
    }

    #[test]
    fn leadership_goes_to_the_furthest_voter_that_answers() {
        let leader = member(1, true, Some(9), true);
        let all = [
            leader.clone(),
            member(2, true, Some(9), false),
            member(3, true, Some(5), true),
            member(4, true, None, true),
            member(5, false, Some(9), true),
        ];
        assert_eq!(successor(1, &all), Some(3));
        assert_eq!(successor(1, &all[..2]), None);
        assert_eq!(successor(1, &[leader]), None);
    }
}
