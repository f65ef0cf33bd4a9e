//! The smallest pieces: one string, one key, one number.

use std::fmt::Display;
use std::str::FromStr;

use state_machine::IdError;

use super::RequestError;

/// Longest key of a map, in bytes.
const MAX_KEY_BYTES: usize = 253;
/// Longest value that is checked but not used, in bytes.
const MAX_IGNORED_VALUE_BYTES: usize = 256;
/// How much of a refused string an error shows, in characters.
const MAX_QUOTED_CHARS: usize = 64;

/// An identifier, parsed by its own type.
pub(crate) fn id<T>(
    field: &str,
    text: &str,
    parse: fn(&str) -> Result<T, IdError>,
) -> Result<T, RequestError> {
    parse(text).map_err(|error| RequestError::invalid(field, error.to_string()))
}

/// `text` as it may stand in an error: escaped, and not longer than a line.
pub(super) fn quoted(text: &str) -> String {
    let mut start: String = text.chars().take(MAX_QUOTED_CHARS).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    format!("{start:?}")
}

/// A decimal number from `least` to `most`: digits only, with a `-` where the range allows it.
pub(crate) fn number<T>(field: &str, text: &str, least: T, most: T) -> Result<T, RequestError>
where
    T: FromStr + PartialOrd + Display,
{
    let digits = text.strip_prefix('-').unwrap_or(text);
    let parsed = if digits.bytes().all(|b| b.is_ascii_digit()) { text.parse::<T>().ok() } else { None };
    match parsed {
        Some(number) if least <= number && number <= most => Ok(number),
        Some(_) | None => {
            let problem = format!("is {}, not a whole number from {least} to {most}", quoted(text));
            Err(RequestError::invalid(field, problem))
        }
    }
}

/// `true` or `false`, in these letters.
pub(crate) fn flag(field: &str, text: &str) -> Result<bool, RequestError> {
    text.parse().map_err(|_| {
        RequestError::invalid(field, format!("is {}, neither \"true\" nor \"false\"", quoted(text)))
    })
}

fn check_characters(
    field: &str,
    what: &str,
    text: &str,
    punctuation: &str,
    limit: usize,
) -> Result<(), RequestError> {
    if text.len() > limit {
        return Err(RequestError::invalid(field, format!("{what} is longer than {limit} bytes")));
    }
    if let Some(found) = text.chars().find(|c| !c.is_ascii_alphanumeric() && !punctuation.contains(*c)) {
        let problem = format!(
            "{what} contains {found:?}; allowed are letters, digits and the characters {punctuation}"
        );
        return Err(RequestError::invalid(field, problem));
    }
    if text.contains("..") {
        return Err(RequestError::invalid(field, format!("{what} must not contain '..'")));
    }
    Ok(())
}

/// A map's key: nothing that a Kubernetes label could not be called.
pub(crate) fn check_key(field: &str, key: &str) -> Result<(), RequestError> {
    if key.is_empty() {
        return Err(RequestError::invalid(field, "a key is empty"));
    }
    check_characters(field, &format!("the key {}", quoted(key)), key, "._-/", MAX_KEY_BYTES)
}

/// A value that the driver does not use: harmless wherever it may show.
pub(crate) fn check_ignored_value(field: &str, value: &str) -> Result<(), RequestError> {
    check_characters(field, "the value", value, "._-/:@+=,", MAX_IGNORED_VALUE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_digits_in_a_range() {
        assert_eq!(number("f", "4420", 1u16, u16::MAX), Ok(4420));
        assert_eq!(number("f", "-1", -1i32, 86_400), Ok(-1));
        for text in ["", "-", "+5", " 5", "5 ", "0x5", "5.0", "65536", "0", "-1", "--1", "٥"] {
            assert!(number("f", text, 1u16, u16::MAX).is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_shown_of_a_hostile_string_is_short_and_on_one_line() {
        assert_eq!(quoted("a\nb\"c"), r#""a\nb\"c""#);
        assert_eq!(quoted(&"x".repeat(300)).chars().count(), MAX_QUOTED_CHARS + 3);
    }
}
