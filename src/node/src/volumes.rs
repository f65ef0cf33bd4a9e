//! What the operations on a volume have in common: what they work with, and how they look.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant as StdInstant;

use csi::parse::NodePath;
use state_machine::{Generation, VolumeId};
use tokio::fs;
use tokio::time::Instant;

use crate::fabric::{Connect, Device, Fabric, Observed};
use crate::gateway::{Gateway, GatewayError, Permission};
use crate::identity::NodeIdentity;
use crate::metrics::Metrics;
use crate::mounts::{MountEntry, MountError, Mounts};
use crate::outcome::NodeError;
use crate::stale::Standing;
use crate::steps::Steps;

/// How often the node looks again when the controllers ask it to.
const MAX_LOOKS: usize = 3;
/// Most mounts, one over the other, that are taken away from one path.
pub(crate) const MAX_STACKED_MOUNTS: usize = 8;

/// The volumes of this node. There is no record of them: each operation looks at what the system has.
#[derive(Clone)]
pub(crate) struct NodeVolumes {
    pub(crate) identity: NodeIdentity,
    pub(crate) fabric: Arc<dyn Fabric>,
    pub(crate) mounts: Arc<dyn Mounts>,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) metrics: Metrics,
    pub(crate) steps: Steps,
}

impl NodeVolumes {
    /// Connects the volume. The controllers have said that its attachment stands.
    pub(crate) async fn connect(
        &self,
        connect: &Connect,
        generation: Generation,
    ) -> Result<Device, NodeError> {
        let begun = StdInstant::now();
        let result = self.fabric.connect(connect).await;
        self.metrics.connect(result.is_ok(), begun.elapsed());
        let device = result?;
        tracing::info!(
            volume = %device.volume, node = %self.identity.node, %generation, fabric = self.fabric.name(),
            device = %device.path.display(), nqn = %connect.nqn, "connected"
        );
        Ok(device)
    }

    /// Has the controllers say by `until` that the attachment stands, and record that the node connects.
    ///
    /// It is asked for under the volume's operation lock, and nobody else connects or disconnects it meanwhile: so
    /// nothing that this node says in between can contradict it.
    pub(crate) async fn ask_permission(
        &self,
        volume: &VolumeId,
        generation: Generation,
        until: Instant,
    ) -> Result<(), NodeError> {
        if planted::is(planted::Bug::NoPermission) {
            return Ok(());
        }
        let mut asked_to_look = None;
        for _ in 0..MAX_LOOKS {
            let moment = self.identity.moment();
            match self.gateway.permit_connect(volume, generation, &moment, until).await {
                Ok(Permission::Stands) => return Ok(()),
                Ok(Permission::Refused(reason)) => {
                    tracing::warn!(%volume, node = %self.identity.node, %generation, reason, "must not be connected");
                    return Err(NodeError::DoesNotStand { volume: volume.clone(), generation, reason });
                }
                Err(GatewayError::LookAgain { reason }) => {
                    self.gateway.register(until).await?;
                    asked_to_look = Some(reason);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(look_again(asked_to_look))
    }

    /// Tells the controllers that the volume is not connected, which is looked at anew for each try.
    pub(crate) async fn report_disconnected(
        &self,
        volume: &VolumeId,
        until: Instant,
    ) -> Result<(), NodeError> {
        let mut asked_to_look = None;
        for _ in 0..MAX_LOOKS {
            let moment = self.identity.moment();
            let connected = match self.fabric.find(volume).await? {
                Observed::Absent => None,
                Observed::WithoutDevice(state) => Some(state),
                Observed::Known(device) => Some(device.path.display().to_string()),
            };
            if let Some(how) = connected {
                let reason = format!("it is connected again ({how})");
                return Err(NodeError::NotNow { volume: volume.clone(), reason });
            }
            match self.gateway.report_disconnected(volume, &moment, until).await {
                Ok(()) => {
                    tracing::info!(%volume, node = %self.identity.node, "reported as not connected");
                    return Ok(());
                }
                Err(GatewayError::LookAgain { reason }) => {
                    self.gateway.register(until).await?;
                    asked_to_look = Some(reason);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(look_again(asked_to_look))
    }

    /// The volume's device; without one, `reason` why the operation cannot go on.
    pub(crate) async fn device(&self, volume: &VolumeId, reason: &str) -> Result<Device, NodeError> {
        match self.fabric.find(volume).await? {
            Observed::Known(device) => Ok(device),
            Observed::Absent => Err(NodeError::NotNow { volume: volume.clone(), reason: reason.to_owned() }),
            Observed::WithoutDevice(state) => {
                let reason = format!("its connection is {state} and has no device; stage it again");
                Err(NodeError::NotNow { volume: volume.clone(), reason })
            }
        }
    }

    /// The mount in force at `path`.
    pub(crate) async fn mount_at(&self, path: &Path) -> Result<Option<MountEntry>, MountError> {
        Ok(self.mounts.table().await?.into_iter().rfind(|entry| entry.path == path))
    }

    /// Takes away what is mounted at `path`, provided that it is `device`, or a device that is gone.
    pub(crate) async fn unmount(
        &self,
        volume: &VolumeId,
        path: &Path,
        device: Option<&Device>,
    ) -> Result<(), NodeError> {
        for _ in 0..MAX_STACKED_MOUNTS {
            let Some(entry) = self.mount_at(path).await? else { return Ok(()) };
            let is_ours = device.is_some_and(|device| device.id == entry.device);
            let standing = if is_ours { Standing::Ours } else { self.standing(&entry, device).await? };
            match standing {
                Standing::Ours => {
                    let unmounted = self.counted("unmount", self.mounts.unmount(path)).await;
                    unmounted.map_err(|error| NodeError::NotNow {
                        volume: volume.clone(),
                        reason: format!("{} stays mounted: {error}", path.display()),
                    })?;
                }
                Standing::Stale(why) => self.take_away_stale(volume, &entry, &why).await?,
                Standing::Others => {
                    let reason = format!("{} has another device, {}, mounted", path.display(), entry.device);
                    return Err(NodeError::NotNow { volume: volume.clone(), reason });
                }
            }
        }
        let reason = format!("{} has more than {MAX_STACKED_MOUNTS} mounts", path.display());
        Err(NodeError::NotNow { volume: volume.clone(), reason })
    }

    /// Counts a mount operation by its outcome.
    pub(crate) async fn counted<T>(
        &self,
        operation: &str,
        work: impl Future<Output = Result<T, MountError>>,
    ) -> Result<T, MountError> {
        let result = work.await;
        self.metrics.mount_operation(operation, result.is_ok());
        result
    }
}

fn look_again(reason: Option<String>) -> NodeError {
    NodeError::Gateway(GatewayError::LookAgain { reason: reason.unwrap_or_default() })
}

/// `path` as the kernel prints it: without symbolic links on the way. The last component is not followed, as
/// what is mounted there may be dead.
pub(crate) async fn resolve(path: &NodePath) -> Result<PathBuf, MountError> {
    let path = path.as_path();
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(path.to_path_buf()) };
    match fs::canonicalize(parent).await {
        Ok(parent) => Ok(parent.join(name)),
        // Then nothing is there, under whatever name.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(path.to_path_buf()),
        Err(error) => Err(MountError::io("resolve", parent)(error)),
    }
}
