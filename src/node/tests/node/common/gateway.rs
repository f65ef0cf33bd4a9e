//! The controllers' gateway, scripted: says what it is told to, and remembers what it heard.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use node::TlsFiles;
use proto::node::v1::node_gateway_server::{NodeGateway, NodeGatewayServer};
use proto::node::v1::{
    AttachmentPhase, DescribeVolumesReply, DescribeVolumesRequest, LeaderOrder, NodeAttachment, NodeReport,
    PermitConnectReply, PermitConnectRequest, RegisterReply, RegisterRequest, ReportDisconnectedReply,
    ReportDisconnectedRequest, VolumeDescription,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status, Streaming};

/// What the gateway heard, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Heard {
    Register(RegisterRequest),
    Permit(PermitConnectRequest),
    Disconnected(ReportDisconnectedRequest),
}

/// What it is to answer next, instead of yes.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// As if it were not scripted.
    Yes,
    /// The attachment does not stand.
    DoesNotStand(&'static str),
    /// To a registration: this boot has come to be on record meanwhile.
    OtherBoot(&'static str),
    /// An error.
    Error(Code, &'static str),
}

/// What the scripted ledger says of a volume.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Standing {
    Unknown,
    NotAttached,
    Granted,
    Revoking,
}

#[derive(Default)]
struct Script {
    heard: Vec<Heard>,
    /// For permits and reports, in order; `yes` when there is none left.
    answers: VecDeque<Answer>,
    /// For registrations.
    register_answers: VecDeque<Answer>,
    /// The boot on record.
    present_boot: Option<String>,
    /// What permits and reports get as long as it is set.
    always: Option<Answer>,
    /// What the ledger says of volumes; of all others, that they are granted.
    ledger: BTreeMap<String, Standing>,
    /// Overrules it for the next questions, one each.
    next_descriptions: VecDeque<Standing>,
    /// Descriptions get this error as long as it is set.
    undescribed: Option<Code>,
    /// How often everything was to be described.
    looks: usize,
    /// Whether sessions are refused, and how.
    no_session: Option<Code>,
    /// What the nodes reported, over all sessions.
    reports: Vec<NodeReport>,
    /// How many sessions there have been.
    sessions: usize,
    /// The way to the node in the latest one.
    orders: Option<mpsc::Sender<Result<LeaderOrder, Status>>>,
}

/// The gateway.
pub(crate) struct Gateway {
    address: SocketAddr,
    files: TempDir,
    script: Arc<Mutex<Script>>,
    /// One is taken for each permit: none left makes them wait.
    pub(crate) turns: Arc<Semaphore>,
    /// The same for descriptions.
    pub(crate) describe_turns: Arc<Semaphore>,
}

impl Gateway {
    /// A gateway that says yes.
    pub(crate) async fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let tls = certificates(files.path());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(Script::default()));
        let turns = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let describe_turns = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let service =
            Scripted { script: script.clone(), turns: turns.clone(), describe_turns: describe_turns.clone() };
        tokio::spawn(
            Server::builder()
                .tls_config(tls)
                .unwrap()
                .add_service(NodeGatewayServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Self { address, files, script, turns, describe_turns }
    }

    /// Where it answers.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// What a node needs to speak to it.
    pub(crate) fn node_files(&self) -> TlsFiles {
        let file = |name: &str| -> PathBuf { self.files.path().join(name) };
        TlsFiles {
            ca: file("ca.pem"),
            cert: Some(file("node.pem")),
            key: Some(file("node.key")),
            token_file: None,
        }
    }

    /// The answers to the next permits and reports.
    pub(crate) fn next(&self, answers: impl IntoIterator<Item = Answer>) {
        self.script.lock().unwrap().answers.extend(answers);
    }

    /// The answers to the next registrations.
    pub(crate) fn next_registrations(&self, answers: impl IntoIterator<Item = Answer>) {
        self.script.lock().unwrap().register_answers.extend(answers);
    }

    /// Puts a boot of the node on record.
    pub(crate) fn record_boot(&self, boot: &str) {
        self.script.lock().unwrap().present_boot = Some(boot.to_owned());
    }

    /// The answer to every permit and report from now on.
    pub(crate) fn always(&self, answer: Option<Answer>) {
        self.script.lock().unwrap().always = answer;
    }

    /// What the ledger says of the volume from now on.
    pub(crate) fn ledger(&self, volume: &str, standing: Standing) {
        self.script.lock().unwrap().ledger.insert(volume.to_owned(), standing);
    }

    /// What the ledger says, of whatever volumes, to the next questions.
    pub(crate) fn next_descriptions(&self, standings: impl IntoIterator<Item = Standing>) {
        self.script.lock().unwrap().next_descriptions.extend(standings);
    }

    /// How many of these are still to be said.
    pub(crate) fn descriptions_left(&self) -> usize {
        self.script.lock().unwrap().next_descriptions.len()
    }

    /// Whether descriptions fail, and how.
    pub(crate) fn undescribed(&self, code: Option<Code>) {
        self.script.lock().unwrap().undescribed = code;
    }

    /// How often everything on the node was asked about.
    pub(crate) fn looks(&self) -> usize {
        self.script.lock().unwrap().looks
    }

    /// Whether sessions are refused from now on, and how.
    pub(crate) fn no_session(&self, code: Option<Code>) {
        self.script.lock().unwrap().no_session = code;
    }

    /// What was reported, over all sessions.
    pub(crate) fn reports(&self) -> Vec<NodeReport> {
        self.script.lock().unwrap().reports.clone()
    }

    /// How many sessions there have been.
    pub(crate) fn sessions(&self) -> usize {
        self.script.lock().unwrap().sessions
    }

    /// Orders something in the latest session.
    pub(crate) fn order(&self, order: LeaderOrder) {
        self.script.lock().unwrap().orders.as_ref().expect("a session").try_send(Ok(order)).unwrap();
    }

    /// Ends the latest session.
    pub(crate) fn end_session(&self) {
        self.script.lock().unwrap().orders = None;
    }

    /// What it heard since it was last asked, without registrations. It does not list descriptions.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        let heard = std::mem::take(&mut self.script.lock().unwrap().heard);
        heard.into_iter().filter(|what| !matches!(what, Heard::Register(_))).collect()
    }

    /// All that it heard since it was last asked.
    pub(crate) fn heard_all(&self) -> Vec<Heard> {
        std::mem::take(&mut self.script.lock().unwrap().heard)
    }
}

