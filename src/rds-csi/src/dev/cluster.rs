//! A cluster of real processes on this machine: simulated appliance, controllers, nodes.
//!
//! Life cycle: [`Cluster::builder`] says what it is to be; [`ClusterBuilder::start`] writes the files, starts the
//! processes and waits until all are ready. Tests then kill, stop and restart processes by name and talk to them
//! as sidecars, kubelet and operators do. [`Cluster::stop`] ends it in order; dropping it kills what is left.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::elsewhere::ApplianceElsewhere;
use super::files;
use super::layout::{Fabric, Layout, SIMULATOR, Wishes};
use super::process::Process;
use super::readiness::Probe;
use super::surroundings::Surroundings;
use crate::http;
use crate::services::SimulatedLatencies;

/// How long a process may take until it is ready, in ms.
const READY_TIMEOUT_MS: u64 = 30_000;
/// How often an unready process is asked again, in ms.
const READY_POLL_MS: u64 = 20;
/// How long a process may take to end after SIGTERM before it is killed, in ms.
const STOP_TIMEOUT_MS: u64 = 10_000;
/// The program's own file name.
const BINARY: &str = "rds-csi";

/// What a cluster is to be.
#[derive(Debug, Clone, Default)]
pub struct ClusterBuilder {
    directory: Option<PathBuf>,
    wishes: Wishes,
    binary: Option<PathBuf>,
    log_filter: Option<String>,
    settings: files::Settings,
    surroundings: BTreeMap<String, Surroundings>,
}

impl ClusterBuilder {
    /// Where everything is kept; made if it is not there. Without it, a directory that goes with the cluster.
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// How many controllers: an odd number, three by default.
    pub fn controllers(mut self, count: u32) -> Self {
        self.wishes.controllers = Some(count);
        self
    }

    /// How many nodes, two by default: `node-a`, `node-b`, and so on. None, if they all run elsewhere.
    pub fn nodes(mut self, count: u32) -> Self {
        self.wishes.nodes = Some(count);
        self
    }

    /// How nodes connect to volumes.
    pub fn fabric(mut self, fabric: Fabric) -> Self {
        self.wishes.fabric = Some(fabric);
        self
    }

    /// Starts no simulated appliance: the controllers use this one.
    pub fn appliance_elsewhere(mut self, appliance: ApplianceElsewhere) -> Self {
        self.settings.elsewhere = Some(appliance);
        self
    }

    /// How long one side of an overdue migration has to be stale before it is taken, in seconds.
    pub fn reap_after_seconds(mut self, seconds: u32) -> Self {
        self.settings.reap_after_seconds = Some(seconds);
        self
    }

    /// Where the controllers listen, in their order, instead of on the loopback interface.
    pub fn controllers_at(mut self, addresses: Vec<IpAddr>) -> Self {
        self.wishes.controllers_at = addresses;
        self
    }

    /// Starts the process `name` in these surroundings.
    pub fn surroundings(mut self, name: &str, surroundings: Surroundings) -> Self {
        self.surroundings.insert(name.to_owned(), surroundings);
        self
    }

    pub(crate) fn wishes(mut self, wishes: Wishes) -> Self {
        self.wishes = wishes;
        self
    }

    /// The program to run; by default this one, or the one that was built beside this test.
    pub fn binary(mut self, binary: impl Into<PathBuf>) -> Self {
        self.binary = Some(binary.into());
        self
    }

    /// Lets the simulated appliance answer at once instead of as slowly as hardware was measured to.
    pub(crate) fn instant_appliance(mut self) -> Self {
        self.settings.latencies = SimulatedLatencies::None;
        self
    }

    /// What the processes log, `info` by default.
    pub fn log_filter(mut self, filter: &str) -> Self {
        self.log_filter = Some(filter.to_owned());
        self
    }

