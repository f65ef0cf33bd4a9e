//! `rds-csi certificates`: an authority and the certificates of a cluster, kept as Secrets, for installations where
//! nobody else makes them (DESIGN.md, "Security").
//!
//! Life cycle of a run: the authority's Secret is read or made, then that of the controllers, then that of an operator,
//! then webhook configurations are told whom to believe. What is good is kept, so a run changes nothing that it need not,
//! and two runs at once agree: each Secret is written only as it was read, and looked at again if somebody else was there.
//! No key is ever printed.

mod make;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use observer::{Secrets, StoredSecret, WriteError};
use rustls::pki_types::DnsName;
use tokio::time::Instant;

use crate::certificates::Owner;
use crate::failure::Failure;
use make::{Authority, Material, Verdict, Wanted};

/// What the three parts are called in each Secret, as `kubernetes.io/tls` and cert-manager have it.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const AUTHORITIES: &str = "ca.crt";
/// Pause between two looks for a webhook configuration.
const WEBHOOK_POLL: Duration = Duration::from_secs(1);
/// How often a Secret is looked at again that somebody else wrote in between.
const TRIES: usize = 3;

/// What is to be made.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:
  rds-csi certificates --namespace storage --ca-secret rds-csi-ca --controller-secret rds-csi-controller-tls \\
      --operator-secret rds-csi-operator-tls --replicas rds-csi-controller --dns rds-csi-controller.storage.svc")]
pub struct CertificatesArguments {
    /// Where the Secrets are
    #[arg(long, value_name = "NAMESPACE")]
    namespace: String,
    /// The authority's Secret; only this program reads its key
    #[arg(long, value_name = "NAME")]
    ca_secret: String,
    /// The controllers' Secret
    #[arg(long, value_name = "NAME")]
    controller_secret: String,
    /// An operator's Secret, for `rds-csi ctl`
    #[arg(long, value_name = "NAME")]
    operator_secret: String,
    /// A Secret for the nodes, with the authority's certificate and no key: a node may read all of what its pods mount
    #[arg(long, value_name = "NAME")]
    node_secret: Option<String>,
    /// The controllers' StatefulSet: the certificate is good for its pods
    #[arg(long, value_name = "NAME", default_value = "rds-csi-controller")]
    replicas: String,
    /// A name under which the controllers are reached from outside, by the API server for instance; may be repeated
    #[arg(long, value_name = "NAME", required = true)]
    dns: Vec<String>,
    /// A webhook configuration of this name, validating or mutating, is told to believe the authority; may be repeated
    #[arg(long, value_name = "NAME")]
    webhook: Vec<String>,
    /// How long webhook configurations of either kind are waited for that are not there yet, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
    /// A simulated API server in place of the cluster that this pod runs in.
    #[arg(long, hide = true, value_name = "URL")]
    simulated_api_server: Option<String>,
}

impl CertificatesArguments {
    fn mistakes(&self) -> Vec<String> {
        let named = self.dns.iter().map(|name| ("--dns", name)).chain([("--replicas", &self.replicas)]);
        let wrong = named.filter(|(_, name)| DnsName::try_from(name.as_str()).is_err());
        let mut mistakes: Vec<String> =
            wrong.map(|(flag, name)| format!("{flag}: {name:?} is not a DNS name")).collect();
        let secrets: Vec<_> = [&self.ca_secret, &self.controller_secret, &self.operator_secret]
            .into_iter()
            .chain(&self.node_secret)
            .collect();
        if secrets.iter().enumerate().any(|(index, name)| secrets[..index].contains(name)) {
            mistakes.push(
                "--ca-secret, --controller-secret, --operator-secret, --node-secret: use different names"
                    .to_owned(),
            );
        }
        mistakes
    }
}

