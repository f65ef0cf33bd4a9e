//! `ctl detach`: takes a volume from a node that a person has seen to be off (DESIGN.md, "Proof", e).
//!
//! The one order that can destroy data if it is given wrongly, so the node's name has to be typed once more.

use std::io::{self, BufRead, Write};

use clap::Args;
use proto::operator::v1::{DetachVolumeReply, DetachVolumeRequest};

use crate::failure::Failure;

/// What to take from where.
#[derive(Debug, Clone, Args)]
pub(super) struct Detach {
    /// The volume's id, `pvc-...`
    volume: String,
    /// The node that has it
    node: String,
    /// You have seen that the node is off: powered down, or cut off from the appliance.
    /// If it still runs, two nodes write to the volume and destroy it
    #[arg(long)]
    node_is_off: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Detach {
    /// The request, once it is confirmed where that is needed.
    pub(super) fn confirmed(&self) -> Result<DetachVolumeRequest, Failure> {
        // Without its flag the controllers refuse, and say what it means.
        if self.node_is_off && !self.yes {
            self.ask(&mut io::stdin().lock(), &mut io::stderr())?;
        }
        Ok(DetachVolumeRequest {
            volume_id: self.volume.clone(),
            node_id: self.node.clone(),
            node_is_off: self.node_is_off,
        })
    }

    fn ask(&self, input: &mut impl BufRead, output: &mut impl Write) -> Result<(), Failure> {
        let Self { volume, node, .. } = self;
        let mut typed = String::new();
        let asked = write!(
            output,
            "Volume {volume} will be free for another node at once.\n\
             If node {node} still runs, even if Kubernetes does not reach it, it goes on writing, and both destroy\n\
             what is on the volume. Power it off first, or cut it off from the appliance.\n\
             Type the node's name to go on: "
        )
        .and_then(|()| output.flush())
        .and_then(|()| input.read_line(&mut typed));
        match asked {
            Ok(_) if typed.trim() == node => Ok(()),
            Ok(_) => Err(Failure::Usage(vec![format!("not confirmed: nothing was taken from node {node}")])),
            Err(error) => {
                Err(anyhow::Error::new(error).context("cannot ask for confirmation (--yes)").into())
            }
        }
    }

    /// What the answer means.
    pub(super) fn done(&self, reply: &DetachVolumeReply) -> String {
        let Self { volume, node, .. } = self;
        if reply.was_attached {
            format!("volume {volume} is taken from node {node}\n")
        } else {
            format!("volume {volume} was not attached to node {node}; nothing was changed\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detach() -> Detach {
        Detach { volume: "pvc-1".to_owned(), node: "node-a".to_owned(), node_is_off: true, yes: false }
    }

    #[test]
    fn only_the_nodes_name_is_a_confirmation() {
        for (typed, confirmed) in
            [("node-a\n", true), (" node-a \n", true), ("yes\n", false), ("node-b\n", false), ("", false)]
        {
            let mut shown = Vec::new();
            let answer = detach().ask(&mut typed.as_bytes(), &mut shown);
            assert_eq!(answer.is_ok(), confirmed, "{typed:?}");
            let shown = String::from_utf8(shown).unwrap();
            assert!(shown.contains("If node node-a still runs") && shown.contains("pvc-1"), "{shown}");
        }
    }

    #[test]
    fn without_its_flag_nobody_is_asked_and_the_controllers_refuse() {
        let unproven = Detach { node_is_off: false, ..detach() };
        assert!(!unproven.confirmed().unwrap().node_is_off);
        let sure = Detach { yes: true, ..detach() };
        assert!(sure.confirmed().unwrap().node_is_off);
    }

    #[test]
    fn an_order_that_found_nothing_says_so() {
        let done = |was_attached| detach().done(&DetachVolumeReply { was_attached });
        assert!(done(true).contains("is taken") && done(false).contains("nothing was changed"));
    }
}
