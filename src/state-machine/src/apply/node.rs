//! What nodes say: that they started, that they are about to connect, that they are off.

use crate::ids::{BootId, NodeId, Nqn, VolumeId};
use crate::response::{Refusal, Response};
use crate::state::{Node, State};
use crate::volume::{AttachmentPhase, Connection, Generation, NodeMoment};

use super::publish::gone;

impl State {
    pub(super) fn register_node(
        &mut self,
        id: NodeId,
        boot: BootId,
        replaces: Option<BootId>,
        host_nqn: Nqn,
        max_volumes: u32,
    ) -> Result<Response, Refusal> {
        let may_be_connected = self.may_be_connected(&id);
        let Some(node) = self.nodes.get_mut(&id) else {
            self.nodes.insert(id, Node { boot, host_nqn, max_volumes, words: 1 });
            return Ok(Response::Done);
        };
        let rebooted = node.boot != boot;
        // A restored node's boot is as old as the backup: that another one follows it proves nothing.
        let was_heard = node.words > 0;
        if rebooted && was_heard && replaces.as_ref() != Some(&node.boot) {
            return Err(Refusal::OtherBoot { node: id, present: node.boot.clone() });
        }
        if node.host_nqn != host_nqn && may_be_connected {
            // A boot of another machine says nothing of this one's connections.
            return Err(Refusal::OtherMachine { node: id, host_nqn: node.host_nqn.clone() });
        }
        *node = Node { boot, host_nqn, max_volumes, words: node.words + 1 };
        if rebooted {
            self.boot_is_over(&id, was_heard);
        }
        Ok(Response::Done)
    }

    fn may_be_connected(&self, node: &NodeId) -> bool {
        let mut attachments = self.volumes.values().filter_map(|volume| volume.attachments.get(node));
        attachments.any(|attachment| attachment.connection == Connection::Permitted)
    }

    /// A node is in another boot. If it was heard in the one before, none of its connections is there any more.
    fn boot_is_over(&mut self, node: &NodeId, was_heard: bool) {
        let mut affected = Vec::new();
        for (id, volume) in &mut self.volumes {
            if let Some(attachment) = volume.attachments.get_mut(node) {
                attachment.heard = None;
                if was_heard {
                    attachment.connection = Connection::Disconnected;
                }
                affected.push(id.clone());
            }
        }
        for id in affected {
            self.free_if_proven_off(&id, node);
        }
    }

    pub(super) fn permit_connect(
        &mut self,
        id: &VolumeId,
        node: &NodeId,
        generation: Generation,
        moment: NodeMoment,
    ) -> Result<Response, Refusal> {
        self.hear(node, &moment)?;
        let attachment = self.attachment(id, node, generation)?;
        match attachment.phase {
            AttachmentPhase::Granted => {}
            AttachmentPhase::Granting => return Err(gone(id, node, generation, "it is not granted yet")),
            AttachmentPhase::Revoking => return Err(gone(id, node, generation, "it is being revoked")),
        }
        if attachment.heard.as_ref().is_some_and(|heard| heard.since_boot_ns > moment.since_boot_ns) {
            return Err(Refusal::PastMoment { node: node.clone() });
        }
        attachment.connection = Connection::Permitted;
        attachment.heard = Some(moment);
        Ok(Response::Done)
    }

    pub(super) fn report_disconnected(
        &mut self,
        id: &VolumeId,
        node: &NodeId,
        moment: NodeMoment,
    ) -> Result<Response, Refusal> {
        self.hear(node, &moment)?;
        let attachment = self.volumes.get_mut(id).and_then(|volume| volume.attachments.get_mut(node));
        let Some(attachment) = attachment else { return Ok(Response::Done) };
        if attachment.heard.as_ref() == Some(&moment) && attachment.connection == Connection::Disconnected {
            return Ok(Response::Done);
        }
        if attachment.heard.as_ref().is_some_and(|heard| heard.since_boot_ns >= moment.since_boot_ns) {
            return Err(Refusal::PastMoment { node: node.clone() });
        }
        attachment.connection = Connection::Disconnected;
        attachment.heard = Some(moment);
        self.free_if_proven_off(id, node);
        Ok(Response::Done)
    }

