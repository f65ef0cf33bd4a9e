//! Changes of the membership, on the leader (DESIGN.md, "Replicas").
//!
//! Life of a replica: it is taken in as a learner, by an operator's word or because a member of its name lost its
//! disk; the leader promotes it once it has caught up, and in the same joint change the dead id of its name goes. A
//! change that a leader began and did not live to end is ended by the next one, which sees the joint membership.
//!
//! Each change is bound to the term and to the membership that it was decided on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use openraft::{ChangeMembers, Precondition, ServerState};
use proto::peer::v1::change_membership_request::Change as WireChange;
use proto::peer::v1::{AdoptRequest, ChangeMembershipRequest, ReplicaAddress, change_membership_reply};
use state_machine::{CLUSTER_VERSION, Command, State};
use storage::{LogId, Membership, ReplicaNode, TypeConfig, check_membership_size};

use crate::config::PeerAddress;
use crate::consensus::Metrics;
use crate::forward::{Attempt, Envelope, Question, failed, garbled};
use crate::leader::Office;
use crate::peers::Client;
use crate::replica::Inner;
use crate::status::{MemberStatus, members};

/// How often the leader looks whether a learner has caught up or a change was left half-way.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// A learner has caught up when it is at most this many entries behind.
const PROMOTION_LAG_ENTRIES: u64 = 64;
/// How often it looks whether every member's program knows a newer cluster version, while there is one.
const VERSIONS_INTERVAL: Duration = Duration::from_millis(2_000);
/// How long the leader waits for one change that it makes on its own.
const CHANGE_TIMEOUT: Duration = Duration::from_millis(10_000);
/// How long an empty replica may take to note its cluster.
const ADOPT_TIMEOUT: Duration = Duration::from_millis(2_000);

/// What is asked of openraft.
pub type Changes = ChangeMembers<u64, ReplicaNode>;

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Add(PeerAddress),
    Remove(u64),
    Replace(u64),
}

/// The membership and what the leader knows of the members, at one moment.
#[derive(Debug, Clone)]
pub struct View {
    /// The entry that it is in.
    pub at: Option<LogId>,
    /// Two sets of voters decide: a change is half-way.
    pub joint: bool,
    /// The membership is committed.
    pub settled: bool,
    /// The end of the leader's log.
    pub last_log_index: u64,
    /// Learners too.
    pub members: Vec<MemberStatus>,
}

impl View {
    fn new(inner: &Inner, metrics: &Metrics) -> Self {
        let effective = &metrics.membership_config;
        Self {
            at: *effective.log_id(),
            joint: effective.get_joint_config().len() > 1,
            settled: effective.log_id() == metrics.committed_membership_config.log_id(),
            last_log_index: metrics.last_log_index.unwrap_or(0),
            members: members(metrics, &inner.config.timing),
        }
    }

    fn member(&self, id: u64) -> Option<&MemberStatus> {
        self.members.iter().find(|member| member.id == id)
    }

    /// The next thing to do without being asked, with a line for the log.
    pub fn unasked(&self) -> Option<(Changes, String)> {
        if !self.settled {
            return None;
        }
        if self.joint {
            let finish = ChangeMembers::AddVoterIds(BTreeSet::new());
            return Some((finish, "finishing a change of the membership".to_owned()));
        }
        let caught_up = |member: &&MemberStatus| {
            let behind = self.last_log_index.saturating_sub(member.matched_index.unwrap_or(0));
            let close = member.matched_index.is_some() && behind <= PROMOTION_LAG_ENTRIES;
            !member.voter && close && member.answering == Some(true)
        };
        let learner = self.members.iter().find(caught_up)?;
        let namesakes =
            self.members.iter().filter(|other| other.name == learner.name && other.id != learner.id);
        let (voters, learners): (Vec<_>, Vec<_>) = namesakes.partition(|other| other.voter);
        let ids =
            |members: &[&MemberStatus]| members.iter().map(|member| member.id).collect::<BTreeSet<u64>>();
        let line =
            format!("promoting replica {} ({}), in place of {:?}", learner.id, learner.name, ids(&voters));
        let changes = vec![
            ChangeMembers::AddVoterIds(BTreeSet::from([learner.id])),
            ChangeMembers::RemoveVoters(ids(&voters)),
            ChangeMembers::RemoveNodes(ids(&learners)),
        ];
        Some((ChangeMembers::Batch(changes), line))
    }

