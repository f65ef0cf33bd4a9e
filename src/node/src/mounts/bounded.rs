//! Calls that may hang in the kernel, as they do when a device's path is lost: each on a thread of its own, with a
//! time limit.
//!
//! A thread that hangs cannot be taken back. Where the same question is asked again and again, as kubelet asks for
//! statistics, [`Pending`] has at most one thread hang on each path.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::MountError;
use crate::own_thread::{self, Unfinished};
use crate::under_way::UnderWay;

/// What the threads are called.
const THREAD: &str = "look";

/// Does `work`, and stops waiting for it after `limit_ms`.
pub(crate) async fn within<T: Send + 'static>(
    limit_ms: u64,
    action: &'static str,
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, MountError> {
    let failed = |unfinished| match unfinished {
        Unfinished::OutOfTime { .. } => MountError::OutOfTime { path: path.to_path_buf(), limit_ms },
        Unfinished::Start(_) | Unfinished::BrokenOff => {
            MountError::io(action, path)(io::Error::other(unfinished))
        }
    };
    let result = own_thread::start(THREAD, work, drop).map_err(failed)?;
    let result = own_thread::wait(result, Duration::from_millis(limit_ms)).await.map_err(failed)?;
    result.map_err(MountError::io(action, path))
}

/// Paths that a look has not come back from.
#[derive(Debug, Clone, Default)]
pub(super) struct Pending(Arc<UnderWay<PathBuf>>);

impl Pending {
    /// As [`within`]; out of time at once while an earlier look at `path` still hangs.
    pub(super) async fn within<T: Send + 'static>(
        &self,
        limit_ms: u64,
        action: &'static str,
        path: &Path,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, MountError> {
        let Some(mark) = self.0.begin(path.to_path_buf()) else {
            return Err(MountError::OutOfTime { path: path.to_path_buf(), limit_ms });
        };
        let work = move || {
            let _until_it_is_back = mark;
            work()
        };
        within(limit_ms, action, path, work).await
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
