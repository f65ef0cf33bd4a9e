//! A backup's form: lines of text. The format's name and version, a header, the ledger's pieces as JSON, and the
//! SHA-256 of all lines before.

use futures::StreamExt;
use futures::stream;
use proto::operator::v1::FilePart;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use state_machine::{Command, Entry, State};
use tonic::Status;

use super::{BackupStream, Recovery};

/// The first line. A later version has another number, and reads this one.
const FORMAT: &str = "rds-csi backup 1";
/// What the last line begins with.
const SEAL: &str = "sha256 ";
/// Largest part of a file on its way, in bytes.
const PART_BYTES: usize = 64 << 10;
/// As long as a backup's name is, to see what fits into an entry.
const NAME_BYTES: usize = 64;

/// What a backup is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) cluster_id: String,
    pub(super) ledger_time_ms: u64,
    /// How many lines of pieces follow.
    pub(super) pieces: u64,
    pub(super) volumes: u64,
}

/// A backup that was read and found whole.
#[derive(Debug)]
pub(super) struct Backup {
    pub(super) header: Header,
    pub(super) pieces: Vec<State>,
    /// Its name, in hexadecimal.
    pub(super) sha256: String,
}

impl Recovery {
    /// The ledger as a file, in parts.
    pub(crate) fn backup(&self, state: State) -> Result<BackupStream, Status> {
        if state.is_restoring() {
            return Err(Status::failed_precondition("a backup is being restored; finish that first"));
        }
        let cluster_id = self.leader.replica.status().cluster_id.map(|id| id.to_string()).unwrap_or_default();
        let file = encode(&state, cluster_id).map_err(Status::internal)?;
        let parts: Vec<_> =
            file.into_bytes().chunks(PART_BYTES).map(|data| Ok(FilePart { data: data.to_vec() })).collect();
        Ok(stream::iter(parts).boxed())
    }
}

/// The file of a ledger.
pub(super) fn encode(state: &State, cluster_id: String) -> Result<String, String> {
    let fits = |piece: &State| {
        let (backup, piece) = ("x".repeat(NAME_BYTES), Box::new(piece.clone()));
        let command = Command::Restore { backup, piece, volumes: None };
        storage::check_entry_size(&Entry { at: state.clock(), command }).is_ok()
    };
    let pieces = state.pieces(fits);
    if let Some(piece) = pieces.iter().find(|piece| !fits(piece)) {
        return Err(format!("{:?} cannot be restored: too large for the log", piece.volumes().keys()));
    }
    let header = Header {
        cluster_id,
        ledger_time_ms: state.clock().0,
        pieces: pieces.len() as u64,
        volumes: state.volumes().len() as u64,
    };
    let mut text = format!("{FORMAT}\n{}\n", json(&header)?);
    for piece in &pieces {
        text += &json(piece)?;
        text.push('\n');
    }
    let sha256 = hex(&Sha256::digest(&text));
    text += &format!("{SEAL}{sha256}\n");
    Ok(text)
}

fn json(value: &impl Serialize) -> Result<String, String> {
    serde_json::to_string(value).map_err(|error| error.to_string())
}

/// The backup in a file, or what is wrong with it.
pub(super) fn decode(file: &[u8]) -> Result<Backup, String> {
    let text = std::str::from_utf8(file).map_err(|_| "it is not a backup of rds-csi".to_owned())?;
    let Some(body) = text.strip_prefix(FORMAT).and_then(|rest| rest.strip_prefix('\n')) else {
        return Err(format!("its first line is not {FORMAT:?}: it is no backup, or one of a newer program"));
    };
    let (sealed, last) = text
        .strip_suffix('\n')
        .and_then(|text| text.rsplit_once('\n'))
        .ok_or("it ends too early: make another copy of it")?;
    let sha256 = last.strip_prefix(SEAL).ok_or("its last line is no checksum: it ends too early")?;
    if hex(&Sha256::digest(format!("{sealed}\n"))) != sha256 {
        return Err("its checksum does not fit: it is damaged, use another copy".to_owned());
    }
    let mut lines = body.lines();
    let header: Header = line(lines.next().unwrap_or_default(), "header")?;
    let pieces = lines.filter(|line| !line.starts_with(SEAL)).map(|text| line(text, "piece"));
    let pieces: Vec<State> = pieces.collect::<Result<_, _>>()?;
    if pieces.len() as u64 != header.pieces {
        return Err(format!("it has {} pieces, and its header says {}", pieces.len(), header.pieces));
    }
    Ok(Backup { header, pieces, sha256: sha256.to_owned() })
}

