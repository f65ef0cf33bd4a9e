//! Asking the leader, wherever it is: as `src/replica/src/forward.rs`.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::raft::ReadPolicy;
use planted::Bug;
use state_machine::{Command, Response, State};

use super::office::Attempt;
use super::{Metrics, Replica};
use crate::sim::network::{Endpoint, NoAnswer};
use crate::sim::runtime::{SimInstant, sleep_ms, timeout};
use crate::sim::world::World;

/// Pause between two attempts, in ms.
const RETRY_PAUSE_MS: u64 = 10;
/// Longest time that a forwarded question is worked on.
const MAX_QUESTION: Duration = Duration::from_secs(60);

/// What was decided.
#[derive(Debug, Clone)]
pub(crate) struct Decided<T> {
    pub(crate) answer: T,
    /// An earlier attempt may have been decided as well.
    pub(crate) repeated: bool,
}

/// Where the leader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seat {
    Nowhere,
    Here { term: u64 },
    There { term: u64, place: usize },
}

fn seat(metrics: &Metrics, own_id: u64) -> Seat {
    let term = metrics.current_term;
    match metrics.current_leader {
        Some(id) if id == own_id => Seat::Here { term },
        Some(id) => Seat::There { term, place: World::place_of(id) },
        None => Seat::Nowhere,
    }
}

/// Something that only the leader answers.
#[derive(Debug, Clone)]
enum Question {
    Propose(Command),
    ReadIndex,
}

#[derive(Debug)]
enum Reply {
    Response(Response),
    Index(u64),
}

impl Replica {
    pub(super) fn seat(&self) -> Seat {
        seat(&self.raft.metrics().borrow_watched(), self.id)
    }

    async fn leaves(&self, seat_then: Seat) {
        let id = self.id;
        self.metrics_reach(|seen| seen.running_state.is_err() || seat(seen, id) != seat_then).await;
    }

    /// Has the leader decide `command`.
    pub(crate) async fn propose(
        self: &Arc<Self>,
        command: Command,
        until: SimInstant,
    ) -> Result<Decided<Response>, String> {
        let decided = self.through_leader(Question::Propose(command), until).await?;
        match decided.answer {
            Reply::Response(answer) => Ok(Decided { answer, repeated: decided.repeated }),
            Reply::Index(_) => Err("an index is no response".to_owned()),
        }
    }

    /// Decides `command` if this replica leads in `term`, however long that takes.
    pub(crate) async fn propose_as_leader(&self, term: u64, command: Command) -> Option<Response> {
        loop {
            let office = *self.office_now();
            let office = office.filter(|office| office.term == term)?;
            match self.write(&office, command.clone(), None).await {
                Attempt::Answered(response) => {
                    if planted::is(Bug::AnswerBeforeCommit) {
                        // Who asks again until its state shows it would ask for ever at the same instant.
                        sleep_ms(RETRY_PAUSE_MS).await;
                    }
                    return Some(response);
                }
                Attempt::Retry(_) => sleep_ms(RETRY_PAUSE_MS).await,
                Attempt::Stopped => return None,
            }
        }
    }

    fn office_now(&self) -> Box<Option<super::Office>> {
        use openraft::async_runtime::WatchSender;
        Box::new(*self.office.borrow_watched())
    }

    /// Reads what was decided before the call, at least.
    pub(crate) async fn read<T>(
        self: &Arc<Self>,
        until: SimInstant,
        read: impl FnOnce(&State) -> T + Send,
    ) -> Result<T, String> {
        let index = match self.through_leader(Question::ReadIndex, until).await?.answer {
            Reply::Index(index) => index,
            Reply::Response(_) => return Err("a response is no index".to_owned()),
        };
        let mut applied = self.machine.watch_applied();
        let caught_up = applied.wait_until_ge(&index);
        match timeout(until.remaining(), caught_up).await {
            Some(Ok(_)) => Ok(self.read_local(read)),
            Some(Err(_)) => Err("the replica has stopped".to_owned()),
            None => Err(format!("this replica has not caught up to entry {index}")),
        }
    }

    async fn through_leader(
        self: &Arc<Self>,
        question: Question,
        until: SimInstant,
    ) -> Result<Decided<Reply>, String> {
        let mut repeated = false;
        loop {
            let seat = self.seat();
            let attempt = self.ask(&question, seat, until);
            let why = match timeout(until.remaining(), attempt).await {
                Some(Attempt::Answered(answer)) => return Ok(Decided { answer, repeated }),
                Some(Attempt::Stopped) => return Err("the replica has stopped".to_owned()),
                Some(Attempt::Retry(why)) => why,
                None => return Err(format!("no answer in time, with the leader {seat:?}")),
            };
            if self.raft.metrics().borrow_watched().running_state.is_err() {
                return Err("the replica has stopped".to_owned());
            }
            repeated |= seat != Seat::Nowhere;
            let pause = Duration::from_millis(RETRY_PAUSE_MS).min(until.remaining());
            timeout(pause, self.leaves(seat)).await;
            if until.remaining().is_zero() {
                return Err(why);
            }
        }
    }

