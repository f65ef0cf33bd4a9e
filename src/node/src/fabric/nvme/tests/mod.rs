//! The NVMe fabric on simulated machines, with a simulated kernel.

mod connecting;
mod disconnecting;
mod finding;

use std::fs;

use rustix::io::Errno;
use state_machine::HostAddress;

use super::simulated::*;
use super::*;
use crate::in_use::simulated::{SimulatedBlockDevices, SimulatedMachine};

/// How long what a test waits for may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the simulated kernel is given, where a test waits for the end of it.
const SHORT: Duration = Duration::from_millis(60);

/// A fabric over a simulated machine.
struct Setting {
    machine: Arc<SimulatedMachine>,
    kernel: Arc<SimulatedKernel>,
    blocks: Arc<SimulatedBlockDevices>,
    fabric: NvmeFabric,
}

impl Setting {
    fn new() -> Self {
        Self::with(Limits { connect: PATIENCE, device: SHORT, disconnect: PATIENCE, grow: SHORT })
    }

    fn with(limits: Limits) -> Self {
        let machine = Arc::new(SimulatedMachine::new());
        let kernel = Arc::new(SimulatedKernel::new(machine.clone()));
        let blocks = Arc::new(SimulatedBlockDevices::default());
        let settings = NvmeSettings {
            prefix: NqnPrefix::parse(PREFIX).unwrap(),
            host_nqn: Nqn::parse(HOST).unwrap(),
            host_id: Uuid::from_u128(7),
            roots: machine.roots(),
        };
        let fabric = NvmeFabric::over(settings, kernel.clone(), blocks.clone(), limits);
        Self { machine, kernel, blocks, fabric }
    }

    fn script(&self, outcomes: impl IntoIterator<Item = Outcome>) {
        self.kernel.outcomes.lock().unwrap().extend(outcomes);
    }

    fn connects(&self) -> usize {
        self.kernel.connects.lock().unwrap().len()
    }

    fn told(&self) -> Vec<String> {
        self.kernel.told.lock().unwrap().clone()
    }

    async fn found(&self) -> Observed {
        self.fabric.find(&volume()).await.unwrap()
    }

    /// Nothing can be said of the volume, for a reason that has this word.
    #[track_caller]
    fn is_unknown(&self, found: Result<Observed, FabricError>, word: &str) {
        match found {
            Err(FabricError::Unknown { reason, .. }) => assert!(reason.contains(word), "{reason}"),
            other => panic!("{other:?}"),
        }
    }

    fn set_state(&self, controller: &str, state: &str) {
        self.machine.write(&format!("sys/class/nvme/{controller}/state"), &format!("{state}\n"));
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.machine.path(name)).unwrap();
    }
}

fn volume() -> VolumeId {
    VolumeId::parse("pvc-1").unwrap()
}

fn nqn() -> String {
    format!("{PREFIX}pvc-1")
}

fn connect() -> Connect {
    Connect {
        volume: volume(),
        nqn: Nqn::parse(&nqn()).unwrap(),
        address: HostAddress::parse("10.0.0.1").unwrap(),
        port: 4420,
        volume_path: None,
        ctrl_loss_tmo_seconds: None,
        reconnect_delay_seconds: None,
        keep_alive_tmo_seconds: None,
        fast_io_fail_tmo_seconds: None,
        nr_io_queues: None,
    }
}

fn device(machine: &SimulatedMachine, name: &str, minor: u32) -> Device {
    Device {
        volume: volume(),
        id: DeviceId::Number { major: 259, minor },
        path: machine.path(&format!("dev/{name}")),
        size_bytes: 1 << 20,
    }
}

fn without_device(state: &str) -> Observed {
    Observed::WithoutDevice(state.to_owned())
}

async fn wait_for(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < until, "waited in vain for {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
