//! The NVMe/TCP fabric: connections of the kernel's own NVMe host, made through `/dev/nvme-fabrics` and ended through
//! sysfs, without nvme-cli.
//!
//! A volume is the subsystem `<prefix><volume id>`, connected as this node's own host NQN. What the same machine has
//! connected as another host (as a node does whose host NQN was changed), and what has the prefix and no volume id
//! behind it, is reported and never touched; whatever else there is, such as the host's own disks, is not looked at.
//!
//! | NVMe controllers of the volume | Device | [`Fabric::find`] says |
//! |---|---|---|
//! | none | | absent |
//! | a connect of ours is still in the kernel | | without device (connecting) |
//! | one whose subsystem is not known yet, and no connect of ours | | unknown |
//! | one of another host of this machine | whatever | unknown |
//! | all `deleting` or `deleting (no IO)` | whatever | without device |
//! | some `new`, `live`, `resetting`, `connecting`, `dead` | none | without device |
//! | the same | one | known; I/O hangs while none is `live` |
//! | the same | several, or its node is another device | unknown |
//! | an attribute that cannot be read | | unknown |
//!
//! Life of a connection: one write makes it ([`connect`]), the kernel keeps it up and reconnects it by itself, and one
//! write for each of its NVMe controllers ends it ([`disconnect`]). `reset_controller` is never written: while connects
//! are refused it hangs for good in Linux 6.1.
//!
//! Nothing is remembered but which connects have not come back from the kernel: see [`UnderWay`].

mod connect;
mod disconnect;
mod kernel;
mod options;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use state_machine::{Nqn, VolumeId};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use kernel::{Kernel, LinuxKernel};
use tree::{BlockDevice, NvmeController, Tree};

use super::{
    Connect, Connection, Connections, Device, DeviceId, Fabric, FabricError, Observed, claim_by_number,
    holders_by_number,
};
use crate::in_use::{BlockDevices, Claimed, InUse, Incomplete, LinuxBlockDevices, Roots, Thoroughness};
use crate::own_thread;
use crate::sysfs::has_device;
use crate::under_way::UnderWay;

pub(crate) use options::DEFAULT_NR_IO_QUEUES;
pub(crate) use tree::NqnPrefix;

/// How often the kernel is looked at while something is waited for, in ms.
const POLL_MS: u64 = 20;
/// How long the subsystem of an NVMe controller may stay unknown while no connect of ours explains it, in ms.
const NAMELESS_LIMIT_MS: u64 = 500;

/// How long the kernel is given.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// To connect.
    connect: Duration,
    /// To show the block device of a connected subsystem.
    device: Duration,
    /// To disconnect.
    disconnect: Duration,
    /// To show a device's new size.
    grow: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            device: Duration::from_secs(10),
            disconnect: Duration::from_secs(30),
            grow: Duration::from_secs(10),
        }
    }
}

/// What the fabric is told.
#[derive(Debug, Clone)]
pub(crate) struct NvmeSettings {
    /// What the NQNs of all volumes begin with.
    pub(crate) prefix: NqnPrefix,
    /// As which host the node connects.
    pub(crate) host_nqn: Nqn,
    /// The id of that host; the kernel allows one for each host NQN.
    pub(crate) host_id: Uuid,
    /// Where the machine shows itself.
    pub(crate) roots: Roots,
}

/// Connections that the kernel's NVMe host makes.
pub(crate) struct NvmeFabric {
    machine: Arc<Machine>,
    host_id: Uuid,
    in_use: InUse,
    limits: Limits,
    /// Connects that have not come back from the kernel, and disconnects of what came too late.
    connecting: UnderWay<VolumeId>,
    /// Foreign connections that were logged.
    noticed: Mutex<BTreeSet<String>>,
}

/// What threads of their own need of the fabric.
struct Machine {
    tree: Tree,
    kernel: Arc<dyn Kernel>,
    prefix: NqnPrefix,
    host_nqn: Nqn,
}

impl Machine {
    /// This node's NVMe controllers of one subsystem.
    fn controllers_of(&self, nqn: &str) -> io::Result<Vec<NvmeController>> {
        let mut controllers = self.tree.controllers()?;
        controllers.retain(|controller| self.is_own(controller) && controller.nqn.as_deref() == Some(nqn));
        Ok(controllers)
    }

