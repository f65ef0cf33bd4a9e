//! Names that cannot be wrong: parsed once at the edge, passed around as types afterwards.
//!
//! Everything here ends up in paths, on the appliance's command line or in `sysfs` look-ups, so the character
//! sets are strict: no spaces, quotes, separators or `..` get through.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// Longest volume id and CSI volume name, in bytes (CSI 1.12, "Size Limits").
pub const MAX_VOLUME_ID_BYTES: usize = 128;
/// Longest node id, in bytes: a Kubernetes node name is a DNS subdomain.
pub const MAX_NODE_ID_BYTES: usize = 253;
/// Longest NQN, in bytes (NVMe base specification, "NVMe Qualified Names").
pub const MAX_NQN_BYTES: usize = 223;
/// Longest file system path that we put on the appliance's command line, in bytes.
pub const MAX_PATH_BYTES: usize = 255;

/// Namespace of the version 5 UUIDs that stand for volume names which are not `pvc-<uuid>`.
const VOLUME_NAMESPACE: Uuid = Uuid::from_u128(0x6f1d_3c52_8d0e_5b1b_9a35_1c0a_52d5_7c11);

/// Why a string is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdError {
    /// The string is empty.
    #[error("must not be empty")]
    Empty,
    /// The string is longer than the limit, which is given in bytes.
    #[error("is longer than {limit} bytes")]
    TooLong {
        /// The limit, in bytes.
        limit: usize,
    },
    /// A character outside the safe set of the type.
    #[error("contains {found:?}; allowed are {allowed}")]
    UnsafeCharacter {
        /// The first offending character.
        found: char,
        /// The allowed set, for people.
        allowed: &'static str,
    },
    /// The characters are fine, their arrangement is not.
    #[error("{0}")]
    Malformed(&'static str),
}

/// Letters, digits, `.`, `_`, `-`; begins with a letter or digit; no `..`.
fn check_name(text: &str, limit: usize) -> Result<(), IdError> {
    check_characters(text, limit, "._-", "letters, digits, '.', '_' and '-'")?;
    check_arrangement(text)
}

fn check_arrangement(text: &str) -> Result<(), IdError> {
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(IdError::Malformed("must begin with a letter or a digit"));
    }
    if text.contains("..") {
        return Err(IdError::Malformed("must not contain '..'"));
    }
    Ok(())
}

pub(crate) fn check_characters(
    text: &str,
    limit: usize,
    punctuation: &str,
    allowed: &'static str,
) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > limit {
        return Err(IdError::TooLong { limit });
    }
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !punctuation.contains(*c)) {
        Some(found) => Err(IdError::UnsafeCharacter { found, allowed }),
        None => Ok(()),
    }
}

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Parses `text`, or says what is wrong with it.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                let check: fn(&str) -> Result<(), IdError> = $check;
                check(text)?;
                Ok(Self(text.to_owned()))
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

string_id!(
    /// A volume's id: also the appliance's slot, the file's stem and the NQN's suffix.
    ///
    /// Ours are `pvc-<uuid>`; any other safe string parses too and is merely unknown to the ledger.
    VolumeId,
    |text| check_name(text, MAX_VOLUME_ID_BYTES)
);

string_id!(
    /// A Kubernetes node's name, which is the CSI node id.
    NodeId,
    |text| check_name(text, MAX_NODE_ID_BYTES)
);

string_id!(
    /// The name that a `CreateVolume` request gives a volume (CSI 1.12, `CreateVolumeRequest.name`).
    ///
    /// It never reaches the appliance; the id that is made of it does.
    VolumeName,
    |text| {
        check_characters(text, MAX_VOLUME_ID_BYTES, "._-+", "letters, digits, '.', '_', '-' and '+'")?;
        check_arrangement(text)
    }
);

string_id!(
    /// An NVMe qualified name, of a subsystem or of a host: `nqn.<date>.<reversed domain>[:<suffix>]`.
    Nqn,
    |text| {
        check_characters(text, MAX_NQN_BYTES, "._-:", "letters, digits, '.', '_', '-' and ':'")?;
        if !text.starts_with("nqn.") {
            return Err(IdError::Malformed("must begin with 'nqn.'"));
        }
        Ok(())
    }
);

string_id!(
    /// An absolute path of a directory on the appliance, without a trailing `/`.
    AppliancePath,
    |text| {
        check_characters(text, MAX_PATH_BYTES, "/._-", "letters, digits, '/', '.', '_' and '-'")?;
        if !text.starts_with('/') || text.len() == 1 || text.ends_with('/') || text.contains("//") {
            return Err(IdError::Malformed("must be absolute, without a trailing '/' and without '//'"));
        }
        if text.split('/').any(|part| part.starts_with('.') || part.contains("..")) {
            return Err(IdError::Malformed("must not contain a hidden, '.' or '..' component"));
        }
        Ok(())
    }
);

string_id!(
    /// A host name or an IP address that nodes connect to.
    HostAddress,
    |text| {
        check_characters(text, MAX_NODE_ID_BYTES, ".:-", "letters, digits, '.', ':' and '-'")?;
        if text.starts_with('-') {
            return Err(IdError::Malformed("must not begin with '-'"));
        }
        Ok(())
    }
);

string_id!(
    /// The id that a node's kernel draws at boot (`/proc/sys/kernel/random/boot_id`).
    BootId,
    |text| check_name(text, MAX_VOLUME_ID_BYTES)
);

