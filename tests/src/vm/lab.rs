//! Three controllers on the host, the simulated appliance in one machine, a node plugin in each of two others.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::csi::v1::node_client::NodeClient;
use rds_csi::certificates::{Authority, Owner};
use rds_csi::dev::{ApplianceElsewhere, Cluster};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use super::alarms::Alarms;
use super::artifacts::{Artifacts, Kernel};
use super::directory::LabDirectory;
use super::guest::Guest;
use super::initrd;
use super::machines::{Maker, Vm, free_port, initrd_path};
use crate::Csi;
use crate::lab::controller_address;

/// The machine with the simulated appliance.
const TARGET: &str = "target";

/// The machines with a node plugin, which are also their node ids. The first runs the newer kernel.
pub const NODES: [&str; 2] = ["node-a", "node-b"];

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

/// Lines of each log that are shown when something failed.
const LOG_LINES_SHOWN: usize = 60;

/// How a node plugin is started.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// More lines of its settings file, at the top level.
    pub settings: String,
}

/// All of it.
#[derive(Debug)]
pub struct VmLab {
    target: Vm,
    nodes: Vec<Vm>,
    cluster: Cluster,
    ssh: SocketAddr,
    artifacts: Artifacts,
    alarms: Alarms,
    // Dropped last: nothing may still run when another lab may claim it.
    _directory: LabDirectory,
}

impl VmLab {
    /// Boots and starts everything; returns once every program is ready. If that fails, all logs are printed.
    pub async fn start(artifacts: Artifacts) -> Result<Self> {
        let directory = LabDirectory::claim(artifacts.lab())?;
        for kernel in [Kernel::Old, Kernel::New] {
            initrd::write(&artifacts, kernel, &initrd_path(directory.path(), kernel))?;
        }
        let ssh = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let segment_port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
        let maker = Maker { artifacts: &artifacts, directory: directory.path(), segment_port };
        let to_ssh = (ssh.port(), SSH_PORT);
        let target = maker.vm_with_disk(TARGET, 1, Kernel::New, SIMULATOR, DISK_BYTES, to_ssh)?;
        let mut nodes = vec![
            maker.vm(NODES[0], 11, Kernel::New, NODE_PLUGIN)?,
            maker.vm(NODES[1], 12, Kernel::Old, NODE_PLUGIN)?,
        ];
        for node in &mut nodes {
            node.machine.start()?;
        }
        let appliance = ApplianceElsewhere { ssh, nvme_address: target.address.into() };
        let cluster = Cluster::builder()
            .directory(directory.path().join("cluster"))
            .nodes(0)
            .log_filter("info,openraft=warn")
            .appliance_elsewhere(appliance)
            .start()
            .await?;
        let alarms = Alarms::default();
        let mut lab = Self { target, nodes, cluster, ssh, artifacts, alarms, _directory: directory };
        if let Err(error) = lab.start_programs().await {
            lab.print_logs().await;
            return Err(error);
        }
        Ok(lab)
    }

    async fn start_programs(&mut self) -> Result<()> {
        self.start_target().await?;
        for name in NODES {
            self.prepare_node(name).await?;
            self.start_node(name, &NodeOptions::default()).await?;
        }
        Ok(())
    }

