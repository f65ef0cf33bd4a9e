//! What is done about a finding: each as the only operation on its volume, and only if a second look agrees.
//!
//! What was found may be over by the time that the volume is locked: kubelet may have staged it, or the ledger
//! attached it. So each of these looks again, and the ones that end a connection ask the ledger again. Nothing is
//! ever unmounted lazily: a mount with a user stays.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use state_machine::VolumeId;
use tokio::fs;
use tokio::time::Instant;

use super::Reconciler;
use super::look::Usage;
use super::plan::Finding;
use crate::fabric::{DeviceId, Observed};
use crate::ledger::InLedger;
use crate::mounts::MountError;
use crate::outcome::NodeError;
use crate::volumes::NodeVolumes;

/// How long the controllers may take while a volume is locked, in ms: kubelet's own requests have to wait for it.
const ASK_LIMIT_MS: u64 = 5_000;

/// What became of a finding.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is no more.
    Mended,
    /// It is left as it is, for this reason.
    Left(String),
}

/// What became of a connection that was to go.
#[derive(Debug)]
pub(crate) enum LetGo {
    /// It is not there, and the controllers know.
    Off,
    /// These use it, in words for people; it stays.
    Used(Vec<String>),
}

fn left(reason: impl Into<String>) -> Result<Outcome, NodeError> {
    Ok(Outcome::Left(reason.into()))
}

impl Reconciler {
    /// Mends what can be mended safely; `None` of what is only reported.
    pub(super) async fn mend(&self, finding: &Finding) -> Option<Result<Outcome, NodeError>> {
        let (volumes, kubelet) = (self.volumes.clone(), self.kubelet_directory.clone());
        match finding {
            Finding::Idle { volume } => {
                let owned = volume.clone();
                Some(self.locked(volume, async move { volumes.end_idle(&owned, &kubelet).await }).await)
            }
            Finding::DeadStaging { volume, path, elsewhere } if elsewhere.is_empty() => {
                let (owned, path) = (volume.clone(), path.clone());
                let work = async move { volumes.unmount_dead(&owned, &path, &kubelet).await };
                Some(self.locked(volume, work).await)
            }
            Finding::OtherNode { volume, path, .. } => {
                let (owned, path) = (volume.clone(), path.clone());
                Some(self.locked(volume, async move { volumes.remove_wrong_node(&owned, path).await }).await)
            }
            Finding::Links { volume, staging } => {
                let (owned, staging) = (volume.clone(), staging.clone());
                let work = async move { volumes.forget_leftover_links(&owned, &staging).await };
                Some(self.locked(volume, work).await)
            }
            Finding::Foreign { .. }
            | Finding::NotInLedger { .. }
            | Finding::InUse { .. }
            | Finding::WithoutDevice { .. }
            | Finding::DeadStaging { .. }
            | Finding::DeadTarget { .. }
            | Finding::OtherMount { .. }
            | Finding::DeadNode { .. } => None,
        }
    }

    async fn locked(
        &self,
        volume: &VolumeId,
        work: impl Future<Output = Result<Outcome, NodeError>> + Send + 'static,
    ) -> Result<Outcome, NodeError> {
        self.operations.run("reconcile", volume, work).await
    }
}

/// Until when the controllers may be asked.
fn until() -> Instant {
    Instant::now() + Duration::from_millis(ASK_LIMIT_MS)
}

impl NodeVolumes {
    /// Disconnects the volume if it has no right to be connected here and nobody uses it, and says so.
    async fn end_idle(&self, volume: &VolumeId, kubelet: &Path) -> Result<Outcome, NodeError> {
        match self.in_ledger(volume, until()).await? {
            InLedger::NotAttached | InLedger::Revoking(_) => {}
            InLedger::Unknown => return left("the ledger does not know it any more"),
            InLedger::Attached(_) => return left("it has been attached meanwhile"),
        }
        match self.let_go(volume, kubelet).await? {
            LetGo::Off => Ok(Outcome::Mended),
            LetGo::Used(uses) => left(format!("it is used: {}", uses.join(", "))),
        }
    }

    /// Disconnects the volume if nobody uses it, and says so to the controllers. Whether it may go is the caller's
    /// question, under the volume's operation lock.
    pub(crate) async fn let_go(&self, volume: &VolumeId, kubelet: &Path) -> Result<LetGo, NodeError> {
        let seen = self.fabric.find(volume).await?;
        let device = match &seen {
            Observed::Known(device) => Some(&device.id),
            Observed::Absent | Observed::WithoutDevice(_) => None,
        };
        let uses = Usage::look(self, kubelet).await?.of(volume, device);
        if seen != Observed::Absent && !uses.is_empty() {
            return Ok(LetGo::Used(uses));
        }
        match seen {
            Observed::Absent => {}
            Observed::WithoutDevice(_) => self.fabric.disconnect(volume).await?,
            Observed::Known(device) => match self.disconnect_unheld(&device).await {
                Ok(()) => {}
                Err(NodeError::InUse { holders, .. }) => return Ok(LetGo::Used(holders)),
                Err(error) => return Err(error),
            },
        }
        self.report_disconnected(volume, until()).await?;
        Ok(LetGo::Off)
    }

    /// Unmounts a staging path whose device is gone, if that is its only mount and the kernel knows of no user.
    async fn unmount_dead(
        &self,
        volume: &VolumeId,
        path: &Path,
        kubelet: &Path,
    ) -> Result<Outcome, NodeError> {
        let own = self.own_device(volume).await?;
        let usage = Usage::look(self, kubelet).await?;
        let Some(entry) = usage.mounted_at(path) else { return Ok(Outcome::Mended) };
        if own.as_ref() == Some(&entry.device) || self.fabric.exists(&entry.device).await? {
            return left("its device is there again");
        }
        if !usage.elsewhere(entry).is_empty() {
            return left("its device is mounted elsewhere too");
        }
        let unmounted = self.counted("unmount", self.mounts.unmount(path)).await;
        self.metrics.stale_recovery(unmounted.is_ok());
        match unmounted {
            Ok(()) => Ok(Outcome::Mended),
            Err(error) => left(format!("it stays mounted: {error}")),
        }
    }

    /// Removes a pod's device node that would open another device. Who has it open keeps what was opened.
    async fn remove_wrong_node(&self, volume: &VolumeId, path: PathBuf) -> Result<Outcome, NodeError> {
        let own = self.own_device(volume).await?;
        let Some(target) = self.mounts.block_target(&path).await? else { return Ok(Outcome::Mended) };
        if own.as_ref() == Some(&target.device) || !self.fabric.exists(&target.device).await? {
            return left("it opens no other device any more");
        }
        fs::remove_file(&path).await.map_err(MountError::io("remove", &path))?;
        Ok(Outcome::Mended)
    }

    async fn forget_leftover_links(&self, volume: &VolumeId, staging: &Path) -> Result<Outcome, NodeError> {
        if self.fabric.find(volume).await? != Observed::Absent {
            return left("it is connected again");
        }
        self.forget_block_targets(staging).await?;
        Ok(Outcome::Mended)
    }

    async fn own_device(&self, volume: &VolumeId) -> Result<Option<DeviceId>, NodeError> {
        Ok(match self.fabric.find(volume).await? {
            Observed::Known(device) => Some(device.id),
            Observed::Absent | Observed::WithoutDevice(_) => None,
        })
    }
}