pub(crate) use string_id;

impl VolumeId {
    /// The id of the volume that `name` asks for: the name itself if it is `pvc-<uuid>`, else `pvc-<uuid v5>`.
    pub fn for_name(name: &VolumeName) -> Self {
        let is_ours = name.as_str().strip_prefix("pvc-").is_some_and(|rest| {
            // Only the canonical spelling: a UUID has others, and two ids must not mean one volume.
            Uuid::parse_str(rest).is_ok_and(|uuid| uuid.to_string() == rest)
        });
        if is_ours {
            return Self(name.as_str().to_owned());
        }
        Self(format!("pvc-{}", Uuid::new_v5(&VOLUME_NAMESPACE, name.as_str().as_bytes())))
    }
}

impl Nqn {
    /// The NQN of `volume`'s subsystem under `prefix`.
    pub fn of_volume(prefix: &Nqn, volume: &VolumeId) -> Result<Self, IdError> {
        Self::parse(&format!("{prefix}:{volume}"))
    }
}

/// A volume's size in bytes: positive, a multiple of [`ByteSize::GRANULE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct ByteSize(u64);

impl ByteSize {
    /// Sizes are whole file system blocks, in bytes.
    pub const GRANULE: u64 = 4096;
    /// The largest size, in bytes: what fits CSI's `int64` in whole granules.
    pub const MAX: u64 = i64::MAX as u64 / Self::GRANULE * Self::GRANULE;

    /// A size of exactly `bytes`, if that is one.
    pub fn exactly(bytes: u64) -> Option<Self> {
        (bytes > 0 && bytes <= Self::MAX && bytes.is_multiple_of(Self::GRANULE)).then_some(Self(bytes))
    }

    /// The smallest size that holds `bytes`, or `None` above [`ByteSize::MAX`].
    pub fn at_least(bytes: u64) -> Option<Self> {
        Self::exactly(bytes.max(1).checked_next_multiple_of(Self::GRANULE)?)
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for ByteSize {
    type Error = IdError;

    fn try_from(bytes: u64) -> Result<Self, IdError> {
        Self::exactly(bytes).ok_or(IdError::Malformed("must be a positive multiple of 4096 bytes"))
    }
}

impl From<ByteSize> for u64 {
    fn from(size: ByteSize) -> u64 {
        size.0
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Strings that try to leave an identifier's syntax.
    const HOSTILE: &[&str] = &[
        "", " ", "a b", "a\"b", "a'b", "a[b", "a]b", "a;b", "a\nb", "a\r\nb", "../a", "a/../b", "a..b", "..",
        "a$b", "a\\b", "a{b", "a`b", "\u{e9}", "a\0b", "-a", ".a", "a/b", "a=b", "a~b",
    ];

    #[test]
    fn hostile_strings_are_no_ids() {
        let long = "a".repeat(300);
        for text in HOSTILE.iter().copied().chain([long.as_str()]) {
            assert!(VolumeId::parse(text).is_err(), "volume id {text:?}");
            assert!(NodeId::parse(text).is_err(), "node id {text:?}");
            assert!(VolumeName::parse(text).is_err(), "name {text:?}");
            assert!(BootId::parse(text).is_err(), "boot id {text:?}");
            assert!(Nqn::parse(text).is_err(), "NQN {text:?}");
            assert!(Nqn::parse(&format!("nqn.{text} ")).is_err(), "NQN with {text:?}");
            assert!(AppliancePath::parse(text).is_err(), "path {text:?}");
        }
        for path in ["/", "/a/", "//a", "/a//b", "/a/../b", "/a/./b", "/.a", "/a b", "/a;b", "relative"] {
            assert!(AppliancePath::parse(path).is_err(), "path {path:?}");
        }
    }

    #[test]
    fn a_volume_name_that_is_an_id_stays_itself() {
        let name = VolumeName::parse("pvc-0b4fb0c0-5f5a-4a53-a6d8-2f6f4b1ff001").unwrap();
        assert_eq!(VolumeId::for_name(&name).as_str(), name.as_str());
    }

    #[test]
    fn other_names_map_to_one_stable_id_each() {
        let id = |text: &str| VolumeId::for_name(&VolumeName::parse(text).unwrap());
        assert_eq!(id("sanity-1"), id("sanity-1"));
        assert_ne!(id("sanity-1"), id("sanity-2"));
        // Another spelling of a UUID is another name.
        assert_ne!(
            id("pvc-0B4FB0C0-5F5A-4A53-A6D8-2F6F4B1FF001").as_str(),
            "pvc-0B4FB0C0-5F5A-4A53-A6D8-2F6F4B1FF001"
        );
        assert!(id("sanity-1").as_str().starts_with("pvc-"));
    }

    #[test]
    fn sizes_round_up_to_whole_granules() {
        assert_eq!(ByteSize::at_least(0).map(ByteSize::bytes), Some(4096));
        assert_eq!(ByteSize::at_least(4097).map(ByteSize::bytes), Some(8192));
        assert_eq!(ByteSize::at_least(u64::MAX), None);
        assert_eq!(ByteSize::exactly(4097), None);
        assert_eq!(ByteSize::at_least(ByteSize::MAX).map(ByteSize::bytes), Some(ByteSize::MAX));
    }
}
