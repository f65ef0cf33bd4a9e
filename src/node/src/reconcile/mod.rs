//! Putting the node right: what the kernel has is compared with what the ledger says, at start and then regularly.
//!
//! What a killed plugin, a reboot, a lost path or a kubelet that never came back left is found here. There is no
//! state file: [`look`] reads the kernel's connections and mounts and kubelet's directory, the controllers say what
//! the ledger knows, and the pure table in [`plan`] says what is amiss. Little of that is mended (`mend`), under the
//! volume's operation lock and after a second look and a second question; the rest is only reported, once when it
//! appears and once when it is gone (`reports`). A look that failed, or a question without an answer, is unknown:
//! it changes nothing.
//!
//! | Found | Done |
//! |---|---|
//! | a connection that the ledger does not know, or not named like a volume | reported, never touched |
//! | connected, not attached here or being cut, used by nobody | disconnected, and the controllers told |
//! | the same, but mounted, published or held | reported: its users keep it |
//! | connected and attached | left: kubelet may be about to stage it, and a block volume has no more |
//! | the same without a device, for [`WITHOUT_DEVICE_MS`] and more | reported: the kernel goes on reconnecting |
//! | a staging mount whose device is gone, and no other mount of it | unmounted, if the kernel finds no user |
//! | the same with other mounts; a pod's mount whose device is gone | reported: its pods have to be restarted |
//! | a mount of ours that shows another device | reported |
//! | a pod's device node whose device is gone | reported: it opens nothing |
//! | a pod's device node that would open another device | removed: what opens it next would write to that one |
//! | links to block targets of a volume that is neither connected nor attached | removed |
//!
//! Life cycle: one task, which begins when the controllers know the node and ends with the plugin. What it does to
//! a volume is an operation like any other, and is waited for at the stop.

mod kubelet;
mod look;
mod mend;
mod plan;
mod reports;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::operations::Operations;
use crate::outcome::NodeError;
use crate::volumes::NodeVolumes;
pub(crate) use look::Usage;
use look::{Lookout, NodeFacts};
pub(crate) use mend::LetGo;
use mend::Outcome;
use plan::{Finding, plan};
use reports::Reports;

/// How long a connection is without a device before that is reported, in ms: a restarted appliance is back by then.
pub(crate) const WITHOUT_DEVICE_MS: u64 = 60_000;
/// When it is tried again after a look that failed or a question without an answer, in ms.
const RETRY_MS: u64 = 10_000;
/// How long the controllers may take to describe everything, in ms.
const DESCRIBE_LIMIT_MS: u64 = 20_000;

/// Puts one node right, again and again.
pub(crate) struct Reconciler {
    volumes: NodeVolumes,
    operations: Arc<Operations>,
    kubelet_directory: PathBuf,
    interval: Duration,
}

impl Reconciler {
    pub(crate) fn new(
        volumes: NodeVolumes,
        operations: Arc<Operations>,
        kubelet_directory: PathBuf,
        interval: Duration,
    ) -> Self {
        Self { volumes, operations, kubelet_directory, interval }
    }

    /// Works until `stop` is cancelled.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut reports = Reports::new(self.volumes.identity.node.clone(), self.volumes.metrics.clone());
        let mut lookout = Lookout::new(self.volumes.clone(), self.kubelet_directory.clone());
        let work = async {
            self.volumes.gateway.wait_until_registered().await;
            loop {
                let pause = match self.find(&mut lookout).await {
                    Ok(findings) => {
                        self.settle(findings, &mut reports).await;
                        self.interval
                    }
                    Err(error) => {
                        reports.unseen(error.to_string());
                        self.interval.min(Duration::from_millis(RETRY_MS))
                    }
                };
                sleep(pause).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    /// The node first, the ledger after it: what was connected by then had its permission before.
    async fn find(&self, lookout: &mut Lookout) -> Result<Vec<Finding>, NodeError> {
        let facts: NodeFacts = lookout.look().await?;
        let asked: Vec<_> = facts.volumes().into_iter().collect();
        let until = Instant::now() + Duration::from_millis(DESCRIBE_LIMIT_MS);
        let ledger = self.volumes.gateway.describe(&asked, until).await?;
        Ok(plan(&facts, &ledger))
    }

    async fn settle(&self, findings: Vec<Finding>, reports: &mut Reports) {
        reports.found(&findings);
        for finding in &findings {
            match self.mend(finding).await {
                None => {}
                Some(Ok(Outcome::Mended)) => reports.mended(finding),
                Some(Ok(Outcome::Left(reason))) => reports.left(finding, reason),
                Some(Err(error)) => reports.left(finding, error.to_string()),
            }
        }
    }
}
