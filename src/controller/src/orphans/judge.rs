//! Whether something on the appliance is an orphan, and whether it may be removed. The first rule that matches decides.

use std::time::Duration;

/// What Kubernetes says of a PersistentVolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PersistentVolume {
    /// There is one.
    There,
    /// All were read, and it is not among them.
    Absent,
    /// They are watched, and not known now.
    Unknown { why: String },
    /// Kubernetes is not watched at all.
    NotWatched,
}

/// Whether a node has it connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Connection {
    /// No node has, or it is not exported.
    Nowhere,
    /// These say that they have, or said so last.
    On { nodes: String },
    /// A node that may have cannot be asked.
    Unknown { why: String },
}

/// What is known of one thing on the appliance.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) in_ledger: bool,
    pub(crate) persistent_volume: PersistentVolume,
    /// The ledger recorded that it made it, and has it no more.
    pub(crate) made_once: bool,
    /// It lies under a path that is declared to be this installation's alone.
    pub(crate) is_exclusive: bool,
    /// Its file is named as the driver names a volume's.
    pub(crate) is_named_as_ours: bool,
    /// There are no more orphans under exclusive paths than volumes in the ledger.
    pub(crate) is_ledger_whole: bool,
    pub(crate) connection: Connection,
    /// For how long it was seen in each look.
    pub(crate) seen_for: Duration,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Somebody has it: no orphan.
    Needed,
    /// An orphan, or perhaps one, that is left alone.
    Kept { why: String },
    /// An orphan that may be removed.
    Removable { because: &'static str },
}

impl Verdict {
    fn kept(why: impl Into<String>) -> Self {
        Self::Kept { why: why.into() }
    }

    pub(crate) fn is_removable(&self) -> bool {
        matches!(self, Self::Removable { .. })
    }
}

/// The table.
pub(crate) fn judge(facts: &Facts, grace: Duration) -> Verdict {
    if facts.in_ledger || facts.persistent_volume == PersistentVolume::There {
        return Verdict::Needed;
    }
    if !facts.is_named_as_ours {
        return Verdict::kept("its file is not named as this driver names one");
    }
    if !facts.made_once && !facts.is_exclusive {
        return Verdict::kept(
            "this ledger did not make it, and its directory is not among orphans.exclusive_volume_paths: it may be \
             another installation's",
        );
    }
    match &facts.persistent_volume {
        PersistentVolume::Unknown { why } => {
            return Verdict::kept(format!("whether a PersistentVolume has it is not known: {why}"));
        }
        // A ledger that was restored may have forgotten what it made after the backup.
        PersistentVolume::NotWatched => {
            return Verdict::kept(
                "whether a PersistentVolume has it is not known: set kubernetes.enabled, or remove it by hand",
            );
        }
        PersistentVolume::Absent | PersistentVolume::There => {}
    }
    if !facts.made_once && !facts.is_ledger_whole {
        return Verdict::kept(
            "there are more orphans than volumes in the ledger, as after the loss of a ledger: see docs/recover.md",
        );
    }
    match &facts.connection {
        Connection::On { nodes } => return Verdict::kept(format!("connected on {nodes}")),
        Connection::Unknown { why } => {
            return Verdict::kept(format!("whether a node has it connected is not known: {why}"));
        }
        Connection::Nowhere => {}
    }
    // One look alone proves nothing, whatever the grace is.
    if facts.seen_for < grace || facts.seen_for.is_zero() {
        return Verdict::kept(format!("seen for {} s of {} s", facts.seen_for.as_secs(), grace.as_secs()));
    }
    let because = if facts.made_once {
        "this ledger recorded its making and has it no more"
    } else {
        "its directory is declared exclusive, and nobody knows it"
    };
    Verdict::Removable { because }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(300);

    /// Removable on both grounds.
    fn orphan() -> Facts {
        Facts {
            in_ledger: false,
            persistent_volume: PersistentVolume::Absent,
            made_once: true,
            is_exclusive: true,
            is_named_as_ours: true,
            is_ledger_whole: true,
            connection: Connection::Nowhere,
            seen_for: GRACE,
        }
    }

    fn by_path() -> Facts {
        Facts { made_once: false, ..orphan() }
    }

    fn unknown() -> PersistentVolume {
        PersistentVolume::Unknown { why: "the watch is broken".to_owned() }
    }

    fn word(facts: &Facts) -> String {
        match judge(facts, GRACE) {
            Verdict::Needed => "needed".to_owned(),
            Verdict::Kept { why } => why,
            Verdict::Removable { because } => format!("remove: {because}"),
        }
    }

    #[test]
    fn each_row_decides() {
        let seconds = Duration::from_secs;
        let on = Connection::On { nodes: "node-a".to_owned() };
        let unseen = Connection::Unknown { why: "node-b has no session".to_owned() };
        let there = PersistentVolume::There;
        let rows = [
            ("the ledger has it", Facts { in_ledger: true, ..orphan() }, "needed"),
            ("a PV has it", Facts { persistent_volume: there.clone(), ..orphan() }, "needed"),
            ("a PV has it, by path", Facts { persistent_volume: there, ..by_path() }, "needed"),
            ("another file", Facts { is_named_as_ours: false, ..orphan() }, "not named"),
            ("another's", Facts { is_exclusive: false, ..by_path() }, "another installation"),
            ("PVs unknown", Facts { persistent_volume: unknown(), ..orphan() }, "watch is broken"),
            ("PVs unknown, by path", Facts { persistent_volume: unknown(), ..by_path() }, "watch is broken"),
            (
                "no Kubernetes, by path",
                Facts { persistent_volume: PersistentVolume::NotWatched, ..by_path() },
                "set kubernetes.enabled",
            ),
            (
                "no Kubernetes, made here",
                Facts { persistent_volume: PersistentVolume::NotWatched, ..orphan() },
                "set kubernetes.enabled",
            ),
            ("a ledger that was lost", Facts { is_ledger_whole: false, ..by_path() }, "loss of a ledger"),
            ("made here all the same", Facts { is_ledger_whole: false, ..orphan() }, "remove: this ledger"),
            ("connected", Facts { connection: on, ..orphan() }, "connected on node-a"),
            ("perhaps connected", Facts { connection: unseen, ..by_path() }, "node-b has no session"),
            ("young", Facts { seen_for: seconds(299), ..orphan() }, "seen for 299 s of 300 s"),
            ("not exclusive", Facts { is_exclusive: false, ..orphan() }, "remove: this ledger"),
            ("by path", by_path(), "remove: its directory"),
            ("old", Facts { seen_for: seconds(9_999), ..orphan() }, "remove: this ledger"),
        ];
        let wrong: Vec<_> = rows
            .iter()
            .map(|(name, facts, expected)| (name, word(facts), expected))
            .filter(|(_, said, expected)| !said.contains(*expected))
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn a_first_look_removes_nothing_whatever_the_grace() {
        let facts = Facts { seen_for: Duration::ZERO, ..orphan() };
        assert!(!judge(&facts, Duration::ZERO).is_removable());
    }
}
