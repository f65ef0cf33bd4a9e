//! What an answer of the appliance means.
//!
//! Words may come on standard output or standard error, with exit status 0 or 1: none of that is proven, so only the
//! text counts. A change that printed its end mark is done; anything else is sorted by the words that the appliance
//! is known to use.

use super::Dialect;
use super::script::{DONE, FENCE, STALE};
use crate::error::BackendError;
use crate::fence::FenceNumber;

/// Most characters of the appliance's words that are repeated in an error.
const MAX_WORDS: usize = 200;

/// Words that the appliance uses for a refusal, besides those that have their own meaning.
const REFUSALS: &[&str] = &[
    "failure: ",
    "no such item",
    "invalid parameter",
    "bad command name",
    "syntax error",
    "expected end of command",
    "not enough permissions",
];

/// An answer as it came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) exit_status: Option<u32>,
}

/// What the answer to a change means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ChangeAnswer {
    /// The script came to its end.
    Done,
    /// Nothing was changed: the appliance has accepted this number already.
    Stale(FenceNumber),
    /// The appliance refused; earlier parts of the script may have taken effect.
    Refused(BackendError),
}

impl Answer {
    /// Both streams as text.
    fn text(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.stdout).into_owned();
        text.push('\n');
        text.push_str(&String::from_utf8_lossy(&self.stderr));
        text
    }

    /// The meaning of an answer to a change.
    pub(super) fn of_change(&self) -> ChangeAnswer {
        let text = self.text();
        if last_line(&text) == Some(DONE) {
            return ChangeAnswer::Done;
        }
        match number_after(&text, STALE) {
            Some(stored) => ChangeAnswer::Stale(FenceNumber::from_raw(stored)),
            None => ChangeAnswer::Refused(self.error()),
        }
    }

    /// The fence that `begin_term` printed.
    pub(super) fn of_begin(&self) -> Result<FenceNumber, BackendError> {
        let text = self.text();
        let printed = last_line(&text).and_then(|line| line.strip_prefix(FENCE)?.parse().ok());
        printed.map(FenceNumber::from_raw).ok_or_else(|| self.error())
    }

    /// Whether the appliance knows `:serialize`, from the answer to the question.
    pub(super) fn of_dialect(&self) -> Result<Dialect, BackendError> {
        let text = self.text();
        if text.trim() == "\"1\"" {
            return Ok(Dialect::Json);
        }
        if ["bad command name", "syntax error", "expected end of command"].iter().any(|w| text.contains(w)) {
            return Ok(Dialect::Human);
        }
        Err(BackendError::unavailable(format!("the answer was not understood: {}", words(&text))))
    }

    /// The error that the words stand for; words that nobody knows are a refusal, none at all are unknown.
    pub(super) fn error(&self) -> BackendError {
        let text = self.text();
        let words = words(&text);
        if words.is_empty() {
            let status = self.exit_status.map_or("none".to_owned(), |status| status.to_string());
            return BackendError::unavailable(format!("the answer was empty (exit status {status})"));
        }
        if text.contains("not enough space") {
            BackendError::Full
        } else if text.contains("disk is in use") || text.contains("disk is busy") {
            BackendError::Busy { words }
        } else {
            BackendError::Rejected { words }
        }
    }

    /// The refusal in an answer to a read that could not be parsed, if the words are known to be one.
    pub(super) fn known_refusal(&self) -> Option<BackendError> {
        let text = self.text();
        REFUSALS.iter().any(|known| text.contains(known)).then(|| self.error())
    }
}

fn last_line(text: &str) -> Option<&str> {
    text.lines().map(str::trim).rfind(|line| !line.is_empty())
}

fn number_after(text: &str, mark: &str) -> Option<u64> {
    let rest = &text[text.find(mark)? + mark.len()..];
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// Text for people: one line, no control characters, not too long.
pub(super) fn words(text: &str) -> String {
    let one_line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    one_line.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MAX_WORDS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(stdout: &str, stderr: &str, exit_status: u32) -> Answer {
        Answer { stdout: stdout.into(), stderr: stderr.into(), exit_status: Some(exit_status) }
    }

    #[test]
    fn known_words_are_sorted_on_either_stream_with_either_status() {
        let rejected = |words: &str| BackendError::Rejected { words: words.to_owned() };
        let busy = |words: &str| BackendError::Busy { words: words.to_owned() };
        for (words, expected) in [
            ("not enough space", BackendError::Full),
            ("disk is in use", busy("disk is in use")),
            ("failure: disk is busy", busy("failure: disk is busy")),
            ("failure: no such item", rejected("failure: no such item")),
            ("failure: file already exists", rejected("failure: file already exists")),
            ("invalid parameter", rejected("invalid parameter")),
            ("bad command name dsk (line 1 column 2)", rejected("bad command name dsk (line 1 column 2)")),
            ("syntax error (line 1 column 9)", rejected("syntax error (line 1 column 9)")),
            ("expected end of command", rejected("expected end of command")),
            ("words nobody knows", rejected("words nobody knows")),
        ] {
            for status in [0, 1] {
                for answer in
                    [said(&format!("{words}\r\n"), "", status), said("", &format!("{words}\r\n"), status)]
                {
                    assert_eq!(answer.of_change(), ChangeAnswer::Refused(expected.clone()));
                }
            }
        }
    }

    #[test]
    fn only_the_end_mark_means_done() {
        assert_eq!(said("rds-csi-done\r\n", "", 0).of_change(), ChangeAnswer::Done);
        assert!(matches!(
            said("", "", 0).of_change(),
            ChangeAnswer::Refused(BackendError::Unavailable { .. })
        ));
        assert!(matches!(said("rds-csi-do", "", 0).of_change(), ChangeAnswer::Refused(_)));
        assert_eq!(
            said("rds-csi-done\r\n", "not enough space\r\n", 1).of_change(),
            ChangeAnswer::Refused(BackendError::Full)
        );
    }

    #[test]
    fn a_stale_fence_is_told_with_its_number() {
        let stale = ChangeAnswer::Stale(FenceNumber::from_raw(30_064_771_073));
        assert_eq!(said("stale fence 30064771073\r\n", "", 1).of_change(), stale);
        assert_eq!(said("", "stale fence 30064771073 (line 1 column 5)\r\n", 0).of_change(), stale);
    }

    #[test]
    fn words_are_one_short_line_without_control_characters() {
        assert_eq!(words(" a\r\n\u{1b}[2Jb\0 "), "a [2Jb");
        assert_eq!(words(&"x".repeat(999)).len(), MAX_WORDS);
    }
}
