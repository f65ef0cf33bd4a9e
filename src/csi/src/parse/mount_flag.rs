//! Mount options that a class or a volume may ask for (`mount_flags`).
//!
//! Listed by name, because an option can name another device (`logdev=`), skip recovery (`norecovery`) or change
//! what mounting means (`bind`, `remount`).

use super::RequestError;
use super::field::quoted;

/// Most mount flags that one capability may have.
pub const MAX_MOUNT_FLAGS: usize = 16;

/// What may follow an option's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    /// Nothing.
    None,
    /// `=` and a number of up to nine digits.
    Number,
    /// `=` and one of these words.
    Word(&'static [&'static str]),
}

/// Options of `mount(8)`, ext4 and XFS that change how, not what, is mounted.
const ALLOWED: &[(&str, Value)] = &[
    ("ro", Value::None),
    ("rw", Value::None),
    ("sync", Value::None),
    ("async", Value::None),
    ("dirsync", Value::None),
    ("atime", Value::None),
    ("noatime", Value::None),
    ("diratime", Value::None),
    ("nodiratime", Value::None),
    ("relatime", Value::None),
    ("norelatime", Value::None),
    ("strictatime", Value::None),
    ("lazytime", Value::None),
    ("nolazytime", Value::None),
    ("nodev", Value::None),
    ("noexec", Value::None),
    ("nosuid", Value::None),
    ("discard", Value::None),
    ("nodiscard", Value::None),
    ("barrier", Value::None),
    ("commit", Value::Number),
    ("stripe", Value::Number),
    ("data", Value::Word(&["ordered", "journal"])),
    ("errors", Value::Word(&["remount-ro", "panic"])),
    ("delalloc", Value::None),
    ("nodelalloc", Value::None),
    ("inode64", Value::None),
    ("largeio", Value::None),
    ("nolargeio", Value::None),
    ("swalloc", Value::None),
    ("logbufs", Value::Number),
    ("sunit", Value::Number),
    ("swidth", Value::Number),
];

/// One allowed mount option, as `mount(8)` takes it after `-o`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MountFlag(String);

impl MountFlag {
    /// The option's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn parse(field: &str, text: &str) -> Result<Self, RequestError> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let kind = ALLOWED.iter().find(|(allowed, _)| *allowed == name).map(|(_, kind)| *kind);
        let fits = match (kind, value) {
            (Some(Value::None), None) => true,
            (Some(Value::Number), Some(value)) => {
                (1..=9).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_digit())
            }
            (Some(Value::Word(words)), Some(value)) => words.contains(&value),
            (Some(Value::None | Value::Number | Value::Word(_)) | None, _) => false,
        };
        if fits {
            return Ok(Self(text.to_owned()));
        }
        let names = ALLOWED.iter().map(|(allowed, _)| *allowed).collect::<Vec<_>>().join(" ");
        Err(RequestError::invalid(field, format!("{} is not allowed; allowed are {names}", quoted(text))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_change_how_are_allowed() {
        for text in ["noatime", "ro", "commit=30", "data=ordered", "errors=remount-ro", "discard"] {
            assert_eq!(MountFlag::parse("f", text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn options_that_change_what_are_not() {
        for text in [
            "",
            "bind",
            "remount",
            "loop",
            "norecovery",
            "logdev=/dev/sda",
            "journal_path=/dev/sda",
            "context=x",
            "noatime,suid",
            "suid",
            "dev",
            "commit",
            "commit=",
            "commit=-1",
            "commit=1234567890",
            "data=writeback",
            "ro=1",
            "RO",
            "no atime",
            "errors=continue",
        ] {
            assert!(MountFlag::parse("f", text).is_err(), "{text:?}");
        }
    }
}
