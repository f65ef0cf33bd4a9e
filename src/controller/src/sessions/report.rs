//! A node's report, parsed once: what is sent by a node is bounded, and says what it says.

use proto::node::v1;
use state_machine::{BootId, IdError, Nqn, VolumeId};

use super::sight::Usage;

/// Most volumes of one node.
const MAX_VOLUMES: usize = 4096;
/// Most holders of a volume that are kept.
const MAX_HOLDERS: usize = 16;
/// Longest text about a holder, or why something could not be seen, that is kept, in characters.
const MAX_TEXT_CHARACTERS: usize = 256;

/// A report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub boot: BootId,
    /// In a session's first report.
    pub host_nqn: Option<Nqn>,
    /// When the node began to look.
    pub since_boot_ns: u64,
    /// The newest order that it knew by then.
    pub echo: u64,
    /// What it saw; `None`: the same as the last time.
    pub content: Option<Content>,
}

/// What a node saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// Why not everything could be seen.
    incomplete: Option<Box<str>>,
    /// What is not absent, by volume.
    volumes: Box<[(VolumeId, Kept)]>,
}

/// A volume of which a node says more than that it is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Connected, or about to be.
    Connected(Usage),
    /// It could not be seen whether it is, for this reason.
    Unseen(String),
}

/// An entry as it is kept, perhaps for days and for all volumes of thousands of nodes: [`Usage`], without room to grow.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kept {
    Idle,
    Busy,
    /// Who uses it, a line each.
    InUse(Box<str>),
    UseUnseen(Box<str>),
    Unseen(Box<str>),
}

impl From<&Kept> for Entry {
    fn from(kept: &Kept) -> Self {
        match kept {
            Kept::Idle => Self::Connected(Usage::Idle),
            Kept::Busy => Self::Connected(Usage::Busy),
            Kept::InUse(by) => Self::Connected(Usage::InUse { by: by.lines().map(str::to_owned).collect() }),
            Kept::UseUnseen(why) => Self::Connected(Usage::Unseen { why: why.to_string() }),
            Kept::Unseen(why) => Self::Unseen(why.to_string()),
        }
    }
}

impl Content {
    /// What is said of `volume`; `None`: it is absent.
    pub(crate) fn of(&self, volume: &VolumeId) -> Option<Entry> {
        match self.volumes.binary_search_by(|(id, _)| id.cmp(volume)) {
            Ok(found) => self.volumes.get(found).map(|(_, kept)| kept.into()),
            Err(_) => self.incomplete.as_ref().map(|why| Entry::Unseen(why.to_string())),
        }
    }

    /// Everything that is connected, or about to be.
    pub(crate) fn connected(&self) -> impl Iterator<Item = &VolumeId> {
        self.volumes.iter().filter_map(|(id, kept)| match kept {
            Kept::Idle | Kept::Busy | Kept::InUse(_) | Kept::UseUnseen(_) => Some(id),
            Kept::Unseen(_) => None,
        })
    }
}

impl Report {
    /// Parses the message; the error is for the node's log.
    pub fn parse(message: v1::NodeReport) -> Result<Self, String> {
        let field = |name: &'static str| move |error: IdError| format!("{name} {error}");
        let host_nqn = match message.host_nqn.as_str() {
            "" => None,
            text => Some(Nqn::parse(text).map_err(field("host_nqn"))?),
        };
        Ok(Self {
            boot: BootId::parse(&message.boot_id).map_err(field("boot_id"))?,
            host_nqn,
            since_boot_ns: message.since_boot_ns,
            echo: message.echo,
            content: if message.unchanged {
                None
            } else {
                Some(content(message.incomplete, message.volumes)?)
            },
        })
    }
}

fn content(incomplete: String, volumes: Vec<v1::VolumeReport>) -> Result<Content, String> {
    if volumes.len() > MAX_VOLUMES {
        return Err(format!("volumes are {}; at most {MAX_VOLUMES} are taken", volumes.len()));
    }
    let mut entries = Vec::with_capacity(volumes.len());
    for volume in volumes {
        let id = VolumeId::parse(&volume.volume_id).map_err(|error| format!("volume_id {error}"))?;
        entries.extend(entry(volume).map(|entry| (id, entry)));
    }
    entries.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    if let Some([(id, _), _]) = entries.array_windows().find(|[(one, _), (other, _)]| one == other) {
        return Err(format!("volume {id} is there twice"));
    }
    let incomplete = (!incomplete.is_empty()).then(|| bounded(incomplete).into_boxed_str());
    Ok(Content { incomplete, volumes: entries.into_boxed_slice() })
}

