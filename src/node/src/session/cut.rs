//! Carrying out an order to cut.
//!
//! An order may come late, or from a leader that leads no more. So the ledger is asked, under the volume's operation
//! lock, whether it still wants just that; and what is in use stays.

use std::path::Path;
use std::time::Duration;

use state_machine::{Generation, VolumeId};
use tokio::time::Instant;

use crate::ledger::InLedger;
use crate::outcome::NodeError;
use crate::reconcile::LetGo;
use crate::volumes::NodeVolumes;

/// How long the controllers may take while a volume is locked, in ms: kubelet's own requests have to wait for it.
const ASK_LIMIT_MS: u64 = 5_000;
/// In an order: the node has no attachment to the volume.
const NOT_ATTACHED: Generation = Generation(0);

/// What came of an order.
#[derive(Debug)]
pub(super) enum Cut {
    /// The volume is off, and the ledger knows.
    Done,
    /// These use it; it stays.
    Used(Vec<String>),
    /// The ledger wants something else by now.
    Late(InLedger),
}

impl NodeVolumes {
    /// Disconnects the volume if the ledger still has the attachment of this generation revoked, or none at all if it is
    /// [`NOT_ATTACHED`], and if nobody uses it.
    pub(super) async fn cut(
        &self,
        volume: &VolumeId,
        generation: Generation,
        kubelet: &Path,
    ) -> Result<Cut, NodeError> {
        let until = Instant::now() + Duration::from_millis(ASK_LIMIT_MS);
        let standing = self.in_ledger(volume, until).await?;
        let is_wanted = match standing {
            InLedger::Revoking(revoked) => revoked == generation,
            InLedger::NotAttached => generation == NOT_ATTACHED,
            InLedger::Attached(_) | InLedger::Unknown => false,
        };
        if !is_wanted {
            return Ok(Cut::Late(standing));
        }
        Ok(match self.let_go(volume, kubelet).await? {
            LetGo::Off => Cut::Done,
            LetGo::Used(by) => Cut::Used(by),
        })
    }
}
