//! The token that a session was begun with, looked at again as long as the session lasts.
//!
//! A session outlives a token: so it is checked again with the first report that comes [`CHECKED_AGAIN`] after the last
//! check. If it is not valid any more, the session ends, and the node begins another one with its token of then. While
//! the API server cannot be asked, the session goes on: an outage changes nothing that was decided.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use state_machine::NodeId;
use tonic::{Code, Status};

use crate::node_callers::{NodeCallers, Shown};

/// How long a check of a session's token counts. A node whose plugin's pod was deleted may go on speaking for so long.
const CHECKED_AGAIN: Duration = Duration::from_secs(300);

/// Says whose the token is.
type Check = Arc<dyn Fn() -> BoxFuture<'static, Result<NodeId, Status>> + Send + Sync>;

/// The checks of one session.
pub(super) struct Recheck {
    node: NodeId,
    check: Check,
    checked_at: Instant,
    running: Option<BoxFuture<'static, Result<NodeId, Status>>>,
}

impl Recheck {
    /// For a session that the node begins now; none is needed for a certificate, which TLS holds to its connection.
    pub(super) fn of(shown: &Shown, node: &NodeId, callers: &NodeCallers) -> Option<Self> {
        let shown = match shown {
            Shown::Certificate(_) => return None,
            Shown::Token(_) => shown.clone(),
        };
        let callers = callers.clone();
        let check = move || -> BoxFuture<'static, Result<NodeId, Status>> {
            let (callers, shown) = (callers.clone(), shown.clone());
            Box::pin(async move { callers.node(&shown).await })
        };
        Some(Self::new(node.clone(), Arc::new(check), Instant::now()))
    }

    fn new(node: NodeId, check: Check, now: Instant) -> Self {
        Self { node, check, checked_at: now, running: None }
    }

    /// A report has come.
    pub(super) fn heard(&mut self, now: Instant) {
        if self.running.is_none() && now.saturating_duration_since(self.checked_at) >= CHECKED_AGAIN {
            self.checked_at = now;
            self.running = Some((self.check)());
        }
    }

    /// Goes on with a check that is under way. An error ends the session.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Result<(), Status> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let Poll::Ready(answer) = Pin::new(running).poll(context) else { return Ok(()) };
        self.running = None;
        let problem = match answer {
            Ok(node) if node == self.node => return Ok(()),
            Ok(other) => format!("the token speaks for {other} now"),
            Err(status) if status.code() == Code::Unavailable => {
                tracing::info!(node = %self.node, reason = status.message(), "a session's token was not checked again");
                return Ok(());
            }
            Err(status) => status.message().to_owned(),
        };
        tracing::info!(node = %self.node, reason = problem, "a session's token is over");
        Err(Status::unavailable("the token that the session was begun with is over; begin another one"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::task::Waker;

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::parse(name).unwrap()
    }

    /// Checks that answer this, one after the other, from the end.
    fn recheck(answers: Vec<Result<NodeId, Status>>, begun: Instant) -> Recheck {
        let answers = Arc::new(Mutex::new(answers));
        let check = move || -> BoxFuture<'static, Result<NodeId, Status>> {
            let answer = answers.lock().unwrap().pop().expect("one check too many");
            Box::pin(std::future::ready(answer))
        };
        Recheck::new(node("node-a"), Arc::new(check), begun)
    }

    fn heard(recheck: &mut Recheck, at: Instant) -> Result<(), Code> {
        recheck.heard(at);
        recheck.poll(&mut Context::from_waker(Waker::noop())).map_err(|status| status.code())
    }

    #[test]
    fn a_session_ends_with_its_token_and_not_with_the_api_server() {
        let begun = Instant::now();
        let answers = vec![
            Err(Status::unauthenticated("expired")),
            Err(Status::unavailable("no API server")),
            Ok(node("node-a")),
        ];
        let mut recheck = recheck(answers, begun);
        assert_eq!(heard(&mut recheck, begun + CHECKED_AGAIN / 2), Ok(()), "not checked yet");
        assert_eq!(heard(&mut recheck, begun + CHECKED_AGAIN), Ok(()), "valid");
        assert_eq!(heard(&mut recheck, begun + CHECKED_AGAIN * 3 / 2), Ok(()), "was checked just now");
        assert_eq!(heard(&mut recheck, begun + CHECKED_AGAIN * 2), Ok(()), "nobody knows");
        assert_eq!(heard(&mut recheck, begun + CHECKED_AGAIN * 3), Err(Code::Unavailable), "expired");
    }

    #[test]
    fn a_token_that_speaks_for_another_node_or_nobody_ends_the_session() {
        for answer in [Ok(node("node-b")), Err(Status::permission_denied("another account"))] {
            let begun = Instant::now();
            let mut recheck = recheck(vec![answer], begun);
            assert_eq!(heard(&mut recheck, begun + CHECKED_AGAIN), Err(Code::Unavailable));
        }
    }
}
