//! What happens to every request before and after its service: a bound on how many run, and one log line each.
//!
//! The line has the method, the code and the time taken, and the status's sentence if it is an error. Messages
//! are never logged, so secrets in them are not either.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::{Code, Status};

/// Requests that may run at once. The sidecars' own limits add up to less; beyond it, callers try again.
pub(crate) const MAX_REQUESTS_IN_FLIGHT: usize = 512;

/// Probes and questions of who we are: always let in, and not worth a line while they succeed.
const IDENTITY_PREFIX: &str = "/csi.v1.Identity/";

/// Counts and logs the requests on their way to `inner`.
#[derive(Debug, Clone)]
pub(crate) struct Requests<S> {
    inner: S,
    free: Arc<Semaphore>,
}

impl<S> Requests<S> {
    pub(crate) fn new(inner: S, max_in_flight: usize) -> Self {
        Self { inner, free: Arc::new(Semaphore::new(max_in_flight)) }
    }
}

impl<S> Service<http::Request<Body>> for Requests<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let line = RequestLine::begin(request.uri().path());
        let permit = if line.is_identity() { None } else { Some(self.free.clone().try_acquire_owned()) };
        if let Some(Err(_)) = permit {
            let refusal = Status::unavailable("too many requests are running; try again");
            line.end(refusal.code(), refusal.message());
            return Box::pin(async move { Ok(refusal.into_http()) });
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let _permit = permit;
            let response = answer.await?;
            // All our RPCs are unary: an error is in the head, and without one the call succeeded.
            match Status::from_header_map(response.headers()) {
                Some(status) => line.end(status.code(), status.message()),
                None => line.end(Code::Ok, ""),
            }
            Ok(response)
        })
    }
}

/// Writes its line when it goes, so that a request that was dropped midway has one too.
struct RequestLine {
    method: String,
    begun: Instant,
    /// `None` until there is an answer: then the caller left, or its time was up.
    status: Option<(Code, String)>,
}

impl RequestLine {
    fn begin(method: &str) -> Self {
        Self { method: method.to_owned(), begun: Instant::now(), status: None }
    }

    fn end(mut self, code: Code, reason: &str) {
        self.status = Some((code, reason.to_owned()));
    }

    fn is_identity(&self) -> bool {
        self.method.starts_with(IDENTITY_PREFIX)
    }

    fn is_routine(&self) -> bool {
        self.is_identity() || self.method.ends_with("GetCapabilities")
    }
}

impl Drop for RequestLine {
    fn drop(&mut self) {
        let method = self.method.as_str();
        let duration_ms = self.begun.elapsed().as_secs_f64() * 1000.0;
        match &self.status {
            None => tracing::info!(method, code = "dropped", duration_ms, "request"),
            Some((Code::Ok, _)) if self.is_routine() => {
                tracing::debug!(method, code = ?Code::Ok, duration_ms, "request");
            }
            Some((Code::Ok, _)) => tracing::info!(method, code = ?Code::Ok, duration_ms, "request"),
            Some((code, reason)) => tracing::info!(method, ?code, duration_ms, ?reason, "request"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::{Ready, pending, ready};
    use std::io::{self, Write};
    use std::sync::Mutex;

    use super::*;

    /// Answers with a fixed status, or never.
    #[derive(Clone)]
    struct Inner(Option<Status>);

    impl Service<http::Request<Body>> for Inner {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<Body>) -> Self::Future {
            match &self.0 {
                Some(status) => {
                    let answer: Ready<_> = ready(Ok(status.clone().into_http()));
                    Box::pin(answer)
                }
                None => Box::pin(pending()),
            }
        }
    }

    fn request(method: &str) -> http::Request<Body> {
        http::Request::builder().uri(format!("http://socket{method}")).body(Body::empty()).unwrap()
    }

    fn code_of(response: Result<http::Response<Body>, Infallible>) -> Code {
        Status::from_header_map(response.unwrap().headers()).unwrap().code()
    }

    #[tokio::test]
    async fn only_so_many_requests_run_and_probes_always_do() {
        let mut requests = Requests::new(Inner(Some(Status::not_found("x"))), 1);
        assert_eq!(code_of(requests.call(request("/csi.v1.Node/NodeStageVolume")).await), Code::NotFound);

        let held = requests.call(request("/csi.v1.Node/NodeStageVolume"));
        assert_eq!(code_of(requests.call(request("/csi.v1.Node/NodeStageVolume")).await), Code::Unavailable);
        assert_eq!(code_of(requests.call(request("/csi.v1.Identity/Probe")).await), Code::NotFound);

        drop(held);
        assert_eq!(code_of(requests.call(request("/csi.v1.Node/NodeStageVolume")).await), Code::NotFound);
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_request_has_one_line_even_if_its_caller_leaves() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            let mut context = Context::from_waker(std::task::Waker::noop());
            let refusal = Status::not_found("volume pvc-1 is not known");
            let mut answered = Requests::new(Inner(Some(refusal)), 1).call(request("/csi.v1.Node/A"));
            assert!(answered.as_mut().poll(&mut context).is_ready());
            let mut left = Requests::new(Inner(None), 1).call(request("/csi.v1.Node/B"));
            assert!(left.as_mut().poll(&mut context).is_pending());
            drop(left);
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        for (line, parts) in lines.iter().zip([["/csi.v1.Node/A", "NotFound"], ["/csi.v1.Node/B", "dropped"]])
        {
            assert!(parts.iter().all(|part| line.contains(part)) && line.contains("duration_ms"), "{line}");
        }
        assert!(lines[0].contains("volume pvc-1 is not known"), "{text}");
    }
}
