//! A cluster of real processes for one story.

use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::operator::v1::{ListVolumesRequest, Volume};
use rds_csi::certificates::CertificateFiles;
use rds_csi::dev::{Cluster, ClusterBuilder};
use rds_csi::http;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::Csi;
use crate::appliance::Appliance;
use crate::requests::{PATIENCE_MS, eventually, within};

/// Clusters that run at once: each has six processes that write to the same disk.
const CLUSTERS_AT_ONCE: usize = 2;

/// How long an operator's question may take, in milliseconds.
const QUESTION_MS: u64 = 5_000;

/// Lines of each log that a story which failed shows.
const LOG_LINES_SHOWN: usize = 40;

/// What a controller's certificate is checked for, wherever it runs.
pub const SERVER_NAME: &str = "rds-csi";

static TURNS: Semaphore = Semaphore::const_new(CLUSTERS_AT_ONCE);

/// A cluster that runs for one story: three controllers, two nodes, a simulated appliance.
#[derive(Debug)]
pub struct Lab {
    cluster: Cluster,
    _turn: SemaphorePermit<'static>,
}

impl Lab {
    /// Starts a cluster, tells the story on it, and looks whether every process lived to its end.
    ///
    /// If the story fails, the ends of all logs are printed.
    pub async fn tell(story: impl AsyncFnOnce(&mut Self) -> Result<()>) -> Result<()> {
        Self::tell_on(Cluster::builder(), story).await
    }

    /// The same on a cluster of another kind.
    pub async fn tell_on(
        builder: ClusterBuilder,
        story: impl AsyncFnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let turn = TURNS.acquire().await.context("no turn")?;
        let mut lab = Self { cluster: builder.start().await?, _turn: turn };
        let told = story(&mut lab).await.and_then(|()| lab.expect_all_alive());
        if told.is_err() {
            lab.print_logs();
        }
        told
    }

    fn processes(&self) -> Vec<String> {
        let mut names = vec![self.simulator().to_owned()];
        names.extend(self.controllers());
        names.extend(self.nodes());
        names
    }

    fn expect_all_alive(&mut self) -> Result<()> {
        for name in self.processes() {
            ensure!(self.pid(&name).is_some(), "{name} ended by itself");
        }
        Ok(())
    }

    fn print_logs(&self) {
        for name in self.processes() {
            let log = fs::read_to_string(self.log_path(&name)).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let shown = lines.get(lines.len().saturating_sub(LOG_LINES_SHOWN)..).unwrap_or_default();
            println!("--- the end of {name}'s log\n{}", shown.join("\n"));
        }
    }

    /// The CSI services of the controller `name`.
    pub fn csi(&self, name: &str) -> Result<Csi> {
        Ok(Csi::new(self.csi_controller(name)?, self.csi_identity(name)?))
    }

    /// The name of the controller that leads.
    pub async fn leader_name(&self) -> Result<String> {
        Ok(self.leader(Duration::from_millis(PATIENCE_MS)).await?.name)
    }

    /// The name of a controller that does not lead.
    pub async fn follower_name(&self) -> Result<String> {
        let leader = self.leader_name().await?;
        self.controllers().into_iter().find(|name| *name != leader).context("only the leader is there")
    }

    /// Starts `name` again and waits until it is ready.
    pub async fn start_again(&mut self, name: &str) -> Result<()> {
        self.start(name)?;
        self.wait_until_ready(name).await
    }

    /// Takes from a controller that does not run what it keeps on disk.
    pub fn wipe(&self, name: &str) -> Result<()> {
        let directory = self.state_directory(name);
        fs::remove_dir_all(&directory).with_context(|| format!("wipe {}", directory.display()))?;
        fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))
    }

    /// What the simulated appliance holds.
    pub fn appliance(&self) -> Result<Appliance> {
        Appliance::read(&self.state_directory(self.simulator()).join("state.json"))
    }

    /// The volumes in the ledger, as the leader reads it.
    pub async fn ledger(&self) -> Result<Vec<Volume>> {
        let mut operator = self.operator(&self.leader_name().await?)?;
        let request = within(Duration::from_millis(QUESTION_MS), ListVolumesRequest {});
        Ok(operator.list_volumes(request).await.context("list volumes")?.into_inner().volumes)
    }

    /// What the process serves at `/metrics`.
    pub async fn metrics(&self, name: &str) -> Result<String> {
        let settings: toml::Table = fs::read_to_string(self.config_path(name))?.parse()?;
        let address = settings.get("metrics_address").and_then(toml::Value::as_str).context("an address")?;
        Ok(http::get(address, "/metrics").await?.text())
    }

    /// Waits until nothing is left to do, and ledger and appliance hold the same.
    pub async fn settle(&self) -> Result<()> {
        eventually("ledger and appliance agree", async || {
            self.appliance()?.expect_agrees(&self.ledger().await?)
        })
        .await
    }

    /// Fails unless all replicas have applied the same entries, and are in the same state.
    pub async fn expect_equal_replicas(&self) -> Result<()> {
        let mut seen = Vec::new();
        for name in self.controllers() {
            let status = self.status(&name).await?;
            seen.push((status.applied_index, status.state_hash));
        }
        ensure!(seen.windows(2).all(|pair| pair.first() == pair.last()), "applied index and hash: {seen:?}");
        Ok(())
    }

    /// Where the controller `name` serves peers, nodes and operators.
    pub fn address(&self, name: &str) -> Result<String> {
        controller_address(&self.cluster, name)
    }

    /// The directory of the cluster's own authority.
    pub fn certificates(&self) -> PathBuf {
        self.directory().join("certificates")
    }
}

impl Deref for Lab {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl DerefMut for Lab {
    fn deref_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }
}

/// Where the controller `name` of `cluster` serves peers, nodes and operators.
pub(crate) fn controller_address(cluster: &Cluster, name: &str) -> Result<String> {
    let text =
        fs::read_to_string(cluster.config_path(name)).with_context(|| format!("settings of {name}"))?;
    let settings: toml::Table = text.parse().with_context(|| format!("settings of {name}"))?;
    let listen = settings.get("listen").and_then(toml::Value::as_str);
    listen.map(str::to_owned).with_context(|| format!("{name} listens nowhere"))
}

/// A connection to a controller's port, as whoever the files say, or as nobody.
pub fn tls_channel(address: &str, authority: &Path, files: Option<&CertificateFiles>) -> Result<Channel> {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(fs::read(authority).context("read the authority")?))
        .domain_name(SERVER_NAME);
    if let Some(files) = files {
        let (cert, key) = (fs::read(&files.cert), fs::read(&files.key));
        tls = tls.identity(Identity::from_pem(
            cert.context("read the certificate")?,
            key.context("read the key")?,
        ));
    }
    Ok(Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?.connect_lazy())
}
