//! The table: what is amiss on a node, given what was seen there and what the ledger says. Pure.

use std::fmt;
use std::path::{Path, PathBuf};

use state_machine::VolumeId;

use super::WITHOUT_DEVICE_MS;
use super::look::{ConnectionFact, NodeFacts, PathFact, There};
use crate::fabric::DeviceId;
use crate::ledger::{Described, InLedger};

/// Something amiss. What is done about each, if anything, is in the table of the module above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finding {
    /// A connection under the driver's prefix that is not named like a volume.
    Foreign { name: String },
    /// A connection to what the ledger does not know.
    NotInLedger { volume: VolumeId },
    /// A connection without a right to it, and without a user that shows.
    Idle { volume: VolumeId },
    /// A connection without a right to it, that is used.
    InUse { volume: VolumeId, uses: Vec<String> },
    /// A connection that has not had a device for long.
    WithoutDevice { volume: VolumeId, state: String },
    /// A staging mount whose device is gone, and where else that device is mounted.
    DeadStaging { volume: VolumeId, path: PathBuf, elsewhere: Vec<PathBuf> },
    /// A pod's mount whose device is gone.
    DeadTarget { volume: VolumeId, path: PathBuf },
    /// A mount of another device than the volume's.
    OtherMount { volume: VolumeId, path: PathBuf, device: DeviceId },
    /// A pod's device node that opens nothing.
    DeadNode { volume: VolumeId, path: PathBuf },
    /// A pod's device node that opens another device than the volume's.
    OtherNode { volume: VolumeId, path: PathBuf, device: DeviceId },
    /// Links to block targets of a volume that has none here.
    Links { volume: VolumeId, staging: PathBuf },
}

impl Finding {
    /// The kinds, as metrics and logs name them.
    pub(crate) const KINDS: [&str; 11] = [
        "foreign_connection",
        "connection_not_in_ledger",
        "idle_connection",
        "connection_in_use_without_attachment",
        "connection_without_device",
        "dead_staging_mount",
        "dead_target_mount",
        "other_device_mounted",
        "dead_device_node",
        "other_device_node",
        "leftover_links",
    ];

    /// Its kind.
    pub(crate) fn kind(&self) -> &'static str {
        let place = match self {
            Self::Foreign { .. } => 0,
            Self::NotInLedger { .. } => 1,
            Self::Idle { .. } => 2,
            Self::InUse { .. } => 3,
            Self::WithoutDevice { .. } => 4,
            Self::DeadStaging { .. } => 5,
            Self::DeadTarget { .. } => 6,
            Self::OtherMount { .. } => 7,
            Self::DeadNode { .. } => 8,
            Self::OtherNode { .. } => 9,
            Self::Links { .. } => 10,
        };
        Self::KINDS[place]
    }

    /// Whether both are of one kind and of one thing, however that has changed.
    pub(crate) fn is_about_the_same(&self, other: &Self) -> bool {
        self.kind() == other.kind() && self.subject() == other.subject()
    }

    /// What it is about: a name, and a path if it is about one.
    fn subject(&self) -> (&str, Option<&Path>) {
        match self {
            Self::Foreign { name } => (name, None),
            Self::NotInLedger { volume }
            | Self::Idle { volume }
            | Self::InUse { volume, .. }
            | Self::WithoutDevice { volume, .. } => (volume.as_str(), None),
            Self::DeadStaging { volume, path, .. }
            | Self::DeadTarget { volume, path }
            | Self::OtherMount { volume, path, .. }
            | Self::DeadNode { volume, path }
            | Self::OtherNode { volume, path, .. }
            | Self::Links { volume, staging: path } => (volume.as_str(), Some(path)),
        }
    }

    /// Whether a mount has lost its device.
    pub(crate) fn is_stale_mount(&self) -> bool {
        matches!(self, Self::DeadStaging { .. } | Self::DeadTarget { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = Path::display;
        match self {
            Self::Foreign { name } => write!(f, "{name} is connected and is no volume; it is left alone"),
            Self::NotInLedger { volume } => {
                write!(f, "{volume} is connected and not in the ledger; it is left alone")
            }
            Self::Idle { volume } => {
                write!(f, "{volume} is connected, not attached here, and used by nobody")
            }
            Self::InUse { volume, uses } => write!(
                f,
                "{volume} is connected and not attached here, but {}; it stays until that has ended",
                uses.join(", ")
            ),
            Self::WithoutDevice { volume, state } => {
                write!(f, "{volume}'s connection is {state} and has no device; is the appliance reachable?")
            }
            Self::DeadStaging { volume, path, elsewhere } if elsewhere.is_empty() => {
                write!(f, "{volume} is staged at {}, and its device is gone", shown(path))
            }
            Self::DeadStaging { volume, path, elsewhere } => write!(
                f,
                "{volume} is staged at {}, its device is gone, and {} other mounts have it; restart its pods",
                shown(path),
                elsewhere.len()
            ),
            Self::DeadTarget { volume, path } => {
                write!(f, "{volume} is mounted at {}, and its device is gone; restart the pod", shown(path))
            }
            Self::OtherMount { volume, path, device } => {
                write!(f, "{} is {volume}'s, and shows another device, {device}", shown(path))
            }
            Self::DeadNode { volume, path } => {
                write!(f, "{volume} is published at {}, and its device is gone; restart the pod", shown(path))
            }
            Self::OtherNode { volume, path, device } => {
                write!(f, "{} is {volume}'s, and opens another device, {device}", shown(path))
            }
            Self::Links { volume, staging } => {
                write!(f, "{} has links to block targets, and {volume} is not connected", shown(staging))
            }
        }
    }
}

/// All that is amiss.
pub(crate) fn plan(facts: &NodeFacts, ledger: &Described) -> Vec<Finding> {
    let mut findings: Vec<_> =
        facts.foreign.iter().map(|name| Finding::Foreign { name: name.clone() }).collect();
    findings.extend(facts.connections.iter().filter_map(|connection| of_connection(connection, ledger)));
    findings.extend(facts.paths.iter().filter_map(|path| of_path(path, facts, ledger)));
    findings
}

fn connection<'a>(facts: &'a NodeFacts, volume: &VolumeId) -> Option<&'a ConnectionFact> {
    facts.connections.iter().find(|connection| connection.volume == *volume)
}

