//! Disconnecting a volume: all of its NVMe controllers are deleted, and their end is waited for.
//!
//! The kernel takes `delete_controller` once and returns when the NVMe controller is gone, which may be never: the
//! write has a thread of its own. One that has not been connected yet answers `EBUSY` and is told again. What goes on
//! deleting after the limit still shows in sysfs, so the volume is not absent until it has really ended.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::time::Duration;

use state_machine::VolumeId;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::{Instant, sleep};

use super::tree::NvmeController;
use super::{NvmeFabric, POLL_MS};
use crate::fabric::FabricError;
use crate::own_thread;

/// The deletions that were begun, by the name of the NVMe controller.
type Begun = BTreeMap<String, oneshot::Receiver<io::Result<()>>>;

impl NvmeFabric {
    pub(super) async fn disconnect_volume(&self, volume: &VolumeId) -> Result<(), FabricError> {
        let begun = Instant::now();
        let mut deletions = Begun::new();
        let mut told = Vec::new();
        let mut complaint: Option<String> = None;
        loop {
            let failure = match self.see(volume).await {
                Ok(seen) if seen.connecting => {
                    complaint = Some("a connect has not come back from the kernel".to_owned());
                    None
                }
                Ok(seen) if seen.controllers.is_empty() => {
                    if !told.is_empty() {
                        let (controllers, duration_ms) = (told.join(", "), begun.elapsed().as_millis());
                        tracing::info!(%volume, controllers, duration_ms, "NVMe connection ended");
                    }
                    return Ok(());
                }
                Ok(seen) => {
                    for controller in seen.controllers {
                        let (name, state) = (controller.name.clone(), controller.state.clone());
                        match self.delete(&mut deletions, controller) {
                            Ok(true) => told.push(name),
                            Ok(false) if complaint.is_none() => {
                                complaint = Some(format!("{name} is {state}"))
                            }
                            Ok(false) => {}
                            Err(error) => complaint = Some(format!("{name} is {state}: {error}")),
                        }
                    }
                    None
                }
                // While something goes, it cannot always be read.
                Err(error) => Some(error),
            };
            if begun.elapsed() >= self.limits.disconnect {
                return Err(match failure {
                    Some(error) => Self::unknown(volume)(error),
                    None => {
                        let reason = complaint.unwrap_or_default();
                        FabricError::StillThere { volume: volume.clone(), reason }
                    }
                });
            }
            sleep(Duration::from_millis(POLL_MS)).await;
        }
    }

    /// Begins to delete the NVMe controller; `false` if that is under way. A deletion that failed is begun anew the
    /// next time.
    fn delete(&self, deletions: &mut Begun, controller: NvmeController) -> io::Result<bool> {
        match deletions.entry(controller.name.clone()) {
            Entry::Occupied(mut begun) => match begun.get_mut().try_recv() {
                Ok(Err(error)) => {
                    begun.remove();
                    Err(error)
                }
                // One that was told needs to be told no more.
                Ok(Ok(())) | Err(TryRecvError::Empty | TryRecvError::Closed) => Ok(false),
            },
            Entry::Vacant(place) => {
                let machine = self.machine.clone();
                let work = move || machine.tell(&controller, "delete_controller");
                place.insert(own_thread::start("nvme-delete", work, drop).map_err(io::Error::other)?);
                Ok(true)
            }
        }
    }
}
