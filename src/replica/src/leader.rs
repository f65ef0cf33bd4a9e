//! When this replica leads, and what comes with it: the ledger's clock and its ticks (DESIGN.md, "Time").
//!
//! A leader takes office once an entry of its own term is applied: from then on its state has everything that was
//! decided before. It leaves office when it stops leading or its term ends. Whatever it writes is bound to the term,
//! so that nothing that was stamped in one office is appended in another.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::impls::ProgressResponder;
use planted::Bug;
use state_machine::{Command, Entry, LedgerTime, Refusal, Response, State};
use storage::Proposal;
use tokio::time::MissedTickBehavior;

use crate::clock::{LedgerClock, MonotonicClock};
use crate::consensus::Metrics;
use crate::error::Failure;
use crate::forward::Attempt;
use crate::replica::Inner;

/// How often time is proposed while something waits for it: a deadline is at most this late while there is a leader.
const TICK_INTERVAL: Duration = Duration::from_millis(1_000);

/// This replica leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leadership {
    /// In this term.
    pub term: u64,
}

/// A term in which this replica leads, with the clock that it stamps by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Office {
    pub(crate) term: u64,
    clock: LedgerClock,
}

impl Office {
    pub(crate) fn ledger_time(&self, clock: &dyn MonotonicClock) -> LedgerTime {
        self.clock.stamp(clock)
    }
}

/// Follows Raft's state: takes and leaves office, and reports when Raft fails. Lives as long as the replica.
pub(crate) async fn keep_office(inner: Arc<Inner>) {
    let mut metrics = inner.consensus.metrics();
    loop {
        let (term, fatal) = {
            let seen = metrics.borrow_and_update();
            if seen.committed_membership_config.get_node(&inner.id).is_some() {
                inner.was_member.store(true, Ordering::Relaxed);
            }
            inner.roll.lock().unwrap_or_else(PoisonError::into_inner).note(&seen.membership_config);
            (term_to_hold(&seen), seen.running_state.clone().err())
        };
        match (fatal, term) {
            (Some(fatal), _) => {
                inner.leave_office();
                if !inner.stopping.is_cancelled() {
                    inner.fail(Failure::Raft(fatal.to_string()));
                }
                return;
            }
            (None, Some(term)) => inner.take_office(term),
            (None, None) => inner.leave_office(),
        }
        tokio::select! {
            changed = metrics.changed() => if changed.is_err() { break },
            () = inner.stopping.cancelled() => break,
        }
    }
    inner.leave_office();
    if !inner.stopping.is_cancelled() {
        inner.fail(Failure::Raft("consensus ended".to_owned()));
    }
}

/// The term in which the replica leads and has applied an entry, if there is one.
fn term_to_hold(metrics: &Metrics) -> Option<u64> {
    let applied_term = metrics.last_applied.map(|id| id.leader_id.term);
    let leads = metrics.state == ServerState::Leader && applied_term == Some(metrics.current_term);
    leads.then_some(metrics.current_term)
}

/// Lets the ledger's time pass while something waits for it. Lives as long as the replica.
pub(crate) async fn keep_time(inner: Arc<Inner>) {
    let mut ticks = tokio::time::interval(TICK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = inner.stopping.cancelled() => return,
        }
        inner.catch_up_with_ledger();
        let office = *inner.office.borrow();
        let Some(office) = office.filter(|_| inner.machine.read(State::is_timed)) else { continue };
        // Without a quorum a tick would wait for as long as that lasts; the next one is as good.
        let tick = tokio::time::timeout(TICK_INTERVAL, inner.write(&office, Command::Tick, None));
        if let Ok(Attempt::Retry(why)) = tick.await {
            tracing::debug!(why, "a tick was not decided");
        }
    }
}

impl Inner {
    fn take_office(&self, term: u64) {
        if self.office.borrow().is_some_and(|office| office.term == term) {
            return;
        }
        let restarts = planted::is(Bug::ClockRestarts);
        let base = if restarts { LedgerTime::default() } else { self.machine.read(State::clock) };
        let clock = LedgerClock::take(base, &*self.clock);
        tracing::info!(replica = self.id, term, "leading");
        self.office.send_replace(Some(Office { term, clock }));
        self.leadership.send_replace(Some(Leadership { term }));
    }

    /// A restore sets the ledger's clock ahead of the leader's, which goes on from there.
    fn catch_up_with_ledger(&self) {
        if planted::is(Bug::ClockRestarts) {
            return;
        }
        let applied = self.machine.read(State::clock);
        self.office.send_if_modified(|office| {
            let behind = office.as_mut().filter(|office| office.ledger_time(&*self.clock) < applied);
            let is_behind = behind.is_some();
            if let Some(office) = behind {
                office.clock = LedgerClock::take(applied, &*self.clock);
            }
            is_behind
        });
    }

    fn leave_office(&self) {
        if let Some(office) = self.office.send_replace(None) {
            tracing::info!(replica = self.id, term = office.term, "leading no more");
        }
        self.leadership.send_if_modified(|leadership| leadership.take().is_some());
    }

    /// The office of `term`, once it is taken; nothing if the term ends before.
    pub(crate) async fn office_in(&self, term: u64) -> Option<Office> {
        let mut office = self.office.subscribe();
        let taken = office.wait_for(|office| office.is_some_and(|office| office.term == term));
        let over = self.metrics_reach(|seen| {
            seen.current_term != term || seen.state != ServerState::Leader || seen.running_state.is_err()
        });
        tokio::select! {
            biased;
            taken = taken => taken.ok().and_then(|office| *office),
            _ = over => None,
        }
    }

    /// Stamps `command`, and waits until it is applied or the office is left. A `Retry` may still be applied. The command
    /// has no turn if something about the same had one after the first `since`.
    pub(crate) async fn write(
        &self,
        office: &Office,
        command: Command,
        since: Option<u64>,
    ) -> Attempt<Response> {
        let needed = command.since_version();
        let current = self.machine.read(State::cluster_version);
        if needed > current {
            // A voter that does not know the command could not even read the entry.
            return Attempt::Answered(Response::Refused(Refusal::VersionTooLow { needed, current }));
        }
        let mut turns = self.turns.clone().lock_owned().await;
        if !turns.take(&command, since) {
            return Attempt::Retry("something else about the same was asked for meanwhile".to_owned());
        }
        let entry = Entry { at: office.ledger_time(&*self.clock), command };
        let guess = planted::is(Bug::AnswerBeforeCommit).then(|| entry.clone());
        let (responder, answer) = ProgressResponder::complete_only();
        let term = office.term;
        let write = self.consensus.ask(move |raft| async move {
            let handed = raft.write(Proposal(entry)).with_leader(term).responder(responder).await;
            // The next one comes after it, even if nobody waits for its answer any more.
            drop(turns);
            handed
        });
        if write.await.is_err() {
            return Attempt::Stopped;
        }
        if let Some(entry) = guess {
            return Attempt::Answered(self.machine.read(State::clone).apply(entry));
        }
        let mut holder = self.office.subscribe();
        let left = holder.wait_for(|holder| holder.is_none_or(|holder| holder.term != office.term));
        tokio::select! {
            biased;
            answer = answer => match answer {
                Ok(Ok(written)) => Attempt::Answered(written.data),
                Ok(Err(refused)) => Attempt::Retry(refused.to_string()),
                Err(_) => Attempt::Retry("consensus dropped the command".to_owned()),
            },
            _ = left => Attempt::Retry(format!("this replica stopped leading in term {}", office.term)),
        }
    }
}
