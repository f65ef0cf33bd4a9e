//! The human form: `print detail` followed by a line that counts the records.
//!
//! Long records wrap at any place, even inside a name or a number, and the space at the end of a line is not printed.
//! So a line end may stand for a space or for nothing. It is kept as a mark ([`BREAK`]) while a record is put
//! together, and decided afterwards: numbers drop spaces anyway; values that we read have none; and a name is
//! recognised across a line end because the names that matter are known ([`KNOWN_KEYS`]). What stays unclear is an
//! error. The count at the end proves that the answer is whole.

use super::{ParseError, Record};
use crate::routeros::script::COUNT;

/// Stands for a line end inside a record.
const BREAK: char = '\u{1}';
/// Widest indent of a line that begins a record with its number; continuations are indented by more.
const MAX_INDEX_INDENT: usize = 3;
/// Longest property name, in characters.
const MAX_KEY_CHARACTERS: usize = 64;

/// Names of properties that the appliance is known to print.
const KNOWN_KEYS: &[&str] = &[
    "compress",
    "file-offset",
    "file-path",
    "file-size",
    "file-system",
    "free",
    "free-inodes",
    "fs",
    "interface",
    "iscsi-export",
    "last-modified",
    "media-interface",
    "media-sharing",
    "model",
    "mount-filesystem",
    "mount-point",
    "mount-read-only",
    "name",
    "nfs-sharing",
    "nvme-tcp-export",
    "nvme-tcp-server-allow-host-name",
    "nvme-tcp-server-nqn",
    "nvme-tcp-server-password",
    "nvme-tcp-server-port",
    "nvme-tcp-server-secret",
    "parent",
    "raid-master",
    "sector-size",
    "serial",
    "size",
    "slot",
    "slot-default",
    "smb-sharing",
    "state",
    "status",
    "swap",
    "total-inodes",
    "type",
    "use",
];

/// Parses a whole answer.
pub(super) fn records(text: &str) -> Result<Vec<Record>, ParseError> {
    if text.contains(BREAK) {
        return Err(ParseError::new("a control character"));
    }
    let mut lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    while lines.last().is_some_and(|line| line.is_empty()) {
        lines.pop();
    }
    let count: usize = lines
        .pop()
        .and_then(|line| line.strip_prefix(COUNT))
        .and_then(|count| count.parse().ok())
        .ok_or_else(|| ParseError::new("it does not end with the number of records"))?;
    let records = join(&lines)?.iter().map(|text| record(text)).collect::<Result<Vec<_>, _>>()?;
    if records.len() != count {
        return Err(ParseError::new(format!("{count} records were announced, {} found", records.len())));
    }
    Ok(records)
}

/// Joins lines to records: each without its number, with marks where lines ended.
fn join(lines: &[&str]) -> Result<Vec<String>, ParseError> {
    let mut joined: Vec<String> = Vec::new();
    let mut header_seen = false;
    let mut last_index = None;
    for line in lines {
        let content = line.trim_start();
        if content.is_empty() {
            continue;
        }
        let indent = line.len() - content.len();
        if let Some((index, rest)) = numbered(content).filter(|_| indent <= MAX_INDEX_INDENT) {
            if last_index.is_some_and(|last| last >= index) {
                return Err(ParseError::new("records are out of order"));
            }
            last_index = Some(index);
            joined.push(rest.to_owned());
        } else if let Some(current) = joined.last_mut() {
            if indent <= MAX_INDEX_INDENT {
                return Err(ParseError::new("a line that is neither a record nor a part of one"));
            }
            current.push(BREAK);
            current.push_str(content);
        } else if is_header(content, header_seen) {
            header_seen = true;
        } else {
            return Err(ParseError::new("text before the first record"));
        }
    }
    Ok(joined)
}

/// `number rest` of a line that begins a record.
fn numbered(content: &str) -> Option<(u64, &str)> {
    let (number, rest) = content.split_once(' ')?;
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((number.parse().ok()?, rest.trim_start()))
}

/// Whether a line above the first record belongs to the flags header, which may wrap.
fn is_header(content: &str, header_seen: bool) -> bool {
    let is_text = |c: char| c.is_ascii_alphanumeric() || matches!(c, ' ' | ',' | ';' | '-' | ':' | '.');
    (header_seen || content.starts_with("Flags:")) && content.chars().all(is_text)
}