fn of_connection(connection: &ConnectionFact, ledger: &Described) -> Option<Finding> {
    let volume = connection.volume.clone();
    match ledger.standings.get(&volume)? {
        InLedger::Unknown => Some(Finding::NotInLedger { volume }),
        InLedger::Attached(_) if connection.without_device_ms >= WITHOUT_DEVICE_MS => {
            Some(Finding::WithoutDevice { volume, state: connection.state.clone() })
        }
        InLedger::Attached(_) => None,
        InLedger::NotAttached | InLedger::Revoking(_) if connection.uses.is_empty() => {
            Some(Finding::Idle { volume })
        }
        InLedger::NotAttached | InLedger::Revoking(_) => {
            Some(Finding::InUse { volume, uses: connection.uses.clone() })
        }
    }
}

fn of_path(fact: &PathFact, facts: &NodeFacts, ledger: &Described) -> Option<Finding> {
    let (volume, path) = (fact.volume.clone(), fact.path.clone());
    let connected = connection(facts, &volume);
    let own = connected.and_then(|connection| connection.device.as_ref());
    match &fact.there {
        There::Mount { device, .. } | There::Node { device, .. } if own == Some(device) => None,
        There::Mount { device, exists: true, .. } => {
            Some(Finding::OtherMount { volume, path, device: device.clone() })
        }
        There::Mount { staging: true, elsewhere, .. } => {
            Some(Finding::DeadStaging { volume, path, elsewhere: elsewhere.clone() })
        }
        There::Mount { .. } => Some(Finding::DeadTarget { volume, path }),
        There::Node { device, exists: true } => {
            Some(Finding::OtherNode { volume, path, device: device.clone() })
        }
        There::Node { .. } => Some(Finding::DeadNode { volume, path }),
        There::Links => {
            let standing = ledger.standings.get(&volume)?;
            let is_left = connected.is_none() && !matches!(standing, InLedger::Attached(_));
            is_left.then_some(Finding::Links { volume, staging: path })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use state_machine::Generation;

    const STATE: &str = "connecting";

    fn volume() -> VolumeId {
        VolumeId::parse("pvc-1").unwrap()
    }

    fn number(minor: u32) -> DeviceId {
        DeviceId::Number { major: 259, minor }
    }

    fn attached() -> InLedger {
        InLedger::Attached(Generation(1))
    }

    fn revoking() -> InLedger {
        InLedger::Revoking(Generation(1))
    }

    fn says(standing: InLedger) -> Described {
        Described { standings: [(volume(), standing)].into() }
    }

    /// Connected as device 259:1, or without one for that long.
    fn connected(without_device_ms: Option<u64>, uses: &[&str]) -> NodeFacts {
        let fact = ConnectionFact {
            volume: volume(),
            device: without_device_ms.is_none().then(|| number(1)),
            state: STATE.to_owned(),
            without_device_ms: without_device_ms.unwrap_or(0),
            uses: uses.iter().map(|text| (*text).to_owned()).collect(),
        };
        NodeFacts { connections: vec![fact], ..NodeFacts::default() }
    }

    #[test]
    fn connections() {
        let (idle, not_in_ledger) =
            (Finding::Idle { volume: volume() }, Finding::NotInLedger { volume: volume() });
        let used = Finding::InUse { volume: volume(), uses: vec!["mounted at /a".to_owned()] };
        let lost = Finding::WithoutDevice { volume: volume(), state: STATE.to_owned() };
        let (mounted, long) = (&["mounted at /a"][..], WITHOUT_DEVICE_MS);
        let rows: [(_, &[&str], _, Option<&Finding>); 14] = [
            (None, &[], InLedger::Unknown, Some(&not_in_ledger)),
            (None, mounted, InLedger::Unknown, Some(&not_in_ledger)),
            (Some(long), &[], InLedger::Unknown, Some(&not_in_ledger)),
            (None, &[], InLedger::NotAttached, Some(&idle)),
            (None, &[], revoking(), Some(&idle)),
            (Some(0), &[], InLedger::NotAttached, Some(&idle)),
            (Some(long), &[], revoking(), Some(&idle)),
            (None, mounted, InLedger::NotAttached, Some(&used)),
            (None, mounted, revoking(), Some(&used)),
            (Some(0), mounted, revoking(), Some(&used)),
            (None, &[], attached(), None),
            (None, mounted, attached(), None),
            (Some(long - 1), &[], attached(), None),
            (Some(long), &[], attached(), Some(&lost)),
        ];
        for (without_device_ms, uses, standing, expected) in rows {
            let findings = plan(&connected(without_device_ms, uses), &says(standing));
            let expected: Vec<_> = expected.into_iter().cloned().collect();
            assert_eq!(findings, expected, "{without_device_ms:?} {uses:?} {standing:?}");
        }
    }

    #[test]
    fn what_the_ledger_did_not_say_changes_nothing() {
        assert_eq!(plan(&connected(None, &[]), &Described::default()), []);
        let links = PathFact { volume: volume(), path: "/staging".into(), there: There::Links };
        let facts = NodeFacts { paths: vec![links], ..NodeFacts::default() };
        assert_eq!(plan(&facts, &Described::default()), []);
    }

    #[test]
    fn foreign_names_are_reported() {
        let facts = NodeFacts { foreign: vec!["root disk".to_owned()], ..NodeFacts::default() };
        assert_eq!(plan(&facts, &Described::default()), [Finding::Foreign { name: "root disk".to_owned() }]);
    }

    #[test]
    fn mounts() {
        let mount = |minor, exists, staging, elsewhere: &[&str]| There::Mount {
            staging,
            device: number(minor),
            exists,
            elsewhere: elsewhere.iter().map(PathBuf::from).collect(),
        };
        let dead_staging = |elsewhere: &[&str]| Finding::DeadStaging {
            volume: volume(),
            path: "/path".into(),
            elsewhere: elsewhere.iter().map(PathBuf::from).collect(),
        };
        let dead_target = Finding::DeadTarget { volume: volume(), path: "/path".into() };
        let other = Finding::OtherMount { volume: volume(), path: "/path".into(), device: number(2) };
        let rows = [
            (mount(1, true, true, &[]), true, None),
            (mount(1, true, false, &["/staging"]), true, None),
            (mount(2, false, true, &[]), true, Some(dead_staging(&[]))),
            (mount(2, false, true, &[]), false, Some(dead_staging(&[]))),
            (mount(2, false, true, &["/pod"]), false, Some(dead_staging(&["/pod"]))),
            (mount(2, false, false, &[]), true, Some(dead_target.clone())),
            (mount(2, false, false, &["/staging"]), false, Some(dead_target)),
            (mount(2, true, true, &[]), true, Some(other.clone())),
            (mount(2, true, false, &[]), false, Some(other)),
        ];
        for (there, is_connected, expected) in rows {
            assert_eq!(
                at_a_path(there.clone(), is_connected, attached()),
                expected,
                "{there:?} {is_connected}"
            );
        }
    }

    #[test]
    fn device_nodes_and_links() {
        let node = |minor, exists| There::Node { device: number(minor), exists };
        let dead = Finding::DeadNode { volume: volume(), path: "/path".into() };
        let other = Finding::OtherNode { volume: volume(), path: "/path".into(), device: number(2) };
        let links = Finding::Links { volume: volume(), staging: "/path".into() };
        let rows = [
            (node(1, true), true, attached(), None),
            (node(2, false), true, attached(), Some(dead.clone())),
            (node(1, false), false, attached(), Some(dead)),
            (node(2, true), true, attached(), Some(other.clone())),
            (node(2, true), false, InLedger::NotAttached, Some(other)),
            (There::Links, true, attached(), None),
            (There::Links, false, attached(), None),
            (There::Links, false, InLedger::NotAttached, Some(links.clone())),
            (There::Links, false, InLedger::Unknown, Some(links)),
        ];
        for (there, is_connected, standing, expected) in rows {
            assert_eq!(
                at_a_path(there.clone(), is_connected, standing),
                expected,
                "{there:?} {is_connected}"
            );
        }
    }

    /// What is found of this at a path of the volume's, which is connected as 259:1, or not at all.
    fn at_a_path(there: There, is_connected: bool, standing: InLedger) -> Option<Finding> {
        let mut facts = if is_connected { connected(None, &[]) } else { NodeFacts::default() };
        facts.paths.push(PathFact { volume: volume(), path: "/path".into(), there });
        let mut findings = plan(&facts, &says(standing));
        findings.retain(|finding| !matches!(finding, Finding::Idle { .. }));
        assert!(findings.len() <= 1, "{findings:?}");
        findings.pop()
    }

    #[test]
    fn every_kind_has_its_name() {
        let mut names = Finding::KINDS.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Finding::KINDS.len());
    }
}
