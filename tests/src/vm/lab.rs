//! Three controllers on the host, the simulated appliance in one machine, a node plugin in each of two others.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::csi::v1::node_client::NodeClient;
use rds_csi::certificates::{Authority, Owner};
use rds_csi::dev::{ApplianceElsewhere, Cluster};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use super::artifacts::{Artifacts, Kernel};
use super::guest::{Guest, Relay};
use super::initrd;
use super::machine::{Machine, MachineSettings};
use crate::Csi;
use crate::lab::controller_address;

/// The machine with the simulated appliance.
pub const TARGET: &str = "target";

/// The machines with a node plugin, which are also their node ids. The first runs the newer kernel.
pub const NODES: [&str; 2] = ["node-a", "node-b"];

/// The target's address on the network between the machines.
const TARGET_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// The host, as the emulator's own network shows it to guests: its loopback.
const HOST_FROM_GUEST: &str = "10.0.2.2";

/// The TCP port of SSH in the target.
const SSH_PORT: u16 = 22;

/// Size of the target's disk, in bytes. Sparse: what is used of it counts.
const DISK_BYTES: u64 = 4 << 30;

/// How the target mounts it: what was written is on it. A target whose cache dies with it loses what hosts hold for
/// flushed, since a host repeats a flush after an outage, but not the writes before it; no driver mends that.
const DISK_OPTIONS: &str = "sync";

/// Where the target mounts it, and what is `/` to the simulated appliance.
const APPLIANCE: &str = "/appliance";

/// How long a machine may take to boot, in milliseconds. It takes 3 to 10 s, more while others compile.
const BOOT_MS: u64 = 120_000;

/// How long a program in a guest may take to be ready, in milliseconds.
const READY_MS: u64 = 60_000;

/// What a node plugin serves CSI at, in its guest.
const CSI_SOCKET: &str = "/run/csi.sock";

/// Where a node plugin serves metrics, in its guest.
const METRICS_ADDRESS: &str = "127.0.0.1:9809";

/// What every node plugin's process is called.
const NODE_PLUGIN: &str = "rds-csi-node";

/// What the simulated appliance's process is called.
const SIMULATOR: &str = "simulator";

/// What a kernel or one of our programs prints when it is broken.
const ALARMS: &[&str] = &[
    "Kernel panic",
    "BUG:",
    "Oops",
    "general protection fault",
    "blocked for more than",
    "soft lockup",
    "rcu_sched self-detected stall",
    "panicked at",
    "cannot load",
];

/// Lines of each log that are shown when something failed.
const LOG_LINES_SHOWN: usize = 60;

/// How a node plugin is started.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// More lines of its settings file, at the top level.
    pub settings: String,
}

/// A machine and its inside.
#[derive(Debug)]
pub struct Vm {
    /// The machine.
    pub machine: Machine,
    /// Its inside.
    pub guest: Guest,
    address: Ipv4Addr,
    csi: Option<Relay>,
}

/// All of it.
#[derive(Debug)]
pub struct VmLab {
    target: Vm,
    nodes: Vec<Vm>,
    cluster: Cluster,
    ssh: SocketAddr,
    // Dropped last: nothing may still run when its files go.
    _directory: TempDir,
}

impl VmLab {
    /// Boots and starts everything; returns once every program is ready.
    pub async fn start() -> Result<Self> {
        let artifacts = Artifacts::find()?;
        let directory = tempfile::Builder::new().prefix("rds-csi-vm-").tempdir()?;
        for kernel in [Kernel::Old, Kernel::New] {
            initrd::write(&artifacts, kernel, &initrd_path(directory.path(), kernel))?;
        }
        let ssh = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let segment_port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
        let maker = Maker { artifacts: &artifacts, directory: directory.path(), segment_port };
        let target = maker.target(ssh.port())?;
        let mut nodes = vec![maker.node(NODES[0], 11, Kernel::New)?, maker.node(NODES[1], 12, Kernel::Old)?];
        for node in &mut nodes {
            node.machine.start()?;
        }
        let appliance = ApplianceElsewhere { ssh, nvme_address: TARGET_ADDRESS.into() };
        let cluster = Cluster::builder()
            .directory(directory.path().join("cluster"))
            .nodes(0)
            .log_filter("info,openraft=warn")
            .appliance_elsewhere(appliance)
            .start()
            .await?;
        let mut lab = Self { target, nodes, cluster, ssh, _directory: directory };
        lab.start_target().await?;
        for name in NODES {
            lab.prepare_node(name).await?;
            lab.start_node(name, &NodeOptions::default()).await?;
        }
        Ok(lab)
    }

