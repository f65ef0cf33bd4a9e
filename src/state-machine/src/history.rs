//! What happened to a volume: the last facts of each, numbered over the whole ledger.
//!
//! A leader makes events of them, and a person reads them. A volume's history goes with the volume.

use serde::{Deserialize, Serialize};

use crate::ids::{ByteSize, NodeId, VolumeId};
use crate::migration::{MigrationId, MigrationOutcome};
use crate::state::State;
use crate::volume::{Generation, LedgerTime};

/// How many records a volume keeps.
pub const HISTORY_KEPT: usize = 32;

/// Who wants what nobody else decided: a node is detached because the orchestrator said so.
pub const ORCHESTRATOR: &str = "unpublish";
/// The evidence where the node itself is the witness; any other is somebody's word.
pub const PROVEN_OFF: &str = "its node is neither connected nor connecting";

/// A fact with its number, which is never used twice, and its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Greater than the number of every earlier record, of any volume.
    pub number: u64,
    /// When it happened.
    pub at: LedgerTime,
    /// What happened.
    pub fact: Fact,
}

/// Something that happened to a volume. Variants are only ever appended: their order is the encoding on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// The volume became ready.
    Created {
        /// Its size.
        size: ByteSize,
    },
    /// The volume has grown.
    Expanded {
        /// Its size from now on.
        size: ByteSize,
    },
    /// An attachment was granted.
    Attached {
        /// The node.
        node: NodeId,
        /// The attachment's generation.
        generation: Generation,
    },
    /// An attachment is to be cut; it still counts.
    Revoked {
        /// The node.
        node: NodeId,
        /// Who wants it, or on what ground.
        why: String,
    },
    /// A node was proven off, and its attachment is gone.
    Detached {
        /// The node.
        node: NodeId,
        /// Who says so: the orchestrator, or whoever knows that the node is off.
        by: String,
        /// The proof.
        evidence: String,
    },
    /// A second node was admitted.
    MigrationStarted {
        /// The migration.
        id: MigrationId,
        /// The node that has the volume.
        source: NodeId,
        /// The node that was admitted.
        target: NodeId,
        /// After how long it is overdue.
        timeout_seconds: u32,
    },
    /// A migration is past its deadline.
    MigrationOverdue {
        /// The migration.
        id: MigrationId,
    },
    /// An overdue migration is to lose a side.
    ReapDecided {
        /// The migration.
        id: MigrationId,
        /// The side that goes.
        stale: NodeId,
        /// Who decided.
        decided_by: String,
        /// On what evidence.
        evidence: String,
    },
    /// A side of a migration is gone.
    MigrationEnded {
        /// The migration.
        id: MigrationId,
        /// How it ended.
        outcome: MigrationOutcome,
        /// Who decided.
        decided_by: String,
        /// On what evidence.
        evidence: String,
        /// When it had begun.
        started_at: LedgerTime,
    },
    /// The ledger took the volume in as it was.
    TakenIn {
        /// From where.
        from: String,
    },
}

impl State {
    /// The number of the latest record; 0 if there is none yet.
    pub fn last_record(&self) -> u64 {
        self.last_record
    }

    /// The records with greater numbers, in their order. Those of deleted volumes, and those that a volume had to
    /// make room for, are not among them.
    pub fn records_after(&self, number: u64) -> impl Iterator<Item = (&VolumeId, &Record)> {
        let volumes = self.volumes.iter();
        let newer = volumes.flat_map(|(id, volume)| {
            volume.history.iter().rev().take_while(move |record| record.number > number).map(move |r| (id, r))
        });
        let mut newer: Vec<_> = newer.collect();
        newer.sort_unstable_by_key(|(_, record)| record.number);
        newer.into_iter()
    }

