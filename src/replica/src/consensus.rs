//! Consensus, as everything around it may ask it.

use openraft::RaftMetrics;
use openraft::alias::WatchReceiverOf;
use openraft::errors::Fatal;
use storage::{MachineStore, TypeConfig};

pub(crate) type Raft = openraft::Raft<TypeConfig, MachineStore>;
pub(crate) type Metrics = RaftMetrics<TypeConfig>;

/// Consensus, which is asked nothing by anyone who may stop listening.
///
/// Once openraft has ended, the first who asks it waits for that end on behalf of all others. If he is dropped meanwhile,
/// as a deadline passed or a connection ended, the others panic in openraft, or ask again and again without a pause. So
/// each question is a task of its own, which nobody drops.
pub(crate) struct Consensus {
    raft: Raft,
}

impl Consensus {
    pub(crate) fn new(raft: Raft) -> Self {
        Self { raft }
    }

    /// What is known of it, and each change.
    pub(crate) fn metrics(&self) -> WatchReceiverOf<TypeConfig, Metrics> {
        self.raft.metrics()
    }

    /// Asks. The question goes on without whoever asked it.
    pub(crate) async fn ask<Answer, Refusal, Asking>(
        &self,
        question: impl FnOnce(Raft) -> Asking,
    ) -> Result<Answer, Refusal>
    where
        Asking: Future<Output = Result<Answer, Refusal>> + Send + 'static,
        Answer: Send + 'static,
        Refusal: From<Fatal<TypeConfig>> + Send + 'static,
    {
        match tokio::spawn(question(self.raft.clone())).await {
            Ok(answer) => answer,
            Err(failed) if failed.is_panic() => Err(Fatal::Panicked.into()),
            Err(_) => Err(Fatal::Stopped.into()),
        }
    }

    /// Ends it; fine if it has ended.
    pub(crate) async fn end(&self) -> Result<(), Fatal<TypeConfig>> {
        self.ask(|raft| async move { raft.shutdown().await.map_err(|_| Fatal::Panicked) }).await
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use crate::testing::opened;

    /// openraft panics in those who ask after the first one to wait for its end was dropped.
    #[tokio::test]
    async fn who_asks_is_told_that_consensus_has_ended_though_the_first_to_hear_so_went_away() {
        let dir = tempfile::tempdir().unwrap();
        let inner = opened(dir.path()).await;
        let mut first = Box::pin(inner.consensus.end());
        let begun = poll_fn(|context| Poll::Ready(first.as_mut().poll(context))).await;
        assert!(begun.is_pending(), "it had ended at once: {begun:?}");
        drop(first);
        inner.metrics_reach(|seen| seen.running_state.is_err()).await;
        assert!(inner.report().await.is_none(), "a report of what has ended");
        inner.consensus.end().await.unwrap();
    }
}
