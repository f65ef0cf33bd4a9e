//! How Raft messages, commands and responses travel between replicas: bincode, bounded.

use bincode::Options;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Most entries in one append: with entries at their largest a message stays below [`MAX_MESSAGE_BYTES`].
pub(crate) const MAX_ENTRIES_PER_APPEND: u64 = 256;
/// Largest message between replicas, in bytes.
pub(crate) const MAX_MESSAGE_BYTES: usize = 18 * 1024 * 1024;
/// Largest piece of a snapshot in one message, in bytes.
pub(crate) const SNAPSHOT_CHUNK_BYTES: usize = 1024 * 1024;

/// A message that cannot be written or read.
#[derive(Debug, Error)]
#[error("message between replicas: {0}")]
pub(crate) struct CodecError(#[from] bincode::Error);

fn options() -> impl Options {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .with_limit(MAX_MESSAGE_BYTES as u64)
        .reject_trailing_bytes()
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    Ok(options().serialize(value)?)
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    Ok(options().deserialize(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const _: () =
        assert!(MAX_ENTRIES_PER_APPEND * (storage::MAX_ENTRY_BYTES + 1024) < MAX_MESSAGE_BYTES as u64);

    #[test]
    fn what_is_cut_short_or_goes_on_is_refused() {
        let bytes = encode(&(7u64, "text")).unwrap();
        assert_eq!(decode::<(u64, String)>(&bytes).unwrap(), (7, "text".to_owned()));
        assert!(decode::<(u64, String)>(&bytes[..bytes.len() - 1]).is_err());
        let longer: Vec<u8> = bytes.iter().copied().chain([0]).collect();
        assert!(decode::<(u64, String)>(&longer).is_err());
        // A length that nothing backs does not make room for itself.
        assert!(decode::<Vec<u8>>(&u64::MAX.to_le_bytes()).is_err());
    }
}
