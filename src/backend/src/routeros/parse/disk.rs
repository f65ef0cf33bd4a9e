//! Records to disks and pools.

use std::collections::BTreeSet;

use state_machine::{AppliancePath, Nqn, VolumeId};

use super::{ParseError, Record};
use crate::{Capacity, Disk, SLOT_PREFIX, volume_of_file};

/// The type of a file-backed disk.
const FILE_TYPE: &str = "file";

/// What is in a slot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SlotContent {
    Nothing,
    Disk(Disk),
    /// A disk that is no file.
    OtherType(String),
}

/// What the answer to a question for the slot `volume` says.
pub(crate) fn disk_in_slot(records: &[Record], volume: &VolumeId) -> Result<SlotContent, ParseError> {
    match records {
        [] => Ok(SlotContent::Nothing),
        [record] => {
            if record.required("slot")? != volume.as_str() {
                return Err(ParseError::new("a disk in another slot than the one that was asked for"));
            }
            match record.required("type")? {
                FILE_TYPE => disk(record, volume.clone()).map(SlotContent::Disk),
                other => Ok(SlotContent::OtherType(other.to_owned())),
            }
        }
        _ => Err(ParseError::new("several disks in one slot")),
    }
}

/// The file-backed disks whose slot looks like one of ours, by slot. Others are passed over.
pub(crate) fn our_disks(records: &[Record]) -> Result<Vec<Disk>, ParseError> {
    let mut disks = Vec::new();
    for record in records {
        let slot = record.required("slot")?;
        let is_file = record.text("type") == Some(FILE_TYPE);
        if let (true, true, Ok(volume)) = (is_file, slot.starts_with(SLOT_PREFIX), VolumeId::parse(slot)) {
            disks.push(disk(record, volume)?);
        }
    }
    disks.sort_by(|a, b| a.volume.cmp(&b.volume));
    Ok(disks)
}

/// Whether `records` have the file `name`, which was asked for.
pub(crate) fn has_file(records: &[Record], name: &str) -> Result<bool, ParseError> {
    match records {
        [] => Ok(false),
        [file] if file.required("name")?.trim_start_matches('/') == name => Ok(true),
        _ => Err(ParseError::new("another file than the one that was asked for")),
    }
}

/// The volumes whose files are among `files` and in `directory`, while none of `disks` uses the file.
pub(crate) fn lone_files(
    files: &[Record],
    disks: &[Record],
    directory: &AppliancePath,
) -> Result<Vec<VolumeId>, ParseError> {
    let volumes = |records: &[Record], key: &str| {
        let paths = records.iter().map(|record| record.required(key));
        let volumes = paths.map(|path| Ok(volume_of_file(path?, directory)));
        volumes.filter_map(Result::transpose).collect::<Result<BTreeSet<_>, ParseError>>()
    };
    let used = volumes(disks, "file-path")?;
    Ok(volumes(files, "name")?.into_iter().filter(|volume| !used.contains(volume)).collect())
}

/// The room of the one pool in `records`; `None` if there is none.
pub(crate) fn capacity(records: &[Record]) -> Result<Option<Capacity>, ParseError> {
    match records {
        [] => Ok(None),
        [pool] => Ok(Some(Capacity { total_bytes: pool.number("size")?, free_bytes: pool.number("free")? })),
        _ => Err(ParseError::new("several pools at one mount point")),
    }
}

fn disk(record: &Record, volume: VolumeId) -> Result<Disk, ParseError> {
    let file_path = record.required("file-path")?;
    if file_path.contains(char::is_whitespace) {
        return Err(ParseError::new("property file-path has spaces"));
    }
    let nvme_port = match record.text("nvme-tcp-server-port") {
        None | Some("") => None,
        Some(_) => u16::try_from(record.number("nvme-tcp-server-port")?).ok(),
    };
    Ok(Disk {
        volume,
        // Paths are printed with and without the leading slash; inside there is one spelling.
        file_path: format!("/{}", file_path.trim_start_matches('/')),
        // `size` is exact; `file-size` prints rounded.
        size_bytes: record.number("size")?,
        exported: record.flag("nvme-tcp-export")?.unwrap_or(false),
        nqn: record.text("nvme-tcp-server-nqn").and_then(|nqn| Nqn::parse(nqn).ok()),
        nvme_port,
        // The appliance's default is to mount.
        mounted_by_appliance: record.flag("mount-filesystem")?.unwrap_or(true),
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::Dialect;
    use super::super::records;
    use super::*;

    #[test]
    fn only_file_backed_disks_are_ours_whatever_their_slot() {
        let text = r#"[
            {"type":"file","slot":"pvc-1","file-path":"pool/pvc-1.img","size":4096},
            {"type":"raid","slot":"pvc-2","size":4096},
            {"type":"partition","slot":"pvc-3","file-path":"/pool/pvc-3.img","size":4096},
            {"type":"hardware","slot":"pvc-4","size":4096},
            {"type":"file","slot":"vm-5","file-path":"/pool/pvc-5.img","size":4096}
        ]"#;
        let disks = our_disks(&records(Dialect::Json, text.as_bytes()).unwrap()).unwrap();
        let found: Vec<_> =
            disks.iter().map(|disk| (disk.volume.as_str(), disk.file_path.as_str())).collect();
        assert_eq!(found, [("pvc-1", "/pool/pvc-1.img")]);
        assert_eq!(disks[0].directory().map(String::from).as_deref(), Some("/pool"));
    }
}
