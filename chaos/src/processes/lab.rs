//! Everything that a run is made of: controllers and node plugins as processes, the appliance, the network and the
//! disks that controllers have to themselves, and those who watch.
//!
//! Life cycle: [`Lab::start`] builds it from the ground up; nemeses reach into it; [`Lab::heal`] ends every fault;
//! dropping it ends the processes first, then takes away disks and network.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use rds_csi::dev::{Cluster, Surroundings};
use tempfile::TempDir;

use crate::REAP_AFTER_SECONDS;

use super::appliance::Appliance;
use super::disk::Disk;
use super::doors::Doors;
use super::ledger::Follower;
use super::network::Network;
use super::recorder::Recorder;
use super::watch::Watch;

/// How many controllers there are.
pub(super) const CONTROLLERS: usize = 3;
/// How many nodes: the two sides of a migration, and a third that must wait.
const NODES: u32 = 3;
/// What the processes log.
const LOG_FILTER: &str = "info";
/// Where Debian has libfaketime, for programs with threads.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
/// How long a tool may take, in seconds.
const TOOL_LIMIT_S: &str = "20";
/// What the file of a clock that is right says.
const RIGHT_TIME: &str = "+0";

/// What a run can do on this machine, and why not what it cannot.
#[derive(Debug, Clone)]
pub(super) struct Abilities {
    /// Each controller in a network namespace.
    pub(super) network: Result<(), &'static str>,
    /// Each controller on a disk of its own.
    pub(super) disks: Result<(), &'static str>,
    /// Wall clocks that jump.
    pub(super) clocks: Result<(), &'static str>,
    /// Failpoints in the program.
    pub(super) failpoints: Result<(), &'static str>,
}

impl Abilities {
    /// What this machine and `program` allow; `namespaced` is whether namespaces are wanted.
    pub(super) fn of(program: &Path, namespaced: bool) -> Result<Self> {
        let is_root = rustix::process::geteuid().is_root();
        let has = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
        let version = Command::new(program).arg("--version").output();
        let version = version.with_context(|| format!("cannot run {}", program.display()))?;
        let is_planted = String::from_utf8_lossy(&version.stdout).contains("planted");
        Ok(Self {
            network: match (namespaced, is_root) {
                (false, _) => Err("the network is loopback"),
                (true, false) => Err("namespaces need root"),
                (true, true) if !has("nft") => Err("nft is not installed"),
                (true, true) => Ok(()),
            },
            disks: if is_root { Ok(()) } else { Err("mounts need root") },
            clocks: if Path::new(FAKETIME).exists() { Ok(()) } else { Err("libfaketime is not installed") },
            failpoints: if is_planted { Ok(()) } else { Err("the program has none") },
        })
    }
}

/// What a run is made of.
pub(super) struct Lab {
    // Dropped in this order: nothing may still run when its disk and its network go.
    cluster: Mutex<Cluster>,
    pub(super) appliance: Appliance,
    pub(super) network: Option<Network>,
    pub(super) disks: BTreeMap<String, Disk>,
    pub(super) doors: Doors,
    pub(super) recorder: Recorder,
    pub(super) watch: Watch,
    pub(super) follower: Follower,
    pub(super) abilities: Abilities,
    directory: TempDir,
}