struct Scripted {
    script: Arc<Mutex<Script>>,
    turns: Arc<Semaphore>,
    describe_turns: Arc<Semaphore>,
}

impl Scripted {
    fn hear(&self, what: Heard) -> Option<Answer> {
        let mut script = self.script.lock().unwrap();
        let is_registration = matches!(what, Heard::Register(_));
        script.heard.push(what);
        if is_registration {
            return script.register_answers.pop_front();
        }
        let next = script.answers.pop_front();
        next.or_else(|| script.always.clone())
    }
}

#[tonic::async_trait]
impl NodeGateway for Scripted {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterReply>, Status> {
        let answer = self.hear(Heard::Register(request.get_ref().clone()));
        let mut script = self.script.lock().unwrap();
        match answer {
            Some(Answer::Error(code, reason)) => return Err(Status::new(code, reason)),
            Some(Answer::OtherBoot(boot)) => script.present_boot = Some(boot.to_owned()),
            Some(Answer::Yes | Answer::DoesNotStand(_)) | None => {}
        }
        let RegisterRequest { boot_id, replaces_boot_id, .. } = request.into_inner();
        let present = script.present_boot.get_or_insert_with(|| boot_id.clone());
        if *present == replaces_boot_id {
            *present = boot_id;
        }
        Ok(Response::new(RegisterReply { present_boot_id: present.clone() }))
    }