fn record(text: &str) -> Result<Record, ParseError> {
    // A comment stands on the first line, behind the number and the flags.
    let text = match text.split_once(";;;") {
        Some((before, rest)) if !before.contains('=') => {
            let rest = rest.split_once(BREAK).map_or("", |(_, fields)| fields);
            format!("{before}{BREAK}{rest}")
        }
        _ => text.to_owned(),
    };
    let characters: Vec<char> = text.chars().collect();
    let mut start =
        next_field(&characters, 0).ok_or_else(|| ParseError::new("a record without properties"))?;
    let flags = &characters[..start.at];
    if !flags.iter().all(|c| c.is_ascii_alphabetic() || *c == ' ' || *c == BREAK) {
        return Err(ParseError::new("something else than flags before the properties"));
    }
    let mut record = Record::default();
    loop {
        let (value, end) = value(&characters, start.value_at)?;
        record.insert(start.key, value)?;
        match next_field(&characters, end) {
            Some(next) => start = next,
            None => return Ok(record),
        }
    }
}

/// Where a property begins.
struct FieldStart {
    at: usize,
    key: String,
    /// The first character behind the `=`.
    value_at: usize,
}

fn is_gap(c: char) -> bool {
    c == ' ' || c == BREAK
}

/// The first property at or behind `from`.
fn next_field(characters: &[char], from: usize) -> Option<FieldStart> {
    (from..characters.len()).find_map(|at| {
        let is_boundary = at == 0 || is_gap(characters[at - 1]);
        if is_boundary { field_at(characters, at) } else { None }
    })
}

/// The property that begins exactly at `at`, if one does.
fn field_at(characters: &[char], at: usize) -> Option<FieldStart> {
    if !characters.get(at)?.is_ascii_lowercase() {
        return None;
    }
    let is_key = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-' || *c == BREAK;
    let length = characters[at..].iter().take(MAX_KEY_CHARACTERS).take_while(|c| is_key(c)).count();
    if characters.get(at + length) != Some(&'=') {
        return None;
    }
    let printed = &characters[at..at + length];
    let key: String = printed.iter().filter(|c| **c != BREAK).collect();
    let is_known = |key: &str| KNOWN_KEYS.contains(&key);
    if let Some(cut) = printed.iter().rposition(|c| *c == BREAK)
        && !is_known(&key)
    {
        // The end of a value, then a line end, then a property: that one is found further on.
        let behind: String = printed[cut + 1..].iter().collect();
        if is_known(&behind) {
            return None;
        }
    }
    Some(FieldStart { at, key, value_at: at + length + 1 })
}

/// The value at `from` and where it ends.
fn value(characters: &[char], from: usize) -> Result<(String, usize), ParseError> {
    let first = (from..characters.len()).find(|at| characters[*at] != BREAK);
    if let Some(quote) = first
        && characters[quote] == '"'
    {
        return quoted(characters, quote + 1);
    }
    let end = next_field(characters, from).map_or(characters.len(), |next| next.at);
    let printed = &characters[from..end];
    let is_number = printed.iter().all(|c| c.is_ascii_digit() || is_gap(*c));
    let kept = printed.iter().filter(|c| if is_number { !is_gap(**c) } else { **c != BREAK });
    Ok((kept.collect::<String>().trim().to_owned(), end))
}

/// The text up to the closing quote, and the place behind it.
fn quoted(characters: &[char], from: usize) -> Result<(String, usize), ParseError> {
    let mut text = String::new();
    let mut escaped = false;
    for (at, c) in characters.iter().enumerate().skip(from) {
        match c {
            &BREAK => {}
            '\\' if !escaped => escaped = true,
            '"' if !escaped => {
                let end = at + 1;
                return match characters.get(end) {
                    None => Ok((text, end)),
                    Some(next) if is_gap(*next) => Ok((text, end)),
                    Some(_) => Err(ParseError::new("text right behind a closing quote")),
                };
            }
            _ => {
                text.push(*c);
                escaped = false;
            }
        }
    }
    Err(ParseError::new("a quote that is not closed"))
}

#[cfg(test)]
#[path = "human_tests.rs"]
mod tests;
