//! Calls that may hang in the kernel, each on a thread of its own.
//!
//! Such a call can neither be cancelled nor killed, only left. A thread of the runtime's pool would keep the runtime,
//! and with it the process, from ending in good order; one of these does not.

use std::io;
use std::thread;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Why there is no result.
#[derive(Debug, Error)]
pub(crate) enum Unfinished {
    /// There is no thread for it.
    #[error("cannot start a thread: {0}")]
    Start(io::Error),
    /// It goes on, and nobody waits for it any more.
    #[error("the kernel has not answered within {limit_ms} ms")]
    OutOfTime {
        /// How long it was waited for, in ms.
        limit_ms: u128,
    },
    /// The thread ended without a result.
    #[error("it was broken off")]
    BrokenOff,
}

/// Begins `work` on a thread of this name. A result that nobody waits for any more is given to `unheard`, on that
/// thread.
pub(crate) fn start<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
    unheard: impl FnOnce(T) + Send + 'static,
) -> Result<oneshot::Receiver<T>, Unfinished> {
    let (answer, result) = oneshot::channel();
    let run = move || {
        if let Err(result) = answer.send(work()) {
            unheard(result);
        }
    };
    thread::Builder::new().name(name.to_owned()).spawn(run).map_err(Unfinished::Start)?;
    Ok(result)
}

/// Waits for a result for at most `limit`. Either it is returned, or it goes to `unheard`: never neither.
pub(crate) async fn wait<T>(mut result: oneshot::Receiver<T>, limit: Duration) -> Result<T, Unfinished> {
    match timeout(limit, &mut result).await {
        Ok(result) => result.map_err(|_| Unfinished::BrokenOff),
        Err(_) => {
            result.close();
            result.try_recv().map_err(|_| Unfinished::OutOfTime { limit_ms: limit.as_millis() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn what_outlives_its_limit_is_not_lost() {
        let (go, gate) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let work = move || gate.recv().map(|()| "late");
        let result = start("hangs", work, move |late| tell.send(late).unwrap()).unwrap();
        let error = wait(result, Duration::from_millis(20)).await.unwrap_err();
        assert!(matches!(error, Unfinished::OutOfTime { limit_ms: 20 }), "{error}");
        go.send(()).unwrap();
        assert_eq!(told.recv().unwrap(), Ok("late"));
    }

    #[tokio::test]
    async fn a_panic_is_no_result() {
        let result = start("panics", || assert!(std::env::args().count() == 0), drop).unwrap();
        let error = wait(result, Duration::from_secs(20)).await.unwrap_err();
        assert!(matches!(error, Unfinished::BrokenOff), "{error}");
    }
}