fn line<'a, T: Deserialize<'a>>(text: &'a str, what: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| format!("a {what} cannot be understood: {error}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Backup {
    /// The commands that restore it, in their order.
    pub(super) fn commands(&self) -> impl Iterator<Item = Command> + '_ {
        let restore = |piece: &State, volumes| {
            let (backup, piece) = (self.sha256.clone(), Box::new(piece.clone()));
            Command::Restore { backup, piece, volumes }
        };
        let end = restore(&State::default(), Some(self.header.volumes));
        self.pieces.iter().map(move |piece| restore(piece, None)).chain([end])
    }

    /// The ledger as it will be, tried out; the error says why it would not be a sound one.
    pub(super) fn rehearse(&self) -> Result<State, String> {
        let mut state = State::default();
        let at = state.clock();
        state.apply(Entry {
            at,
            command: Command::SetClusterVersion { version: state_machine::CLUSTER_VERSION },
        });
        for command in self.commands() {
            if let state_machine::Response::Refused(refusal) = state.apply(Entry { at, command }) {
                return Err(refusal.to_string());
            }
        }
        match state.violations().first() {
            Some(broken) => Err(format!("it is not a sound ledger: {broken}")),
            None => Ok(state),
        }
    }
}

#[cfg(test)]
mod tests {
    use state_machine::{BootId, NodeId, Nqn};

    use super::*;

    fn ledger() -> State {
        let mut state = State::default();
        for node in ["a", "b"] {
            let command = Command::RegisterNode {
                node: NodeId::parse(node).unwrap(),
                boot: BootId::parse("boot-1").unwrap(),
                replaces: None,
                host_nqn: Nqn::parse(&format!("nqn.2014-08.{node}")).unwrap(),
                max_volumes: 0,
            };
            state.apply(Entry { at: state_machine::LedgerTime(7_000), command });
        }
        state
    }

    #[test]
    fn a_backup_comes_back_as_it_went_out() {
        let text = encode(&ledger(), "a cluster".to_owned()).unwrap();
        let backup = decode(text.as_bytes()).unwrap();
        assert_eq!(
            (backup.header.pieces, backup.header.volumes, backup.header.ledger_time_ms),
            (2, 0, 7_000)
        );
        let back = backup.rehearse().unwrap();
        assert!(back.nodes().keys().eq(ledger().nodes().keys()) && back.clock() == ledger().clock());
    }

    #[test]
    fn what_is_not_whole_is_refused_with_the_reason() {
        let text = encode(&ledger(), String::new()).unwrap();
        let cut = |lines: usize| text.lines().take(lines).map(|line| format!("{line}\n")).collect::<String>();
        let rows = [
            (String::new(), "first line"),
            ("rds-csi backup 2\n".to_owned(), "first line"),
            (FORMAT.to_owned(), "first line"),
            (cut(1), "too early"),
            (cut(3), "too early"),
            (text.trim_end().to_owned(), "too early"),
            (text.replace("boot-1", "boot-2"), "damaged"),
            (text.replace("\"pieces\":2", "\"pieces\":3"), "damaged"),
        ];
        for (file, why) in rows {
            let said = decode(file.as_bytes()).unwrap_err();
            assert!(said.contains(why), "{said}, not {why}: {file}");
        }
        assert!(decode(&[0xff, 0xfe]).unwrap_err().contains("not a backup"));
    }

    #[test]
    fn a_ledger_that_is_not_sound_is_not_restored() {
        let text = encode(&ledger(), String::new()).unwrap();
        let mut backup = decode(text.as_bytes()).unwrap();
        backup.header.volumes = 1;
        assert!(backup.rehearse().unwrap_err().contains("only 0 of 1"));
    }
}