/// Makes what is missing, and says what it did.
pub async fn run(arguments: &CertificatesArguments) -> Result<(), Failure> {
    let mistakes = arguments.mistakes();
    if !mistakes.is_empty() {
        return Err(Failure::Usage(mistakes));
    }
    let client = match &arguments.simulated_api_server {
        Some(url) => observer::connect_as_nobody(url),
        None => observer::connect(),
    };
    let client = client.context("the Secrets cannot be reached")?;
    let secrets = Secrets::new(client.clone(), &arguments.namespace);
    let now = SystemTime::now();

    let authority = keep(&secrets, &arguments.ca_secret, |stored| {
        let (authority, verdict) = match stored {
            Some(stored) => Authority::open(&material(stored), now).with_context(|| {
                format!(
                    "Secret {} holds no authority that this program can use; remove it to have a new one made, whom \
                     nobody believes until the Secrets of all are renewed too",
                    arguments.ca_secret
                )
            })?,
            None => (Authority::create(now)?, Verdict::Missing),
        };
        let material = authority.material();
        Ok((authority, material, verdict))
    })
    .await?;
    let dns = std::iter::once(replica::SERVER_NAME.to_owned()).chain(arguments.dns.iter().cloned());
    let controllers = Wanted { owner: Owner::Replica(arguments.replicas.clone()), dns: dns.collect() };
    let operator = Wanted { owner: Owner::Operator("admin".to_owned()), dns: Vec::new() };
    for (name, wanted) in
        [(&arguments.controller_secret, controllers), (&arguments.operator_secret, operator)]
    {
        keep(&secrets, name, |stored| {
            let (material, verdict) = authority.leaf(&wanted, stored.map(material).as_ref(), now)?;
            Ok(((), material, verdict))
        })
        .await?;
    }
    if let Some(name) = &arguments.node_secret {
        let public = Material { key: String::new(), ..authority.material() };
        keep(&secrets, name, |stored| {
            let verdict = match stored.map(material) {
                None => Verdict::Missing,
                Some(stored) if stored == public => Verdict::Good,
                Some(_) => Verdict::OtherAuthorities,
            };
            Ok(((), public.clone(), verdict))
        })
        .await?;
    }
    let end = Instant::now() + Duration::from_secs(arguments.wait);
    for name in &arguments.webhook {
        trust(&client, name, authority.bundle(), end).await?;
    }
    Ok(())
}

/// Has the API server believe the webhooks of this name. Who installs all at once may make them last, one kind before the
/// other: both are waited for, and one is enough in the end.
async fn trust(client: &observer::Client, name: &str, bundle: &str, end: Instant) -> anyhow::Result<()> {
    loop {
        let found = observer::trust_webhooks(client, name, bundle.as_bytes()).await?;
        let (count, is_late) = (found.iter().sum::<usize>(), Instant::now() + WEBHOOK_POLL > end);
        if count > 0 && (is_late || !found.contains(&0)) {
            println!("webhook configuration {name}: {count} webhooks are believed");
            return Ok(());
        }
        if is_late {
            bail!(
                "there is no webhook configuration {name}, or no webhook in it; run this again once there is"
            );
        }
        tokio::time::sleep(WEBHOOK_POLL).await;
    }
}

/// What a Secret holds; what is missing is empty, and then no good.
fn material(stored: &StoredSecret) -> Material {
    let text = |key| String::from_utf8_lossy(stored.get(key).unwrap_or_default()).into_owned();
    Material { certificates: text(CERTIFICATE), key: text(KEY), authorities: text(AUTHORITIES) }
}

/// Reads a Secret, has its content judged or made, and writes it unless it is good as it is.
async fn keep<T>(
    secrets: &Secrets,
    name: &str,
    make: impl Fn(Option<&StoredSecret>) -> anyhow::Result<(T, Material, Verdict)>,
) -> anyhow::Result<T> {
    for _ in 0..TRIES {
        let stored = secrets.read(name).await?;
        let (made, material, verdict) = make(stored.as_ref())?;
        let until = make::holds_until(&material.certificates)?;
        if matches!(verdict, Verdict::Good) {
            println!("Secret {name}: kept; it holds until {until}");
            return Ok(made);
        }
        let files = BTreeMap::from([
            (CERTIFICATE, material.certificates.into_bytes()),
            (KEY, material.key.into_bytes()),
            (AUTHORITIES, material.authorities.into_bytes()),
        ]);
        match secrets.write(name, stored, &files).await {
            Ok(()) => {
                println!("Secret {name}: written, as {verdict}; it holds until {until}");
                return Ok(made);
            }
            Err(WriteError::Raced(_)) => {}
            Err(error @ WriteError::Refused { .. }) => return Err(anyhow!(error)),
        }
    }
    bail!("Secret {name} is written by somebody else again and again; run this once they are done")
}