    /// How to take in a learner. Those of its name that do not vote go: they are what it was before it lost another
    /// disk, and would pile up.
    pub fn admission(&self, id: u64, place: PeerAddress) -> Result<Changes, String> {
        place.check()?;
        let node = ReplicaNode { name: place.name, address: place.address };
        let (gone, staying): (Vec<_>, Vec<_>) =
            self.members.iter().partition(|member| !member.voter && member.name == node.name);
        let gone: BTreeSet<u64> = gone.into_iter().map(|member| member.id).collect();
        let present = |member: &MemberStatus| {
            (member.id, ReplicaNode { name: member.name.clone(), address: member.address.clone() })
        };
        let mut nodes: BTreeMap<u64, ReplicaNode> = staying.into_iter().map(present).collect();
        nodes.insert(id, node.clone());
        check_size(nodes)?;
        let learner = ChangeMembers::AddNodes(BTreeMap::from([(id, node)]));
        Ok(if gone.is_empty() {
            learner
        } else {
            ChangeMembers::Batch(vec![ChangeMembers::RemoveNodes(gone), learner])
        })
    }

    /// How to remove `id`, unless that would leave no quorum; nothing if it is no member.
    fn removal(&self, id: u64) -> Result<Option<Changes>, String> {
        let Some(member) = self.member(id) else { return Ok(None) };
        if !member.voter {
            return Ok(Some(ChangeMembers::RemoveNodes(BTreeSet::from([id]))));
        }
        let rest: Vec<_> = self.members.iter().filter(|other| other.voter && other.id != id).collect();
        let answering = rest.iter().filter(|other| other.answering == Some(true)).count();
        if answering * 2 <= rest.len() {
            return Err(format!(
                "replica {id} ({}) cannot be removed now: of the {} voters that would be left, {answering} answer, \
                 which is no quorum",
                member.name,
                rest.len()
            ));
        }
        Ok(Some(ChangeMembers::RemoveVoters(BTreeSet::from([id]))))
    }
}

/// Whether memberships of these replicas fit into the log, however a change may divide them: an entry that does not
/// stops its leader.
pub(crate) fn check_size(nodes: BTreeMap<u64, ReplicaNode>) -> Result<(), String> {
    let all: BTreeSet<u64> = nodes.keys().copied().collect();
    let largest = Membership::new(vec![all.clone(), all], nodes).map_err(|error| error.to_string())?;
    check_membership_size(largest).map_err(|error| format!("there would be too many replicas: {error}"))
}

/// Promotes learners and finishes changes, while this replica leads. Lives as long as the replica.
pub(crate) async fn keep_members(inner: Arc<Inner>) {
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looked_at_versions: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = inner.stopping.cancelled() => return,
        }
        let Some(office) = *inner.office.borrow() else { continue };
        let Ok(_changing) = inner.membership_changes.try_lock() else { continue };
        let view = View::new(&inner, &inner.metrics());
        let Some((changes, line)) = view.unasked() else {
            if looked_at_versions.is_none_or(|at| at.elapsed() >= VERSIONS_INTERVAL) {
                looked_at_versions = Some(Instant::now());
                inner.raise_cluster_version(&office, &view).await;
            }
            continue;
        };
        tracing::info!(replica = inner.id, term = office.term, "{line}");
        let done = tokio::time::timeout(CHANGE_TIMEOUT, inner.submit(office.term, &view, changes)).await;
        match done {
            Ok(Attempt::Answered(())) => {}
            Ok(Attempt::Retry(why)) => tracing::warn!(why, "the membership was not changed"),
            Ok(Attempt::Stopped) => return,
            Err(_) => tracing::warn!("the membership was not changed in time"),
        }
    }
}

impl Inner {
    /// Lets commands be proposed that every member's program knows; learners count too, they read the same log.
    async fn raise_cluster_version(&self, office: &Office, view: &View) {
        let present = self.machine.read(State::cluster_version);
        if present >= CLUSTER_VERSION || !view.settled || view.joint {
            return;
        }
        let mut common = CLUSTER_VERSION;
        for member in view.members.iter().filter(|member| member.id != self.id) {
            let place = PeerAddress { name: member.name.clone(), address: member.address.clone() };
            match self.identify(&place).await {
                Ok(report) if report.replica_id == member.id => {
                    common = common.min(report.newest_cluster_version);
                }
                // Who does not answer may run an older program.
                Ok(_) | Err(_) => return,
            }
        }
        if common <= present {
            return;
        }
        let raise = self.write(office, Command::SetClusterVersion { version: common }, None);
        match tokio::time::timeout(CHANGE_TIMEOUT, raise).await {
            Ok(Attempt::Answered(_)) => {
                tracing::info!(version = common, "every replica knows this cluster version")
            }
            Ok(Attempt::Retry(_) | Attempt::Stopped) | Err(_) => {}
        }
    }

