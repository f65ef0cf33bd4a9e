//! Calls that may hang in the kernel, as they do when a device's path is lost: each on a thread of its own, with a
//! time limit.
//!
//! A thread that hangs cannot be taken back. Where the same question is asked again and again, as kubelet asks for
//! statistics, [`Pending`] has at most one thread hang on each path.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::MountError;

/// Does `work`, and stops waiting for it after `limit_ms`.
pub(super) async fn within<T: Send + 'static>(
    limit_ms: u64,
    action: &'static str,
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, MountError> {
    match timeout(Duration::from_millis(limit_ms), spawn_blocking(work)).await {
        Err(_) => Err(MountError::OutOfTime { path: path.to_path_buf(), limit_ms }),
        Ok(Err(broken_off)) => Err(MountError::io(action, path)(io::Error::other(broken_off))),
        Ok(Ok(result)) => result.map_err(MountError::io(action, path)),
    }
}

/// Paths that a look has not come back from.
#[derive(Debug, Clone, Default)]
pub(super) struct Pending(Arc<Mutex<BTreeSet<PathBuf>>>);

impl Pending {
    /// As [`within`]; out of time at once while an earlier look at `path` still hangs.
    pub(super) async fn within<T: Send + 'static>(
        &self,
        limit_ms: u64,
        action: &'static str,
        path: &Path,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, MountError> {
        let Some(look) = Look::begin(self, path) else {
            return Err(MountError::OutOfTime { path: path.to_path_buf(), limit_ms });
        };
        let work = move || {
            let _until_it_is_back = look;
            work()
        };
        within(limit_ms, action, path, work).await
    }
}

/// A look that goes on.
struct Look {
    pending: Pending,
    path: PathBuf,
}

impl Look {
    fn begin(pending: &Pending, path: &Path) -> Option<Self> {
        // The set is whole whatever happened to who held the lock.
        let mut paths = pending.0.lock().unwrap_or_else(PoisonError::into_inner);
        paths.insert(path.to_path_buf()).then(|| Self { pending: pending.clone(), path: path.to_path_buf() })
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        self.pending.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn one_look_at_a_path_hangs_at_most() {
        let (pending, path) = (Pending::default(), Path::new("/hangs"));
        let (go_on, waits) = mpsc::channel::<()>();
        let (ended, has_ended) = mpsc::channel::<()>();
        let hangs = move || {
            waits.recv().ok();
            drop(ended);
            Ok(())
        };
        let look = pending.within(20, "look at", path, hangs).await;
        assert!(matches!(look, Err(MountError::OutOfTime { limit_ms: 20, .. })));
        let second = pending.within(60_000, "look at", path, || Ok(())).await;
        assert!(matches!(second, Err(MountError::OutOfTime { .. })), "a second thread was started");
        pending.within(60_000, "look at", Path::new("/other"), || Ok(())).await.unwrap();

        go_on.send(()).unwrap();
        has_ended.recv().unwrap_err();
        // The look is over a moment after its work.
        while pending.within(60_000, "look at", path, || Ok(())).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
}
