//! Asks as a sidecar does: through any replica, with a limit, again and again while nobody knows the outcome. Each
//! attempt is an operation of the history.

use std::sync::Arc;
use std::time::Duration;

use proto::csi::v1::controller_client::ControllerClient;
use proto::csi::v1::volume_capability::access_mode::Mode;
use proto::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume};
use proto::csi::v1::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest, CreateVolumeRequest,
    VolumeCapability,
};
use proto::operator::v1::GetVolumeRequest;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rds_csi::dev::requests::{self, Context, within};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::history::{Answer, Micros, Operation, Request, VolumeRead};
use crate::processes::lab::Lab;

/// How long one attempt may take.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(8);
/// How much later than that an answer may come.
const ATTEMPT_SLACK: Duration = Duration::from_millis(500);
/// Pause between two attempts, in ms.
const RETRY_MS: std::ops::Range<u64> = 30..300;
/// How long an answer is insisted on: longer than all faults of a run in a row keep it from coming.
const PATIENCE: Duration = Duration::from_secs(120);
/// One request in so many is made twice at once, through two replicas.
const TWINS_ONE_IN: u32 = 10;
/// Pause between the two of [`Customer::ask_both`], in ms: the first is under way by then, and often not done.
const HASTE_MS: std::ops::Range<u64> = 10..150;
/// What is added to a client's number for the second one of such a pair.
const TWIN: u32 = 1_000;
/// A class whose migrations are overdue as soon as a class may say.
const CLASS: (&str, &str) = ("migrationTimeoutSeconds", "30");

/// A client.
pub(super) struct Customer {
    id: u32,
    pub(super) lab: Arc<Lab>,
    pub(super) random: StdRng,
    stop: CancellationToken,
}

/// What came back, with the volume context if it was a creation.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) answer: Answer,
    pub(super) volume_context: Context,
}