    /// Changes the membership if it is still as in `view`.
    async fn submit(&self, term: u64, view: &View, changes: Changes) -> Attempt<()> {
        let conditions = [
            Precondition::<TypeConfig>::CommittedLeaderId { committed_leader_id: term.into() },
            Precondition::LastMembershipLogId { last_membership_log_id: view.at },
        ];
        // Removed voters are not kept as learners.
        let changed = self
            .consensus
            .ask(move |raft| async move { raft.change_membership_if(changes, false, conditions).await });
        match changed.await {
            Ok(_) => Attempt::Answered(()),
            Err(error) if error.fatal().is_some() => Attempt::Stopped,
            Err(error) => Attempt::Retry(error.to_string()),
        }
    }

    /// Takes in a replica that asks: one whose name is a member's, that lost its disk. A refusal is for people.
    pub(crate) async fn take_in(
        &self,
        term: u64,
        id: u64,
        place: PeerAddress,
    ) -> Attempt<Result<(), String>> {
        let _changing = self.membership_changes.lock().await;
        let metrics = self.metrics();
        if metrics.state != ServerState::Leader {
            return Attempt::Retry("it does not lead".to_owned());
        }
        let view = View::new(self, &metrics);
        if view.member(id).is_some() {
            return Attempt::Answered(Ok(()));
        }
        if !view.members.iter().any(|member| member.name == place.name) {
            let name = &place.name;
            return Attempt::Answered(Err(format!(
                "no member is called {name}; if it should be one, run `rds-csi ctl replicas add`"
            )));
        }
        let name = place.name.clone();
        let changes = match view.admission(id, place) {
            Ok(changes) => changes,
            Err(why) => return Attempt::Answered(Err(why)),
        };
        tracing::info!(replica = id, name, "taking in a replica that lost its data, as a learner");
        match self.submit(term, &view, changes).await {
            Attempt::Answered(()) => Attempt::Answered(Ok(())),
            Attempt::Retry(why) => Attempt::Retry(why),
            Attempt::Stopped => Attempt::Stopped,
        }
    }

    /// Takes in the empty replica that lives at a place, on an operator's word.
    async fn add(&self, term: u64, place: PeerAddress, dead: Option<u64>) -> Attempt<Result<u64, String>> {
        let view = View::new(self, &self.metrics());
        if let Err(why) = place.check() {
            return Attempt::Answered(Err(why));
        }
        let report = match self.identify(&place).await {
            Ok(report) => report,
            Err(why) => return Attempt::Answered(Err(format!("nobody to take in: {why}"))),
        };
        let id = report.replica_id;
        let Some(cluster_id) = self.cluster_id.get() else {
            return Attempt::Retry("it has no cluster yet".to_owned());
        };
        if dead == Some(id) {
            return Attempt::Answered(Err(format!("replica {id} ({}) is not dead: it answers", place.name)));
        }
        if view.member(id).is_some() {
            return Attempt::Answered(Ok(id));
        }
        if report.initialized || report.cluster_id.is_some_and(|other| other != *cluster_id) {
            let name = &place.name;
            return Attempt::Answered(Err(format!(
                "{name} has data of its own, from before or from another cluster; empty its directory first"
            )));
        }
        let changes = match view.admission(id, place.clone()) {
            Ok(changes) => changes,
            Err(why) => return Attempt::Answered(Err(why)),
        };
        let request = AdoptRequest { cluster_id: cluster_id.as_bytes().to_vec(), to: id };
        let mut client = match self.peers.client(&place.name, &place.address) {
            Ok(client) => client,
            Err(why) => return Attempt::Answered(Err(why)),
        };
        match tokio::time::timeout(ADOPT_TIMEOUT, client.adopt(request)).await {
            Ok(Ok(_)) => {}
            Ok(Err(status)) => return failed(status),
            Err(_) => return Attempt::Retry(format!("{} does not answer", place.name)),
        }
        tracing::info!(
            replica = id,
            name = place.name,
            "taking in a replica on an operator's word, as a learner"
        );
        match self.submit(term, &view, changes).await {
            Attempt::Answered(()) => Attempt::Answered(Ok(id)),
            Attempt::Retry(why) => Attempt::Retry(why),
            Attempt::Stopped => Attempt::Stopped,
        }
    }