    /// The controllers.
    pub fn cluster(&mut self) -> &mut Cluster {
        &mut self.cluster
    }

    /// The CSI services of a controller.
    pub fn controller(&self) -> Result<Csi> {
        let name = self.cluster.controllers().into_iter().next().context("there is no controller")?;
        Ok(Csi::new(self.cluster.csi_controller(&name)?, self.cluster.csi_identity(&name)?))
    }

    /// The machine with the simulated appliance.
    pub fn target(&mut self) -> &mut Vm {
        &mut self.target
    }

    /// The machine of a node.
    pub fn vm(&mut self, name: &str) -> Result<&mut Vm> {
        self.nodes
            .iter_mut()
            .find(|vm| vm.guest.name() == name)
            .with_context(|| format!("there is no node {name}"))
    }

    /// The inside of a node.
    pub fn guest(&self, name: &str) -> Result<Guest> {
        let vm = self.nodes.iter().find(|vm| vm.guest.name() == name);
        Ok(vm.with_context(|| format!("there is no node {name}"))?.guest.clone())
    }

    /// CSI's Node service of a node.
    pub fn csi_node(&self, name: &str) -> Result<NodeClient<Channel>> {
        let address = self.csi_address(name)?;
        Ok(NodeClient::new(Endpoint::from_shared(format!("http://{address}"))?.connect_lazy()))
    }

    /// Where on the host a node's CSI services are reached.
    pub fn csi_address(&self, name: &str) -> Result<SocketAddr> {
        let vm = self.nodes.iter().find(|vm| vm.guest.name() == name);
        let relay = vm.and_then(|vm| vm.csi.as_ref());
        Ok(relay.with_context(|| format!("{name} was not prepared"))?.address())
    }

    /// Boots the target on its disk, starts the simulated appliance, and lets hosts in only once all is exported: a
    /// host that comes between two exports is refused, and the newer kernel then gives its connection up for good.
    pub async fn start_target(&mut self) -> Result<()> {
        self.target.machine.start()?;
        let guest = self.target.guest.clone();
        guest.wait_until_up(BOOT_MS).await?;
        guest.sh(&format!("mkdir -p {APPLIANCE} && mount -o {DISK_OPTIONS} /dev/vda {APPLIANCE}")).await?;
        let keys = self.cluster.directory().join("ssh");
        let read =
            |name: &str| fs::read_to_string(keys.join(name)).with_context(|| format!("read ssh/{name}"));
        guest.write(&format!("{APPLIANCE}/host_key"), &read("host")?).await?;
        guest.write("/etc/simulator.toml", &simulator_settings(read("client.pub")?.trim())).await?;
        guest.run(&["chmod", "600", &format!("{APPLIANCE}/host_key")]).await?;
        guest
            .spawn(
                SIMULATOR,
                &["/bin/rds-csi", "--log", "info", "simulator", "--config", "/etc/simulator.toml"],
            )
            .await?;
        let ssh = self.ssh;
        let limit = Duration::from_millis(READY_MS);
        guest
            .eventually("SSH is served", READY_MS, async || {
                // The emulator accepts before the guest does; only its greeting is the server's.
                let greeting = async {
                    let mut greeting = [0; 4];
                    TcpStream::connect(ssh).await?.read_exact(&mut greeting).await?;
                    std::io::Result::Ok(greeting)
                };
                ensure!(timeout(limit, greeting).await?? == *b"SSH-", "it is no SSH server");
                Ok(())
            })
            .await?;
        self.target.join_segment().await
    }

