//! Asking the leader, wherever it is: here, at a peer, or not elected yet (DESIGN.md, "Requests").
//!
//! A question is asked again after every failure until its deadline, so it must not matter whether it is heard twice.
//! Each attempt is bound to the term in which its leader was seen: one that was held up on its way decides nothing
//! under a later leader, after whom the caller may have gone on. Under the same leader it decides nothing once anything
//! about the same volume or node had its turn ([`crate::turns`]).

use std::time::{Duration, Instant};

use openraft::async_runtime::WatchReceiver;
use openraft::raft::ReadPolicy;
use proto::peer::v1::{
    ProposeRequest, ReadIndexRequest, TurnsRequest, propose_reply, read_index_reply, turns_reply,
};
use state_machine::{Command, Entry, LedgerTime, Response};
use storage::{ReplicaNode, check_entry_size};
use tonic::Status;
use tonic::transport::Channel;

use crate::codec;
use crate::consensus::Metrics;
use crate::error::ProposeError;
use crate::peers::Client;
use crate::replica::Inner;

/// Pause between two attempts, unless the leader changes before.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// How one attempt went.
#[derive(Debug)]
pub(crate) enum Attempt<T> {
    Answered(T),
    /// Not answered, for this reason; it may have been decided all the same.
    Retry(String),
    /// The replica has stopped.
    Stopped,
}

/// Why a question stayed without answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    Deadline(String),
    Stopped,
}

/// Where the leader is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seat {
    Nowhere,
    Here { term: u64 },
    There { term: u64, id: u64, node: ReplicaNode },
}

/// The leader as this replica knows it, for questions that are not the ledger's.
#[derive(Debug, Clone)]
pub enum LeaderPlace {
    /// Nobody leads, or nobody knows who.
    Nowhere,
    /// This replica.
    Here,
    /// Another one: the connection to its server, on which this replica shows its own certificate. The leader may
    /// have changed by the time that the question arrives.
    There(Channel),
}

/// What goes with each forwarded question.
#[derive(Debug, Clone)]
pub(crate) struct Envelope {
    pub(crate) cluster_id: Vec<u8>,
    pub(crate) term: u64,
    pub(crate) timeout_ms: u64,
}

/// Something that only the leader answers. Asking twice does no harm.
pub(crate) trait Question: Sync {
    type Answer: Send;

    /// Answers on the leader of `term`, which is this replica.
    fn here(&self, inner: &Inner, term: u64) -> impl Future<Output = Attempt<Self::Answer>> + Send;

    /// Asks the leader.
    fn there(&self, leader: Client, envelope: Envelope)
    -> impl Future<Output = Attempt<Self::Answer>> + Send;
}

impl Inner {
    /// Asks until there is an answer or the deadline is over.
    pub(crate) async fn through_leader<Q: Question>(
        &self,
        question: &Q,
        deadline: Instant,
    ) -> Result<Q::Answer, Unanswered> {
        loop {
            let seat = seat(&self.consensus.metrics().borrow_watched(), self.id);
            let attempt = self.ask(question, &seat, deadline);
            let why = match tokio::time::timeout_at(deadline.into(), attempt).await {
                Ok(Attempt::Answered(answer)) => return Ok(answer),
                Ok(Attempt::Stopped) => return Err(Unanswered::Stopped),
                Ok(Attempt::Retry(why)) => why,
                Err(_) => return Err(Unanswered::Deadline(self.silence(&seat))),
            };
            if self.is_stopped() {
                return Err(Unanswered::Stopped);
            }
            let pause_end = deadline.min(Instant::now() + RETRY_PAUSE);
            // Either way it is time to look again.
            let _ = tokio::time::timeout_at(pause_end.into(), self.leaves(&seat)).await;
            if Instant::now() >= deadline {
                return Err(Unanswered::Deadline(why));
            }
        }
    }

    pub(crate) fn leader_place(&self) -> LeaderPlace {
        match seat(&self.consensus.metrics().borrow_watched(), self.id) {
            Seat::Nowhere => LeaderPlace::Nowhere,
            Seat::Here { .. } => LeaderPlace::Here,
            Seat::There { node, .. } => match self.peers.channel(&node.name, &node.address) {
                Ok(channel) => LeaderPlace::There(channel),
                Err(why) => {
                    tracing::warn!(leader = %node, why, "the leader cannot be reached");
                    LeaderPlace::Nowhere
                }
            },
        }
    }