    async fn remove(&self, term: u64, id: u64) -> Attempt<Result<u64, String>> {
        let view = View::new(self, &self.metrics());
        if view.joint || !view.settled {
            return Attempt::Retry("another change of the membership is under way".to_owned());
        }
        let changes = match view.removal(id) {
            Ok(Some(changes)) => changes,
            // Gone already: as asked.
            Ok(None) => return Attempt::Answered(Ok(id)),
            Err(why) => return Attempt::Answered(Err(why)),
        };
        tracing::info!(replica = id, "removing a replica on an operator's word");
        match self.submit(term, &view, changes).await {
            Attempt::Answered(()) => Attempt::Answered(Ok(id)),
            Attempt::Retry(why) => Attempt::Retry(why),
            Attempt::Stopped => Attempt::Stopped,
        }
    }

    async fn replace(&self, term: u64, dead: u64) -> Attempt<Result<u64, String>> {
        let view = View::new(self, &self.metrics());
        let Some(member) = view.member(dead) else {
            let roll = self.roll.lock().unwrap_or_else(PoisonError::into_inner);
            let successor = view.members.iter().find(|member| roll.name(dead) == Some(&member.name));
            let refusal =
                || format!("replica {dead} is not a member, and it is not known whose place it had");
            return Attempt::Answered(successor.map(|member| member.id).ok_or_else(refusal));
        };
        let place = PeerAddress { name: member.name.clone(), address: member.address.clone() };
        self.add(term, place, Some(dead)).await
    }
}

impl Question for Change {
    /// The id that was added or removed, or why it will not be.
    type Answer = Result<u64, String>;

    async fn here(&self, inner: &Inner, term: u64) -> Attempt<Self::Answer> {
        if inner.office_in(term).await.is_none() {
            return Attempt::Retry(format!("this replica does not lead in term {term}"));
        }
        let _changing = inner.membership_changes.lock().await;
        match self {
            Self::Add(place) => inner.add(term, place.clone(), None).await,
            Self::Remove(id) => inner.remove(term, *id).await,
            Self::Replace(dead) => inner.replace(term, *dead).await,
        }
    }

    async fn there(&self, mut leader: Client, envelope: Envelope) -> Attempt<Self::Answer> {
        let Envelope { cluster_id, term, timeout_ms } = envelope;
        let change = Some(match self.clone() {
            Self::Add(place) => WireChange::Add(ReplicaAddress { name: place.name, address: place.address }),
            Self::Remove(id) => WireChange::RemoveId(id),
            Self::Replace(dead) => WireChange::ReplaceId(dead),
        });
        let request = ChangeMembershipRequest { cluster_id, term, timeout_ms, change };
        match leader.change_membership(request).await.map(|reply| reply.into_inner().outcome) {
            Ok(Some(change_membership_reply::Outcome::ReplicaId(id))) => Attempt::Answered(Ok(id)),
            Ok(Some(change_membership_reply::Outcome::Refused(why))) => Attempt::Answered(Err(why)),
            Ok(Some(change_membership_reply::Outcome::NotLeader(not_leader))) => {
                Attempt::Retry(not_leader.reason)
            }
            Ok(None) => garbled(),
            Err(status) => failed(status),
        }
    }
}

