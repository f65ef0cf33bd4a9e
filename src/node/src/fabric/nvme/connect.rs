//! Connecting a volume.
//!
//! | What there is | What happens |
//! |---|---|
//! | nothing | connected |
//! | connected with a device | success |
//! | connected without one, also after a wait | disconnected and connected anew, [`CONNECT_TRIES`] times in all |
//! | connected to another address or port | refused: whoever uses it keeps it |
//! | being deleted | its end is waited for |
//! | an earlier connect has not come back from the kernel | tried again later |
//!
//! The kernel answers `EIO` when the subsystem refuses or breaks the connection, `ECONNREFUSED` or a timeout when
//! nobody listens; no NVMe controller is left then. It connects one subsystem at a time and cannot be told to stop. So
//! a connect that outlives its limit is left alone, and what it makes after all is deleted by the thread that waits for
//! it; until then the volume counts as connecting, and nothing else connects it.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use rustix::io::Errno;
use state_machine::VolumeId;
use tokio::net::lookup_host;
use tokio::time::{Instant, sleep, timeout};

use super::options::options;
use super::{Machine, NvmeFabric, POLL_MS, Seen};
use crate::fabric::{Connect, Device, Fabric, FabricError, Observed};
use crate::own_thread::{self, Unfinished};

/// How often a subsystem that shows no device is connected.
const CONNECT_TRIES: usize = 2;
/// How long the appliance's name may take to be resolved, in ms.
const RESOLVE_LIMIT_MS: u64 = 5_000;

impl NvmeFabric {
    pub(super) async fn connect_volume(&self, connect: &Connect) -> Result<Device, FabricError> {
        let volume = &connect.volume;
        let wanted = self.nqn_of(volume);
        if connect.nqn.as_str() != wanted {
            let reason =
                format!("its NQN is {}, this node looks for {wanted}; see fabric.nqn_prefix", connect.nqn);
            return Err(refused(volume, reason));
        }
        // What is connected stays so, also while nobody can say what the appliance's name means.
        let (addresses, mut failure) = match resolve(connect).await {
            Ok(addresses) => {
                (addresses, unreachable(volume, "the appliance's name has no address".to_owned()))
            }
            Err(unresolved) => (Vec::new(), unresolved),
        };
        for _ in 0..CONNECT_TRIES {
            if !self.is_connected(connect, &addresses).await? {
                let Some(address) = addresses.first() else { break };
                self.establish(connect, *address).await?;
            }
            match self.wait_for_device(volume).await {
                Ok(device) => return Ok(device),
                Err(error) => failure = error,
            }
            tracing::warn!(%volume, error = %failure, "disconnecting it again");
            match self.find(volume).await {
                // It came late, or is dead; somebody may hold it.
                Ok(Observed::Known(device)) => {
                    let holders = self.disconnect_unheld(&device).await?;
                    if !holders.is_empty() {
                        let reason =
                            format!("its device came too late, and is held already: {}", holders.join(", "));
                        return Err(refused(volume, reason));
                    }
                }
                Ok(Observed::Absent | Observed::WithoutDevice(_)) => self.disconnect(volume).await?,
                // Who may hold it cannot be seen either.
                Err(error) => return Err(error),
            }
        }
        Err(failure)
    }

    /// Whether the volume is connected, and not about to be disconnected; to one of the addresses, if any is known.
    async fn is_connected(&self, connect: &Connect, addresses: &[IpAddr]) -> Result<bool, FabricError> {
        let volume = &connect.volume;
        let seen: Seen = self.see(volume).await.map_err(Self::unknown(volume))?;
        if seen.connecting {
            return Err(unreachable(
                volume,
                "an earlier connect has not come back from the kernel".to_owned(),
            ));
        }
        if !seen.stays() {
            if !seen.controllers.is_empty() {
                self.disconnect(volume).await?;
            }
            return Ok(false);
        }
        for controller in seen.controllers.iter().filter(|controller| !controller.is_going()) {
            let found = self.machine.tree.address(controller).map_err(Self::unknown(volume))?;
            let Some((address, port)) = found else { continue };
            let same = addresses.is_empty()
                || address.parse().is_ok_and(|address: IpAddr| addresses.contains(&address));
            if !same || port.parse() != Ok(connect.port) {
                let asked = format!("{}:{}", connect.address, connect.port);
                let what = format!("{} has it connected to {address}:{port}, not {asked}", controller.name);
                return Err(refused(volume, format!("{what}; unstage it first")));
            }
        }
        Ok(true)
    }