    async fn ask<Q: Question>(&self, question: &Q, seat: &Seat, deadline: Instant) -> Attempt<Q::Answer> {
        let (term, id, node) = match seat {
            Seat::Nowhere => return Attempt::Retry(self.silence(seat)),
            Seat::Here { term } => {
                return tokio::select! {
                    // What was decided is told, even if the leadership ended at the same moment.
                    biased;
                    attempt = question.here(self, *term) => attempt,
                    () = self.leaves(seat) => Attempt::Retry("this replica stopped leading".to_owned()),
                };
            }
            Seat::There { term, id, node } => (*term, *id, node),
        };
        let client = match self.peers.client(&node.name, &node.address) {
            Ok(client) => client,
            Err(why) => return Attempt::Retry(why),
        };
        let Some(cluster_id) = self.cluster_id.get() else {
            return Attempt::Retry(self.silence(&Seat::Nowhere));
        };
        let remaining = deadline.saturating_duration_since(Instant::now());
        let timeout_ms = u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX);
        let envelope = Envelope { cluster_id: cluster_id.as_bytes().to_vec(), term, timeout_ms };
        tokio::select! {
            biased;
            attempt = question.there(client, envelope) => match attempt {
                Attempt::Retry(why) => Attempt::Retry(format!("the leader, replica {id} ({node}), says: {why}")),
                Attempt::Answered(_) | Attempt::Stopped => attempt,
            },
            () = self.leaves(seat) => Attempt::Retry("the leader changed".to_owned()),
        }
    }

    /// Waits until the leader is not there any more.
    async fn leaves(&self, seat_then: &Seat) {
        let id = self.id;
        if !self.metrics_reach(|seen| seen.running_state.is_err() || seat(seen, id) != *seat_then).await {
            // Stopped: the caller notices by itself.
            std::future::pending::<()>().await;
        }
    }

    /// Whether this replica leads in `term`.
    pub(crate) fn leads_in(&self, term: u64) -> bool {
        seat(&self.consensus.metrics().borrow_watched(), self.id) == Seat::Here { term }
    }

    /// Why there is no answer, as far as this replica can tell.
    fn silence(&self, seat: &Seat) -> String {
        match seat {
            Seat::Nowhere => match &self.surroundings.borrow().trouble {
                Some(trouble) => format!("there is no leader: {trouble}"),
                None => "there is no leader yet".to_owned(),
            },
            Seat::Here { term } => format!("this replica leads in term {term}, but no quorum answers it"),
            Seat::There { term, id, node } => {
                format!("replica {id} ({node}), the leader of term {term}, did not answer")
            }
        }
    }
}

fn seat(metrics: &Metrics, own_id: u64) -> Seat {
    let term = metrics.current_term;
    match metrics.current_leader {
        Some(id) if id == own_id => Seat::Here { term },
        Some(id) => match metrics.membership_config.get_node(&id) {
            Some(node) => Seat::There { term, id, node: node.clone() },
            None => Seat::Nowhere,
        },
        None => Seat::Nowhere,
    }
}

/// For a forwarded question that came back as a gRPC status.
pub(crate) fn failed<T>(status: Status) -> Attempt<T> {
    Attempt::Retry(format!("{:?}: {}", status.code(), status.message()))
}

/// For an answer that cannot be understood.
pub(crate) fn garbled<T>() -> Attempt<T> {
    Attempt::Retry("its answer cannot be understood".to_owned())
}

/// A command to decide.
#[derive(Debug)]
pub(crate) struct Proposed {
    command: Command,
    encoded: Vec<u8>,
    /// How many turns were taken when another replica asked; none if this one asks itself.
    since: Option<u64>,
}

impl Proposed {
    pub(crate) fn new(command: Command) -> Result<Self, ProposeError> {
        let too_large = |error: &dyn std::error::Error| ProposeError::TooLarge(error.to_string());
        // A stamp of any time takes the same room.
        let entry = Entry { at: LedgerTime::default(), command };
        check_entry_size(&entry).map_err(|error| too_large(&error))?;
        let command = entry.command;
        let encoded = codec::encode(&command).map_err(|error| too_large(&error))?;
        Ok(Self { command, encoded, since: None })
    }

    /// The same, as another replica asks it, once it was told how many turns were taken.
    pub(crate) fn forwarded(self, since: u64) -> Self {
        Self { since: Some(since), ..self }
    }

    pub(crate) fn command(&self) -> &Command {
        &self.command
    }
}

