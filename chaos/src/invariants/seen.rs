//! What several invariants ask of a history.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Answer, FaultRecord, History, Installed, LedgerFact, Micros, Operation, Request};

/// How much later than it was so the recorder may have seen a fact of the ledger, in microseconds: it asks again and
/// again, and waits for an answer while a leader is elected. The simulator sees everything at once.
pub(super) const OBSERVER_LAG_MICROS: Micros = 2_000_000;
/// How much earlier than it was so a fact of the ledger may be recorded, in microseconds: the recorder takes the moment
/// at which it asked, and the answer may have taken so long.
pub(super) const OBSERVER_LEAD_MICROS: Micros = 1_000_000;

/// A time, for people.
pub(super) fn time(at: Micros) -> String {
    format!("{}.{:06} s", at / 1_000_000, at % 1_000_000)
}

/// The volumes that two nodes may have: made as such, or, where nobody is known to have made it, migrated.
pub(super) fn shared_volumes(history: &History) -> BTreeSet<&str> {
    let mut made: BTreeMap<&str, bool> = BTreeMap::new();
    for operation in &history.operations {
        if let Request::Create { volume, shared, .. } = &operation.request {
            *made.entry(volume).or_default() |= *shared;
        }
    }
    let migrated = history.ledger.iter().filter(|seen| {
        matches!(seen.fact, LedgerFact::MigrationStarted { .. }) && !made.contains_key(seen.volume.as_str())
    });
    let migrated: BTreeSet<&str> = migrated.map(|seen| seen.volume.as_str()).collect();
    let shared = made.iter().filter(|(_, shared)| **shared).map(|(volume, _)| *volume);
    shared.chain(migrated).collect()
}

impl Request {
    /// The volume that it is about.
    pub(super) fn volume(&self) -> &str {
        match self {
            Self::Create { volume, .. }
            | Self::Delete { volume }
            | Self::Publish { volume, .. }
            | Self::Unpublish { volume, .. }
            | Self::Expand { volume, .. }
            | Self::Read { volume } => volume,
        }
    }

    /// Whether it takes the volume from `node`; without a node it takes it from all.
    pub(super) fn unpublishes(&self, volume: &str, node: &str) -> bool {
        matches!(self, Self::Unpublish { volume: of, node: from } if of == volume && (from == node || from.is_empty()))
    }

    /// Whether it gives the volume to `node`.
    pub(super) fn publishes(&self, volume: &str, node: &str) -> bool {
        matches!(self, Self::Publish { volume: of, node: to } if of == volume && to == node)
    }

    /// Whether it removes the volume.
    pub(super) fn deletes(&self, volume: &str) -> bool {
        matches!(self, Self::Delete { volume: of } if of == volume)
    }

    /// Whether it makes the volume.
    pub(super) fn creates(&self, volume: &str) -> bool {
        matches!(self, Self::Create { volume: of, .. } if of == volume)
    }
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// It happened before the answer.
    Done,
    /// It may have happened, and may yet happen.
    Maybe,
    /// It did not, and will not.
    None,
}

impl Operation {
    /// What became of it. A publish and an unpublish go on in the ledger when they are refused for what was met on
    /// the way, on the appliance or on the node, so that their refusal proves nothing.
    pub(super) fn effect(&self) -> Effect {
        match (&self.answer, &self.request) {
            (Answer::Ok | Answer::Published(_) | Answer::Read(_), _) if self.ended.is_some() => Effect::Done,
            (Answer::Refused(_), Request::Publish { .. } | Request::Unpublish { .. }) => Effect::Maybe,
            (Answer::Refused(_), _) => Effect::None,
            (Answer::Ok | Answer::Published(_) | Answer::Read(_) | Answer::Unknown(_), _) => Effect::Maybe,
        }
    }

    /// When it was acknowledged.
    pub(super) fn acknowledged(&self) -> Option<Micros> {
        self.ended.filter(|_| self.effect() == Effect::Done)
    }

    /// Whether it may have happened after `from` and before `to`.
    pub(super) fn may_fall_between(&self, from: Micros, to: Micros) -> bool {
        let begins_in_time = self.started <= to;
        begins_in_time
            && match self.effect() {
                Effect::Done => self.ended.is_some_and(|ended| ended >= from),
                Effect::Maybe => true,
                Effect::None => false,
            }
    }
}

impl FaultRecord {
    /// Whether it was, or may have been, there.
    pub(super) fn was_there(&self) -> bool {
        match self.installed {
            Installed::Yes | Installed::Indeterminate => true,
            Installed::Skipped => false,
        }
    }

    /// Whether it hit this node before `at`.
    pub(super) fn hit_node_before(&self, node: &str, at: Micros) -> bool {
        self.was_there() && self.at <= at && self.target.contains(node)
    }
}
