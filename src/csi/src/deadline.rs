//! How long the caller is willing to wait.

use std::time::Duration;

use tonic::metadata::MetadataMap;

/// Most digits that a `grpc-timeout` may have.
const MAX_TIMEOUT_DIGITS: usize = 8;

/// The caller's time limit, counted from when it sent the request; `None` if it set none that can be read.
///
/// tonic drops a request whose time is up. Who would rather answer with a reason has to do it before.
pub fn caller_timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > MAX_TIMEOUT_DIGITS || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Duration> {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", text.parse().unwrap());
        caller_timeout(&metadata)
    }

    #[test]
    fn timeouts_have_a_unit() {
        assert_eq!(parse("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parse("3M"), Some(Duration::from_secs(180)));
        assert_eq!(parse("15S"), Some(Duration::from_secs(15)));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("14999000u"), Some(Duration::from_micros(14_999_000)));
        assert_eq!(parse("9n"), Some(Duration::from_nanos(9)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
    }

    #[test]
    fn what_cannot_be_read_is_no_timeout() {
        for text in ["", "S", "5", "5s", "-5S", "+5S", "123456789S", "1.5S", "5 S"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert_eq!(caller_timeout(&MetadataMap::new()), None);
    }
}
