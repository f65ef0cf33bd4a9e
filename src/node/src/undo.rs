//! After a stage that failed: the node gets off the volume again, and the controllers know.
//!
//! CSI 1.12, "NodeStageVolume". kubelet takes every code but CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE,
//! RESOURCE_EXHAUSTED and ABORTED for "not staged", and never unstages then. Such a code is final. What may have been
//! permitted must not be left to it, in this call or in an earlier one whose answer was lost. So the rule is:
//!
//! | After a failure other than "no answer" | The node | The code |
//! |---|---|---|
//! | published, or mounted besides staging | leaves it to its users: they keep it connected | the failure's |
//! | connected, and the ledger does not know it | leaves it alone: it is not ours | the failure's |
//! | nobody uses it | unmounts staging, disconnects, reports | the failure's |
//! | held all the same, unknown, or not reported | keeps what it could not end | UNAVAILABLE, with both reasons |
//!
//! In the first row kubelet has staged it before and unstages it by that. Content that was refused, a permission
//! that was refused, a stage in another way that nobody uses ([`NodeError::Differs`]) and a connection that could not be made are all alike. Where the controllers gave no answer, the
//! code is UNAVAILABLE already and there is nobody to tell: kubelet comes back, to stage or to unstage.

use std::time::Duration;

use csi::parse::NodeStage;
use tokio::time::Instant;

use crate::fabric::Observed;
use crate::gateway::GatewayError;
use crate::outcome::NodeError;
use crate::volumes::{NodeVolumes, resolve};

/// How long the controllers may take to hear that the volume is off when staging has used up the time, in ms.
const LEAST_REPORT_MS: u64 = 2_000;

/// What became of the connection.
enum Undone {
    /// The volume is not connected, and the controllers know.
    Off,
    /// It has users, in words for people, and stays connected.
    InUse(Vec<String>),
    /// It is connected, and not ours.
    NotOurs,
}

impl NodeVolumes {
    /// Undoes what a stage that ended in `failure` may have left. The answer is what kubelet is to be told.
    pub(crate) async fn undo_stage(
        &self,
        request: &NodeStage,
        failure: NodeError,
        until: Instant,
    ) -> NodeError {
        if matches!(
            failure,
            NodeError::Gateway(
                GatewayError::NoAnswer { .. }
                    | GatewayError::LookAgain { .. }
                    | GatewayError::OtherBoot { .. }
            )
        ) {
            return failure;
        }
        let (volume, node) = (&request.volume, &self.identity.node);
        match self.get_off(request, until).await {
            Ok(Undone::Off | Undone::NotOurs) => failure,
            Ok(Undone::InUse(users)) => {
                tracing::warn!(%volume, %node, %failure, ?users, "not staged again, stays connected for its users");
                failure
            }
            Err(undo) => NodeError::NotUndone { failure: Box::new(failure), undo: Box::new(undo) },
        }
    }

    async fn get_off(&self, request: &NodeStage, until: Instant) -> Result<Undone, NodeError> {
        let volume = &request.volume;
        let staging = resolve(&request.staging_path).await?;
        let until = until.max(Instant::now() + Duration::from_millis(LEAST_REPORT_MS));
        let seen = self.fabric.find(volume).await?;
        if let Observed::Known(device) = &seen {
            let users = self.published(&staging, device).await?;
            if !users.is_empty() {
                return Ok(Undone::InUse(users));
            }
        }
        if seen != Observed::Absent && !self.is_ours(volume, until).await? {
            return Ok(Undone::NotOurs);
        }
        if let Observed::Known(device) = &seen {
            // Somebody else's mount there is no use of this volume, and is left alone.
            if self.mount_at(&staging).await?.is_some_and(|entry| entry.device == device.id) {
                self.unmount(volume, &staging, Some(device)).await?;
            }
        }
        self.get_disconnected(volume, &seen).await?;
        self.forget_block_targets(&staging).await?;
        self.report_disconnected(volume, until).await?;
        Ok(Undone::Off)
    }
}
