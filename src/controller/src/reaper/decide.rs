//! The verdict on one migration: facts in, verdict out (DESIGN.md, "Reaping").
//!
//! The first row that matches decides. "Seen" means in a look that is newer than the deadline.
//!
//! | # | Facts | Verdict |
//! |---|---|---|
//! | | not overdue, or a side is being revoked already | wait |
//! | 1 | KubeVirt has an unfinished migration, or could not be read since the deadline | wait |
//! | | KubeVirt says that it ended, and the side that lost is seen in use | leave alone: the facts contradict each other |
//! | | KubeVirt says that it ended | the side that lost is stale |
//! | 2 | one side seen in use, the other seen idle or absent | the other is stale |
//! | | both seen, none in use; the target is connected and the source is not | the source is stale |
//! | | both seen, none in use | the target is stale |
//! | 3 | a side with proof, not seen in use | it is stale; of two, as in row 2 |
//! | | a side with proof, seen in use | leave alone: the facts contradict each other |
//! | 4 | both seen in use | leave alone |
//! | 5 | anything else | wait |
//!
//! What KubeVirt and the sessions say (rows 1 and 2) has to hold for a while before the side goes
//! ([`Ground::may_pass`]): a migration that has just succeeded looks the same until it is unpublished.
//!
//! Of two sides that nobody uses the target goes, since the source had the volume first. If only the target is
//! connected, the source goes: a VM that starts again would start where the connection is, and cutting what is not
//! connected takes nothing from anybody.

use std::fmt;

use state_machine::{Migration, MigrationPhase, NodeId, ReapDecision};

/// The longest sentence of evidence, in bytes: it goes into the ledger.
const MAX_EVIDENCE_BYTES: usize = 500;

/// A side of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The node that had the volume.
    Source,
    /// The node that was admitted beside it.
    Target,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

/// What KubeVirt says of the migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KubeVirt {
    /// It has nothing to say, for this reason: no Kubernetes, or facts that contradict each other.
    Unknown { why: String },
    /// It may have something to say, and has not been read since the deadline: not listed yet, or the watch is lost.
    Awaited { why: String },
    /// The VM has a migration that has not ended, in this phase.
    Unfinished { phase: String },
    /// The VM's migration ended and the VM is not on the side that lost.
    Ended { lost: Side, how: String },
    /// No VM uses the volume.
    NoVm,
}

/// What a node's session says of the volume there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// Nothing that can be relied on.
    Unknown { why: String },
    /// The node is neither connected nor connecting.
    Absent,
    /// The node is connected, and nothing there uses the device.
    Idle,
    /// The device is open, mounted, held or published.
    InUse { by: String },
}

/// How it is known, without the node's own word, that it is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    /// It is not.
    None,
    /// The node is tainted out-of-service.
    OutOfService,
    /// The node was deleted from Kubernetes and is silent since.
    NodeDeleted,
}

/// What is known of one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SideFacts {
    /// What its session says, in a look newer than the deadline.
    pub(crate) sight: Sight,
    /// Whether it is known to be off.
    pub(crate) proof: Proof,
    /// Its attachment is being revoked already.
    pub(crate) leaving: bool,
}

/// What is known of a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// As the ledger has it.
    pub(crate) migration: Migration,
    pub(crate) kubevirt: KubeVirt,
    pub(crate) source: SideFacts,
    pub(crate) target: SideFacts,
}

/// What follows from the facts; each with a sentence for the person on call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing is to be done now.
    Wait { why: String },
    /// Nothing may be done, and somebody has to know.
    LeaveAlone { why: String },
    /// One side goes.
    Reap { decision: ReapDecision, ground: Ground },
}

/// What says that a side is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ground {
    KubeVirt,
    Sessions,
    Proof,
}

impl Ground {
    /// Whether the side may be about to be unpublished: from a node that is off, nobody unpublishes.
    pub(crate) fn may_pass(self) -> bool {
        match self {
            Self::KubeVirt | Self::Sessions => true,
            Self::Proof => false,
        }
    }
}

impl fmt::Display for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KubeVirt => "what KubeVirt says",
            Self::Sessions => "what the sessions say",
            Self::Proof => "proof that the node is off",
        })
    }
}

/// A verdict before its sentence is complete.
enum Judgement {
    Wait(String),
    LeaveAlone(String),
    Stale { side: Side, ground: Ground, because: String },
}

/// Decides on one migration, for the leader in `term`.
pub(crate) fn decide(facts: &Facts, term: u64) -> Verdict {
    let judgement = by_ledger(facts)
        .or_else(|| by_kubevirt(facts))
        .or_else(|| by_sight(facts))
        .or_else(|| by_proof(facts))
        .unwrap_or_else(|| nothing_known(facts));
    let sentence = |reason: &str| cut(format!("{reason} ({})", describe(facts)));
    match judgement {
        Judgement::Wait(why) => Verdict::Wait { why: sentence(&why) },
        Judgement::LeaveAlone(why) => Verdict::LeaveAlone { why: sentence(&why) },
        Judgement::Stale { side, ground, because } => {
            let decision = ReapDecision {
                stale: facts.node(side).clone(),
                decided_by: format!("the reaper of term {term}, by {ground}"),
                evidence: sentence(&because),
            };
            Verdict::Reap { decision, ground }
        }
    }
}

fn by_ledger(facts: &Facts) -> Option<Judgement> {
    match &facts.migration.phase {
        MigrationPhase::Active => Some(Judgement::Wait("the migration is within its time".to_owned())),
        MigrationPhase::Reaping(decision) => Some(Judgement::Wait(format!(
            "node {} is being cut; its slot is free once it is proven off",
            decision.stale
        ))),
        MigrationPhase::Overdue => {
            let leaving = [Side::Source, Side::Target].into_iter().find(|side| facts.side(*side).leaving)?;
            Some(Judgement::Wait(format!(
                "the {leaving} is being revoked already; the migration ends once it is proven off"
            )))
        }
    }
}

