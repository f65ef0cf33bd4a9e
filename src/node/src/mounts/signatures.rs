//! What `blkid -p -o export` says of a device: blkid(8).

use state_machine::FsType;

use super::Content;

/// The exit status of `blkid` when it found nothing, or could not look.
const NOTHING_FOUND: i32 = 2;

/// What the probe's answer amounts to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Signature {
    /// No signature was found, and nothing was complained of. Not yet a proof of emptiness.
    None,
    /// The content is known, or known to be in doubt.
    Found(Content),
}

/// Reads the probe's exit status, what it printed and what it complained of.
pub(super) fn parse(code: Option<i32>, stdout: &str, stderr: &str) -> Signature {
    let unclear = |what: String| Signature::Found(Content::Unclear(what));
    match code {
        Some(0) => {}
        Some(NOTHING_FOUND) if stdout.trim().is_empty() && stderr.trim().is_empty() => {
            return Signature::None;
        }
        Some(code) => return unclear(format!("blkid ended with {code}: {}", stderr.trim())),
        None => return unclear("blkid was ended by a signal".to_owned()),
    }
    let values = |key: &str| -> Vec<&str> {
        stdout
            .lines()
            .filter_map(|line| line.split_once('='))
            .filter(|(k, _)| *k == key)
            .map(|(_, v)| v)
            .collect()
    };
    let (types, tables) = (values("TYPE"), values("PTTYPE"));
    match (types.as_slice(), tables.as_slice()) {
        (["ext4"], []) => Signature::Found(Content::FileSystem(FsType::Ext4)),
        (["xfs"], []) => Signature::Found(Content::FileSystem(FsType::Xfs)),
        ([], []) => unclear("something that blkid has no name for".to_owned()),
        (types, tables) => unclear([types, tables].concat().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXT4: &str =
        "DEVNAME=/dev/loop1\nUUID=0c9f\nVERSION=1.0\nBLOCK_SIZE=4096\nTYPE=ext4\nUSAGE=filesystem\n";

    #[test]
    fn only_one_known_file_system_is_mounted() {
        let found = |code, stdout: &str, stderr: &str| parse(Some(code), stdout, stderr);
        assert_eq!(found(0, EXT4, ""), Signature::Found(Content::FileSystem(FsType::Ext4)));
        assert_eq!(
            found(0, "TYPE=xfs\nUSAGE=filesystem\n", ""),
            Signature::Found(Content::FileSystem(FsType::Xfs))
        );
        assert_eq!(found(2, "", ""), Signature::None);
    }

    #[test]
    fn doubt_is_never_emptiness() {
        let rows = [
            (Some(0), "", "", "has no name"),
            (Some(0), "TYPE=ntfs\n", "", "ntfs"),
            (Some(0), "PTTYPE=gpt\n", "", "gpt"),
            (Some(0), "TYPE=ext4\nPTTYPE=dos\n", "", "ext4, dos"),
            (Some(1), "", "", "ended with 1"),
            (Some(2), "", "blkid: error: /dev/loop1: Input/output error", "Input/output error"),
            (Some(2), "TYPE=ext4\n", "", "ended with 2"),
            (Some(4), "", "usage", "ended with 4"),
            (Some(8), "", "ambivalent result", "ambivalent"),
            (None, "", "", "signal"),
        ];
        for (code, stdout, stderr, words) in rows {
            match parse(code, stdout, stderr) {
                Signature::Found(Content::Unclear(what)) => assert!(what.contains(words), "{what}"),
                other @ (Signature::None | Signature::Found(_)) => {
                    panic!("{code:?} {stdout:?} {stderr:?} read as {other:?}")
                }
            }
        }
    }
}
