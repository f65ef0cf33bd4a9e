//! When a caller has to have its answer.

use std::time::{Duration, Instant};

use tonic::Request;

/// Kept back from the caller's time, so that our answer, with its reason, still reaches it.
const ANSWER_MARGIN: Duration = Duration::from_millis(100);

/// The caller's own limit, but no more than `longest`, less the time that the answer takes.
pub(crate) fn of<T>(request: &Request<T>, longest: Duration) -> Instant {
    let timeout = csi::caller_timeout(request.metadata()).map_or(longest, |timeout| timeout.min(longest));
    Instant::now() + timeout.saturating_sub(ANSWER_MARGIN)
}
