//! Bounds on what a run waits for: a harness that hangs says nothing.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::verdict;
use crate::history::History;

/// How long all processes may take to be ready.
pub(super) const START_LIMIT: Duration = Duration::from_secs(120);
/// How much longer than it is told to the nemesis may take: one fault with its healing.
pub(super) const STRIKE_LIMIT: Duration = Duration::from_secs(90);
/// How long the last reading of everything may take.
pub(super) const READING_LIMIT: Duration = Duration::from_secs(60);
/// How long those may take to end who only look, or who were told to.
pub(super) const END_LIMIT: Duration = Duration::from_secs(10);
/// How long the invariants may take: I7 searches, and each of its volumes has a bound of its own.
const JUDGING_LIMIT: Duration = Duration::from_secs(180);

/// Does the work, if it is done in time.
pub(super) async fn within<T>(
    what: &str,
    limit: Duration,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    timeout(limit, work).await.with_context(|| format!("{what} takes longer than {} s", limit.as_secs()))?
}

/// The broken invariants, in a sentence each. The judges never wait, so they have a thread, which is left alone if they
/// take too long.
pub(super) async fn judge(history: &Arc<History>) -> Result<Vec<String>> {
    let (sender, verdict) = oneshot::channel();
    let history = history.clone();
    // Nobody listens any more to a verdict that comes too late.
    thread::spawn(move || drop(sender.send(verdict::violations(&history))));
    within("judging", JUDGING_LIMIT, async { verdict.await.context("the judges died") }).await
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_hangs_is_given_up_and_named() {
        let hangs = within("waiting", Duration::from_secs(7), std::future::pending::<Result<()>>()).await;
        assert_eq!(hangs.unwrap_err().to_string(), "waiting takes longer than 7 s");
        assert_eq!(within("counting", Duration::from_secs(7), async { Ok(3) }).await.unwrap(), 3);
        let fails: Result<()> = within("failing", Duration::from_secs(7), async { bail!("no") }).await;
        assert_eq!(fails.unwrap_err().to_string(), "no");
    }

    #[tokio::test]
    async fn a_history_without_an_end_is_judged() {
        let found = judge(&Arc::new(History::default())).await.unwrap();
        assert!(found.iter().any(|what| what.contains("no final read")), "{found:?}");
    }
}
