//! What a node's kubelet and the VM on it do with a volume: stage and publish, open, close, unpublish and unstage.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rds_csi::dev::requests::{self, Context, within};
use tokio::time::sleep;

use crate::history::Connection;
use crate::processes::lab::Lab;

/// How long one call may take.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// How often kubelet tries, and the pause between two tries: longer than a plugin is away.
const TRIES: u32 = 16;
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Kubelet of one node, for one volume.
#[derive(Clone, Copy)]
pub(super) struct Kubelet<'a> {
    pub(super) lab: &'a Lab,
    pub(super) node: &'a str,
    pub(super) volume: &'a str,
    pub(super) volume_context: &'a Context,
}

/// What kubelet does until it is done.
#[derive(Clone, Copy)]
enum Deed<'a> {
    Bring(&'a Context),
    TakeFromPod,
    Unstage,
}

impl Kubelet<'_> {
    /// Stages, and publishes to a pod; whether that was done.
    pub(super) async fn bring(self, publish_context: &Context) -> bool {
        self.persist(Deed::Bring(publish_context)).await
    }

    /// A stage that comes late, after the volume was taken from the node: it has to fail. If it does not, a VM uses it.
    pub(super) async fn bring_late(self, publish_context: &Context) {
        if self.try_once(Deed::Bring(publish_context)).await.is_ok() {
            self.open();
        }
    }

    /// Unpublishes from the pod; the volume stays staged.
    pub(super) async fn take_from_pod(self) -> bool {
        self.persist(Deed::TakeFromPod).await
    }

    /// Unpublishes from the pod and unstages.
    pub(super) async fn take(self) -> bool {
        self.persist(Deed::TakeFromPod).await && self.persist(Deed::Unstage).await
    }

    async fn persist(self, deed: Deed<'_>) -> bool {
        for _ in 0..TRIES {
            match self.try_once(deed).await {
                Ok(()) => return true,
                Err(error) => {
                    tracing::debug!(node = self.node, volume = self.volume, %error, "kubelet tries again");
                }
            }
            sleep(RETRY_PAUSE).await;
        }
        false
    }

    async fn try_once(self, deed: Deed<'_>) -> Result<()> {
        let (staging, target) = (self.staging(), self.target());
        let mut node = self.lab.doors.node(self.node)?;
        match deed {
            Deed::Bring(publish_context) => {
                let pods = target.parent().context("the target has no directory")?;
                for directory in [staging.as_path(), pods] {
                    fs::create_dir_all(directory)
                        .with_context(|| format!("cannot make {}", directory.display()))?;
                }
                let context = self.volume_context;
                let request = requests::stage(self.volume, &staging, publish_context, context);
                node.node_stage_volume(within(CALL_LIMIT, request)).await?;
                let request =
                    requests::node_publish(self.volume, &staging, &target, publish_context, context);
                node.node_publish_volume(within(CALL_LIMIT, request)).await?;
            }
            Deed::TakeFromPod => {
                let request = within(CALL_LIMIT, requests::node_unpublish(self.volume, &target));
                node.node_unpublish_volume(request).await?;
            }
            Deed::Unstage => {
                let request = within(CALL_LIMIT, requests::unstage(self.volume, &staging));
                node.node_unstage_volume(request).await?;
            }
        }
        Ok(())
    }

    /// The VM opens the device; whether it was there.
    pub(super) fn open(self) -> bool {
        let opened = self.lab.cluster().hold(self.node, self.volume).is_ok();
        if opened {
            self.lab.recorder.use_of_device(self.node, self.volume, Connection::Opened);
        }
        opened
    }

    /// The VM closes the device, if it has it open.
    pub(super) fn close(self) {
        close(self.lab, self.node, self.volume);
    }

    fn staging(self) -> PathBuf {
        self.lab.doors.kubelet.join(self.node).join("staging").join(self.volume)
    }

    fn target(self) -> PathBuf {
        self.lab.doors.kubelet.join(self.node).join("pods").join(self.volume)
    }
}

/// Whoever has the device open closes it. The record comes first: what is closed may be cut at once.
pub(in crate::processes) fn close(lab: &Lab, node: &str, volume: &str) {
    let cluster = lab.cluster();
    if !cluster.state_directory(node).join("held").join(volume).exists() {
        return;
    }
    lab.recorder.use_of_device(node, volume, Connection::Closed);
    if let Err(error) = cluster.release(node, volume) {
        lab.recorder.trouble(format!("{error:#}"));
    }
}
