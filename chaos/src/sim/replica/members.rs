//! Changes of the membership, on the leader: as `src/replica/src/membership.rs`, with its rules.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{Instant, Precondition, ServerState};
use replica::cores::{Changes, View};
use replica::{MemberStatus, PeerAddress};

use super::office::Attempt;
use super::{Metrics, Replica, TIMERS_SLOWER};
use crate::sim::runtime::{by_clock_of, sleep_ms, timeout};
use crate::sim::types::SimTypeConfig;
use crate::sim::world::World;

/// How often the leader looks whether a learner has caught up or a change was left half-way, in ms.
const LOOK_MS: u64 = 200 * TIMERS_SLOWER;
/// How long the leader waits for one change that it makes on its own.
const CHANGE_LIMIT: Duration = Duration::from_millis(10_000);
/// Who answered within so long answers: three elections' time.
pub(super) const LATELY: Duration = Duration::from_millis(3 * 300 * TIMERS_SLOWER);

fn view_of(metrics: &Metrics) -> View {
    let effective = &metrics.membership_config;
    let voters: BTreeSet<u64> = effective.voter_ids().collect();
    let leads = metrics.state == ServerState::Leader;
    let members = effective.nodes().map(|(id, node)| {
        let matched = metrics.replication.as_ref().and_then(|all| *all.get(id)?).map(|log_id| log_id.index);
        let heard = metrics.heartbeat.as_ref().and_then(|all| all.get(id)?.as_ref());
        let answering = *id == metrics.id || heard.is_some_and(|heard| heard.elapsed() <= LATELY);
        MemberStatus {
            id: *id,
            name: node.name.clone(),
            address: node.address.clone(),
            voter: voters.contains(id),
            matched_index: matched.filter(|_| leads),
            answering: leads.then_some(answering),
        }
    });
    View {
        at: *effective.log_id(),
        joint: effective.get_joint_config().len() > 1,
        settled: effective.log_id() == metrics.committed_membership_config.log_id(),
        last_log_index: metrics.last_log_index.unwrap_or(0),
        members: members.collect(),
    }
}

/// Promotes learners and finishes changes, while this replica leads.
pub(crate) async fn keep_members(replica: Arc<Replica>) {
    loop {
        sleep_ms(LOOK_MS).await;
        let Some(term) = replica.term_held() else { continue };
        let Ok(_changing) = replica.membership_changes.try_lock() else { continue };
        let view = replica.view();
        let Some((changes, line)) = view.unasked() else { continue };
        replica.world.tell(|| format!("replica {}: {line}", replica.id));
        timeout(CHANGE_LIMIT, replica.submit(term, &view, changes)).await;
    }
}

impl Replica {
    fn view(&self) -> View {
        view_of(&self.raft.metrics().borrow_watched())
    }

    /// What is missing until it leads three voters that live now, and nothing else is under way. Anybody may ask.
    pub(crate) fn lacks(&self) -> Option<String> {
        let view = by_clock_of(self.group, || self.view());
        let lives = |member: &MemberStatus| {
            self.world.id_of(World::place_of(member.id)) == member.id && member.answering == Some(true)
        };
        let is_whole = view.settled
            && !view.joint
            && view.members.len() == self.world.places.len()
            && view.members.iter().all(|member| member.voter && lives(member));
        (!is_whole).then(|| format!("not all are voters, to replica {}: {view:?}", self.id))
    }

    async fn submit(&self, term: u64, view: &View, changes: Changes) -> Attempt<()> {
        let conditions = [
            Precondition::<SimTypeConfig>::CommittedLeaderId { committed_leader_id: term.into() },
            Precondition::LastMembershipLogId { last_membership_log_id: view.at },
        ];
        match self.raft.change_membership_if(changes, false, conditions).await {
            Ok(_) => Attempt::Answered(()),
            Err(error) if error.fatal().is_some() => Attempt::Stopped,
            Err(error) => Attempt::Retry(error.to_string()),
        }
    }

    /// Takes in a replica that asks: one whose name is a member's, that lost its disk.
    pub(super) async fn take_in(
        &self,
        term: u64,
        id: u64,
        place: PeerAddress,
    ) -> Attempt<Result<(), String>> {
        let _changing = self.membership_changes.lock().await;
        let view = self.view();
        if view.members.iter().any(|member| member.id == id) {
            return Attempt::Answered(Ok(()));
        }
        if !view.members.iter().any(|member| member.name == place.name) {
            return Attempt::Answered(Err(format!("no member is called {}", place.name)));
        }
        match view.admission(id, place) {
            Ok(changes) => match self.submit(term, &view, changes).await {
                Attempt::Answered(()) => Attempt::Answered(Ok(())),
                Attempt::Retry(why) => Attempt::Retry(why),
                Attempt::Stopped => Attempt::Stopped,
            },
            Err(why) => Attempt::Answered(Err(why)),
        }
    }
}