impl Question for Proposed {
    type Answer = Response;

    async fn here(&self, inner: &Inner, term: u64) -> Attempt<Response> {
        let Some(office) = inner.office_in(term).await else {
            return Attempt::Retry(format!("this replica does not lead in term {term}"));
        };
        inner.write(&office, self.command.clone(), self.since).await
    }

    async fn there(&self, mut leader: Client, envelope: Envelope) -> Attempt<Response> {
        let since_turn = match TurnsTaken.there(leader.clone(), envelope.clone()).await {
            Attempt::Answered(taken) => taken,
            Attempt::Retry(why) => return Attempt::Retry(why),
            Attempt::Stopped => return Attempt::Stopped,
        };
        let Envelope { cluster_id, term, timeout_ms } = envelope;
        let command = self.encoded.clone();
        let request = ProposeRequest { cluster_id, term, timeout_ms, command, since_turn };
        match leader.propose(request).await.map(|reply| reply.into_inner().outcome) {
            Ok(Some(propose_reply::Outcome::Response(bytes))) => {
                codec::decode(&bytes).map_or_else(|_| garbled(), Attempt::Answered)
            }
            Ok(Some(propose_reply::Outcome::NotLeader(not_leader))) => Attempt::Retry(not_leader.reason),
            Ok(None) => garbled(),
            Err(status) => failed(status),
        }
    }
}

/// How many turns the leader has taken.
#[derive(Debug)]
pub(crate) struct TurnsTaken;

impl Question for TurnsTaken {
    type Answer = u64;

    async fn here(&self, inner: &Inner, _term: u64) -> Attempt<u64> {
        Attempt::Answered(inner.turns.lock().await.taken())
    }

    async fn there(&self, mut leader: Client, envelope: Envelope) -> Attempt<u64> {
        let Envelope { cluster_id, term, timeout_ms } = envelope;
        let request = TurnsRequest { cluster_id, term, timeout_ms };
        match leader.turns(request).await.map(|reply| reply.into_inner().outcome) {
            Ok(Some(turns_reply::Outcome::Taken(taken))) => Attempt::Answered(taken),
            Ok(Some(turns_reply::Outcome::NotLeader(not_leader))) => Attempt::Retry(not_leader.reason),
            Ok(None) => garbled(),
            Err(status) => failed(status),
        }
    }
}

/// The index that a linearizable read has to wait for.
#[derive(Debug)]
pub(crate) struct ReadIndex;

impl Question for ReadIndex {
    type Answer = u64;

    async fn here(&self, inner: &Inner, _term: u64) -> Attempt<u64> {
        if planted::is(planted::Bug::NoLeaseCheck) {
            return Attempt::Answered(inner.machine.applied_index());
        }
        // Never LeaseRead: it would trust clocks.
        let read_at =
            inner.consensus.ask(|raft| async move { raft.get_read_log_id(ReadPolicy::ReadIndex).await });
        match read_at.await {
            Ok((read_at, _)) => Attempt::Answered(read_at.index()),
            Err(error) => Attempt::Retry(error.to_string()),
        }
    }

    async fn there(&self, mut leader: Client, envelope: Envelope) -> Attempt<u64> {
        let Envelope { cluster_id, term, timeout_ms } = envelope;
        let request = ReadIndexRequest { cluster_id, term, timeout_ms };
        match leader.read_index(request).await.map(|reply| reply.into_inner().outcome) {
            Ok(Some(read_index_reply::Outcome::Index(index))) => Attempt::Answered(index),
            Ok(Some(read_index_reply::Outcome::NotLeader(not_leader))) => Attempt::Retry(not_leader.reason),
            Ok(None) => garbled(),
            Err(status) => failed(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::opened;

    /// How long the question may take; it is answered at once.
    const QUESTION_LIMIT: Duration = Duration::from_secs(1);

    /// Nobody has noted that consensus has ended: whoever is not told so would ask until then without ever waiting, and
    /// a few such callers would take all threads.
    #[tokio::test]
    async fn who_asks_when_consensus_has_ended_is_told_before_that_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        let inner = opened(dir.path()).await;
        inner.consensus.end().await.unwrap();
        for _ in 0..2 {
            let answer = inner.through_leader(&ReadIndex, Instant::now() + QUESTION_LIMIT).await;
            assert!(matches!(answer, Err(Unanswered::Stopped)), "{answer:?}");
        }
    }
}