    /// Starts it, and returns once every process is ready.
    pub async fn start(mut self) -> anyhow::Result<Cluster> {
        let mistakes = self.wishes.mistakes();
        if !mistakes.is_empty() {
            bail!(mistakes.join("; "));
        }
        let binary = self.binary.map_or_else(find_binary, Ok)?;
        let (directory, temporary) = match self.directory {
            Some(directory) => {
                fs::create_dir_all(&directory)
                    .with_context(|| format!("cannot make {}", directory.display()))?;
                (directory, None)
            }
            None => {
                let temporary = tempfile::Builder::new()
                    .prefix("rds-csi-")
                    .tempdir()
                    .context("cannot make a temporary directory")?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        let layout = Layout::open_or_choose(&directory, &self.wishes)?;
        files::write_all(&layout, self.settings)?;
        let mut processes = processes(&layout, &binary, self.log_filter.as_deref().unwrap_or("info"));
        if self.settings.elsewhere.is_some() {
            processes.retain(|process| process.name() != SIMULATOR);
        }
        let processes = processes
            .into_iter()
            .map(|process| {
                let surroundings = self.surroundings.remove(process.name()).unwrap_or_default();
                process.surrounded(surroundings)
            })
            .collect();
        let mut cluster = Cluster { processes, layout, _temporary: temporary };
        cluster.start_all().await?;
        Ok(cluster)
    }
}

/// This program, or the one that cargo built beside this test.
fn find_binary() -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe().context("cannot find this program's own file")?;
    if here.file_name().is_some_and(|name| name == BINARY) {
        return Ok(here);
    }
    // A test is `<target>/<profile>/deps/<test>-<hash>`.
    let beside = here.parent().and_then(Path::parent).map(|directory| directory.join(BINARY));
    match beside {
        Some(binary) if binary.is_file() => Ok(binary),
        Some(_) | None => {
            bail!("{BINARY} is not beside {}; build it first: cargo build --package rds-csi", here.display())
        }
    }
}

fn processes(layout: &Layout, binary: &Path, log_filter: &str) -> Vec<Process> {
    // Named here too: a variable in the environment, of a pod for instance, would go before the name in the file.
    let process = |role: &str, name: &str, named: &[&str]| {
        let arguments =
            ["--log-format", "human", "--log", log_filter, role, "--exit-with-parent", "--config"];
        let mut arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
        arguments.push(layout.config_path(name).into());
        arguments.extend(named.iter().map(Into::into));
        Process::new(name, binary, arguments, layout.log_path(name))
    };
    let controllers =
        layout.controllers.iter().map(|place| process("controller", &place.name, &["--name", &place.name]));
    let nodes = layout.nodes.iter().map(|place| process("node", &place.name, &["--node-id", &place.name]));
    std::iter::once(process("simulator", SIMULATOR, &[])).chain(controllers).chain(nodes).collect()
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: nothing may still run when the directory goes.
    processes: Vec<Process>,
    layout: Layout,
    _temporary: Option<TempDir>,
}

impl Cluster {
    /// What a cluster is to be.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::default()
    }

    async fn start_all(&mut self) -> anyhow::Result<()> {
        for process in &mut self.processes {
            process.start()?;
        }
        let names: Vec<String> = self.processes.iter().map(|process| process.name().to_owned()).collect();
        for name in names {
            self.wait_until_ready(&name).await?;
        }
        Ok(())
    }

    /// Everything that the cluster keeps.
    pub fn directory(&self) -> &Path {
        self.layout.directory()
    }

    /// The controllers' names.
    pub fn controllers(&self) -> Vec<String> {
        self.layout.controllers.iter().map(|place| place.name.clone()).collect()
    }

    /// The nodes' names, which are their node ids.
    pub fn nodes(&self) -> Vec<String> {
        self.layout.nodes.iter().map(|place| place.name.clone()).collect()
    }

