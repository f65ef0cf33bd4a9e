//! What can be said of a volume on a node: unknown, absent, or connected and used in some way.

use std::time::Duration;

use proto::leader::v1;
use proto::leader::v1::connected::Use as UseMessage;
use proto::leader::v1::node_sight::Sight as SightMessage;
use state_machine::NodeMoment;

/// Who uses a connected volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Usage {
    /// Nobody.
    Idle,
    /// An operation of the node plugin: the volume is connected, or may be about to be. Counts as use.
    Busy,
    /// These, in words for people: processes, mounts, target paths, device mapper, loop devices.
    InUse {
        /// Who.
        by: Vec<String>,
    },
    /// That could not be seen, for this reason. Somebody may.
    Unseen {
        /// Why.
        why: String,
    },
}

/// The look that a sight rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The newest order that the node knew before it looked: see [`Sessions::ask`](super::core::Sessions::ask).
    pub echo: u64,
    /// When the node began to look, by its own clock.
    pub moment: NodeMoment,
    /// When the leader heard of it, by the leader's monotonic clock.
    pub heard_at: Duration,
}

/// A volume on a node, as its session says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// Neither that it is connected nor that it is not.
    Unknown {
        /// Why.
        why: String,
    },
    /// It was neither connected nor connecting at the look's moment. What the node was permitted after that moment,
    /// the ledger knows.
    Absent {
        /// The look.
        look: Look,
    },
    /// It was connected, or about to be.
    Connected {
        /// How it was used.
        used: Usage,
        /// The look.
        look: Look,
    },
}

impl Sight {
    /// Whether it rests on a look that began after the order of this number was known there, or never will.
    pub fn is_settled(&self, number: u64) -> bool {
        match self {
            Self::Unknown { .. } => true,
            Self::Absent { look } | Self::Connected { look, .. } => look.echo >= number,
        }
    }
}

/// A sight as another replica is told of it: clocks and numbers are the leader's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// See [`Sight::Unknown`].
    Unknown {
        /// Why.
        why: String,
    },
    /// See [`Sight::Absent`].
    Absent,
    /// See [`Sight::Connected`].
    Connected(Usage),
}

impl From<Sight> for Told {
    fn from(sight: Sight) -> Self {
        match sight {
            Sight::Unknown { why } => Self::Unknown { why },
            Sight::Absent { .. } => Self::Absent,
            Sight::Connected { used, .. } => Self::Connected(used),
        }
    }
}

impl From<Told> for SightMessage {
    fn from(told: Told) -> Self {
        let used = |used| Self::Connected(v1::Connected { r#use: used });
        match told {
            Told::Unknown { why } => Self::Unknown(why),
            Told::Absent => Self::Absent(v1::Absent {}),
            Told::Connected(Usage::Idle) => used(None),
            Told::Connected(Usage::Busy) => used(Some(UseMessage::Busy(v1::Busy {}))),
            Told::Connected(Usage::InUse { by }) => used(Some(UseMessage::Held(v1::Holders { by }))),
            Told::Connected(Usage::Unseen { why }) => used(Some(UseMessage::Unseen(why))),
        }
    }
}

impl From<Option<SightMessage>> for Told {
    fn from(message: Option<SightMessage>) -> Self {
        match message {
            None => Self::Unknown { why: "the leader's word is not understood here".to_owned() },
            Some(SightMessage::Unknown(why)) => Self::Unknown { why },
            Some(SightMessage::Absent(v1::Absent {})) => Self::Absent,
            Some(SightMessage::Connected(v1::Connected { r#use: used })) => Self::Connected(match used {
                None => Usage::Idle,
                Some(UseMessage::Busy(v1::Busy {})) => Usage::Busy,
                Some(UseMessage::Held(v1::Holders { by })) => Usage::InUse { by },
                Some(UseMessage::Unseen(why)) => Usage::Unseen { why },
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_replicas_hear_the_same() {
        let why = || "because".to_owned();
        for told in [
            Told::Unknown { why: why() },
            Told::Absent,
            Told::Connected(Usage::Idle),
            Told::Connected(Usage::Busy),
            Told::Connected(Usage::InUse { by: vec!["process 7 (qemu-kvm)".to_owned()] }),
            Told::Connected(Usage::Unseen { why: why() }),
        ] {
            assert_eq!(Told::from(Some(SightMessage::from(told.clone()))), told);
        }
        assert!(matches!(Told::from(None), Told::Unknown { .. }), "a word not understood is not absence");
    }
}
