//! What the ledger says of a volume, seen from this node: asked before a connection is ended that this node was not
//! just permitted to make.
//!
//! A name under the driver's prefix proves nothing, as a host's own disks may bear it too: only a volume that the
//! ledger knows is ours to disconnect. No answer is an error, and never reads as "unknown".

use std::collections::BTreeMap;

use proto::node::v1::{AttachmentPhase, DescribeVolumesReply, VolumeDescription};
use state_machine::{Generation, VolumeId};
use tokio::time::Instant;

use crate::outcome::NodeError;
use crate::volumes::NodeVolumes;

/// What a volume is to this node, as the ledger has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InLedger {
    /// The ledger does not know the volume: it is not ours.
    Unknown,
    /// It is one of ours, and not attached to this node.
    NotAttached,
    /// It is attached to this node, or about to be.
    Attached(Generation),
    /// It is being cut from this node.
    Revoking(Generation),
}

/// The ledger's answer, as of some moment after it was asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Described {
    /// Each volume that was asked about.
    pub(crate) standings: BTreeMap<VolumeId, InLedger>,
}

impl Described {
    /// Takes in the answer to a question about `asked`. One that does not fit the question is no answer.
    pub(crate) fn take(&mut self, asked: &[VolumeId], reply: DescribeVolumesReply) -> Result<(), String> {
        if reply.volumes.len() != asked.len() {
            return Err(format!(
                "{} volumes were asked about, {} described",
                asked.len(),
                reply.volumes.len()
            ));
        }
        for (volume, described) in asked.iter().zip(&reply.volumes) {
            self.standings.insert(volume.clone(), standing(volume, described)?);
        }
        Ok(())
    }
}

fn standing(volume: &VolumeId, described: &VolumeDescription) -> Result<InLedger, String> {
    if described.volume_id != volume.as_str() {
        return Err(format!("{:?} is described in place of {volume}", described.volume_id));
    }
    let Some(attachment) = described.attachment else {
        return Ok(if described.known { InLedger::NotAttached } else { InLedger::Unknown });
    };
    let generation = Generation(attachment.generation);
    match attachment.phase() {
        _ if !described.known => Err(format!("{volume} is not known, yet attached")),
        AttachmentPhase::Granting | AttachmentPhase::Granted => Ok(InLedger::Attached(generation)),
        AttachmentPhase::Revoking => Ok(InLedger::Revoking(generation)),
        AttachmentPhase::Unspecified => {
            Err(format!("phase {} of {volume}'s attachment is not known here", attachment.phase))
        }
    }
}

impl NodeVolumes {
    /// What the ledger says of the volume by `until`.
    pub(crate) async fn in_ledger(&self, volume: &VolumeId, until: Instant) -> Result<InLedger, NodeError> {
        let described = self.gateway.describe(std::slice::from_ref(volume), until).await?;
        // Every volume that was asked about is in the answer.
        Ok(described.standings.get(volume).copied().unwrap_or(InLedger::Unknown))
    }

    /// Whether the volume is one that the ledger knows, so that its connection may be ended.
    pub(crate) async fn is_ours(&self, volume: &VolumeId, until: Instant) -> Result<bool, NodeError> {
        let ours = self.in_ledger(volume, until).await? != InLedger::Unknown;
        if !ours {
            let node = &self.identity.node;
            tracing::warn!(%volume, %node, "the ledger does not know it: its connection is left alone");
        }
        Ok(ours)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::node::v1::NodeAttachment;

    fn volume(text: &str) -> VolumeId {
        VolumeId::parse(text).unwrap()
    }

    fn described(id: &str, known: bool, phase: Option<i32>) -> VolumeDescription {
        let attachment = phase.map(|phase| NodeAttachment { generation: 7, phase });
        VolumeDescription { volume_id: id.to_owned(), known, attachment }
    }

    #[test]
    fn each_answer_has_its_meaning_and_the_others_are_none() {
        let rows = [
            (described("a", false, None), Some(InLedger::Unknown)),
            (described("a", true, None), Some(InLedger::NotAttached)),
            (described("a", true, Some(1)), Some(InLedger::Attached(Generation(7)))),
            (described("a", true, Some(2)), Some(InLedger::Attached(Generation(7)))),
            (described("a", true, Some(3)), Some(InLedger::Revoking(Generation(7)))),
            (described("a", true, Some(0)), None),
            (described("a", true, Some(4)), None),
            (described("a", false, Some(2)), None),
            (described("b", true, None), None),
        ];
        for (row, expected) in rows {
            assert_eq!(standing(&volume("a"), &row).ok(), expected, "{row:?}");
        }
    }

    #[test]
    fn an_answer_that_does_not_fit_the_question_is_none() {
        let asked = [volume("a")];
        let mut answer = Described::default();
        let none = DescribeVolumesReply { volumes: Vec::new() };
        assert!(answer.take(&asked, none).is_err(), "a volume left out is not unknown");
        let described = DescribeVolumesReply { volumes: vec![described("a", true, None)] };
        answer.take(&asked, described).unwrap();
        assert_eq!(answer.standings[&volume("a")], InLedger::NotAttached);
    }
}
