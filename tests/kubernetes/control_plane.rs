//! etcd, kube-apiserver and kube-controller-manager, as a small cluster has them.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rand::distr::{Alphanumeric, SampleString};
use tests::requests::eventually_within;

use crate::api::{Api, write_kubeconfig};
use crate::authority::Authority;
use crate::network::{GATEWAY, SERVICES};
use crate::program::{Program, built};

/// Where the API server listens, beside the pods' gateway.
const PORT: u16 = 6443;
/// How long the API server may take until it is ready, in milliseconds. On a busy machine it takes 20 s.
const READY_MS: u64 = 120_000;
/// The length of the tokens of administrators.
const TOKEN_LENGTH: usize = 32;

/// Of kube-controller-manager, what deals with volumes, with the chart's own objects, and with what these need.
const CONTROLLERS: &[&str] = &[
    "persistentvolume-binder-controller",
    "persistentvolume-attach-detach-controller",
    "persistentvolume-expander-controller",
    "persistentvolume-protection-controller",
    "persistentvolumeclaim-protection-controller",
    "statefulset-controller",
    "daemonset-controller",
    "job-controller",
    "disruption-controller",
    "endpointslice-controller",
    "serviceaccount-controller",
    "root-ca-certificate-publisher-controller",
    "garbage-collector-controller",
];

/// The processes, and the way to them as an administrator.
pub(crate) struct ControlPlane {
    pub(crate) api: Api,
    /// Where the API server is.
    pub(crate) address: SocketAddr,
    pub(crate) programs: Vec<Program>,
}

impl ControlPlane {
    /// Starts it with its state in `directory`, and returns when the API server is ready.
    pub(crate) async fn start(directory: &Path, logs: &Path) -> Result<Self> {
        let address = SocketAddr::new(GATEWAY, PORT);
        let authority = Authority::make(&directory.join("certificates"), GATEWAY)?;
        let (admin, manager) = (token(), token());
        let tokens = directory.join("tokens.csv");
        let lines = format!(
            "{admin},admin,admin,\"system:masters\"\n{manager},system:kube-controller-manager,manager,\n"
        );
        fs::write(&tokens, lines).context("write the tokens")?;
        let mut programs = vec![etcd(directory, logs)?, api_server(&authority, &tokens, logs)?];
        let api = Api::new(address, &authority.certificate, &admin);
        let ready = eventually_within(READY_MS, "the API server is ready", async || {
            let answer = api.ask("GET", "/readyz", None).await?;
            ensure!(answer.status == 200, "{}", answer.message());
            Ok(())
        });
        if let Err(error) = ready.await {
            let logs: Vec<_> = programs.iter().map(Program::log_end).collect();
            return Err(error.context(logs.join("\n")));
        }
        let kubeconfig = directory.join("manager.conf");
        write_kubeconfig(&kubeconfig, address, &authority.certificate, &manager)?;
        programs.push(controller_manager(&authority, &kubeconfig, logs)?);
        Ok(Self { api, address, programs })
    }
}

fn token() -> String {
    Alphanumeric.sample_string(&mut rand::rng(), TOKEN_LENGTH)
}

fn etcd(directory: &Path, logs: &Path) -> Result<Program> {
    let mut command = Command::new(built("etcd")?);
    // Nothing of it outlives the run.
    command.args(["--log-level=warn", "--unsafe-no-fsync"]).arg("--data-dir").arg(directory.join("etcd"));
    Program::start("etcd", command, logs)
}

fn api_server(authority: &Authority, tokens: &Path, logs: &Path) -> Result<Program> {
    let mut command = Command::new(built("kube-apiserver")?);
    let file = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
    command.args([
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        format!("--advertise-address={GATEWAY}"),
        format!("--secure-port={PORT}"),
        format!("--service-cluster-ip-range={SERVICES}"),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        file("service-account-key-file", &authority.token_public_key),
        file("service-account-signing-key-file", &authority.token_key),
        file("tls-cert-file", &authority.server_certificate),
        file("tls-private-key-file", &authority.server_key),
        file("token-auth-file", tokens),
    ]);
    Program::start("kube-apiserver", command, logs)
}

fn controller_manager(authority: &Authority, kubeconfig: &Path, logs: &Path) -> Result<Program> {
    let mut command = Command::new(built("kube-controller-manager")?);
    let file = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
    command.args([
        file("kubeconfig", kubeconfig),
        file("root-ca-file", &authority.certificate),
        file("service-account-private-key-file", &authority.token_key),
        format!("--controllers={}", CONTROLLERS.join(",")),
        "--use-service-account-credentials=true".to_owned(),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
    ]);
    Program::start("kube-controller-manager", command, logs)
}
