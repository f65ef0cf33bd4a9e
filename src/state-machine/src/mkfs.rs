//! The text of a class's `mkfsOptions`: harmless wherever it may show. What the tools may be told is the CSI edge's matter.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{IdError, check_characters, string_id};

/// Longest text of options, in bytes.
pub const MAX_MKFS_OPTIONS_BYTES: usize = 512;
/// Most words of it: sixteen options with a value each.
pub const MAX_MKFS_WORDS: usize = 32;

string_id!(
    /// Options of `mkfs`, separated by spaces; at least one. Fit to be shown, not yet to be used.
    MkfsOptions,
    |text| {
        let allowed = "letters, digits, spaces and '-', '_', '.', ',', '=', ':', '^'";
        check_characters(text, MAX_MKFS_OPTIONS_BYTES, " -_.,=:^", allowed)?;
        let mut words = text.split(' ').filter(|word| !word.is_empty());
        if !words.next().is_some_and(|first| first.starts_with('-')) {
            return Err(IdError::Malformed("must begin with an option, like '-b'"));
        }
        if words.count() >= MAX_MKFS_WORDS {
            return Err(IdError::Malformed("has too many words; 32 are allowed"));
        }
        if text.contains("..") {
            return Err(IdError::Malformed("must not contain '..'"));
        }
        Ok(())
    }
);

impl MkfsOptions {
    /// The options and their values, word by word, as the tool takes them before the device.
    pub fn options(&self) -> impl Iterator<Item = &str> {
        self.as_str().split(' ').filter(|word| !word.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_leave_its_word_is_no_text_of_options() {
        let long = format!("-O {}", "x".repeat(MAX_MKFS_OPTIONS_BYTES));
        let many = "-D ".repeat(MAX_MKFS_WORDS + 1);
        for text in [
            "",
            " ",
            "a",
            "a b",
            "4096 -b",
            "/dev/sdb",
            "-d /etc",
            "-E a/b",
            "-b\t4096",
            "-b\n4096",
            "-m '0'",
            "-m \"0\"",
            "-m $x",
            "-m `x`",
            "-m 0;x",
            "-m 0|x",
            "-m 0&",
            "-m \\0",
            "-m (0)",
            "-m 0\0",
            "-m \u{e9}",
            "-m a..b",
            "-m *",
            "-m ~",
            &long,
            &many,
        ] {
            assert!(MkfsOptions::parse(text).is_err(), "{text:?}");
        }
        assert!(MkfsOptions::parse(&"-D ".repeat(MAX_MKFS_WORDS)).is_ok());
    }

    #[test]
    fn the_words_come_out_as_the_tool_takes_them() {
        let options = MkfsOptions::parse("-m 0   -E lazy_itable_init=0 ").unwrap();
        assert_eq!(options.options().collect::<Vec<_>>(), ["-m", "0", "-E", "lazy_itable_init=0"]);
    }
}