    /// The simulated appliance's process.
    pub fn simulator(&self) -> &'static str {
        SIMULATOR
    }

    /// Where `name` serves CSI.
    pub fn csi_socket(&self, name: &str) -> PathBuf {
        self.layout.csi_socket(name)
    }

    /// The settings file of `name`.
    pub fn config_path(&self, name: &str) -> PathBuf {
        self.layout.config_path(name)
    }

    /// What `name` keeps between its starts: for a controller, its replica's data.
    pub fn state_directory(&self, name: &str) -> PathBuf {
        self.layout.state_directory(name)
    }

    /// The log of `name`.
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.layout.log_path(name)
    }

    /// The access file of the cluster's operator, for `rds-csi ctl --config`.
    pub fn operator_access(&self) -> PathBuf {
        files::operator_access(&self.layout)
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    fn process(&mut self, name: &str) -> anyhow::Result<&mut Process> {
        self.processes
            .iter_mut()
            .find(|process| process.name() == name)
            .with_context(|| format!("there is no process {name}"))
    }

    /// The process id of `name`, while it runs.
    pub fn pid(&mut self, name: &str) -> Option<u32> {
        self.process(name).ok().and_then(Process::pid)
    }

    /// Starts `name` again after it ended. Does not wait until it is ready.
    pub fn start(&mut self, name: &str) -> anyhow::Result<()> {
        self.process(name)?.start()
    }

    /// SIGKILL to `name`; returns once it is gone.
    pub fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        self.process(name)?.kill()
    }

    /// SIGTERM to `name`; returns how it ended.
    pub async fn terminate(&mut self, name: &str) -> anyhow::Result<ExitStatus> {
        let process = self.process(name)?;
        process.signal(Signal::TERM)?;
        process.wait_for_exit(Duration::from_millis(STOP_TIMEOUT_MS)).await
    }

    /// SIGSTOP to `name`: it is there and does nothing.
    pub fn suspend(&mut self, name: &str) -> anyhow::Result<()> {
        self.process(name)?.signal(Signal::STOP)
    }

    /// SIGCONT to `name`.
    pub fn resume(&mut self, name: &str) -> anyhow::Result<()> {
        self.process(name)?.signal(Signal::CONT)
    }

    /// Waits until `name` is ready; the error has the end of its log.
    pub async fn wait_until_ready(&mut self, name: &str) -> anyhow::Result<()> {
        let probe = self.probe(name)?;
        let deadline = Instant::now() + Duration::from_millis(READY_TIMEOUT_MS);
        let process = self.process(name)?;
        loop {
            if let Some(status) = process.exit_status()? {
                bail!("{name} ended before it was ready ({status}); {}", process.log_tail());
            }
            match probe.ask().await {
                Ok(()) => return Ok(()),
                Err(reason) if Instant::now() >= deadline => {
                    bail!(
                        "{name} is not ready after {READY_TIMEOUT_MS} ms: {reason:#}; {}",
                        process.log_tail()
                    );
                }
                Err(_) => sleep(Duration::from_millis(READY_POLL_MS)).await,
            }
        }
    }

    fn probe(&self, name: &str) -> anyhow::Result<Probe> {
        if name == SIMULATOR {
            return Ok(Probe::Accepts(self.layout.simulator_address()));
        }
        let controllers = self.layout.controllers.iter().map(|place| (&place.name, place.metrics_address()));
        let nodes = self.layout.nodes.iter().map(|place| (&place.name, place.metrics_address()));
        let mut all = controllers.chain(nodes);
        let found = all.find(|(place, _)| *place == name).map(|(_, address)| Probe::Ready(address));
        found.with_context(|| format!("there is no process {name}"))
    }

    /// The value of the metric `name`, without labels, of the controller `controller`.
    pub(crate) async fn metric(&self, controller: &str, name: &str) -> anyhow::Result<String> {
        let place = self.layout.controllers.iter().find(|place| place.name == controller);
        let place = place.with_context(|| format!("there is no controller {controller}"))?;
        let page = http::get(&place.metrics_address().to_string(), "/metrics").await?.text();
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map(str::to_owned).with_context(|| format!("{controller} has no metric {name}"))
    }

    /// The processes that have ended and how, since they were last started.
    pub fn ended(&mut self) -> Vec<(String, ExitStatus)> {
        let ended = |process: &mut Process| {
            let status = process.exit_status().ok().flatten()?;
            Some((process.name().to_owned(), status))
        };
        self.processes.iter_mut().filter_map(ended).collect()
    }

    /// Ends everything in order: nodes, controllers, the simulated appliance. Says how each ended; one that does
    /// not end is killed.
    pub async fn stop(mut self) -> Vec<(String, anyhow::Result<ExitStatus>)> {
        let controllers = self.controllers();
        let (simulator, others): (Vec<_>, Vec<_>) =
            self.processes.drain(..).partition(|process| process.name() == SIMULATOR);
        let (controllers, nodes): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|process| controllers.iter().any(|name| name == process.name()));
        let mut outcomes = Vec::new();
        for group in [nodes, controllers, simulator] {
            outcomes.extend(stop_group(group).await);
        }
        outcomes
    }
}

async fn stop_group(mut group: Vec<Process>) -> Vec<(String, anyhow::Result<ExitStatus>)> {
    group.retain_mut(|process| process.pid().is_some());
    // One that was suspended has to run to end.
    let end = |process: &mut Process| {
        process.signal(Signal::CONT)?;
        process.signal(Signal::TERM)
    };
    let signalled: Vec<_> = group.iter_mut().map(end).collect();
    let mut outcomes = Vec::new();
    for (process, signalled) in group.iter_mut().zip(signalled) {
        let outcome = match signalled {
            Ok(()) => process.wait_for_exit(Duration::from_millis(STOP_TIMEOUT_MS)).await,
            Err(error) => Err(error),
        };
        outcomes.push((process.name().to_owned(), outcome));
    }
    outcomes
}
