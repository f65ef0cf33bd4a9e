//! What is true of every state, checked after every command in tests and by the chaos suite.

use std::collections::BTreeSet;

use crate::access::AccessType;
use crate::history::HISTORY_KEPT;
use crate::migration::MigrationPhase;
use crate::state::State;
use crate::volume::{AttachmentPhase, LedgerTime, Volume, VolumePhase};

impl State {
    /// Every broken invariant, in a sentence each; none in a sound state.
    pub fn violations(&self) -> Vec<String> {
        let mut found: Vec<String> =
            self.volumes.values().flat_map(|volume| self.violations_of(volume)).collect();
        let timed: BTreeSet<_> = self
            .volumes
            .values()
            .filter_map(|volume| volume.migration.as_ref().map(|migration| (migration, &volume.id)))
            .filter(|(migration, _)| migration.phase == MigrationPhase::Active && !self.is_restoring())
            .map(|(migration, id)| (migration.deadline, id.clone()))
            .collect();
        if timed != self.deadlines {
            found.push(format!(
                "deadlines {:?} are not those of the active migrations {timed:?}",
                self.deadlines
            ));
        }
        let numbers: Vec<u64> = self.records_after(0).map(|(_, record)| record.number).collect();
        let in_order = numbers.windows(2).all(|pair| pair[0] < pair[1]);
        if !in_order || numbers.last().is_some_and(|last| *last > self.last_record) {
            found.push(format!("records up to {} have the numbers {numbers:?}", self.last_record));
        }
        found
    }

    pub(crate) fn violations_of(&self, volume: &Volume) -> Vec<String> {
        let mut found = Vec::new();
        let mut require = |holds: bool, what: &str| {
            if !holds {
                found.push(format!("volume {}: {what}", volume.id));
            }
        };
        let attachments = &volume.attachments;
        let all_shared = attachments
            .values()
            .all(|a| !a.mode.access_mode.is_single_node() && a.mode.access_type == AccessType::Block);
        require(attachments.len() <= 2, "more than two nodes");
        require(attachments.len() <= 1 || all_shared, "two nodes, and one not RWX block");
        require(attachments.len() == 2 || volume.migration.is_none(), "a migration without two nodes");
        require(attachments.len() < 2 || volume.migration.is_some(), "two nodes without a migration");
        require(
            attachments.is_empty()
                || matches!(volume.phase, VolumePhase::Ready | VolumePhase::Expanding { .. }),
            "attached while being created or deleted",
        );
        require(volume.generation <= self.last_generation, "a generation from the future");
        for (node, attachment) in attachments {
            require(attachment.generation <= self.last_generation, "an attachment from the future");
            require(self.nodes.contains_key(node), "attached to an unknown node");
            let leaving = attachment.phase == AttachmentPhase::Revoking;
            let reaped = leaving && attachments.len() == 2;
            require(reaped || !volume.cut_off.contains(node), "the last one, or one that stays, was cut off");
        }
        let history: Vec<_> =
            volume.history.iter().map(|r| (r.number, r.at)).chain([(u64::MAX, self.clock)]).collect();
        let grows = |pair: &[(u64, LedgerTime)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
        require(history.windows(2).all(grows), "a history that is not in order");
        require(volume.history.len() <= HISTORY_KEPT, "a history without a bound");
        if let Some(migration) = &volume.migration {
            let sides = [&migration.source, &migration.target];
            require(sides.iter().all(|side| attachments.contains_key(*side)), "a migration of others");
            require(migration.source != migration.target, "a migration to itself");
            require(
                migration.phase == MigrationPhase::Active || migration.deadline <= self.clock,
                "overdue too early",
            );
            if let MigrationPhase::Reaping(decision) = &migration.phase {
                let phase = attachments.get(&decision.stale).map(|a| a.phase);
                require(phase == Some(AttachmentPhase::Revoking), "reaping a side that is not revoked");
            }
        }
        found
    }
}