    /// Has the kernel connect the volume.
    async fn establish(&self, connect: &Connect, address: IpAddr) -> Result<(), FabricError> {
        let volume = &connect.volume;
        let failed = |reason: String| unreachable(volume, reason);
        let mark = self
            .connecting
            .begin(volume.clone())
            .ok_or_else(|| failed("an earlier connect has not come back from the kernel".to_owned()))?;
        let options = options(connect, address, &self.machine.host_nqn, self.host_id);
        let begun = Instant::now();
        // The mark comes back with the answer, or goes when nothing is left to wait for.
        let work = {
            let (machine, options) = (self.machine.clone(), options.clone());
            move || (machine.kernel.establish(&options), mark)
        };
        let late = {
            let (machine, volume) = (self.machine.clone(), volume.clone());
            move |(answer, mark)| {
                machine.end_late(&volume, answer);
                drop(mark);
            }
        };
        let connecting =
            own_thread::start("nvme-connect", work, late).map_err(|error| failed(error.to_string()))?;
        let (answer, mark) = own_thread::wait(connecting, self.limits.connect).await.map_err(|error| {
            let after = match &error {
                Unfinished::OutOfTime { .. } => "; if it comes up after all, it is disconnected",
                Unfinished::Start(_) | Unfinished::BrokenOff => "",
            };
            failed(format!("{error}{after}"))
        })?;
        drop(mark);
        let instance = answer.map_err(|error| failed(explain(&error)))?;
        let duration_ms = begun.elapsed().as_millis();
        tracing::info!(%volume, options, instance, duration_ms, "NVMe connection made");
        Ok(())
    }

    /// The device of a connected volume. An end of the connection is not waited out.
    async fn wait_for_device(&self, volume: &VolumeId) -> Result<Device, FabricError> {
        let until = Instant::now() + self.limits.device;
        loop {
            let seen = self.see(volume).await;
            let looked = seen.and_then(|seen| Ok((self.observe(volume, &seen)?, seen.is_dead())));
            let failure = match looked {
                Ok((Observed::Known(device), false)) => return Ok(device),
                Ok((Observed::Known(_), true)) => {
                    unreachable(volume, "its NVMe controller is dead".to_owned())
                }
                Ok((Observed::Absent, _)) => {
                    let reason = "the connection ended at once; the kernel's log says why".to_owned();
                    return Err(unreachable(volume, reason));
                }
                Ok((Observed::WithoutDevice(state), _)) => {
                    let limit_ms = self.limits.device.as_millis();
                    unreachable(volume, format!("it is {state}, but shows no device after {limit_ms} ms"))
                }
                // Also what is only just being built up.
                Err(error) => Self::unknown(volume)(error),
            };
            if Instant::now() >= until {
                return Err(failure);
            }
            sleep(Duration::from_millis(POLL_MS)).await;
        }
    }
}

impl Machine {
    /// Deletes what a connect has made that nobody waits for any more.
    fn end_late(&self, volume: &VolumeId, answer: io::Result<String>) {
        let instance = match answer {
            Ok(instance) => instance,
            Err(error) => {
                tracing::info!(%volume, %error, "a connect that was given up has failed");
                return;
            }
        };
        let controllers = self.controllers_of(&self.prefix.nqn_of(volume));
        let deleted = controllers.and_then(|controllers| {
            controllers.iter().try_for_each(|controller| self.tell(controller, "delete_controller"))
        });
        match deleted {
            Ok(()) => {
                tracing::warn!(%volume, instance, "a connect that was given up came up, and was undone")
            }
            Err(error) => tracing::error!(%volume, instance, %error, "a connect that was given up came up"),
        }
    }
}

/// The addresses of the appliance.
async fn resolve(connect: &Connect) -> Result<Vec<IpAddr>, FabricError> {
    let (host, port) = (connect.address.as_str(), connect.port);
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let failed = |reason| unreachable(&connect.volume, format!("cannot resolve {host}: {reason}"));
    match timeout(Duration::from_millis(RESOLVE_LIMIT_MS), lookup_host((host, port))).await {
        Ok(Ok(found)) => Ok(found.map(|address| address.ip()).collect()),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("no answer within {RESOLVE_LIMIT_MS} ms"))),
    }
}

/// What the kernel's answers to a connect mean.
fn explain(error: &io::Error) -> String {
    let meaning = match Errno::from_io_error(error) {
        Some(Errno::IO) => "the appliance refused it, or broke it off; the kernel's log says which",
        Some(Errno::INVAL) => {
            "the kernel does not take these options, its log says why; is the host id unique?"
        }
        Some(Errno::ALREADY) => "the kernel has this connection already",
        _ => return error.to_string(),
    };
    format!("{error}: {meaning}")
}

fn unreachable(volume: &VolumeId, reason: String) -> FabricError {
    FabricError::Unreachable { volume: volume.clone(), reason }
}

fn refused(volume: &VolumeId, reason: String) -> FabricError {
    FabricError::Refused { volume: volume.clone(), reason }
}