    /// Waits for a node's machine and puts there what its plugin needs.
    pub async fn prepare_node(&mut self, name: &str) -> Result<()> {
        let certificates = self.cluster.directory().join("certificates");
        let authority = Authority::open_or_create(&certificates)?;
        let files = authority.files(&Owner::Node(name.to_owned()), name)?;
        let vm = self.vm(name)?;
        let guest = vm.guest.clone();
        guest.wait_until_up(BOOT_MS).await?;
        vm.join_segment().await?;
        if vm.csi.is_none() {
            vm.csi = Some(guest.relay(CSI_SOCKET).await?);
        }
        let id = format!("{:032x}\n", u32::from(vm.address));
        guest.write("/etc/machine-id", &id).await?;
        for (path, file) in
            [("ca.pem", authority.certificate()), ("node.pem", files.cert), ("node.key", files.key)]
        {
            guest.write(&format!("/etc/rds-csi/{path}"), &fs::read_to_string(file)?).await?;
        }
        Ok(())
    }

    /// Starts a node's plugin and waits until it is ready.
    pub async fn start_node(&mut self, name: &str, options: &NodeOptions) -> Result<()> {
        let mut controllers = Vec::new();
        for controller in self.cluster.controllers() {
            let address: SocketAddr = controller_address(&self.cluster, &controller)?.parse()?;
            controllers.push(format!("{HOST_FROM_GUEST}:{}", address.port()));
        }
        let guest = self.guest(name)?;
        let settings = format!(
            "{}\nnode_id = \"{name}\"\ncsi_socket = \"unix://{CSI_SOCKET}\"\ncontrollers = {controllers:?}\n\
             metrics_address = \"{METRICS_ADDRESS}\"\n[tls]\nca = \"/etc/rds-csi/ca.pem\"\n\
             cert = \"/etc/rds-csi/node.pem\"\nkey = \"/etc/rds-csi/node.key\"\n[fabric]\nkind = \"nvme\"\n",
            options.settings
        );
        guest.write("/etc/rds-csi/node.toml", &settings).await?;
        guest
            .spawn(
                NODE_PLUGIN,
                &["/bin/rds-csi", "--log", "info", "node", "--config", "/etc/rds-csi/node.toml"],
            )
            .await?;
        guest
            .eventually("the node plugin is ready", READY_MS, async || {
                guest.run(&["wget", "-q", "-O", "-", &format!("http://{METRICS_ADDRESS}/readyz")]).await
            })
            .await?;
        Ok(())
    }

    /// SIGKILL to a node's plugin if it still runs, and a new one in its place.
    pub async fn restart_node(&mut self, name: &str, options: &NodeOptions) -> Result<()> {
        self.guest(name)?.kill(NODE_PLUGIN).await?;
        self.start_node(name, options).await
    }

    /// How a node's plugin ended; `None` while it runs.
    pub async fn node_ended(&self, name: &str) -> Result<Option<String>> {
        self.guest(name)?.ended(NODE_PLUGIN).await
    }

    /// The end of what a node's plugin has logged.
    pub async fn node_log(&self, name: &str) -> Result<String> {
        self.guest(name)?.log(NODE_PLUGIN).await
    }

    /// Pulls a node's plug, boots it again, and starts its plugin.
    pub async fn reboot_node(&mut self, name: &str) -> Result<()> {
        let vm = self.vm(name)?;
        vm.machine.kill()?;
        vm.machine.start()?;
        self.prepare_node(name).await?;
        self.start_node(name, &NodeOptions::default()).await
    }

    /// Switches on and starts whatever does not run, so that one case's end is the next one's beginning.
    pub async fn mend(&mut self) -> Result<()> {
        if !self.target.machine.is_on() {
            self.start_target().await?;
        }
        for name in NODES {
            let vm = self.vm(name)?;
            if !vm.machine.is_on() {
                vm.machine.start()?;
                self.prepare_node(name).await?;
                self.start_node(name, &NodeOptions::default()).await?;
            } else if self.node_ended(name).await?.is_some() {
                self.start_node(name, &NodeOptions::default()).await?;
            }
            self.vm(name)?.join_segment().await?;
        }
        Ok(())
    }

    /// What a node's plugin counts.
    pub async fn metrics(&self, name: &str) -> Result<String> {
        let address = format!("http://{METRICS_ADDRESS}/metrics");
        self.guest(name)?.run(&["wget", "-q", "-O", "-", &address]).await
    }