    /// What it was made from.
    pub fn artifacts(&self) -> &Artifacts {
        &self.artifacts
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

    /// The inside of the machine with the simulated appliance.
    pub fn target(&self) -> Guest {
        self.target.guest.clone()
    }

    /// The inside of a node.
    pub fn guest(&self, name: &str) -> Result<Guest> {
        Ok(self.node(name)?.guest.clone())
    }

    fn node(&self, name: &str) -> Result<&Vm> {
        let vm = self.nodes.iter().find(|vm| vm.guest.name() == name);
        vm.with_context(|| format!("there is no node {name}"))
    }

    fn node_mut(&mut self, name: &str) -> Result<&mut Vm> {
        let vm = self.nodes.iter_mut().find(|vm| vm.guest.name() == name);
        vm.with_context(|| format!("there is no node {name}"))
    }

    /// CSI's Node service of a node.
    pub fn csi_node(&self, name: &str) -> Result<NodeClient<Channel>> {
        let address = self.csi_address(name)?;
        Ok(NodeClient::new(Endpoint::from_shared(format!("http://{address}"))?.connect_lazy()))
    }

    /// Where on the host a node's CSI services are reached.
    pub fn csi_address(&self, name: &str) -> Result<SocketAddr> {
        let relay = self.node(name)?.csi.as_ref();
        Ok(relay.with_context(|| format!("{name} was not prepared"))?.address())
    }

    /// Boots the target on its disk, starts the simulated appliance, and lets hosts in only once all is exported: a
    /// host that comes between two exports is refused, and the newer kernel then gives its connection up for good.
    pub async fn start_target(&mut self) -> Result<()> {
        self.target.machine.start()?;
        self.target.wait_until_up().await?;
        let guest = self.target();
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
        let ready = guest.eventually("SSH is served", READY_MS, async || {
            // The emulator accepts before the guest does; only its greeting is the server's.
            let greeting = async {
                let mut greeting = [0; 4];
                TcpStream::connect(ssh).await?.read_exact(&mut greeting).await?;
                std::io::Result::Ok(greeting)
            };
            ensure!(timeout(limit, greeting).await?? == *b"SSH-", "it is no SSH server");
            Ok(())
        });
        self.target.wait_until_ready(ready).await?;
        self.target.join_segment().await
    }

    /// Waits for a node's machine and puts there what its plugin needs.
    pub async fn prepare_node(&mut self, name: &str) -> Result<()> {
        let certificates = self.cluster.directory().join("certificates");
        let authority = Authority::open_or_create(&certificates)?;
        let files = authority.files(&Owner::Node(name.to_owned()), name)?;
        let vm = self.node_mut(name)?;
        vm.wait_until_up().await?;
        vm.join_segment().await?;
        let guest = vm.guest.clone();
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
        let ready = guest.eventually("the node plugin is ready", READY_MS, async || {
            guest.run(&["wget", "-q", "-O", "-", &format!("http://{METRICS_ADDRESS}/readyz")]).await
        });
        let vm = self.node_mut(name)?;
        vm.starts += 1;
        vm.wait_until_ready(ready).await.map(drop)
    }

    /// How often a node's plugin was started: each counts anew.
    pub fn starts(&self, name: &str) -> Result<u32> {
        Ok(self.node(name)?.starts)
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
        let node = self.nodes.iter_mut().find(|vm| vm.guest.name() == name);
        pull_plug(node.with_context(|| format!("there is no node {name}"))?, &mut self.alarms).await?;
        self.boot_node(name).await
    }

    async fn boot_node(&mut self, name: &str) -> Result<()> {
        self.node_mut(name)?.machine.start()?;
        self.prepare_node(name).await?;
        self.start_node(name, &NodeOptions::default()).await
    }

    /// Pulls the target's plug, and brings it back.
    pub async fn restart_target(&mut self) -> Result<()> {
        pull_plug(&mut self.target, &mut self.alarms).await?;
        self.start_target().await
    }

    /// Switches on and starts whatever does not run, so that one case's end is the next one's beginning. It is an
    /// alarm that there is such a thing, unless the last case `failed`: then that has left it.
    pub async fn mend(&mut self, failed: bool) -> Result<()> {
        if !failed {
            self.look_for_stopped().await;
        }
        if !self.target.machine.is_on() {
            self.start_target().await?;
        }
        for name in NODES {
            if !self.node_mut(name)?.machine.is_on() {
                self.boot_node(name).await?;
            } else if self.node_ended(name).await?.is_some() {
                self.start_node(name, &NodeOptions::default()).await?;
            }
            self.node(name)?.join_segment().await?;
        }
        Ok(())
    }

    /// What a node's plugin counts.
    pub async fn metrics(&self, name: &str) -> Result<String> {
        let address = format!("http://{METRICS_ADDRESS}/metrics");
        self.guest(name)?.run(&["wget", "-q", "-O", "-", &address]).await
    }

    /// Looks for alarms in all consoles and logs, and, unless the last case `failed`, at whether everything runs.
    pub async fn look_for_alarms(&mut self, failed: bool) {
        for vm in std::iter::once(&mut self.target).chain(&mut self.nodes) {
            look_for_alarms(vm, &mut self.alarms).await;
        }
        for name in self.cluster.controllers() {
            match fs::read(self.cluster.log_path(&name)) {
                Ok(log) => self.alarms.look(&name, &String::from_utf8_lossy(&log)),
                Err(error) => self.alarms.raise(format!("{name}: its log cannot be read: {error}")),
            }
        }
        if !failed {
            self.look_for_stopped().await;
        }
    }

    async fn look_for_stopped(&mut self) {
        for vm in std::iter::once(&mut self.target).chain(&mut self.nodes) {
            if let Some(stopped) = vm.stopped().await {
                self.alarms.raise(stopped);
            }
        }
        for name in self.cluster.controllers() {
            if self.cluster.pid(&name).is_none() {
                self.alarms.raise(format!("{name} has ended"));
            }
        }
    }

    /// All alarms so far.
    pub fn alarms(&self) -> &[String] {
        self.alarms.found()
    }

    /// Prints the ends of all logs.
    pub async fn print_logs(&mut self) {
        for vm in std::iter::once(&self.target).chain(&self.nodes) {
            let name = vm.guest.name();
            print_end(&format!("what QEMU says of {name}"), &vm.machine.qemu_log());
            print_end(&format!("{name}'s console"), &vm.machine.console());
            let logs = vm.guest.logs().await.unwrap_or_else(|error| format!("no logs: {error:#}"));
            print_end(&format!("{name}'s programs' logs"), &logs);
        }
        for name in self.cluster.controllers() {
            let log = fs::read_to_string(self.cluster.log_path(&name)).unwrap_or_default();
            print_end(&format!("{name}'s log"), &log);
        }
    }
}

/// Looks for alarms on a machine's console and, while it is on, in the logs in it.
async fn look_for_alarms(vm: &mut Vm, alarms: &mut Alarms) {
    let name = vm.guest.name();
    alarms.look(name, &vm.machine.console());
    if !vm.machine.is_on() {
        return;
    }
    match vm.guest.logs().await {
        Ok(logs) => alarms.look(name, &logs),
        Err(error) => alarms.raise(format!("{name}: nobody answers: {error:#}")),
    }
}

/// Pulls a machine's plug, after what its logs have to say: they are in its memory.
async fn pull_plug(vm: &mut Vm, alarms: &mut Alarms) -> Result<()> {
    look_for_alarms(vm, alarms).await;
    vm.machine.kill()
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