/// What the message says of its volume; `None`: that it is absent.
fn entry(volume: v1::VolumeReport) -> Option<Kept> {
    let v1::VolumeReport { connected, busy, held_by, unseen, .. } = volume;
    if connected && !held_by.is_empty() {
        let by: Vec<_> = held_by.into_iter().take(MAX_HOLDERS).map(bounded).collect();
        return Some(Kept::InUse(by.join("\n").into_boxed_str()));
    }
    match (connected, busy, unseen.is_empty()) {
        (_, true, _) => Some(Kept::Busy),
        (true, false, true) => Some(Kept::Idle),
        (true, false, false) => Some(Kept::UseUnseen(bounded(unseen).into_boxed_str())),
        (false, false, false) => Some(Kept::Unseen(bounded(unseen).into_boxed_str())),
        (false, false, true) => None,
    }
}

/// A line of bounded length.
fn bounded(text: String) -> String {
    let line = text.chars().map(|character| if character.is_control() { ' ' } else { character });
    let mut bounded: String = line.take(MAX_TEXT_CHARACTERS).collect();
    if bounded.len() < text.len() {
        bounded.push('…');
    }
    bounded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> VolumeId {
        VolumeId::parse(text).unwrap()
    }

    fn volume(connected: bool, busy: bool, held_by: &[&str], unseen: &str) -> v1::VolumeReport {
        let held_by = held_by.iter().map(|text| (*text).to_owned()).collect();
        v1::VolumeReport { volume_id: "a".to_owned(), connected, busy, held_by, unseen: unseen.to_owned() }
    }

    fn report(volumes: Vec<v1::VolumeReport>) -> v1::NodeReport {
        v1::NodeReport { boot_id: "boot".to_owned(), volumes, ..Default::default() }
    }

    #[test]
    fn each_message_has_its_meaning() {
        let held = || Entry::Connected(Usage::InUse { by: vec!["x".to_owned()] });
        let rows = [
            (volume(false, false, &[], ""), None),
            // A mount that outlived its connection does not make it one.
            (volume(false, false, &["x"], ""), None),
            (volume(false, false, &[], "why"), Some(Entry::Unseen("why".to_owned()))),
            (volume(false, true, &[], ""), Some(Entry::Connected(Usage::Busy))),
            (volume(false, true, &[], "why"), Some(Entry::Connected(Usage::Busy))),
            (volume(true, false, &[], ""), Some(Entry::Connected(Usage::Idle))),
            (volume(true, true, &[], ""), Some(Entry::Connected(Usage::Busy))),
            (
                volume(true, false, &[], "why"),
                Some(Entry::Connected(Usage::Unseen { why: "why".to_owned() })),
            ),
            (volume(true, false, &["x"], ""), Some(held())),
            (volume(true, false, &["x"], "why"), Some(held())),
            (volume(true, true, &["x"], ""), Some(held())),
        ];
        for (message, expected) in rows {
            let parsed = Report::parse(report(vec![message.clone()])).unwrap();
            assert_eq!(parsed.content.unwrap().of(&id("a")), expected, "{message:?}");
        }
    }

    #[test]
    fn what_is_left_out_of_an_incomplete_report_is_not_absent() {
        let mut message = report(vec![volume(true, false, &[], "")]);
        message.incomplete = "no sysfs".to_owned();
        let content = Report::parse(message.clone()).unwrap().content.unwrap();
        assert_eq!(content.of(&id("b")), Some(Entry::Unseen("no sysfs".to_owned())));
        assert_eq!(content.of(&id("a")), Some(Entry::Connected(Usage::Idle)));
        assert_eq!(content.connected().collect::<Vec<_>>(), [&id("a")]);
        message.unchanged = true;
        assert_eq!(Report::parse(message).unwrap().content, None);
    }

    #[test]
    fn what_a_node_sends_is_bounded() {
        let long = "ä".repeat(MAX_TEXT_CHARACTERS + 1);
        let holders = vec![long.as_str(); MAX_HOLDERS + 1];
        let content = Report::parse(report(vec![volume(true, false, &holders, "")])).unwrap().content;
        let Some(Entry::Connected(Usage::InUse { by })) = content.unwrap().of(&id("a")) else { panic!() };
        assert_eq!((by.len(), by[0].chars().count()), (MAX_HOLDERS, MAX_TEXT_CHARACTERS + 1));
        let content = Report::parse(report(vec![volume(true, false, &["a\nb", "c"], "")])).unwrap().content;
        let Some(Entry::Connected(Usage::InUse { by })) = content.unwrap().of(&id("a")) else { panic!() };
        assert_eq!(by, ["a b", "c"], "a holder is a line");
        for hostile in [
            report(vec![volume(true, false, &[], ""); 2]),
            report(vec![volume(false, false, &[], ""); MAX_VOLUMES + 1]),
            report(vec![v1::VolumeReport { volume_id: "a/b".to_owned(), ..Default::default() }]),
            v1::NodeReport::default(),
        ] {
            Report::parse(hostile).unwrap_err();
        }
    }
}
