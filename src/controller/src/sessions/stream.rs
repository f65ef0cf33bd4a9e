//! A node's session on the wire: its reports in, the leader's orders out.
//!
//! A node speaks only for itself: each report names it, and has to name the bearer of the certificate or the token. The
//! stream has no task of its own: it lives in the connection, which ends with the session, or the session with it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use proto::node::v1;
use state_machine::NodeId;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::core::SessionId;
use super::recheck::Recheck;
use super::report::Report;
use super::shell::{NodeSessions, Orders};
use crate::node_callers::{NodeCallers, Shown};
use crate::node_gateway::own_node;

/// How long a node may take to say its first word.
const FIRST_REPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Reports that are taken before others of the process have their turn.
const REPORTS_A_TURN: usize = 8;

/// The answer to a node that began a session.
pub(crate) struct SessionStream {
    sessions: NodeSessions,
    session: SessionId,
    node: NodeId,
    reports: Streaming<v1::NodeReport>,
    orders: Orders,
    /// For a node that showed a token.
    recheck: Option<Recheck>,
    /// An order that the first report brought about.
    first: Option<v1::LeaderOrder>,
    over: bool,
}

impl NodeSessions {
    /// Takes the session that a node asks for, if this replica is in office. The first report decides.
    pub(crate) async fn serve(
        &self,
        request: Request<Streaming<v1::NodeReport>>,
        callers: &NodeCallers,
    ) -> Result<Response<SessionStream>, Status> {
        // Whoever it is has to be known before anything of it is waited for.
        let shown = Shown::by(&request)?;
        let caller = callers.node(&shown).await?;
        let mut reports = request.into_inner();
        let first = tokio::time::timeout(FIRST_REPORT_TIMEOUT, reports.message());
        let first = first.await.map_err(|_| Status::deadline_exceeded("nothing was reported"))??;
        let first = first.ok_or_else(|| Status::invalid_argument("nothing was reported"))?;
        let node = own_node(caller, &first.node_id)?;
        let report = Report::parse(first).map_err(Status::invalid_argument)?;
        let recheck = Recheck::of(&shown, &node, callers);
        let (session, orders) = self.begin(&node, report);
        let sessions = self.clone();
        let mut stream =
            SessionStream { sessions, session, node, reports, orders, recheck, first: None, over: false };
        // Nothing to be had, for the moment or for good, shows later.
        if let Ok(order) = stream.orders.try_recv() {
            stream.first = Some(order?);
        }
        Ok(Response::new(stream))
    }
}

impl SessionStream {
    fn hear(&mut self, message: v1::NodeReport) -> Result<(), Status> {
        if message.node_id != self.node.as_str() {
            tracing::warn!(node = %self.node, claimed = message.node_id, "refused: not this node");
            return Err(Status::permission_denied(format!("node {} may speak for itself only", self.node)));
        }
        let report = Report::parse(message).map_err(Status::invalid_argument)?;
        if let Some(recheck) = &mut self.recheck {
            recheck.heard(Instant::now());
        }
        self.sessions.hear(self.session, &self.node, report);
        Ok(())
    }

    fn end(&mut self, status: Option<Status>) -> Poll<Option<Result<v1::LeaderOrder, Status>>> {
        self.over = true;
        Poll::Ready(status.map(Err))
    }
}

impl Stream for SessionStream {
    type Item = Result<v1::LeaderOrder, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Some(order) = self.first.take() {
            return Poll::Ready(Some(Ok(order)));
        }
        let mut taken = 0;
        while taken < REPORTS_A_TURN {
            match Pin::new(&mut self.reports).poll_next(context) {
                Poll::Pending => break,
                Poll::Ready(None) => return self.end(None),
                Poll::Ready(Some(Err(status))) => return self.end(Some(status)),
                Poll::Ready(Some(Ok(message))) => {
                    if let Err(status) = self.hear(message) {
                        return self.end(Some(status));
                    }
                    taken += 1;
                }
            }
        }
        if let Some(Err(status)) = self.recheck.as_mut().map(|recheck| recheck.poll(context)) {
            return self.end(Some(status));
        }
        if taken == REPORTS_A_TURN {
            context.waker().wake_by_ref();
        }
        match Pin::new(&mut self.orders).poll_next(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(order))) => Poll::Ready(Some(Ok(order))),
            Poll::Ready(Some(Err(status))) => self.end(Some(status)),
            Poll::Ready(None) => {
                self.end(Some(Status::unavailable("the session is over; begin another one")))
            }
        }
    }
}

impl Drop for SessionStream {
    fn drop(&mut self) {
        self.sessions.end(self.session, &self.node);
    }
}