    fn is_own(&self, controller: &NvmeController) -> bool {
        controller.host_nqn == self.host_nqn.as_str()
    }

    fn tell(&self, controller: &NvmeController, attribute: &str) -> io::Result<()> {
        self.tree.tell(self.kernel.as_ref(), controller, attribute)
    }
}

/// A volume's connection.
struct Seen {
    /// A connect of it has not come back from the kernel.
    connecting: bool,
    controllers: Vec<NvmeController>,
}

impl Seen {
    fn states(&self) -> String {
        match self.controllers.iter().map(|controller| controller.state.as_str()).collect::<Vec<_>>() {
            states if states.is_empty() || self.connecting => "connecting".to_owned(),
            states => states.join(", "),
        }
    }

    /// Whether nothing can be read or written through it, now or later.
    fn is_dead(&self) -> bool {
        self.controllers.iter().all(|controller| controller.is_going() || controller.state == "dead")
    }

    /// Whether it has, or may get, a device.
    fn stays(&self) -> bool {
        !self.connecting && self.controllers.iter().any(|controller| !controller.is_going())
    }
}

impl NvmeFabric {
    /// The fabric of this machine.
    pub(crate) fn new(settings: NvmeSettings) -> Self {
        let kernel = Arc::new(LinuxKernel::new(&settings.roots.dev));
        Self::over(settings, kernel, Arc::new(LinuxBlockDevices), Limits::default())
    }

    fn over(
        settings: NvmeSettings,
        kernel: Arc<dyn Kernel>,
        blocks: Arc<dyn BlockDevices>,
        limits: Limits,
    ) -> Self {
        let NvmeSettings { prefix, host_nqn, host_id, roots } = settings;
        let (sysfs, dev) = (roots.sysfs.clone(), roots.dev.clone());
        let tree = Tree { sysfs, dev, blocks: blocks.clone() };
        Self {
            machine: Arc::new(Machine { tree, kernel, prefix, host_nqn }),
            host_id,
            in_use: InUse::new(roots, Thoroughness::Complete, blocks),
            limits,
            connecting: UnderWay::default(),
            noticed: Mutex::default(),
        }
    }

    fn nqn_of(&self, volume: &VolumeId) -> String {
        self.machine.prefix.nqn_of(volume)
    }

    /// The volume's connection, and an error while it cannot be told from another's.
    async fn see(&self, volume: &VolumeId) -> io::Result<Seen> {
        let nqn = self.nqn_of(volume);
        let until = Instant::now() + Duration::from_millis(NAMELESS_LIMIT_MS);
        loop {
            let (connecting, mut controllers) = self.scan()?;
            // It would read as absent, and the controllers would take that for a proof.
            let of_another = |controller: &&NvmeController| {
                !self.machine.is_own(controller) && controller.nqn.as_ref() == Some(&nqn)
            };
            if let Some(controller) = controllers.iter().find(of_another) {
                let (name, host) = (&controller.name, &controller.host_nqn);
                let what = format!("{name} is connected to it as host {host}, not {}", self.machine.host_nqn);
                return Err(io::Error::other(format!(
                    "{what}; disconnect it, or set host_nqn to what it was"
                )));
            }
            // So would it if the prefix were another one than it was when it was connected.
            let under_another_prefix = |controller: &&NvmeController| {
                let named = controller.nqn.as_deref().and_then(|nqn| nqn.rsplit_once(':'));
                named.is_some_and(|(_, name)| name == volume.as_str())
                    && controller.nqn.as_ref() != Some(&nqn)
            };
            if let Some(controller) = controllers.iter().find(under_another_prefix) {
                let (name, other) = (&controller.name, controller.nqn.as_deref().unwrap_or_default());
                let what = format!("{name} is connected to {other}, which is named like it");
                return Err(io::Error::other(format!(
                    "{what}; disconnect it, or set fabric.nqn_prefix to what it was"
                )));
            }
            controllers.retain(|controller| self.machine.is_own(controller));
            let nameless = controllers.iter().filter(|controller| controller.nqn.is_none());
            let unexplained = nameless.clone().count() > connecting.len();
            if !unexplained || connecting.contains(volume) {
                controllers.retain(|controller| controller.nqn.as_ref() == Some(&nqn));
                return Ok(Seen { connecting: connecting.contains(volume), controllers });
            }
            if Instant::now() >= until {
                let names: Vec<_> = nameless.map(|controller| controller.name.as_str()).collect();
                let what = format!("it is not known which subsystem {} is connected to", names.join(", "));
                return Err(io::Error::other(what));
            }
            sleep(Duration::from_millis(POLL_MS)).await;
        }
    }

