//! One question, put to one replica after the other until one answers.

use std::error::Error;
use std::time::Duration;

use proto::operator::v1::operator_client::OperatorClient;
use tokio::time::{Instant, timeout};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::access::Access;
use crate::failure::Failure;

/// What a question is put to.
pub(crate) type Client = OperatorClient<InterceptedService<Channel, Limit>>;

/// Tells the replica how long it may take, so that it can say why it did not answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit(Duration);

impl Interceptor for Limit {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.set_timeout(self.0);
        Ok(request)
    }
}

/// Largest answer, in bytes: some 10,000 volumes.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// How much longer a better answer is looked for once there is one, in ms for each replica.
const BETTER_ANSWER_MS: u64 = 500;

/// Asks until a replica answers, or `deadline` is over. A replica that cannot answer now gets no second try.
pub(crate) async fn ask<T>(
    access: &Access,
    deadline: Duration,
    question: impl AsyncFn(&mut Client) -> Result<Response<T>, Status>,
) -> Result<T, Failure> {
    ask_for_best(access, deadline, question, |_| true).await
}

/// Asks until a replica gives a best answer, or else takes the first one; for what some replicas know more of.
pub(crate) async fn ask_for_best<T>(
    access: &Access,
    deadline: Duration,
    question: impl AsyncFn(&mut Client) -> Result<Response<T>, Status>,
    is_best: impl Fn(&T) -> bool,
) -> Result<T, Failure> {
    let end = Instant::now() + deadline;
    let channels = access.channels();
    let mut left = channels.len();
    let mut first = None;
    let mut troubles = Vec::new();
    for (address, channel) in channels {
        // A replica that hangs must leave time for the others.
        let mut share = end.saturating_duration_since(Instant::now()) / u32::try_from(left).unwrap_or(1);
        if first.is_some() {
            share = share.min(Duration::from_millis(BETTER_ANSWER_MS));
        }
        left = left.saturating_sub(1);
        let client = OperatorClient::with_interceptor(channel, Limit(share));
        let mut client = client.max_decoding_message_size(MAX_ANSWER_BYTES);
        let status = match timeout(share, question(&mut client)).await {
            Ok(Ok(reply)) => {
                let reply = reply.into_inner();
                if is_best(&reply) {
                    return Ok(reply);
                }
                first.get_or_insert(reply);
                continue;
            }
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded(format!("no answer within {} ms", share.as_millis())),
        };
        if !may_another_know(status.code()) {
            return Err(anyhow::anyhow!("{address}: {}", describe(&status)).into());
        }
        troubles.push(format!("{address}: {}", describe(&status)));
    }
    first.ok_or_else(|| Failure::Unavailable(format!("no replica could answer\n{}", troubles.join("\n"))))
}

/// Whether the answer is one replica's trouble, not the cluster's word.
fn may_another_know(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}

/// A gRPC status for people: `NOT_FOUND: words`, with the reasons underneath.
pub(crate) fn describe(status: &Status) -> String {
    let mut text = code_name(status.code()).to_owned();
    if !status.message().is_empty() {
        text += ": ";
        text += status.message();
    }
    let mut reason = status.source();
    while let Some(error) = reason {
        let words = error.to_string();
        if !text.contains(&words) {
            text += ": ";
            text += &words;
        }
        reason = error.source();
    }
    text
}

/// A code's name in the gRPC specification.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::certificates::{Authority, Owner};
    use crate::ctl::AccessFile;

    fn access(directory: &std::path::Path, endpoints: &[&str]) -> Access {
        let authority = Authority::open_or_create(directory).unwrap();
        let files = authority.files(&Owner::Operator("test".to_owned()), "operator").unwrap();
        Access::load(&AccessFile {
            endpoints: endpoints.iter().map(|&text| text.to_owned()).collect(),
            ca: authority.certificate(),
            cert: files.cert,
            key: files.key,
        })
        .unwrap()
    }

    #[tokio::test]
    async fn the_next_replica_is_asked_where_one_cannot_answer() {
        let directory = tempfile::tempdir().unwrap();
        let access = access(directory.path(), &["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]);
        let asked = AtomicUsize::new(0);
        let question = async |_: &mut Client| match asked.fetch_add(1, Ordering::Relaxed) {
            0 => Err(Status::unavailable("no quorum")),
            1 => std::future::pending().await,
            _ => Ok(Response::new(42)),
        };
        assert_eq!(ask(&access, Duration::from_millis(300), question).await.unwrap(), 42);
    }

    #[tokio::test]
    async fn a_better_answer_wins_and_any_is_better_than_none() {
        let directory = tempfile::tempdir().unwrap();
        let access = access(directory.path(), &["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]);
        for (answers, best) in [([1, 7, 3], 7), ([1, 2, 3], 1)] {
            let asked = AtomicUsize::new(0);
            let question =
                async |_: &mut Client| Ok(Response::new(answers[asked.fetch_add(1, Ordering::Relaxed)]));
            let limit = Duration::from_secs(5);
            assert_eq!(ask_for_best(&access, limit, question, |answer| *answer > 5).await.unwrap(), best);
        }
    }

    #[tokio::test]
    async fn a_refusal_is_final_and_silence_is_unavailable() {
        let directory = tempfile::tempdir().unwrap();
        let access = access(directory.path(), &["127.0.0.1:1", "127.0.0.1:2"]);
        let asked = AtomicUsize::new(0);
        let refuse = async |_: &mut Client| -> Result<Response<()>, Status> {
            asked.fetch_add(1, Ordering::Relaxed);
            Err(Status::not_found("no such volume"))
        };
        let failure = ask(&access, Duration::from_secs(5), refuse).await.unwrap_err();
        assert_eq!(failure.to_string(), "127.0.0.1:1: NOT_FOUND: no such volume");
        assert_eq!((failure.exit_status(), asked.load(Ordering::Relaxed)), (1, 1));

        let silent =
            async |_: &mut Client| -> Result<Response<()>, Status> { Err(Status::unavailable("no quorum")) };
        let failure = ask(&access, Duration::from_secs(5), silent).await.unwrap_err();
        assert_eq!(failure.exit_status(), 3);
        let text = failure.to_string();
        assert!(
            text.contains("127.0.0.1:1: UNAVAILABLE: no quorum") && text.contains("127.0.0.1:2"),
            "{text}"
        );
    }
}
