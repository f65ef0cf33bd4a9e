//! Files that are replaced as a whole and are on disk, or are not there at all.
//!
//! A sealed file is: 8 bytes of kind, the record's length (u32, little-endian), the record, a body of any length,
//! and the SHA-256 of everything before it. It is written beside its place, synced, renamed, and its directory
//! synced: a power cut leaves the old file or the new one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::StorageError;

/// The first bytes of a sealed file: what it is.
pub(crate) type Kind = [u8; 8];
/// The extension of files that were not finished; they are removed at the next start.
pub(crate) const UNFINISHED: &str = "tmp";

const LENGTH_BYTES: usize = 4;
const CHECKSUM_BYTES: usize = 32;
/// Bytes of a sealed file besides its record and its body.
pub(crate) const SEAL_BYTES: u64 = (size_of::<Kind>() + LENGTH_BYTES + CHECKSUM_BYTES) as u64;

/// The content of a sealed file.
pub(crate) struct Sealed {
    pub(crate) record: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

/// Makes the names in `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StorageError> {
    File::open(dir).and_then(|opened| opened.sync_all()).map_err(StorageError::io("sync", dir))
}

/// Creates `dir` if it is not there, durably.
pub(crate) fn create_dir(dir: &Path) -> Result<(), StorageError> {
    fs::create_dir_all(dir).map_err(StorageError::io("create", dir))?;
    sync_parent(dir)
}

fn sync_parent(path: &Path) -> Result<(), StorageError> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync_dir(Path::new(".")),
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

/// The content of `path`, if it is there and has at most `limit_bytes`.
pub(crate) fn read(path: &Path, limit_bytes: u64) -> Result<Option<Vec<u8>>, StorageError> {
    match fs::metadata(path) {
        Ok(found) if found.len() > limit_bytes => {
            let problem = format!("it has {} bytes, at most {limit_bytes} were expected", found.len());
            Err(StorageError::damaged(path, problem))
        }
        Ok(_) => fs::read(path).map(Some).map_err(StorageError::io("read", path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StorageError::io("read", path)(error)),
    }
}

/// Replaces `path` by a file of these parts, durably.
pub(crate) fn write(path: &Path, parts: &[&[u8]]) -> Result<(), StorageError> {
    let unfinished = path.with_extension(UNFINISHED);
    let written = File::create(&unfinished).and_then(|mut file| {
        for part in parts {
            file.write_all(part)?;
        }
        file.sync_all()
    });
    let written = written.and_then(|()| fs::rename(&unfinished, path));
    if let Err(error) = written {
        // The room is needed more than the evidence; if this fails too, the next start removes it.
        let _ = fs::remove_file(&unfinished);
        return Err(StorageError::io("write", path)(error));
    }
    sync_parent(path)
}

/// Replaces `path` by a sealed file, durably.
pub(crate) fn write_sealed(path: &Path, kind: &Kind, record: &[u8], body: &[u8]) -> Result<(), StorageError> {
    let length = u32::try_from(record.len()).map_err(|_| StorageError::TooLarge {
        what: "a file's record",
        size_bytes: record.len() as u64,
        limit_bytes: u64::from(u32::MAX),
    })?;
    let length = length.to_le_bytes();
    let checksum =
        Sha256::new().chain_update(kind).chain_update(length).chain_update(record).chain_update(body);
    write(path, &[kind, &length, record, body, &checksum.finalize()])
}

/// The content of the sealed file at `path`, if it is there. `limit_bytes` is for the whole file.
pub(crate) fn read_sealed(
    path: &Path,
    kind: &Kind,
    limit_bytes: u64,
) -> Result<Option<Sealed>, StorageError> {
    let Some(bytes) = read(path, limit_bytes)? else { return Ok(None) };
    unseal(&bytes, kind).map(Some).map_err(|problem| StorageError::damaged(path, problem))
}

fn unseal(bytes: &[u8], kind: &Kind) -> Result<Sealed, &'static str> {
    let (content, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or("it is cut short")?;
    if Sha256::digest(content).as_slice() != checksum {
        return Err("its checksum does not match its content");
    }
    let content = content.strip_prefix(kind).ok_or("it is another kind of file")?;
    let (length, content) = content.split_first_chunk::<LENGTH_BYTES>().ok_or("it is cut short")?;
    let length = u32::from_le_bytes(*length) as usize;
    let (record, body) = content.split_at_checked(length).ok_or("its record is longer than the file")?;
    Ok(Sealed { record: record.to_vec(), body: body.to_vec() })
}

/// Removes what an interrupted [`write`] left in `dir`.
pub(crate) fn remove_unfinished(dir: &Path) -> Result<(), StorageError> {
    remove_where(dir, |name| Path::new(name).extension().is_some_and(|extension| extension == UNFINISHED))
}

/// Removes the files in `dir` whose names match.
pub(crate) fn remove_where(dir: &Path, matches: impl Fn(&str) -> bool) -> Result<(), StorageError> {
    let entries = fs::read_dir(dir).map_err(StorageError::io("list", dir))?;
    for entry in entries {
        let path = entry.map_err(StorageError::io("list", dir))?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(&matches) {
            fs::remove_file(&path).map_err(StorageError::io("remove", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = *b"testfile";

    #[test]
    fn every_cut_and_every_flipped_bit_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sealed");
        assert!(read_sealed(&path, &KIND, 1000).unwrap().is_none());
        write_sealed(&path, &KIND, b"record", b"body").unwrap();
        let whole = fs::read(&path).unwrap();
        assert_eq!(whole.len() as u64, SEAL_BYTES + 10);
        let sealed = read_sealed(&path, &KIND, 1000).unwrap().unwrap();
        assert_eq!((sealed.record.as_slice(), sealed.body.as_slice()), (&b"record"[..], &b"body"[..]));

        for length in 0..whole.len() {
            assert!(unseal(&whole[..length], &KIND).is_err(), "cut to {length} bytes");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal(&flipped, &KIND).is_err(), "bit {bit} flipped");
        }
        assert!(matches!(read_sealed(&path, b"otherone", 1000), Err(StorageError::Damaged { .. })));
        assert!(matches!(read_sealed(&path, &KIND, 20), Err(StorageError::Damaged { .. })));
    }

    #[test]
    fn unfinished_files_are_removed_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.tmp"), b"half").unwrap();
        fs::write(dir.path().join("a.snap"), b"whole").unwrap();
        remove_unfinished(dir.path()).unwrap();
        assert!(!dir.path().join("a.tmp").exists());
        assert!(dir.path().join("a.snap").exists());
    }
}