    /// All NVMe controllers, and the connects that may explain nameless ones: any that was under way meanwhile.
    fn scan(&self) -> io::Result<(BTreeSet<VolumeId>, Vec<NvmeController>)> {
        let mut connecting = self.connecting.all();
        let controllers = self.machine.tree.controllers()?;
        connecting.extend(self.connecting.all());
        Ok((connecting, controllers))
    }

    fn observe(&self, volume: &VolumeId, seen: &Seen) -> io::Result<Observed> {
        if seen.controllers.is_empty() && !seen.connecting {
            return Ok(Observed::Absent);
        }
        if !seen.stays() {
            return Ok(Observed::WithoutDevice(seen.states()));
        }
        let devices = self.machine.tree.devices(&self.nqn_of(volume), &seen.controllers)?;
        match devices.as_slice() {
            [] => Ok(Observed::WithoutDevice(seen.states())),
            [device] => {
                self.machine.tree.check_node(device)?;
                Ok(Observed::Known(device_of(volume, device)))
            }
            several => {
                let names: Vec<_> = several.iter().map(|device| device.path.display().to_string()).collect();
                Err(io::Error::other(format!("its subsystem has several namespaces: {}", names.join(", "))))
            }
        }
    }

    /// Logs what is not ours, once.
    fn notice(&self, foreign: &[String]) {
        let mut noticed = self.noticed.lock().unwrap_or_else(PoisonError::into_inner);
        noticed.retain(|known| foreign.contains(known));
        for connection in foreign {
            if noticed.insert(connection.clone()) {
                tracing::warn!(connection, "connected, and no volume of this node: left alone");
            }
        }
    }

    fn unknown(volume: &VolumeId) -> impl Fn(io::Error) -> FabricError {
        |error| FabricError::Unknown { volume: volume.clone(), reason: error.to_string() }
    }
}

