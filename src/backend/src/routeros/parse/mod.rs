//! The appliance's output to records, and records to disks.
//!
//! Two forms: JSON where the appliance knows `:serialize`, else what it prints for people. Both become [`Record`]s:
//! names and texts. A text that makes no sense is an error, never an empty list: an empty list is only `[]`, or an
//! explicit count of 0 with nothing else but a flags header.

mod disk;
mod human;
mod json;

use std::collections::BTreeMap;

use thiserror::Error;

use super::Dialect;

pub(super) use disk::{SlotContent, capacity, disk_in_slot, has_file, lone_files, our_disks};

/// Why a text is no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the answer was not understood: {0}")]
pub(crate) struct ParseError(pub(super) String);

impl ParseError {
    fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// One item of a menu: texts by property. Numbers have no grouping; booleans read as they were printed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Record(BTreeMap<String, String>);

impl Record {
    fn insert(&mut self, key: String, value: String) -> Result<(), ParseError> {
        match self.0.insert(key.clone(), value) {
            None => Ok(()),
            Some(_) => Err(ParseError::new(format!("property {key} is given twice"))),
        }
    }

    /// The text of `key`.
    fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn required(&self, key: &str) -> Result<&str, ParseError> {
        self.text(key).ok_or_else(|| ParseError::new(format!("property {key} is missing")))
    }

    /// The number of `key`.
    fn number(&self, key: &str) -> Result<u64, ParseError> {
        let text = self.required(key)?;
        let digits: String = text.chars().filter(|c| *c != ' ').collect();
        digits.parse().map_err(|_| ParseError::new(format!("property {key} is no number")))
    }

    /// The boolean of `key`, if it is there.
    fn flag(&self, key: &str) -> Result<Option<bool>, ParseError> {
        match self.text(key) {
            None => Ok(None),
            Some("yes" | "true") => Ok(Some(true)),
            Some("no" | "false") => Ok(Some(false)),
            Some(_) => Err(ParseError::new(format!("property {key} is neither yes nor no"))),
        }
    }
}

/// Parses what the appliance said in `dialect`.
pub(crate) fn records(dialect: Dialect, output: &[u8]) -> Result<Vec<Record>, ParseError> {
    match dialect {
        Dialect::Json => json::records(output),
        Dialect::Human => human::records(&String::from_utf8_lossy(output)),
    }
}