impl Change {
    pub(crate) fn from_message(change: Option<WireChange>) -> Option<Self> {
        Some(match change? {
            WireChange::Add(place) => Self::Add(PeerAddress { name: place.name, address: place.address }),
            WireChange::RemoveId(id) => Self::Remove(id),
            WireChange::ReplaceId(dead) => Self::Replace(dead),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MAX_ADDRESS_BYTES;
    use crate::identity::MAX_NAME_BYTES;

    fn member(id: u64, name: &str, voter: bool, matched_index: Option<u64>, answers: bool) -> MemberStatus {
        let (name, address) = (name.to_owned(), format!("{name}:1"));
        MemberStatus { id, name, address, voter, matched_index, answering: Some(answers) }
    }

    /// Two healthy voters and a dead one, whose successor has come.
    fn view(successor_matched: Option<u64>, successor_answers: bool) -> View {
        let members = vec![
            member(1, "a", true, Some(1000), true),
            member(2, "b", true, Some(1000), true),
            member(3, "c", true, Some(400), false),
            member(4, "c", false, None, false),
            member(5, "c", false, successor_matched, successor_answers),
        ];
        View { at: None, joint: false, settled: true, last_log_index: 1000, members }
    }

    #[test]
    fn a_learner_takes_its_namesakes_place_once_it_has_caught_up() {
        assert_eq!(view(None, true).unasked(), None);
        assert_eq!(view(Some(1000 - PROMOTION_LAG_ENTRIES - 1), true).unasked(), None);
        assert_eq!(view(Some(1000), false).unasked(), None, "it may be gone again");
        let (changes, _) = view(Some(1000 - PROMOTION_LAG_ENTRIES), true).unasked().unwrap();
        // One change: with the dead one still in it, a quorum of four would be needed in between.
        let expected = vec![
            ChangeMembers::AddVoterIds(BTreeSet::from([5])),
            ChangeMembers::RemoveVoters(BTreeSet::from([3])),
            ChangeMembers::RemoveNodes(BTreeSet::from([4])),
        ];
        assert_eq!(changes, ChangeMembers::Batch(expected));
    }

    #[test]
    fn a_change_that_was_left_half_way_is_finished_first() {
        let joint = View { joint: true, ..view(Some(1000), true) };
        let (changes, _) = joint.unasked().unwrap();
        assert_eq!(changes, ChangeMembers::AddVoterIds(BTreeSet::new()));
        let uncommitted = View { settled: false, joint: true, ..view(Some(1000), true) };
        assert_eq!(uncommitted.unasked(), None);
    }

    fn place(name: &str) -> PeerAddress {
        PeerAddress { name: name.to_owned(), address: format!("{name}:1") }
    }

    #[test]
    fn a_new_learner_comes_in_place_of_earlier_ones_of_its_name() {
        let added = |id, name: &str| {
            let node = ReplicaNode { name: name.to_owned(), address: format!("{name}:1") };
            ChangeMembers::AddNodes(BTreeMap::from([(id, node)]))
        };
        let view = view(None, false);
        let both = vec![ChangeMembers::RemoveNodes(BTreeSet::from([4, 5])), added(6, "c")];
        assert_eq!(view.admission(6, place("c")).unwrap(), ChangeMembers::Batch(both));
        assert_eq!(
            view.admission(6, place("a")).unwrap(),
            added(6, "a"),
            "a voter stays until the promotion"
        );
    }

    #[test]
    fn a_membership_that_the_log_would_not_take_is_refused() {
        let long = |id: u64| PeerAddress {
            name: format!("{id:>MAX_NAME_BYTES$}"),
            address: format!("{id:>MAX_ADDRESS_BYTES$}"),
        };
        let mut view = View { members: Vec::new(), ..view(None, false) };
        for id in 0..10 {
            view.admission(id, long(id)).unwrap();
            let PeerAddress { name, address } = long(id);
            view.members.push(MemberStatus { name, address, ..member(id, "", true, Some(1), true) });
        }
        assert!(view.admission(10, long(10)).unwrap_err().contains("too many replicas"));
        let too_long = PeerAddress { name: "n".repeat(MAX_NAME_BYTES + 1), address: "n:1".to_owned() };
        assert!(view.admission(10, too_long).unwrap_err().contains("name has 1 to 253 bytes"));
        let too_long = PeerAddress { name: "n".to_owned(), address: "a".repeat(MAX_ADDRESS_BYTES + 1) };
        assert!(view.admission(10, too_long).unwrap_err().contains("the address of n has 262 bytes"));
    }

    #[test]
    fn a_removal_leaves_a_quorum() {
        let view = view(None, false);
        assert_eq!(view.removal(3).unwrap(), Some(ChangeMembers::RemoveVoters(BTreeSet::from([3]))));
        assert_eq!(view.removal(5).unwrap(), Some(ChangeMembers::RemoveNodes(BTreeSet::from([5]))));
        assert!(view.removal(2).unwrap_err().contains("1 answer"));
        assert_eq!(view.removal(9).unwrap(), None);
        let alone = View { members: vec![member(1, "a", true, Some(1), true)], ..view };
        assert!(alone.removal(1).is_err());
    }
}