impl Customer {
    pub(super) fn new(id: u32, lab: Arc<Lab>, seed: u64, stop: CancellationToken) -> Self {
        Self { id, lab, random: StdRng::seed_from_u64(seed), stop }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Waits so long, or until the run is over.
    pub(super) async fn pause(&mut self, range_ms: std::ops::Range<u64>) {
        let pause = Duration::from_millis(self.random.random_range(range_ms));
        tokio::select! {
            () = sleep(pause) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Asks until somebody knows the outcome; none if nobody does in time, which a healed cluster is to be blamed for.
    pub(super) async fn insist(&mut self, request: &Request, shared: bool) -> Option<Reply> {
        let give_up = Instant::now() + PATIENCE;
        while Instant::now() < give_up {
            if let Some(reply) = self.ask(request, shared).await
                && !matches!(reply.answer, Answer::Unknown(_))
            {
                return Some(reply);
            }
            sleep(Duration::from_millis(self.random.random_range(RETRY_MS))).await;
        }
        let limit = PATIENCE.as_secs();
        self.lab.recorder.trouble(format!("client {}: no answer to {request:?} in {limit} s", self.id));
        None
    }

    /// One attempt each, the second one begun while the first is still under way; the second one's reply.
    pub(super) async fn ask_both(
        &mut self,
        first: &Request,
        second: &Request,
        shared: bool,
    ) -> Option<Reply> {
        let (through, csi) = self.lab.doors.any_csi(&mut self.random, None)?;
        let (beside, other_csi) = self.lab.doors.any_csi(&mut self.random, None)?;
        let first = attempt(&self.lab, self.id, &through, csi, first, shared);
        let haste = Duration::from_millis(self.random.random_range(HASTE_MS));
        let second = async {
            sleep(haste).await;
            attempt(&self.lab, self.id + TWIN, &beside, other_csi, second, shared).await
        };
        Some(tokio::join!(first, second).1)
    }

    /// One attempt, or two at once; none if no replica serves its socket.
    pub(super) async fn ask(&mut self, request: &Request, shared: bool) -> Option<Reply> {
        let (through, csi) = self.lab.doors.any_csi(&mut self.random, None)?;
        let first = attempt(&self.lab, self.id, &through, csi, request, shared);
        let twin = match self.random.random_ratio(1, TWINS_ONE_IN) {
            true => self.lab.doors.any_csi(&mut self.random, Some(&through)),
            false => None,
        };
        let Some((beside, csi)) = twin else { return Some(first.await) };
        let second = attempt(&self.lab, self.id + TWIN, &beside, csi, request, shared);
        let (first, second) = tokio::join!(first, second);
        Some(if matches!(first.answer, Answer::Unknown(_)) { second } else { first })
    }
}

/// One call, recorded.
async fn attempt(
    lab: &Lab,
    client: u32,
    through: &str,
    csi: ControllerClient<Channel>,
    request: &Request,
    shared: bool,
) -> Reply {
    let started = lab.recorder.now();
    let mut unheard = Unheard { lab, client, started, request: Some(request.clone()) };
    let sent = timeout(ATTEMPT_LIMIT + ATTEMPT_SLACK, send(lab, through, csi, request, shared)).await;
    let (reply, answered) = match sent {
        Ok(Ok(reply)) => (reply, true),
        Ok(Err(status)) => {
            // A status with a source is of a connection that broke: nobody has answered.
            let answered = std::error::Error::source(&status).is_none();
            let answer = of_status(request, &status, answered);
            (Reply { answer, volume_context: Context::new() }, answered)
        }
        Err(_) => {
            let answer = Answer::Unknown("no answer in time".to_owned());
            (Reply { answer, volume_context: Context::new() }, false)
        }
    };
    let ended = answered.then(|| lab.recorder.now());
    if let Some(request) = unheard.request.take() {
        let answer = reply.answer.clone();
        lab.recorder.operation(Operation { client, started, ended, request, answer });
    }
    reply
}

/// A call whose client may be ended while it waits: what was asked for may happen all the same.
struct Unheard<'a> {
    lab: &'a Lab,
    client: u32,
    started: Micros,
    /// None once the call is over and recorded.
    request: Option<Request>,
}

impl Drop for Unheard<'_> {
    fn drop(&mut self) {
        let Some(request) = self.request.take() else { return };
        let (client, started) = (self.client, self.started);
        let answer = Answer::Unknown("the client was ended".to_owned());
        self.lab.recorder.operation(Operation { client, started, ended: None, request, answer });
    }
}

async fn send(
    lab: &Lab,
    through: &str,
    mut csi: ControllerClient<Channel>,
    request: &Request,
    shared: bool,
) -> Result<Reply, Status> {
    let mut volume_context = Context::new();
    let answer = match request {
        Request::Create { volume, size_bytes, .. } => {
            let message = CreateVolumeRequest {
                volume_capabilities: vec![capability(shared)],
                parameters: [(CLASS.0.to_owned(), CLASS.1.to_owned())].into(),
                ..requests::create(volume, as_signed(*size_bytes))
            };
            let made = csi.create_volume(within(ATTEMPT_LIMIT, message)).await?.into_inner().volume;
            volume_context = made.map(|made| made.volume_context).unwrap_or_default();
            Answer::Ok
        }
        Request::Delete { volume } => {
            csi.delete_volume(within(ATTEMPT_LIMIT, requests::delete(volume))).await.map(ok)?
        }
        Request::Publish { volume, node } => {
            let message = ControllerPublishVolumeRequest {
                volume_capability: Some(capability(shared)),
                ..requests::publish(volume, node, &Context::new())
            };
            let reply = csi.controller_publish_volume(within(ATTEMPT_LIMIT, message)).await?;
            Answer::Published(reply.into_inner().publish_context)
        }
        Request::Unpublish { volume, node } => {
            let message = within(ATTEMPT_LIMIT, requests::unpublish(volume, node));
            csi.controller_unpublish_volume(message).await.map(ok)?
        }
        Request::Expand { volume, size_bytes } => {
            let message = ControllerExpandVolumeRequest {
                volume_id: volume.clone(),
                capacity_range: Some(CapacityRange {
                    required_bytes: as_signed(*size_bytes),
                    limit_bytes: 0,
                }),
                ..ControllerExpandVolumeRequest::default()
            };
            csi.controller_expand_volume(within(ATTEMPT_LIMIT, message)).await.map(ok)?
        }
        Request::Read { volume } => {
            // The operator's reads are linearizable, and show those that are being revoked too.
            let operator = lab.doors.operator(through);
            let mut operator = operator.map_err(|error| Status::internal(error.to_string()))?;
            let message = GetVolumeRequest { id: volume.clone(), with_history: false };
            match operator.get_volume(within(ATTEMPT_LIMIT, message)).await {
                Ok(reply) => {
                    let found = reply.into_inner();
                    let nodes = found.attachments.into_iter().map(|one| one.node_id).collect();
                    Answer::Read(Some(VolumeRead { size_bytes: found.size_bytes, nodes }))
                }
                Err(status) if status.code() == Code::NotFound => Answer::Read(None),
                Err(status) => return Err(status),
            }
        }
    };
    Ok(Reply { answer, volume_context })
}

fn ok<T>(_: Response<T>) -> Answer {
    Answer::Ok
}

fn as_signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// As a block device, on two nodes while a VM migrates, or on one.
fn capability(shared: bool) -> VolumeCapability {
    let mode = if shared { Mode::MultiNodeMultiWriter } else { Mode::SingleNodeWriter };
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    }
}

/// What a status means to the caller.
fn of_status(request: &Request, status: &Status, answered: bool) -> Answer {
    let code = format!("{:?}", status.code());
    let is_final = match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Unauthenticated => true,
        // Of an unpublish it may be said after the revocation was recorded: the node may lose the volume later.
        Code::FailedPrecondition => !matches!(request, Request::Unpublish { .. }),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => false,
    };
    if is_final && answered { Answer::Refused(code) } else { Answer::Unknown(code) }
}
