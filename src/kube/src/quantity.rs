//! Kubernetes' quantities of memory (API conventions, "Quantities"), as VMIs write them.

/// Suffixes and what they multiply with.
const SUFFIXES: &[(&str, f64)] = &[
    ("", 1.0),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
];

/// The bytes of `text`, rounded up; `None` if it is no quantity of memory.
pub fn bytes(text: &str) -> Option<u64> {
    let bytes = match text.split_once(['e', 'E']) {
        Some((digits, exponent)) if !exponent.is_empty() && exponent != "i" => {
            number(digits)? * 10f64.powi(exponent.parse().ok()?)
        }
        Some(_) | None => {
            let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
            let (digits, suffix) = text.split_at_checked(end)?;
            let (_, factor) = SUFFIXES.iter().find(|(name, _)| *name == suffix)?;
            number(digits)? * factor
        }
    };
    // The cast saturates, and sizes of memory are far below where a double loses whole bytes.
    bytes.is_finite().then(|| bytes.ceil() as u64)
}

/// A number without a sign.
fn number(digits: &str) -> Option<f64> {
    if !digits.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn quantities_are_read() {
        let table: &[(&str, Option<u64>)] = &[
            ("0", Some(0)),
            ("1024", Some(1024)),
            ("2Gi", Some(2 << 30)),
            ("1.5Gi", Some(3 << 29)),
            ("2048Mi", Some(2 << 30)),
            ("4G", Some(4_000_000_000)),
            ("1e9", Some(1_000_000_000)),
            ("12E6", Some(12_000_000)),
            ("1E", Some(1_000_000_000_000_000_000)),
            ("1Ei", Some(1 << 60)),
            ("1500m", Some(2)),
            ("", None),
            ("Gi", None),
            ("-1Gi", None),
            ("1 Gi", None),
            ("1GiB", None),
            ("1.2.3", None),
            ("NaN", None),
            ("inf", None),
            ("1e9999999999", None),
            ("1\u{e9}", None),
        ];
        for (text, expect) in table {
            assert_eq!(bytes(text), *expect, "{text:?}");
        }
    }
}
