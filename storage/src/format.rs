//! How values are written: the on-disk format and its versions.
//!
//! Two versions are kept. The `FORMAT` file names the layout of the directory; every record in it bears its own
//! version as the variant of [`Record`]. A record's meaning never changes: a new one is a new variant, appended,
//! and the old one stays readable. The bytes of each version are pinned by the tests below.

use std::path::Path;

use bincode::Options;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::StorageError;

/// What the `FORMAT` file says.
pub(crate) const FORMAT: &str = "rds-csi storage format 1\n";

/// Largest encoded log entry or other value in the log, in bytes.
///
/// sled writes a leaf of its tree as one piece, and a piece of more than 128 KiB into a file of its own in `blobs/`,
/// which it never syncs. A leaf has up to 17 values, and 3 more where it took up a neighbour that had become small:
/// twenty of the largest values have to stay below that.
pub const MAX_ENTRY_BYTES: u64 = 6 * 1024;
/// Largest encoded state that a snapshot may hold, in bytes. A volume with a full history is some 4 KiB, so this is
/// sixty thousand of them.
pub const MAX_STATE_BYTES: u64 = 256 * 1024 * 1024;

/// A value with its version. References and owned values have the same bytes.
#[derive(Debug, Serialize, Deserialize)]
enum Record<T> {
    V1(T),
}

fn options(limit_bytes: u64) -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_limit(limit_bytes).reject_trailing_bytes()
}

/// The bytes of `value`, or the refusal if they are more than `limit_bytes`.
pub(crate) fn encode<T: Serialize>(
    what: &'static str,
    value: &T,
    limit_bytes: u64,
) -> Result<Vec<u8>, StorageError> {
    let record = Record::V1(value);
    let failed = |error: bincode::Error| StorageError::Encoding { what, problem: error.to_string() };
    let size_bytes = options(u64::MAX).serialized_size(&record).map_err(failed)?;
    if size_bytes > limit_bytes {
        return Err(StorageError::TooLarge { what, size_bytes, limit_bytes });
    }
    options(limit_bytes).serialize(&record).map_err(failed)
}

/// The value of `bytes`, which were found at `path`.
pub(crate) fn decode<T: DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
    limit_bytes: u64,
    path: &Path,
) -> Result<T, StorageError> {
    match options(limit_bytes).deserialize(bytes) {
        Ok(Record::V1(value)) => Ok(value),
        Err(error) => Err(StorageError::damaged(path, format!("{what} cannot be decoded: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_bytes_unknown_versions_and_large_values_are_refused() {
        let path = Path::new("somewhere");
        let bytes = encode("a number", &7u64, 64).unwrap();
        assert_eq!(bytes, [0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(decode::<u64>("a number", &bytes, 64, path).unwrap(), 7);

        let mut longer = bytes.clone();
        longer.push(0);
        assert!(matches!(decode::<u64>("a number", &longer, 64, path), Err(StorageError::Damaged { .. })));
        let mut newer = bytes.clone();
        newer[0] = 1;
        assert!(matches!(decode::<u64>("a number", &newer, 64, path), Err(StorageError::Damaged { .. })));
        assert!(matches!(
            decode::<u64>("a number", &bytes[..5], 64, path),
            Err(StorageError::Damaged { .. })
        ));
        assert!(matches!(
            encode("a text", &"x".repeat(64), 64),
            Err(StorageError::TooLarge { size_bytes: 76, limit_bytes: 64, .. })
        ));
    }
}