    async fn permit_connect(
        &self,
        request: Request<PermitConnectRequest>,
    ) -> Result<Response<PermitConnectReply>, Status> {
        let answer = self.hear(Heard::Permit(request.into_inner()));
        self.turns.acquire().await.unwrap().forget();
        match answer {
            Some(Answer::Yes) | None => {
                Ok(Response::new(PermitConnectReply { stands: true, reason: String::new() }))
            }
            Some(Answer::DoesNotStand(reason)) => {
                Ok(Response::new(PermitConnectReply { stands: false, reason: reason.to_owned() }))
            }
            Some(Answer::OtherBoot(_)) => panic!("no answer to a permit"),
            Some(Answer::Error(code, reason)) => Err(Status::new(code, reason)),
        }
    }

    async fn report_disconnected(
        &self,
        request: Request<ReportDisconnectedRequest>,
    ) -> Result<Response<ReportDisconnectedReply>, Status> {
        match self.hear(Heard::Disconnected(request.into_inner())) {
            Some(Answer::Error(code, reason)) => Err(Status::new(code, reason)),
            Some(Answer::Yes | Answer::DoesNotStand(_) | Answer::OtherBoot(_)) | None => {
                Ok(Response::new(ReportDisconnectedReply {}))
            }
        }
    }

    type SessionStream = ReceiverStream<Result<LeaderOrder, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<NodeReport>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (sender, orders) = mpsc::channel(16);
        {
            let mut script = self.script.lock().unwrap();
            if let Some(code) = script.no_session {
                return Err(Status::new(code, "no session"));
            }
            script.sessions += 1;
            script.orders = Some(sender);
        }
        let (mut reports, script) = (request.into_inner(), self.script.clone());
        tokio::spawn(async move {
            while let Ok(Some(report)) = reports.message().await {
                script.lock().unwrap().reports.push(report);
            }
        });
        Ok(Response::new(ReceiverStream::new(orders)))
    }

    async fn describe_volumes(
        &self,
        request: Request<DescribeVolumesRequest>,
    ) -> Result<Response<DescribeVolumesReply>, Status> {
        let volume_ids = request.into_inner().volume_ids;
        self.script.lock().unwrap().looks += 1;
        self.describe_turns.acquire().await.unwrap().forget();
        let mut script = self.script.lock().unwrap();
        if let Some(code) = script.undescribed {
            return Err(Status::new(code, "no description"));
        }
        let next = script.next_descriptions.pop_front();
        let describe = |volume_id: &String| {
            let standing = next.or_else(|| script.ledger.get(volume_id).copied());
            description(volume_id, standing.unwrap_or(Standing::Granted))
        };
        let volumes = volume_ids.iter().map(describe).collect();
        Ok(Response::new(DescribeVolumesReply { volumes }))
    }
}

fn description(volume_id: &str, standing: Standing) -> VolumeDescription {
    let phase = match standing {
        Standing::Unknown | Standing::NotAttached => None,
        Standing::Granted => Some(AttachmentPhase::Granted),
        Standing::Revoking => Some(AttachmentPhase::Revoking),
    };
    VolumeDescription {
        volume_id: volume_id.to_owned(),
        known: standing != Standing::Unknown,
        attachment: phase.map(|phase| NodeAttachment { generation: 42, phase: phase.into() }),
    }
}

/// Makes an authority, a controller's and a node's certificate; the node's files go to `directory`.
fn certificates(directory: &Path) -> ServerTlsConfig {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca = authority.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(authority, key);
    let signed = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    let (node, node_key) = signed("node-a");
    for (name, text) in [("ca.pem", &ca), ("node.pem", &node), ("node.key", &node_key)] {
        std::fs::write(directory.join(name), text).unwrap();
    }
    let (controller, controller_key) = signed("rds-csi");
    ServerTlsConfig::new()
        .identity(Identity::from_pem(controller, controller_key))
        .client_ca_root(Certificate::from_pem(ca))
        .timeout(Duration::from_secs(10))
}
