//! The node's line to the controllers: TLS to any replica that answers, which knows the node by its certificate or by its
//! token (`credentials`).
//!
//! Life cycle: channels are made at start and connect when first used, again and again. A question goes to the
//! replica that answered last, then to the others in turn, until one answers or the time is up. "No decision" is
//! never taken for an answer.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proto::node::v1::node_gateway_client::NodeGatewayClient;
use proto::node::v1::{
    DescribeVolumesRequest, PermitConnectRequest, RegisterRequest, ReportDisconnectedRequest,
};
use state_machine::{BootId, Generation, NodeMoment, VolumeId};
use thiserror::Error;
use tls::{Expiry, Files, OwnFiles, Tls, TlsError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::config::TlsFiles;
use crate::credentials::Credentials;
use crate::identity::NodeIdentity;
use crate::ledger::Described;
use crate::line::{connector, with_limits};

/// The name in every controller's certificate.
const CONTROLLER_NAME: &str = "rds-csi";
/// How long one replica may take to answer before another is asked, in ms: longer than an election.
const ATTEMPT_LIMIT_MS: u64 = 5_000;
/// Pause after all replicas were asked in vain, in ms.
const ROUND_PAUSE_MS: u64 = 200;
/// How long one round of registering may take, in ms.
const REGISTER_LIMIT_MS: u64 = 10_000;
/// First and longest pause between rounds of registering, in ms.
const REGISTER_PAUSE_MS: (u64, u64) = (100, 5_000);
/// How often in one round the node registers, each time to replace the boot that it was just told of: once without
/// knowing any, once knowing, and once more if that has changed meanwhile.
const REGISTER_TRIES: usize = 3;
/// How many volumes the controllers describe at once.
const DESCRIBED_AT_ONCE: usize = 256;

/// Why the controllers gave no usable answer.
#[derive(Debug, Error)]
pub(crate) enum GatewayError {
    /// None decided in time.
    #[error("no controller answered in time ({last}); try again")]
    NoAnswer {
        /// What the last one asked said.
        last: String,
    },
    /// The node is not registered, or spoke of a moment that has passed.
    #[error("the controllers ask the node to look again ({reason}); try again")]
    LookAgain {
        /// What they said.
        reason: String,
    },
    /// They have another boot of this node on record, and keep it.
    #[error("the controllers have boot {present:?} of this node on record, and not boot {own}; try again")]
    OtherBoot {
        /// The boot on record, in their words.
        present: String,
        /// The boot that this is.
        own: BootId,
    },
    /// They will not hear the question.
    #[error("the controllers refused ({code:?}): {reason}")]
    Refused {
        /// Their code.
        code: Code,
        /// What they said.
        reason: String,
    },
}

/// Why the channels could not be made.
#[derive(Debug, Error)]
#[error("cannot prepare the line to the controllers: {0}")]
pub struct LineError(#[from] TlsError);

/// Whether the attachment stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Permission {
    /// The node may connect.
    Stands,
    /// It may not, for this reason.
    Refused(String),
}

/// A client of one replica.
pub(crate) type Client = NodeGatewayClient<InterceptedService<Channel, Credentials>>;

#[derive(Debug)]
struct Replica {
    address: String,
    client: Client,
}

/// The controllers, as this node asks them.
#[derive(Debug)]
pub(crate) struct Gateway {
    identity: NodeIdentity,
    replicas: Vec<Replica>,
    /// Index of the replica that answered last.
    preferred: AtomicUsize,
    registered: watch::Sender<bool>,
    tls: Tls,
}

impl Gateway {
    /// The line to the controllers at these `host:port` addresses. Needs a runtime; connects nowhere yet.
    pub(crate) fn new(
        identity: NodeIdentity,
        controllers: &[String],
        tls: &TlsFiles,
    ) -> Result<Self, LineError> {
        let credentials = Credentials { token_file: tls.token_file.clone() };
        let own = tls.cert.clone().zip(tls.key.clone()).map(|(cert, key)| OwnFiles { cert, key });
        let tls = Tls::follow(Files { ca: tls.ca.clone(), own })?;
        let replicas = controllers.iter().map(|address| {
            let channel = tls.channel(CONTROLLER_NAME, address, connector(), with_limits)?;
            let line = InterceptedService::new(channel, credentials.clone());
            Ok(Replica { address: address.clone(), client: Client::new(line) })
        });
        let replicas = replicas.collect::<Result<Vec<_>, LineError>>()?;
        let (registered, _) = watch::channel(false);
        Ok(Self { identity, replicas, preferred: AtomicUsize::new(0), registered, tls })
    }

    /// Until when the certificates of the line hold.
    pub(crate) fn certificates(&self) -> Expiry {
        self.tls.expiry()
    }

    /// Whether the controllers know this node in its present boot.
    pub(crate) fn is_registered(&self) -> bool {
        *self.registered.borrow()
    }

    /// Waits until the controllers know this node in its present boot.
    pub(crate) async fn wait_until_registered(&self) {
        // The sender lives as long as `self`: there is no other way out of the wait.
        self.registered.subscribe().wait_for(|registered| *registered).await.ok();
    }

    /// Registers the node whenever it is not registered, however long that takes, until `stop` is cancelled.
    pub(crate) async fn keep_registered(&self, stop: CancellationToken) {
        let mut registered = self.registered.subscribe();
        let keep = async {
            while registered.wait_for(|registered| !registered).await.is_ok() {
                self.register_at_last().await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = keep => {}
        }
    }

    async fn register_at_last(&self) {
        let (mut pause_ms, longest_ms) = REGISTER_PAUSE_MS;
        let mut said = String::new();
        while let Err(error) = self.register(Instant::now() + Duration::from_millis(REGISTER_LIMIT_MS)).await
        {
            let (node, text) = (&self.identity.node, error.to_string());
            match error {
                // Only people can resolve this, so it is said at each try: nothing can be staged here until then.
                GatewayError::Refused { .. } => {
                    let NodeIdentity { boot, host_nqn, .. } = &self.identity;
                    tracing::error!(
                        %node, %boot, %host_nqn, error = text,
                        "the controllers refuse to register this node, and no volume can be staged here: does \
                         another machine bear its name, or did its host NQN change while connections may live?"
                    );
                }
                GatewayError::NoAnswer { .. }
                | GatewayError::LookAgain { .. }
                | GatewayError::OtherBoot { .. } => {
                    if text != said {
                        tracing::warn!(%node, error = text, "not registered yet");
                    }
                }
            }
            said = text;
            sleep(Duration::from_millis(pause_ms)).await;
            pause_ms = (pause_ms * 2).min(longest_ms);
        }
    }

    /// Makes the node known to the controllers, in its present boot.
    pub(crate) async fn register(&self, until: Instant) -> Result<(), GatewayError> {
        let answer = self.replace_boot(until).await;
        self.registered.send_replace(answer.is_ok());
        if answer.is_ok() {
            let NodeIdentity { node, boot, host_nqn, max_volumes } = &self.identity;
            tracing::info!(%node, %boot, %host_nqn, max_volumes, "registered with the controllers");
        }
        answer
    }

    /// Registers until this boot is the one on record. Each request names the boot that it replaces: delivered late,
    /// when there is a later one, it changes nothing.
    async fn replace_boot(&self, until: Instant) -> Result<(), GatewayError> {
        let own = &self.identity.boot;
        let mut present = String::new();
        for _ in 0..REGISTER_TRIES {
            let request = RegisterRequest {
                node_id: self.identity.node.to_string(),
                boot_id: own.to_string(),
                host_nqn: self.identity.host_nqn.to_string(),
                max_volumes: self.identity.max_volumes,
                replaces_boot_id: present,
            };
            let asked = self.ask(until, |mut client, limit| {
                let request = with_limit(request.clone(), limit);
                async move { client.register(request).await }
            });
            present = asked.await?.present_boot_id;
            if present == own.as_str() {
                return Ok(());
            }
            tracing::info!(node = %self.identity.node, boot = %own, present, "another boot is on record");
        }
        Err(GatewayError::OtherBoot { present, own: own.clone() })
    }

    /// Asks whether the attachment of this generation stands, so that the node may connect.
    pub(crate) async fn permit_connect(
        &self,
        volume: &VolumeId,
        generation: Generation,
        moment: &NodeMoment,
        until: Instant,
    ) -> Result<Permission, GatewayError> {
        let request = PermitConnectRequest {
            node_id: self.identity.node.to_string(),
            boot_id: moment.boot.to_string(),
            volume_id: volume.to_string(),
            generation: generation.0,
            since_boot_ns: moment.since_boot_ns,
        };
        let asked = self.ask(until, |mut client, limit| {
            let request = with_limit(request.clone(), limit);
            async move { client.permit_connect(request).await }
        });
        let answer = asked.await?;
        Ok(if answer.stands { Permission::Stands } else { Permission::Refused(answer.reason) })
    }

    /// Says that at `moment` this node was neither connected to the volume nor connecting.
    pub(crate) async fn report_disconnected(
        &self,
        volume: &VolumeId,
        moment: &NodeMoment,
        until: Instant,
    ) -> Result<(), GatewayError> {
        let request = ReportDisconnectedRequest {
            node_id: self.identity.node.to_string(),
            boot_id: moment.boot.to_string(),
            volume_id: volume.to_string(),
            since_boot_ns: moment.since_boot_ns,
        };
        let asked = self.ask(until, |mut client, limit| {
            let request = with_limit(request.clone(), limit);
            async move { client.report_disconnected(request).await }
        });
        asked.await.map(|_| ())
    }

    /// Asks what the ledger says of these volumes.
    pub(crate) async fn describe(
        &self,
        volumes: &[VolumeId],
        until: Instant,
    ) -> Result<Described, GatewayError> {
        let mut described = Described::default();
        for part in volumes.chunks(DESCRIBED_AT_ONCE) {
            let request = DescribeVolumesRequest {
                node_id: self.identity.node.to_string(),
                volume_ids: part.iter().map(ToString::to_string).collect(),
            };
            let asked = self.ask(until, |mut client, limit| {
                let request = with_limit(request.clone(), limit);
                async move { client.describe_volumes(request).await }
            });
            let taken = described.take(part, asked.await?);
            taken.map_err(|reason| GatewayError::NoAnswer { last: format!("unreadable: {reason}") })?;
        }
        Ok(described)
    }

    /// A client of each replica, by its address, that of the last answer first.
    pub(crate) fn clients(&self) -> Vec<(String, Client)> {
        let mut clients: Vec<_> =
            self.replicas.iter().map(|replica| (replica.address.clone(), replica.client.clone())).collect();
        clients.rotate_left(self.preferred.load(Ordering::Relaxed));
        clients
    }

    /// Asks the replicas in turn until one answers or it is `until`.
    async fn ask<T, F>(&self, until: Instant, call: impl Fn(Client, Duration) -> F) -> Result<T, GatewayError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut last = "there was no time to ask".to_owned();
        loop {
            let first = self.preferred.load(Ordering::Relaxed);
            for turn in 0..self.replicas.len() {
                let index = (first + turn) % self.replicas.len();
                let replica = &self.replicas[index];
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(GatewayError::NoAnswer { last });
                }
                let limit = left.min(Duration::from_millis(ATTEMPT_LIMIT_MS));
                last = match timeout(limit, call(replica.client.clone(), limit)).await {
                    Err(_) => format!("{}: no answer within {} ms", replica.address, limit.as_millis()),
                    Ok(answer) => match classify(answer) {
                        Verdict::Answer(answer) => {
                            self.preferred.store(index, Ordering::Relaxed);
                            return answer;
                        }
                        Verdict::AskAnother(reason) => format!("{}: {reason}", replica.address),
                    },
                };
                tracing::debug!(reason = last, "asking another controller");
            }
            sleep_until(until.min(Instant::now() + Duration::from_millis(ROUND_PAUSE_MS))).await;
        }
    }
}

enum Verdict<T> {
    Answer(Result<T, GatewayError>),
    AskAnother(String),
}

/// Which answers decide something. Everything that is no decision is asked elsewhere.
fn classify<T>(answer: Result<Response<T>, Status>) -> Verdict<T> {
    let status = match answer {
        Ok(response) => return Verdict::Answer(Ok(response.into_inner())),
        Err(status) => status,
    };
    let reason = status.message().to_owned();
    match status.code() {
        Code::NotFound | Code::Aborted => Verdict::Answer(Err(GatewayError::LookAgain { reason })),
        code @ (Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::AlreadyExists
        | Code::OutOfRange
        | Code::Unimplemented) => Verdict::Answer(Err(GatewayError::Refused { code, reason })),
        code @ (Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated) => Verdict::AskAnother(format!("{code:?}: {reason}")),
    }
}

fn with_limit<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}
