//! The machines of a lab: how each is made, and what one is beside its emulator.

use std::fs::File;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::artifacts::{Artifacts, Kernel};
use super::guest::{Guest, Relay};
use super::machine::{Machine, MachineSettings};

/// How long a machine may take to boot, in milliseconds. It takes 3 to 10 s, more while others compile.
const BOOT_MS: u64 = 120_000;

/// A machine and its inside.
#[derive(Debug)]
pub(super) struct Vm {
    /// Its inside.
    pub(super) guest: Guest,
    pub(super) machine: Machine,
    /// The program of ours in it, as its agent calls it.
    pub(super) program: &'static str,
    /// Its address on the network between the machines.
    pub(super) address: Ipv4Addr,
    /// The way to the CSI services in it.
    pub(super) csi: Option<Relay>,
    /// How often its program was started.
    pub(super) starts: u32,
}

impl Vm {
    /// Does `work`, which fails at once if the machine goes off meanwhile.
    pub(super) async fn while_on<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            () = self.machine.goes_off() => bail!("{}: the machine went off", self.guest.name()),
        }
    }

    /// Waits until its agent answers.
    pub(super) async fn wait_until_up(&mut self) -> Result<()> {
        let guest = self.guest.clone();
        self.while_on(guest.wait_until_up(BOOT_MS)).await
    }

    /// Waits until its program is `ready`, which fails at once if that or the machine ends meanwhile.
    pub(super) async fn wait_until_ready<T>(&mut self, ready: impl Future<Output = Result<T>>) -> Result<T> {
        let (guest, program) = (self.guest.clone(), self.program);
        let work = async {
            tokio::select! {
                ready = ready => ready,
                how = guest.wait_for_end(program) => {
                    bail!("{}: {program} ended before it was ready: {}", guest.name(), how?)
                }
            }
        };
        self.while_on(work).await
    }

    /// Gives the machine its address on the network between the machines.
    pub(super) async fn join_segment(&self) -> Result<()> {
        let script = format!("ip addr replace {}/24 dev eth1; ip link set eth1 up", self.address);
        self.guest.sh(&script).await.map(drop)
    }

    /// What does not run of the machine and its program.
    pub(super) async fn stopped(&mut self) -> Option<String> {
        let (name, program) = (self.guest.name(), self.program);
        if !self.machine.is_on() {
            return Some(format!("{name}: the machine is off"));
        }
        match self.guest.ended(program).await {
            Ok(None) => None,
            Ok(Some(how)) => Some(format!("{name}: {program} has ended: {how}")),
            Err(error) => Some(format!("{name}: nobody answers for {program}: {error:#}")),
        }
    }
}

/// Makes machines of one lab.
pub(super) struct Maker<'a> {
    pub(super) artifacts: &'a Artifacts,
    pub(super) directory: &'a Path,
    pub(super) segment_port: u16,
}

impl Maker<'_> {
    /// The machine `name`, whose last part of the address is `number`, with `program` in it.
    pub(super) fn vm(&self, name: &str, number: u8, kernel: Kernel, program: &'static str) -> Result<Vm> {
        Ok(self.with(self.settings(name, number, kernel)?, program))
    }

    /// The same with an ext4 of `disk_bytes` as its disk, and a port of the host that leads to one of it.
    pub(super) fn vm_with_disk(
        &self,
        name: &str,
        number: u8,
        kernel: Kernel,
        program: &'static str,
        disk_bytes: u64,
        forward: (u16, u16),
    ) -> Result<Vm> {
        let disk = self.directory.join(format!("{name}.img"));
        File::create(&disk)?.set_len(disk_bytes)?;
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk).status();
        ensure!(made.context("run mkfs.ext4")?.success(), "cannot make the disk of {name}");
        let settings = self.settings(name, number, kernel)?;
        let settings = MachineSettings { disk: Some(disk), forwards: vec![forward], ..settings };
        Ok(self.with(settings, program))
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

    fn with(&self, settings: MachineSettings, program: &'static str) -> Vm {
        let agent = SocketAddr::from((Ipv4Addr::LOCALHOST, settings.agent_port));
        let guest = Guest::new(&settings.name, agent);
        let address = Ipv4Addr::new(10, 0, 0, settings.number);
        Vm { guest, machine: Machine::new(self.artifacts, settings), program, address, csi: None, starts: 0 }
    }
}

/// Where the initial RAM disk of a kernel is.
pub(super) fn initrd_path(directory: &Path, kernel: Kernel) -> PathBuf {
    directory.join(format!("{}.cpio", kernel.name()))
}

/// A TCP port that nobody listens on now.
pub(super) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