    /// All that is wrong with the machines by what they say: alarms on a console or in a program's log.
    pub async fn alarms(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        for vm in std::iter::once(&mut self.target).chain(&mut self.nodes) {
            let mut text = vm.machine.console();
            text.push_str(&vm.logs().await);
            let lines = text.lines().filter(|line| ALARMS.iter().any(|alarm| line.contains(alarm)));
            found.extend(lines.map(|line| format!("{}: {}", vm.guest.name(), line.trim())));
            if !vm.machine.is_on() {
                found.push(format!("{}: the machine is off", vm.guest.name()));
            }
        }
        found
    }

    /// Prints the ends of all logs.
    pub async fn print_logs(&mut self) {
        for vm in std::iter::once(&mut self.target).chain(&mut self.nodes) {
            print_end(&format!("{}'s console", vm.guest.name()), &vm.machine.console());
            print_end(&format!("{}'s programs' logs", vm.guest.name()), &vm.logs().await);
        }
        for name in self.cluster.controllers() {
            let log = fs::read_to_string(self.cluster.log_path(&name)).unwrap_or_default();
            print_end(&format!("{name}'s log"), &log);
        }
    }
}

impl Vm {
    /// Gives the machine its address on the network between the machines.
    async fn join_segment(&self) -> Result<()> {
        let script = format!("ip addr replace {}/24 dev eth1; ip link set eth1 up", self.address);
        self.guest.sh(&script).await.map(drop)
    }

    /// What its programs printed; nothing if nobody answers.
    async fn logs(&mut self) -> String {
        if !self.machine.is_on() {
            return String::new();
        }
        self.guest.sh("cat /log/*.log").await.unwrap_or_else(|error| format!("no logs: {error:#}"))
    }
}

/// Makes machines of one lab.
struct Maker<'a> {
    artifacts: &'a Artifacts,
    directory: &'a Path,
    segment_port: u16,
}

impl Maker<'_> {
    fn target(&self, ssh_port: u16) -> Result<Vm> {
        let disk = self.directory.join("appliance.img");
        File::create(&disk)?.set_len(DISK_BYTES)?;
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk).status();
        ensure!(made.context("run mkfs.ext4")?.success(), "cannot make the target's disk");
        let mut settings = self.settings(TARGET, 1, Kernel::New)?;
        settings.disk = Some(disk);
        settings.forwards = vec![(ssh_port, SSH_PORT)];
        Ok(self.vm(settings, TARGET_ADDRESS))
    }

    fn node(&self, name: &str, number: u8, kernel: Kernel) -> Result<Vm> {
        Ok(self.vm(self.settings(name, number, kernel)?, Ipv4Addr::new(10, 0, 0, number)))
    }

    fn settings(&self, name: &str, number: u8, kernel: Kernel) -> Result<MachineSettings> {
        Ok(MachineSettings {
            name: name.to_owned(),
            kernel,
            initrd: initrd_path(self.directory, kernel),
            agent_port: free_port()?,
            forwards: Vec::new(),
            segment_port: self.segment_port,
            number,
            disk: None,
            directory: self.directory.to_owned(),
        })
    }

    fn vm(&self, settings: MachineSettings, address: Ipv4Addr) -> Vm {
        let agent = SocketAddr::from((Ipv4Addr::LOCALHOST, settings.agent_port));
        let guest = Guest::new(&settings.name, agent);
        Vm { machine: Machine::new(self.artifacts, settings), guest, address, csi: None }
    }
}

fn initrd_path(directory: &Path, kernel: Kernel) -> std::path::PathBuf {
    directory.join(format!("{}.cpio", kernel.name()))
}

/// A TCP port that nobody listens on now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn simulator_settings(authorized_key: &str) -> String {
    format!(
        "listen = \"0.0.0.0:{SSH_PORT}\"\nlatencies = \"none\"\nauthorized_keys = [\"{authorized_key}\"]\n\
         host_key_file = \"{APPLIANCE}/host_key\"\nstate_file = \"{APPLIANCE}/state.json\"\n\
         backing_directory = \"{APPLIANCE}/files\"\npools = [{{ name = \"storage-pool\", size_bytes = {DISK_BYTES} }}]\n\
         [exporter]\nkind = \"nvmet\"\nlisten = \"0.0.0.0\"\n"
    )
}

fn print_end(what: &str, text: &str) {
    let lines: Vec<_> = text.lines().collect();
    let shown = lines.get(lines.len().saturating_sub(LOG_LINES_SHOWN)..).unwrap_or_default();
    println!("--- the end of {what}\n{}", shown.join("\n"));
}
