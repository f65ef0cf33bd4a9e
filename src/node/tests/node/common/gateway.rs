//! The controllers' gateway, scripted: says what it is told to, and remembers what it heard.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use node::TlsFiles;
use proto::node::v1::node_gateway_server::{NodeGateway, NodeGatewayServer};
use proto::node::v1::{
    PermitConnectReply, PermitConnectRequest, RegisterReply, RegisterRequest, ReportDisconnectedReply,
    ReportDisconnectedRequest,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status};

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
}

/// The gateway.
pub(crate) struct Gateway {
    address: SocketAddr,
    files: TempDir,
    script: Arc<Mutex<Script>>,
    /// One is taken for each permit: none left makes them wait.
    pub(crate) turns: Arc<Semaphore>,
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
        let service = Scripted { script: script.clone(), turns: turns.clone() };
        tokio::spawn(
            Server::builder()
                .tls_config(tls)
                .unwrap()
                .add_service(NodeGatewayServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Self { address, files, script, turns }
    }

    /// Where it answers.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// What a node needs to speak to it.
    pub(crate) fn node_files(&self) -> TlsFiles {
        let file = |name: &str| -> PathBuf { self.files.path().join(name) };
        TlsFiles { ca: file("ca.pem"), cert: file("node.pem"), key: file("node.key") }
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

    /// What it heard since it was last asked, without registrations.
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