    /// The node speaks, if it is its present boot. What it says may still be of the past: that it speaks is not.
    fn hear(&mut self, id: &NodeId, moment: &NodeMoment) -> Result<(), Refusal> {
        match self.nodes.get_mut(id) {
            None => Err(Refusal::NodeNotFound { node: id.clone() }),
            Some(node) if node.boot != moment.boot => Err(Refusal::PastMoment { node: id.clone() }),
            Some(node) => {
                node.words += 1;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    fn connection(ledger: &Ledger, name: &str) -> Connection {
        ledger.volume().attachments[&node(name)].connection
    }

    #[test]
    fn a_node_may_connect_only_while_its_attachment_stands() {
        let mut ledger = Ledger::with_volume();
        let moment = ledger.moment("boot-1");
        let generation = ledger.publish("a", EXT4_RWO).generation();
        let granting = ledger.permit("a", generation, moment.clone()).refusal();
        assert!(granting.to_string().contains("not granted yet"), "{granting}");
        let generation = ledger.grant("a", EXT4_RWO);
        let other = Generation(generation.0 + 1);
        assert!(matches!(
            ledger.permit("a", other, moment.clone()).refusal(),
            Refusal::AttachmentGone { .. }
        ));
        assert_eq!(ledger.permit("a", generation, moment), Response::Done);
        assert_eq!(connection(&ledger, "a"), Connection::Permitted);
        ledger.unpublish("a");
        let moment = ledger.moment("boot-1");
        let revoking = ledger.permit("a", generation, moment).refusal();
        assert!(revoking.to_string().contains("being revoked"), "{revoking}");
    }

    #[test]
    fn a_report_delivered_after_a_later_connect_is_no_proof() {
        let mut ledger = Ledger::with_volume();
        let generation = ledger.connect("a", EXT4_RWO);
        let late = ledger.moment("boot-1");
        let again = ledger.moment("boot-1");
        ledger.permit("a", generation, again);
        assert!(matches!(ledger.report_off("a", late).refusal(), Refusal::PastMoment { .. }));
        assert_eq!(ledger.unpublish("a"), Response::Revoking { nodes: vec![node("a")] });
    }

    #[test]
    fn a_report_that_is_repeated_stands() {
        let mut ledger = Ledger::with_volume();
        ledger.connect("a", EXT4_RWO);
        let off = ledger.moment("boot-1");
        assert_eq!(ledger.report_off("a", off.clone()), Response::Done);
        assert_eq!(ledger.report_off("a", off), Response::Done);
    }

    #[test]
    fn a_permission_delivered_after_a_later_report_is_refused() {
        let mut ledger = Ledger::with_volume();
        let generation = ledger.connect("a", EXT4_RWO);
        let late = ledger.moment("boot-1");
        let off = ledger.moment("boot-1");
        ledger.report_off("a", off);
        assert!(matches!(ledger.permit("a", generation, late).refusal(), Refusal::PastMoment { .. }));
        assert_eq!(connection(&ledger, "a"), Connection::Disconnected);
    }

    #[test]
    fn another_boot_proves_the_old_connections_gone() {
        let mut ledger = Ledger::with_volume();
        ledger.connect("a", EXT4_RWO);
        ledger.unpublish("a");
        ledger.register("a", "boot-1", 0);
        assert_eq!(ledger.holders(), ["a"], "a restart of the plugin alone proves nothing");
        assert_eq!(ledger.reboot("a", "boot-1", "boot-2"), Response::Done);
        assert!(ledger.holders().is_empty());
    }

    #[test]
    fn a_registration_that_arrives_late_changes_nothing() {
        let mut ledger = Ledger::with_volume();
        assert!(matches!(ledger.register("a", "boot-2", 0).refusal(), Refusal::OtherBoot { .. }));
        ledger.reboot("a", "boot-1", "boot-2");
        let generation = ledger.grant("a", EXT4_RWO);
        let moment = ledger.moment("boot-2");
        ledger.permit("a", generation, moment);
        // Boot 1.5 was on its way while the node rebooted once more; boot 1 asks again.
        for (replaces, boot) in [("boot-1", "boot-1.5"), ("boot-1", "boot-1"), ("boot-0", "boot-1")] {
            let late = ledger.reboot("a", replaces, boot).refusal();
            assert_eq!(
                late,
                Refusal::OtherBoot { node: node("a"), present: BootId::parse("boot-2").unwrap() }
            );
        }
        assert_eq!(connection(&ledger, "a"), Connection::Permitted);
        let past = ledger.moment("boot-1");
        assert!(matches!(ledger.report_off("a", past).refusal(), Refusal::PastMoment { .. }));
        assert_eq!(connection(&ledger, "a"), Connection::Permitted, "an earlier boot has no word any more");
    }

    #[test]
    fn another_machine_under_the_same_name_proves_nothing() {
        let mut ledger = Ledger::with_volume();
        ledger.connect("a", EXT4_RWO);
        let other = |replaces| crate::command::Command::RegisterNode {
            node: node("a"),
            boot: BootId::parse("boot-2").unwrap(),
            replaces,
            host_nqn: Nqn::parse("nqn.2014-08.org.nvmexpress:another").unwrap(),
            max_volumes: 0,
        };
        let replaces = BootId::parse("boot-1").ok();
        assert!(matches!(ledger.apply(other(replaces.clone())).refusal(), Refusal::OtherMachine { .. }));
        assert_eq!(connection(&ledger, "a"), Connection::Permitted);
        let moment = ledger.moment("boot-1");
        ledger.report_off("a", moment);
        assert_eq!(ledger.apply(other(replaces)), Response::Done, "once the first one is off");
    }

    #[test]
    fn each_word_of_the_present_boot_counts_as_heard() {
        let mut ledger = Ledger::with_volume();
        let words = |ledger: &Ledger| ledger.state.nodes()[&node("a")].words;
        let before = words(&ledger);
        let generation = ledger.grant("a", EXT4_RWO);
        assert_eq!(words(&ledger), before, "others spoke of it");
        let moment = ledger.moment("boot-1");
        ledger.permit("a", generation, moment);
        let moment = ledger.moment("boot-1");
        ledger.report_off("a", moment);
        ledger.reboot("a", "boot-1", "boot-2");
        assert_eq!(words(&ledger), before + 3);
        let past = ledger.moment("boot-1");
        ledger.report_off("a", past);
        assert_eq!(words(&ledger), before + 3, "what an earlier boot sent");
    }

    #[test]
    fn a_node_that_never_registered_is_not_known() {
        let mut ledger = Ledger::with_volume();
        let moment = ledger.moment("boot-1");
        assert!(matches!(ledger.report_off("z", moment).refusal(), Refusal::NodeNotFound { .. }));
    }
}
