//! The driver, its chart and the sidecars in a real Kubernetes, on one machine: `tests/kubernetes/run`.
//!
//! Real: etcd, kube-apiserver with RBAC and its admission, kube-controller-manager (which binds claims, makes
//! VolumeAttachments, and the pods of the chart's StatefulSet, DaemonSet and Job), csi-provisioner, csi-attacher,
//! csi-resizer, three controllers and three node plugins; the objects and settings that the chart renders, the tokens of
//! their ServiceAccounts, users without capabilities on read-only file systems.
//!
//! Not real: the appliance (`simulator`), NVMe (the `fake` fabric, the one setting that is changed), kubelet, whose
//! part [`kubelet`] and [`node`] play, the scheduler, kube-proxy, DNS, KubeVirt. Missing, because their sources
//! are not to be had as Go modules: node-driver-registrar and livenessprobe.
//!
//! Stories follow one another on one cluster, and print what they saw. The first failure ends the run.

mod api;
mod authority;
mod cluster;
mod control_plane;
mod hotplug;
mod install;
mod kubelet;
mod life_cycle;
mod migration;
mod network;
mod node;
mod objects;
mod program;
mod sidecars;
mod volumes;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tokio::time::timeout;

use cluster::Cluster;

/// How long all of it may take, in seconds. It takes 80 s on idle cores.
const RUN_LIMIT_S: u64 = 1_200;

/// A story that is told on the cluster.
#[derive(Debug, Clone, Copy)]
enum Story {
    LifeCycle,
    Migration,
    Sidecars,
    Hotplug,
}

impl Story {
    const ALL: [Self; 4] = [Self::LifeCycle, Self::Migration, Self::Sidecars, Self::Hotplug];

    fn name(self) -> &'static str {
        match self {
            Self::LifeCycle => "life-cycle",
            Self::Migration => "migration",
            Self::Sidecars => "sidecars",
            Self::Hotplug => "hotplug",
        }
    }

    async fn tell(self, cluster: &mut Cluster) -> Result<()> {
        match self {
            Self::LifeCycle => life_cycle::story(cluster).await,
            Self::Migration => migration::story(cluster).await,
            Self::Sidecars => sidecars::story(cluster).await,
            Self::Hotplug => hotplug::story(cluster).await,
        }
    }
}

/// What the command line says.
struct Arguments {
    /// Parts of the names of the stories to tell; none is all.
    words: Vec<String>,
    /// Whether only labelled nodes reach the appliance.
    has_topology: bool,
    /// Where logs are left.
    keep_logs: Option<PathBuf>,
}

impl Arguments {
    fn parse(words: impl Iterator<Item = String>) -> Result<Self> {
        let mut found = Self { words: Vec::new(), has_topology: false, keep_logs: None };
        let mut words = words;
        while let Some(word) = words.next() {
            match word.as_str() {
                "--keep-logs" => {
                    found.keep_logs = Some(words.next().context("--keep-logs: say where")?.into())
                }
                "--topology" => found.has_topology = true,
                flag if flag.starts_with('-') => {
                    anyhow::bail!("{flag}: only --topology and --keep-logs DIR are known")
                }
                _ => found.words.push(word),
            }
        }
        Ok(found)
    }

    fn stories(&self) -> Result<Vec<Story>> {
        let is_chosen = |story: &Story| {
            self.words.is_empty() || self.words.iter().any(|word| story.name().contains(word.as_str()))
        };
        let chosen: Vec<_> = Story::ALL.into_iter().filter(is_chosen).collect();
        let names = Story::ALL.map(Story::name).join(", ");
        anyhow::ensure!(!chosen.is_empty(), "{:?} choose no story; there are {names}", self.words);
        Ok(chosen)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let begun = Instant::now();
    let outcome = tokio::select! {
        run = timeout(Duration::from_secs(RUN_LIMIT_S), run()) => {
            run.unwrap_or_else(|_| Err(anyhow!("it takes more than {RUN_LIMIT_S} s")))
        }
        // The first process of a namespace has to ask for signals.
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted")),
    };
    let seconds = begun.elapsed().as_secs_f64();
    match outcome {
        Ok(stories) => {
            println!("tests/kubernetes: passed: the installation and {stories} stories in {seconds:.0} s");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("tests/kubernetes: FAILED after {seconds:.0} s: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<usize> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let stories = arguments.stories()?;
    let mut cluster = Cluster::start(arguments.has_topology).await.context("start Kubernetes")?;
    cluster.say("etcd, kube-apiserver and kube-controller-manager run");
    let told = tell_all(&mut cluster, &stories).await;
    if told.is_err() {
        println!("{}", cluster.log_ends());
    }
    if let Some(directory) = &arguments.keep_logs {
        copy_files(&cluster.logs(), directory).context("keep the logs")?;
    }
    told.map(|()| stories.len())
}

async fn tell_all(cluster: &mut Cluster, stories: &[Story]) -> Result<()> {
    install::story(cluster).await.context("the installation")?;
    for story in stories {
        cluster.say(&format!("--- {}", story.name()));
        story.tell(cluster).await.with_context(|| story.name())?;
        cluster.expect_alive().with_context(|| format!("after {}", story.name()))?;
        cluster.kubelet.expect_permitted().with_context(|| format!("RBAC, after {}", story.name()))?;
    }
    Ok(())
}

fn copy_files(from: &Path, into: &Path) -> Result<()> {
    std::fs::create_dir_all(into)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), into.join(entry.file_name()))?;
    }
    Ok(())
}