    pub(crate) fn record(&mut self, id: &VolumeId, fact: Fact) {
        let Some(volume) = self.volumes.get_mut(id) else { return };
        self.last_record += 1;
        volume.history.push_back(Record { number: self.last_record, at: self.clock, fact });
        while volume.history.len() > HISTORY_KEPT {
            volume.history.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::migration::ReapDecision;
    use crate::testing::*;

    fn story(ledger: &Ledger) -> Vec<String> {
        let records = ledger.state.records_after(0);
        let word = |fact: &Fact| format!("{fact:?}").split(' ').next().unwrap_or_default().to_owned();
        records.map(|(_, r)| format!("{} {} {}", r.number, r.at.0, word(&r.fact))).collect()
    }

    #[test]
    fn a_migration_that_is_reaped_tells_its_story() {
        let mut ledger = Ledger::with_volume();
        ledger.connect("a", BLOCK_RWX);
        ledger.connect("b", BLOCK_RWX);
        ledger.pass_seconds(300);
        let decision =
            ReapDecision { stale: node("b"), decided_by: "x".to_owned(), evidence: "y".repeat(5_000) };
        ledger.apply(Command::Reap { volume: volume(V), migration: MigrationId(1), decision });
        ledger.pass_seconds(4);
        let moment = ledger.moment("boot-1");
        ledger.report_off("b", moment);
        let expected = [
            "1 0 Created",
            "2 0 Attached",
            "3 0 MigrationStarted",
            "4 0 Attached",
            "5 300000 MigrationOverdue",
            "6 300000 ReapDecided",
            "7 300000 Revoked",
            "8 304000 Detached",
            "9 304000 MigrationEnded",
        ];
        assert_eq!(story(&ledger), expected);
        let last = &ledger.volume().history.back().unwrap().fact;
        let Fact::MigrationEnded { outcome, started_at, evidence, .. } = last else { panic!("{last:?}") };
        assert_eq!((*outcome, *started_at), (MigrationOutcome::Timeout, LedgerTime(0)));
        assert_eq!(evidence.len(), crate::MAX_TEXT_CHARS, "texts are bounded");
        assert_eq!(ledger.state.last_record(), 9);
    }

    #[test]
    fn what_changes_nothing_is_not_recorded_again() {
        let mut ledger = Ledger::with_volume();
        let generation = ledger.connect("a", BLOCK_RWX);
        let confirmed = Command::ExportConfirmed { volume: volume(V), node: node("a"), generation };
        ledger.apply(confirmed);
        ledger.publish("a", BLOCK_RWX);
        ledger.unpublish("a");
        ledger.unpublish("a");
        assert_eq!(story(&ledger), ["1 0 Created", "2 0 Attached", "3 0 Revoked"]);
    }

    #[test]
    fn records_are_read_in_the_order_of_their_numbers_from_any_one_on() {
        let mut ledger = Ledger::with_volume();
        let other = "pvc-00000000-0000-4000-8000-000000000000";
        ledger.grant("a", EXT4_RWO);
        let generation = ledger.create(other, 1).generation();
        ledger.created(other, generation);
        ledger.unpublish("a");
        let numbers = |after| ledger.state.records_after(after).map(|(_, r)| r.number).collect::<Vec<_>>();
        assert_eq!(numbers(0), [1, 2, 3, 4, 5]);
        assert_eq!(numbers(2), [3, 4, 5]);
        assert_eq!(numbers(5), [0; 0]);
        let volumes: Vec<_> = ledger.state.records_after(2).map(|(id, _)| id.as_str()).collect();
        assert_eq!(volumes, [other, V, V]);
    }

    #[test]
    fn a_volume_keeps_its_last_records() {
        let mut ledger = Ledger::with_volume();
        for _ in 0..HISTORY_KEPT {
            ledger.grant("a", EXT4_RWO);
            ledger.unpublish("a");
        }
        assert_eq!(ledger.volume().history.len(), HISTORY_KEPT);
        assert_eq!(ledger.volume().history.back().map(|r| r.number), Some(ledger.state.last_record()));
        assert_eq!(ledger.state.last_record(), 1 + 3 * HISTORY_KEPT as u64);
    }

    #[test]
    fn a_volumes_size_is_part_of_its_story() {
        let mut ledger = Ledger::with_volume();
        let grow = Command::ExpandVolume { volume: volume(V), required: size(2), limit_bytes: None };
        let generation = ledger.apply(grow).generation();
        ledger.apply(Command::VolumeExpanded { volume: volume(V), generation });
        let facts: Vec<_> = ledger.volume().history.iter().map(|r| r.fact.clone()).collect();
        assert_eq!(facts, [Fact::Created { size: size(1) }, Fact::Expanded { size: size(2) }]);
    }
}