#[async_trait]
impl Fabric for NvmeFabric {
    fn name(&self) -> &'static str {
        "nvme"
    }

    async fn find(&self, volume: &VolumeId) -> Result<Observed, FabricError> {
        let seen = self.see(volume).await.map_err(Self::unknown(volume))?;
        self.observe(volume, &seen).map_err(Self::unknown(volume))
    }

    async fn connect(&self, connect: &Connect) -> Result<Device, FabricError> {
        self.connect_volume(connect).await
    }

    async fn rescan(&self, device: &Device, at_least_bytes: u64) -> Result<Device, FabricError> {
        let volume = &device.volume;
        let nqn = self.nqn_of(volume);
        for controller in self.machine.controllers_of(&nqn).map_err(Self::unknown(volume))? {
            let (machine, name) = (self.machine.clone(), controller.name.clone());
            let work = move || machine.tell(&controller, "rescan_controller");
            let told = match own_thread::start("nvme-rescan", work, drop) {
                Ok(telling) => own_thread::wait(telling, self.limits.grow).await,
                Err(error) => Err(error),
            };
            // One path is enough to see the new size, and only the size counts.
            if let Err(error) = told.map_err(io::Error::other).flatten() {
                tracing::warn!(%volume, controller = name, %error, "cannot have it look for a new size");
            }
        }
        let until = Instant::now() + self.limits.grow;
        loop {
            let Observed::Known(seen) = self.find(volume).await? else {
                let reason = "its device is gone".to_owned();
                return Err(FabricError::Unreachable { volume: volume.clone(), reason });
            };
            if seen.size_bytes < device.size_bytes {
                let (before_bytes, now_bytes) = (device.size_bytes, seen.size_bytes);
                tracing::error!(%volume, before_bytes, now_bytes, "its device has shrunk");
                return Ok(seen);
            }
            if seen.size_bytes >= at_least_bytes || Instant::now() >= until {
                return Ok(seen);
            }
            sleep(Duration::from_millis(POLL_MS)).await;
        }
    }

    async fn disconnect_unheld(&self, device: &Device) -> Result<Vec<String>, FabricError> {
        let volume = &device.volume;
        let unseen = |reason: String| FabricError::HoldersUnseen { volume: volume.clone(), reason };
        match claim_by_number(&self.in_use, device).await? {
            Claimed::Held(holders) => Ok(holders),
            Claimed::Free(_until_disconnected) => {
                match self.find(volume).await? {
                    Observed::Known(now) if now.id != device.id => {
                        return Err(unseen(format!("it has become {} meanwhile", now.path.display())));
                    }
                    Observed::Known(_) | Observed::WithoutDevice(_) | Observed::Absent => {}
                }
                self.disconnect(volume).await?;
                Ok(Vec::new())
            }
        }
    }

    async fn holders(&self, devices: &[Device]) -> Result<BTreeMap<VolumeId, Vec<String>>, Incomplete> {
        holders_by_number(&self.in_use, devices).await
    }

    async fn disconnect(&self, volume: &VolumeId) -> Result<(), FabricError> {
        self.disconnect_volume(volume).await
    }

    async fn exists(&self, id: &DeviceId) -> Result<bool, FabricError> {
        let DeviceId::Number { major, minor } = id else { return Ok(false) };
        has_device(&self.machine.tree.sysfs, (*major, *minor)).map_err(FabricError::Unseen)
    }

    async fn connections(&self) -> Result<Connections, FabricError> {
        let (connecting, controllers) = self.scan().map_err(FabricError::Unseen)?;
        let mut volumes: BTreeMap<VolumeId, Vec<NvmeController>> = BTreeMap::new();
        let mut foreign = BTreeSet::new();
        let mut unclear = BTreeMap::new();
        let mut nameless = Vec::new();
        volumes.extend(connecting.iter().map(|volume| (volume.clone(), Vec::new())));
        for controller in controllers {
            let (nqn, own) = (controller.nqn.clone(), self.machine.is_own(&controller));
            match nqn.as_deref().and_then(|nqn| self.machine.prefix.volume_of(nqn)) {
                Some(Ok(volume)) if own => volumes.entry(volume).or_default().push(controller),
                Some(Ok(volume)) => {
                    let what = format!("{} as host {}", self.nqn_of(&volume), controller.host_nqn);
                    unclear.insert(volume, format!("it is connected as {what}"));
                    foreign.insert(what);
                }
                Some(Err(_)) => foreign.extend(nqn),
                None if nqn.is_none() && own => nameless.push(controller.name),
                // As in `see`: under the prefix of another time it would read as absent.
                None => unclear.extend(nqn.as_deref().and_then(named_like_a_volume)),
            }
        }
        if nameless.len() <= connecting.len() {
            // Those are what our own connects are making, and they are among the volumes.
            nameless.clear();
        }
        let foreign = foreign.into_iter().collect();
        let mut connections = Connections { volumes: Vec::new(), foreign, unclear, nameless };
        for (volume, controllers) in volumes {
            let seen = Seen { connecting: connecting.contains(&volume), controllers };
            let live = seen.controllers.iter().any(|controller| controller.state == "live");
            let mut state = seen.states();
            let device = match self.observe(&volume, &seen) {
                Ok(Observed::Known(device)) => Some(device),
                Ok(Observed::Absent | Observed::WithoutDevice(_)) => None,
                Err(error) => {
                    state = format!("{state}; {error}");
                    connections.unclear.insert(volume.clone(), state.clone());
                    None
                }
            };
            connections.volumes.push(Connection { volume, device, live, state });
        }
        self.notice(&connections.foreign);
        Ok(connections)
    }
}

/// How the ids begin that the driver gives to volumes.
const OWN_IDS: &str = "pvc-";

/// The volume that an NQN under a foreign prefix is named like, if it is one of the ids that the driver gives.
fn named_like_a_volume(nqn: &str) -> Option<(VolumeId, String)> {
    let (_, name) = nqn.rsplit_once(':').filter(|(_, name)| name.starts_with(OWN_IDS))?;
    Some((VolumeId::parse(name).ok()?, format!("{nqn} is connected, which is named like it")))
}

fn device_of(volume: &VolumeId, device: &BlockDevice) -> Device {
    let (major, minor) = device.number;
    Device {
        volume: volume.clone(),
        id: DeviceId::Number { major, minor },
        path: device.path.clone(),
        size_bytes: device.size_bytes,
    }
}
