//! A virtual machine: a QEMU process, software emulation only.
//!
//! It has a network of its own to the host (`eth0`, user mode: the host is 10.0.2.2, and some of its ports lead in)
//! and one to the other machines (`eth1`, frames over multicast on loopback). Its life cycle is that of a machine with
//! a power switch: [`start`](Machine::start), and [`kill`](Machine::kill), which is pulling the plug. No machine
//! outlives the test: the kernel kills it when what started it ends, however that ended.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::sleep;

use super::artifacts::{Artifacts, Kernel};
use super::protocol::AGENT_PORT;

/// How often a machine is looked at while it should be on, in milliseconds.
const POLL_MS: u64 = 100;

/// Memory of a machine, in MiB.
const MEMORY_MIB: u32 = 768;

/// The group that carries the frames between machines.
const SEGMENT_GROUP: &str = "230.0.0.1";

/// What the kernel is told: where to log, to end in a panic, and to spare what costs most under emulation.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off nokaslr tsc=reliable \
                                no_timer_check random.trust_cpu=on audit=0 apparmor=0";

/// Becomes what follows, which is killed when what started it ends, however that ended. So QEMU itself is the child
/// that is killed and waited for: once it is gone, nothing writes to its disk or answers at its ports any more.
const WITH_PARENT: [&str; 4] = ["setpriv", "--pdeathsig", "KILL", "--"];

/// How a machine is made.
#[derive(Debug, Clone)]
pub(super) struct MachineSettings {
    /// Its name, also of its files.
    pub(super) name: String,
    /// What it boots.
    pub(super) kernel: Kernel,
    /// Its initial RAM disk.
    pub(super) initrd: PathBuf,
    /// The host's port that leads to its agent.
    pub(super) agent_port: u16,
    /// More ports of the host, and where they lead.
    pub(super) forwards: Vec<(u16, u16)>,
    /// The port of the multicast group that the machines share.
    pub(super) segment_port: u16,
    /// Tells its network cards from those of the others.
    pub(super) number: u8,
    /// A file that is its disk `/dev/vda`.
    pub(super) disk: Option<PathBuf>,
    /// Where its files are.
    pub(super) directory: PathBuf,
}

/// A virtual machine, running or not.
#[derive(Debug)]
pub(super) struct Machine {
    artifacts: Artifacts,
    settings: MachineSettings,
    child: Option<Child>,
}

impl Machine {
    /// A machine that is off.
    pub(super) fn new(artifacts: &Artifacts, settings: MachineSettings) -> Self {
        Self { artifacts: artifacts.clone(), settings, child: None }
    }

    /// What it wrote to its serial console, over all its boots.
    pub(super) fn console(&self) -> String {
        let bytes = fs::read(self.console_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// What QEMU itself complained about.
    pub(super) fn qemu_log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.qemu_log_path()).unwrap_or_default()).into_owned()
    }

    fn qemu_log_path(&self) -> PathBuf {
        self.settings.directory.join(format!("{}.qemu", self.settings.name))
    }

    fn console_path(&self) -> PathBuf {
        self.settings.directory.join(format!("{}.console", self.settings.name))
    }

    /// Switches it on. Does not wait until it is up.
    pub(super) fn start(&mut self) -> Result<()> {
        if self.is_on() {
            bail!("{} is on already", self.settings.name);
        }
        let log = OpenOptions::new().create(true).append(true).open(self.qemu_log_path());
        let log = log.context("open QEMU's log")?;
        let [first, rest @ ..] = WITH_PARENT;
        let child = Command::new(first)
            .args(rest)
            .arg(self.artifacts.qemu())
            .args(self.arguments()?)
            .env("LD_LIBRARY_PATH", self.artifacts.libraries())
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("open QEMU's log")?)
            .stderr(log)
            // An interruption at the terminal is for the test, not for it.
            .process_group(0)
            .spawn()
            .context("start QEMU")?;
        self.child = Some(child);
        Ok(())
    }

    fn arguments(&self) -> Result<Vec<String>> {
        let settings = &self.settings;
        let mut arguments: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
        for firmware in self.artifacts.firmware() {
            add(&["-L", &firmware.display().to_string()]);
        }
        add(&["-accel", "tcg,thread=multi", "-M", "q35", "-cpu", "max", "-smp", "1"]);
        add(&["-m", &MEMORY_MIB.to_string(), "-nodefaults", "-no-user-config", "-no-reboot"]);
        add(&["-display", "none", "-monitor", "none"]);
        // Appended to, so that a second boot does not hide what the first one said.
        add(&["-chardev", &format!("file,id=console,append=on,path={}", self.console_path().display())]);
        add(&["-serial", "chardev:console"]);
        add(&["-kernel", &self.artifacts.kernel(settings.kernel)?.display().to_string()]);
        add(&["-initrd", &settings.initrd.display().to_string(), "-append", KERNEL_ARGUMENTS]);
        let mut user = "user,id=host".to_owned();
        let agent = (settings.agent_port, AGENT_PORT);
        for (outside, inside) in std::iter::once(&agent).chain(&settings.forwards) {
            user.push_str(&format!(",hostfwd=tcp:127.0.0.1:{outside}-:{inside}"));
        }
        let number = settings.number;
        let segment = format!("mcast={SEGMENT_GROUP}:{},localaddr=127.0.0.1", settings.segment_port);
        add(&[
            "-netdev",
            &user,
            "-device",
            &format!("{NETWORK_CARD},netdev=host,mac=52:54:00:00:01:{number:02x}"),
        ]);
        add(&["-netdev", &format!("socket,id=others,{segment}")]);
        add(&["-device", &format!("{NETWORK_CARD},netdev=others,mac=52:54:00:00:02:{number:02x}")]);
        if let Some(disk) = &settings.disk {
            add(&["-drive", &format!("if=none,id=disk,format=raw,file={}", disk.display())]);
            add(&["-device", "virtio-blk-pci,drive=disk"]);
        }
        Ok(arguments)
    }

    /// Whether it is on.
    pub(super) fn is_on(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Returns once it is off.
    pub(super) async fn goes_off(&mut self) {
        while self.is_on() {
            sleep(Duration::from_millis(POLL_MS)).await;
        }
    }

    /// Pulls the plug; returns once it is off.
    pub(super) fn kill(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().context("kill QEMU")?;
        child.wait().context("wait for QEMU's end").map(drop)
    }
}

/// Without the ROM that would boot from the network.
const NETWORK_CARD: &str = "virtio-net-pci,romfile=";

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{} may be left behind: {error:#}", self.settings.name);
        }
    }
}
