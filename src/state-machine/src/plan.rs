//! What is left to do outside, read from the state and never remembered: a new leader recomputes it.

use crate::ids::{ByteSize, NodeId, VolumeId};
use crate::state::State;
use crate::volume::{AttachmentPhase, Generation, Problem, Volume, VolumeParameters, VolumePhase};

/// One thing to do on the appliance, to be followed by a command that reports its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The volume.
    pub volume: VolumeId,
    /// The generation of the intent, or of the attachment, that the step serves.
    pub generation: Generation,
    /// Its class's parameters.
    pub parameters: VolumeParameters,
    /// The volume's size as recorded.
    pub size: ByteSize,
    /// The trouble that was last reported; none asks for an attempt at once.
    pub problem: Option<Problem>,
    /// What to do.
    pub kind: StepKind,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepKind {
    /// See that the slot is empty, before anything is created there.
    InspectSlot,
    /// Make the disk and its export exist.
    Create,
    /// Grow the disk.
    Expand {
        /// To this size.
        to: ByteSize,
    },
    /// Make the disk and its file be gone.
    Delete,
    /// See that the disk is exported, for an attachment to this node.
    ConfirmExport {
        /// The node.
        node: NodeId,
    },
}

/// All steps that the state asks for, in the order of volume ids; at most one a volume or attachment.
pub fn plan(state: &State) -> Vec<Step> {
    if state.is_restoring() {
        return Vec::new();
    }
    state.volumes().values().flat_map(steps_of).collect()
}

fn steps_of(volume: &Volume) -> Vec<Step> {
    let step = |generation: Generation, problem: &Option<Problem>, kind: StepKind| Step {
        volume: volume.id.clone(),
        generation,
        parameters: volume.parameters.clone(),
        size: volume.size,
        problem: problem.clone(),
        kind,
    };
    let operation = match volume.phase {
        VolumePhase::Creating { slot_was_free: false } => Some(StepKind::InspectSlot),
        VolumePhase::Creating { slot_was_free: true } => Some(StepKind::Create),
        VolumePhase::Expanding { to } => Some(StepKind::Expand { to }),
        VolumePhase::Deleting => Some(StepKind::Delete),
        VolumePhase::Ready => None,
    };
    let mut steps: Vec<Step> =
        operation.into_iter().map(|kind| step(volume.generation, &volume.problem, kind)).collect();
    for (node, attachment) in &volume.attachments {
        match attachment.phase {
            AttachmentPhase::Granting => {
                let kind = StepKind::ConfirmExport { node: node.clone() };
                steps.push(step(attachment.generation, &attachment.problem, kind));
            }
            AttachmentPhase::Granted | AttachmentPhase::Revoking => {}
        }
    }
    steps
}