    async fn ask(self: &Arc<Self>, question: &Question, seat: Seat, until: SimInstant) -> Attempt<Reply> {
        match seat {
            Seat::Nowhere => {
                // Without a leader nothing is to be asked; the next look is at the next change.
                timeout(until.remaining(), self.leaves(seat)).await;
                Attempt::Retry("there is no leader".to_owned())
            }
            Seat::Here { term } => tokio::select! {
                biased;
                attempt = self.here(question.clone(), term) => attempt,
                () = self.leaves(seat) => Attempt::Retry("this replica stopped leading".to_owned()),
            },
            Seat::There { term, place } => tokio::select! {
                biased;
                attempt = self.there(question.clone(), term, place, until.remaining()) => attempt,
                () = self.leaves(seat) => Attempt::Retry("the leader changed".to_owned()),
            },
        }
    }

    async fn there(
        self: &Arc<Self>,
        question: Question,
        term: u64,
        place: usize,
        remaining: Duration,
    ) -> Attempt<Reply> {
        let Question::Propose(command) = question else {
            let ask = |leader: Arc<Self>| async move { leader.read_index().await };
            return self.ask_there(term, place, remaining, ask).await;
        };
        let ask = |leader: Arc<Self>| async move { Attempt::Answered(leader.turns().taken()) };
        let since = match self.ask_there(term, place, remaining, ask).await {
            Attempt::Answered(taken) => taken,
            Attempt::Retry(why) => return Attempt::Retry(why),
            Attempt::Stopped => return Attempt::Stopped,
        };
        let ask = move |leader: Arc<Self>| {
            let command = command.clone();
            async move { leader.decide_here(command, term, Some(since)).await }
        };
        self.ask_there(term, place, remaining, ask).await
    }

    /// Asks the replica in another place, which leads in `term`.
    async fn ask_there<T: Send + 'static, F: Future<Output = Attempt<T>> + Send>(
        self: &Arc<Self>,
        term: u64,
        place: usize,
        remaining: Duration,
        ask: impl Fn(Arc<Self>) -> F + Send + Sync + 'static,
    ) -> Attempt<T> {
        let limit = remaining.min(MAX_QUESTION);
        let cluster = self.cluster();
        let ask = Arc::new(ask);
        let serve = move |leader: Arc<Self>| {
            let ask = ask.clone();
            async move {
                if cluster.is_none() || leader.cluster() != cluster {
                    return Attempt::Retry("it belongs to another cluster, or to none yet".to_owned());
                }
                if leader.seat() != (Seat::Here { term }) {
                    return Attempt::Retry(format!("it does not lead in term {term}"));
                }
                let answer = timeout(limit, ask(leader)).await;
                answer.unwrap_or_else(|| Attempt::Retry("no quorum answered in time".to_owned()))
            }
        };
        match self.world.call_on_connection(Endpoint::Replica(self.place), place, limit, serve).await {
            Ok(Attempt::Stopped) => Attempt::Retry("the leader has stopped".to_owned()),
            Ok(attempt) => attempt,
            Err(NoAnswer::Refused) => Attempt::Retry("connection refused".to_owned()),
            Err(NoAnswer::Silence) => Attempt::Retry("no answer".to_owned()),
        }
    }

    async fn here(&self, question: Question, term: u64) -> Attempt<Reply> {
        match question {
            Question::Propose(command) => self.decide_here(command, term, None).await,
            Question::ReadIndex => self.read_index().await,
        }
    }

    async fn decide_here(&self, command: Command, term: u64, since: Option<u64>) -> Attempt<Reply> {
        let Some(office) = self.office_in(term).await else {
            return Attempt::Retry(format!("this replica does not lead in term {term}"));
        };
        match self.write(&office, command, since).await {
            Attempt::Answered(response) => Attempt::Answered(Reply::Response(response)),
            Attempt::Retry(why) => Attempt::Retry(why),
            Attempt::Stopped => Attempt::Stopped,
        }
    }

    async fn read_index(&self) -> Attempt<Reply> {
        if planted::is(Bug::NoLeaseCheck) {
            let applied = self.machine.last().map_or(0, |last| last.index);
            return Attempt::Answered(Reply::Index(applied));
        }
        match self.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read_at, _)) => Attempt::Answered(Reply::Index(read_at.index())),
            Err(error) => Attempt::Retry(error.to_string()),
        }
    }
}