fn by_kubevirt(facts: &Facts) -> Option<Judgement> {
    match &facts.kubevirt {
        KubeVirt::Unknown { .. } | KubeVirt::NoVm => None,
        KubeVirt::Awaited { why } => {
            Some(Judgement::Wait(format!("what KubeVirt says of the migration is not known: {why}")))
        }
        KubeVirt::Unfinished { .. } => {
            Some(Judgement::Wait("KubeVirt is not done with the migration".to_owned()))
        }
        KubeVirt::Ended { lost, .. } if facts.side(*lost).is_in_use() => {
            Some(Judgement::LeaveAlone(format!(
                "KubeVirt says that the VM is not on the {lost} any more, and yet the volume is in use there: \
             nothing held is cut"
            )))
        }
        KubeVirt::Ended { lost, .. } => Some(Judgement::Stale {
            side: *lost,
            ground: Ground::KubeVirt,
            because: format!("the {lost} is stale: KubeVirt's migration ended and the VM is not there"),
        }),
    }
}

fn by_sight(facts: &Facts) -> Option<Judgement> {
    let (side, because) = match (&facts.source.sight, &facts.target.sight) {
        (Sight::Unknown { .. }, _) | (_, Sight::Unknown { .. }) => return None,
        (Sight::InUse { .. }, Sight::InUse { .. }) if planted::is(planted::Bug::ReapsInUse) => {
            (Side::Target, "the target is stale: the source is in use")
        }
        (Sight::InUse { .. }, Sight::InUse { .. }) => return None,
        (Sight::InUse { .. }, Sight::Absent | Sight::Idle) => {
            (Side::Target, "the target is stale: only the source is in use")
        }
        (Sight::Absent | Sight::Idle, Sight::InUse { .. }) => {
            (Side::Source, "the source is stale: only the target is in use")
        }
        (Sight::Absent | Sight::Idle, Sight::Absent | Sight::Idle) => match facts.more_likely_stale() {
            Side::Source => {
                (Side::Source, "the source is stale: none is in use, only the target is connected")
            }
            Side::Target => (Side::Target, "the target is stale: none is in use"),
        },
    };
    Some(Judgement::Stale { side, ground: Ground::Sessions, because: because.to_owned() })
}

fn by_proof(facts: &Facts) -> Option<Judgement> {
    let proven = |side: Side| facts.side(side).proof != Proof::None;
    let usable = |side: Side| proven(side) && !facts.side(side).is_in_use();
    let side = match (usable(Side::Source), usable(Side::Target)) {
        (true, true) => facts.more_likely_stale(),
        (true, false) => Side::Source,
        (false, true) => Side::Target,
        (false, false) => {
            let side = [Side::Source, Side::Target].into_iter().find(|side| proven(*side))?;
            return Some(Judgement::LeaveAlone(format!(
                "the {side} is said to be off, and yet the volume is in use there: nothing held is cut"
            )));
        }
    };
    let because = format!("the {side} is stale: its node is off");
    Some(Judgement::Stale { side, ground: Ground::Proof, because })
}

fn nothing_known(facts: &Facts) -> Judgement {
    if facts.source.is_in_use() && facts.target.is_in_use() {
        return Judgement::LeaveAlone("both sides are in use: nothing held is cut".to_owned());
    }
    Judgement::Wait("too little is known to say which side is stale".to_owned())
}

impl SideFacts {
    fn is_in_use(&self) -> bool {
        matches!(self.sight, Sight::InUse { .. })
    }
}

impl Facts {
    pub(crate) fn side(&self, side: Side) -> &SideFacts {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    pub(crate) fn node(&self, side: Side) -> &NodeId {
        match side {
            Side::Source => &self.migration.source,
            Side::Target => &self.migration.target,
        }
    }

    /// Of two sides that are not in use: never the one that is connected while the other is not, else the target.
    fn more_likely_stale(&self) -> Side {
        if self.target.sight == Sight::Idle && self.source.sight != Sight::Idle {
            Side::Source
        } else {
            Side::Target
        }
    }
}

/// All the facts, in the words of the person on call.
fn describe(facts: &Facts) -> String {
    let kubevirt = match &facts.kubevirt {
        KubeVirt::Unknown { why } | KubeVirt::Awaited { why } => format!("unknown, {why}"),
        KubeVirt::Unfinished { phase } => format!("unfinished, {phase}"),
        KubeVirt::Ended { how, .. } => format!("ended, {how}"),
        KubeVirt::NoVm => "no VM uses the volume".to_owned(),
    };
    let side = |side: Side| {
        let known = facts.side(side);
        let sight = match &known.sight {
            Sight::Unknown { why } => format!("unknown, {why}"),
            Sight::Absent => "not connected".to_owned(),
            Sight::Idle => "connected, idle".to_owned(),
            Sight::InUse { by } => format!("in use by {by}"),
        };
        let proof = match known.proof {
            Proof::None => "",
            Proof::OutOfService => ", tainted out-of-service",
            Proof::NodeDeleted => ", deleted and silent",
        };
        format!("{side} {}: {sight}{proof}", facts.node(side))
    };
    format!("KubeVirt: {kubevirt}; {}; {}", side(Side::Source), side(Side::Target))
}

/// The text, cut to what may go into the ledger.
pub(crate) fn cut(mut text: String) -> String {
    let mut end = text.len().min(MAX_EVIDENCE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
