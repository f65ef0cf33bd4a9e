//! Operations on volumes: one at a time each, and never left half-done because a caller went away.
//!
//! Life cycle: an operation runs as a task of its own and holds its volume until it ends, even if kubelet hangs up
//! in the middle (a formatting tool that is killed halfway leaves what nobody dares to touch again). kubelet's
//! next try is told that it still runs. At the stop no new one begins, the running ones are waited for, and what
//! takes too long is cut off: nothing goes on after the plugin has ended.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use state_machine::{NodeId, VolumeId};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;
use crate::outcome::NodeError;

type Running = Arc<InProgress>;

/// The volumes with an operation.
#[derive(Debug, Default)]
struct InProgress {
    volumes: Mutex<BTreeSet<VolumeId>>,
    /// Keeps a wake-up until it is waited for.
    ended: Notify,
}

/// The operations of this node.
#[derive(Debug)]
pub(crate) struct Operations {
    node: NodeId,
    running: Running,
    tasks: TaskTracker,
    cut_off: CancellationToken,
    metrics: Metrics,
}

impl Operations {
    pub(crate) fn new(node: NodeId, metrics: Metrics) -> Self {
        let (running, tasks, cut_off) = (Running::default(), TaskTracker::new(), CancellationToken::new());
        Self { node, running, tasks, cut_off, metrics }
    }

    /// Runs `work` as the only operation on `volume`.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        volume: &VolumeId,
        work: impl Future<Output = Result<T, NodeError>> + Send + 'static,
    ) -> Result<T, NodeError> {
        if self.tasks.is_closed() {
            return Err(NodeError::Stopping);
        }
        let held =
            Held::take(&self.running, volume).ok_or_else(|| NodeError::Busy { volume: volume.clone() })?;
        let (metrics, node, volume_id) = (self.metrics.clone(), self.node.clone(), volume.clone());
        let cut_off = self.cut_off.clone();
        let task = self.tasks.spawn(async move {
            let _held = held;
            let begun = Instant::now();
            let result = tokio::select! {
                result = work => result,
                () = cut_off.cancelled() => Err(NodeError::Stopping),
            };
            let took = begun.elapsed();
            metrics.operation(operation, result.is_ok(), took);
            let duration_ms = took.as_secs_f64() * 1000.0;
            match &result {
                Ok(_) => tracing::info!(operation, volume = %volume_id, %node, duration_ms, "done"),
                Err(error) => {
                    tracing::warn!(operation, volume = %volume_id, %node, duration_ms, %error, "not done");
                }
            }
            result
        });
        task.await.unwrap_or_else(|_| Err(NodeError::BrokenOff { volume: volume.clone() }))
    }

    /// The volumes with an operation under way.
    pub(crate) fn running(&self) -> BTreeSet<VolumeId> {
        self.running.volumes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until an operation has ended since the last wait. For one waiter.
    pub(crate) async fn ended(&self) {
        self.running.ended.notified().await;
    }

    /// Lets no new operation begin, and waits for the running ones for `limit` before they are cut off.
    pub(crate) async fn drain(&self, limit: Duration) {
        self.tasks.close();
        if timeout(limit, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                running = self.tasks.len(),
                "operations are cut off by the stop; kubelet tries again"
            );
            self.cut_off.cancel();
            self.tasks.wait().await;
        }
    }
}

/// A volume with an operation running; free again when this goes.
struct Held {
    running: Running,
    volume: VolumeId,
}

impl Held {
    fn take(running: &Running, volume: &VolumeId) -> Option<Self> {
        // The set is whole whatever happened to who held the lock.
        let mut volumes = running.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        volumes.insert(volume.clone()).then(|| Self { running: running.clone(), volume: volume.clone() })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.running.volumes.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.volume);
        self.running.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Registry;
    use tokio::sync::oneshot;

    fn operations() -> Arc<Operations> {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        Arc::new(Operations::new(NodeId::parse("node-a").unwrap(), metrics))
    }

    fn volume(text: &str) -> VolumeId {
        VolumeId::parse(text).unwrap()
    }

    #[tokio::test]
    async fn one_operation_a_volume_at_a_time() {
        let operations = operations();
        let (go_on, waits) = oneshot::channel::<()>();
        let a = volume("a");
        let first = operations.run("stage", &a, async move {
            waits.await.ok();
            Ok(1)
        });
        let others = async {
            let second = operations.run("stage", &volume("a"), async { Ok(2) }).await;
            assert!(matches!(second, Err(NodeError::Busy { .. })));
            assert_eq!(operations.run("stage", &volume("b"), async { Ok(3) }).await.unwrap(), 3);
            go_on.send(()).unwrap();
        };
        let (first, ()) = tokio::join!(first, others);
        assert_eq!(first.unwrap(), 1);
        assert_eq!(operations.run("stage", &volume("a"), async { Ok(4) }).await.unwrap(), 4);
    }

    #[tokio::test]
    async fn an_operation_outlives_its_caller() {
        let operations = operations();
        let (go_on, waits) = oneshot::channel::<()>();
        let (done, is_done) = oneshot::channel::<()>();
        let a = volume("a");
        let call = operations.run("stage", &a, async move {
            waits.await.ok();
            done.send(()).ok();
            Ok(())
        });
        assert!(timeout(Duration::from_millis(20), call).await.is_err(), "the caller hangs up");
        let second = operations.run("stage", &volume("a"), async { Ok(()) }).await;
        assert!(matches!(second, Err(NodeError::Busy { .. })));
        go_on.send(()).unwrap();
        is_done.await.unwrap();
        operations.drain(Duration::from_secs(10)).await;
        let late = operations.run("stage", &volume("a"), async { Ok(()) }).await;
        assert!(matches!(late, Err(NodeError::Stopping)));
    }

    #[tokio::test]
    async fn what_takes_too_long_is_cut_off_by_the_stop() {
        let operations = operations();
        let (_never, waits) = oneshot::channel::<()>();
        let a = volume("a");
        let call = operations.run("stage", &a, async move { Ok(waits.await.ok()) });
        let both = async { tokio::join!(call, operations.drain(Duration::from_millis(20))) };
        let (result, ()) = timeout(Duration::from_secs(20), both).await.expect("the stop waits forever");
        assert!(matches!(result, Err(NodeError::Stopping)));
        assert!(operations.tasks.is_empty());
    }

    #[tokio::test]
    async fn a_volume_is_free_again_after_a_panic() {
        let operations = operations();
        let broken: Result<(), _> =
            operations.run("stage", &volume("a"), async { panic!("on purpose") }).await;
        assert!(matches!(broken, Err(NodeError::BrokenOff { .. })));
        operations.run("stage", &volume("a"), async { Ok(()) }).await.unwrap();
    }
}
