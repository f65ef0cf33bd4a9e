//! When the replica leads, and the ledger's clock while it does: as `src/replica/src/leader.rs`, with its clock.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::{WatchReceiver, WatchSender};
use openraft::impls::ProgressResponder;
use planted::Bug;
use replica::{LedgerClock, MonotonicClock};
use state_machine::{Command, Entry, LedgerTime, Response, State};
use storage::Proposal;

use super::{Metrics, Replica, set};
use crate::sim::runtime::{SimInstant, die, sleep_ms, timeout, wall_now_ms};

/// How often time is proposed while something waits for it, in ms.
const TICK_MS: u64 = 1_000;

/// The monotonic clock of the process that looks at it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SimClock;

impl MonotonicClock for SimClock {
    fn elapsed(&self) -> Duration {
        Duration::from_nanos(SimInstant::now().as_nanos())
    }
}

/// A term in which this replica leads, with the clock that it stamps by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Office {
    pub(crate) term: u64,
    clock: LedgerClock,
}

impl Office {
    fn take(term: u64, ledger: LedgerTime) -> Self {
        let base = if planted::is(Bug::ClockRestarts) { LedgerTime::default() } else { ledger };
        Self { term, clock: LedgerClock::take(base, &SimClock) }
    }

    /// The ledger's time now.
    pub(crate) fn ledger_time(&self) -> LedgerTime {
        if planted::is(Bug::WallClockReaper) {
            return LedgerTime(wall_now_ms());
        }
        self.clock.stamp(&SimClock)
    }
}

/// How one attempt went.
#[derive(Debug)]
pub(crate) enum Attempt<T> {
    Answered(T),
    /// It may have been decided all the same.
    Retry(String),
    /// The replica has stopped.
    Stopped,
}

/// Follows Raft's state: takes and leaves office, and ends the process when Raft fails.
pub(crate) async fn keep_office(replica: Arc<Replica>) {
    let mut metrics = replica.raft.metrics();
    loop {
        let (term, fatal) = {
            let seen = metrics.borrow_and_update();
            if seen.committed_membership_config.nodes().any(|(id, _)| *id == replica.id) {
                replica.was_member.store(true, Ordering::Relaxed);
            }
            (term_to_hold(&seen), seen.running_state.clone().err())
        };
        if let Some(fatal) = fatal {
            replica.world.tell(|| format!("replica {} ends: {fatal}", replica.id));
            return die().await;
        }
        match term {
            Some(term) => replica.take_office(term),
            None => replica.leave_office(),
        }
        if metrics.changed().await.is_err() {
            return die().await;
        }
    }
}

fn term_to_hold(metrics: &Metrics) -> Option<u64> {
    let applied_term = metrics.last_applied.map(|id| id.leader_id.term);
    let leads = metrics.state == ServerState::Leader && applied_term == Some(metrics.current_term);
    leads.then_some(metrics.current_term)
}

/// Lets the ledger's time pass while something waits for it.
pub(crate) async fn keep_time(replica: Arc<Replica>) {
    loop {
        sleep_ms(TICK_MS).await;
        let office = *replica.office.borrow_watched();
        let Some(office) = office.filter(|_| replica.machine.read(State::is_timed)) else { continue };
        timeout(Duration::from_millis(TICK_MS), replica.write(&office, Command::Tick, None)).await;
    }
}

impl Replica {
    fn take_office(&self, term: u64) {
        if self.term_held() == Some(term) {
            return;
        }
        let office = Office::take(term, self.machine.read(State::clock));
        self.world.took_office(self.place, term);
        set(&self.office, Some(office));
    }

    fn leave_office(&self) {
        if let Some(term) = self.term_held() {
            self.world.tell(|| format!("replica {} leads no more in term {term}", self.id));
            set(&self.office, None);
        }
    }

    /// The office of `term`, once it is taken; nothing if the term ends before.
    pub(super) async fn office_in(&self, term: u64) -> Option<Office> {
        let mut office = self.office.subscribe();
        let taken = office.wait_until(|office| office.is_some_and(|office| office.term == term));
        let over = self.metrics_reach(|seen| {
            seen.current_term != term || seen.state != ServerState::Leader || seen.running_state.is_err()
        });
        tokio::select! {
            biased;
            taken = taken => taken.ok().flatten(),
            () = over => None,
        }
    }

    /// Stamps `command`, and waits until it is applied or the office is left. It has no turn if something about the same
    /// had one after the first `since`. Between the turn and openraft nothing comes, for here is one thread.
    pub(super) async fn write(
        &self,
        office: &Office,
        command: Command,
        since: Option<u64>,
    ) -> Attempt<Response> {
        if !self.turns().take(&command, since) {
            return Attempt::Retry("something else about the same was asked for meanwhile".to_owned());
        }
        let entry = Entry { at: office.ledger_time(), command };
        let (responder, answer) = ProgressResponder::complete_only();
        let proposal = Proposal(entry.clone());
        let write = self.raft.write(proposal).with_leader(office.term).responder(responder);
        if write.await.is_err() {
            return Attempt::Stopped;
        }
        if planted::is(Bug::AnswerBeforeCommit) {
            return Attempt::Answered(self.machine.read(State::clone).apply(entry));
        }
        let mut holder = self.office.subscribe();
        let left = holder.wait_until(|holder| holder.is_none_or(|holder| holder.term != office.term));
        tokio::select! {
            biased;
            answer = answer => match answer {
                Ok(Ok(written)) => Attempt::Answered(written.data),
                Ok(Err(refused)) => Attempt::Retry(refused.to_string()),
                Err(_) => Attempt::Retry("consensus dropped the command".to_owned()),
            },
            _ = left => Attempt::Retry("this replica stopped leading".to_owned()),
        }
    }
}