impl Lab {
    /// Starts everything and returns once all processes are ready.
    pub(super) async fn start(program: &Path, abilities: Abilities) -> Result<Self> {
        let recorder = Recorder::begin();
        let directory =
            tempfile::Builder::new().prefix("rds-chaos-").tempdir().context("cannot make a directory")?;
        let root = directory.path().canonicalize()?;
        let network = abilities.network.is_ok().then(|| Network::create(CONTROLLERS)).transpose()?;
        let own = network.as_ref().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), Network::outside);
        let appliance = Appliance::start(&root, own, recorder.epoch).await?;
        let names: Vec<String> = (0..CONTROLLERS).map(|index| format!("controller-{index}")).collect();
        let mut disks = BTreeMap::new();
        if abilities.disks.is_ok() {
            for name in &names {
                disks.insert(name.clone(), Disk::create(&root, name)?);
            }
        }
        let mut builder = Cluster::builder()
            .directory(&root)
            .binary(program)
            .nodes(NODES)
            .log_filter(LOG_FILTER)
            .reap_after_seconds(REAP_AFTER_SECONDS)
            .appliance_elsewhere(appliance.place())
            .controllers_at(network.as_ref().map(Network::addresses).unwrap_or_default());
        for (index, name) in names.iter().enumerate() {
            let launcher = network.as_ref().map(|network| network.launcher(index)).unwrap_or_default();
            let environment = environment(&root, name, &abilities)?;
            builder = builder.surroundings(name, Surroundings { launcher, environment });
        }
        let cluster = builder.start().await?;
        let doors = Doors::of(&cluster)?;
        Ok(Self {
            cluster: Mutex::new(cluster),
            appliance,
            network,
            disks,
            doors,
            recorder,
            watch: Watch::default(),
            follower: Follower::default(),
            abilities,
            directory,
        })
    }

    /// The processes. Not to be kept over anything that takes time.
    pub(super) fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that the run keeps.
    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Leaves the directory there when the run is over, and says where.
    pub(super) fn keep_directory(&mut self) -> PathBuf {
        self.directory.disable_cleanup(true);
        self.directory.path().to_owned()
    }

    /// SIGKILL to `name`; it is gone when this returns.
    pub(super) fn kill(&self, name: &str) -> Result<()> {
        let mut cluster = self.cluster();
        cluster.kill(name)?;
        ensure!(cluster.pid(name).is_none(), "{name} still runs");
        Ok(())
    }

    pub(super) fn is_running(&self, name: &str) -> bool {
        self.cluster().pid(name).is_some()
    }

    /// Starts `name` unless it runs.
    pub(super) fn ensure_running(&self, name: &str) -> Result<()> {
        let mut cluster = self.cluster();
        if cluster.pid(name).is_none() { cluster.start(name) } else { Ok(()) }
    }

    /// The state of the process in `/proc`: `T` is stopped.
    pub(super) fn process_state(&self, name: &str) -> Option<char> {
        let pid = self.cluster().pid(name)?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    }

    /// Takes everything from a controller that does not run, but the directory itself: it may be a mount.
    pub(super) fn wipe(&self, name: &str) -> Result<()> {
        let directory = self.cluster().state_directory(name);
        for entry in
            fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?
        {
            let path = entry?.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// Arms a failpoint in the controller `name`.
    pub(super) fn arm(&self, name: &str, point: &str) -> Result<()> {
        let file = failpoint_file(self.directory(), name);
        fs::write(&file, point).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Disarms it; true if it was armed still.
    pub(super) fn disarm(&self, name: &str) -> bool {
        fs::remove_file(failpoint_file(self.directory(), name)).is_ok()
    }

    /// Whether a failpoint is armed and has not struck.
    pub(super) fn is_armed(&self, name: &str) -> bool {
        failpoint_file(self.directory(), name).exists()
    }

    /// Whether a lasting failpoint was felt by the program; asked once.
    pub(super) fn was_felt(&self, name: &str) -> bool {
        fs::remove_file(failpoint_file(self.directory(), name).with_extension("felt")).is_ok()
    }

    /// The lines of all logs that tell of a panic.
    pub(super) fn panics(&self) -> Vec<String> {
        let cluster = self.cluster();
        let names = self.doors.controllers().into_iter().chain(self.doors.nodes());
        let lines_of = |name: String| {
            let text = fs::read(cluster.log_path(&name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            let panics = text.lines().filter(|line| line.contains("panicked at"));
            panics.map(|line| format!("{name}: {line}")).collect::<Vec<_>>()
        };
        names.flat_map(lines_of).collect()
    }

    /// Sets the wall clock of the controller `name` off by so many seconds.
    pub(super) fn set_clock(&self, name: &str, offset_s: i64) -> Result<()> {
        let file = clock_file(self.directory(), name);
        fs::write(&file, format!("{offset_s:+}")).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Ends every fault and starts what does not run. What cannot be healed is an error.
    pub(super) fn heal(&self) -> Result<()> {
        self.appliance.simulator.clear_faults();
        self.appliance.simulator.refuse_connections(false);
        self.appliance.simulator.deliver_held();
        if let Some(network) = &self.network {
            network.heal()?;
        }
        for name in self.doors.controllers() {
            self.disarm(&name);
            if self.abilities.clocks.is_ok() {
                self.set_clock(&name, 0)?;
            }
            if let Some(disk) = self.disks.get(&name) {
                disk.empty()?;
            }
        }
        for name in self.doors.controllers().iter().chain(&self.doors.nodes()) {
            self.ensure_running(name)?;
            if self.process_state(name) == Some('T') {
                self.cluster().resume(name)?;
            }
        }
        Ok(())
    }
}

fn environment(
    root: &Path,
    name: &str,
    abilities: &Abilities,
) -> Result<Vec<(std::ffi::OsString, std::ffi::OsString)>> {
    let mut variables = vec![("RDS_CSI_FAILPOINT_FILE".into(), failpoint_file(root, name).into())];
    if abilities.clocks.is_ok() {
        let file = clock_file(root, name);
        fs::write(&file, RIGHT_TIME).with_context(|| format!("cannot write {}", file.display()))?;
        variables.push(("LD_PRELOAD".into(), FAKETIME.into()));
        variables.push(("FAKETIME_TIMESTAMP_FILE".into(), file.into()));
        variables.push(("FAKETIME_CACHE_DURATION".into(), "1".into()));
        for name in ["FAKETIME_DONT_FAKE_MONOTONIC", "DONT_FAKE_MONOTONIC", "FAKETIME_DONT_RESET"] {
            variables.push((name.into(), "1".into()));
        }
    }
    Ok(variables)
}

fn failpoint_file(root: &Path, name: &str) -> PathBuf {
    root.join(format!("{name}.failpoint"))
}

fn clock_file(root: &Path, name: &str) -> PathBuf {
    root.join(format!("{name}.clock"))
}

/// A tool that is ended if it takes too long.
pub(super) fn bounded(name: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args([TOOL_LIMIT_S, name]);
    command
}

/// Runs a tool; what it said is the error.
pub(super) fn tool(name: &str, arguments: &[&str]) -> Result<String> {
    let output = bounded(name).args(arguments).output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        bail!("{name} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
