//! Sizes and durations as people write them.

const SIZE_UNITS: [(&str, u64); 5] =
    [("PiB", 1 << 50), ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// A size: `10 GiB` if it is that exactly, else with one decimal after a `~`.
pub(crate) fn size(bytes: u64) -> String {
    match SIZE_UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        None => format!("{bytes} B"),
        Some((name, unit)) if bytes.is_multiple_of(*unit) => format!("{} {name}", bytes / unit),
        Some((name, unit)) => {
            let tenths = u128::from(bytes) * 10 / u128::from(*unit);
            let mark = if (u128::from(bytes) * 10).is_multiple_of(u128::from(*unit)) { "" } else { "~" };
            format!("{mark}{}.{} {name}", tenths / 10, tenths % 10)
        }
    }
}

/// A span of time: `640 ms`, `12.3 s`, `5 min 20 s`, `3 h 12 min`.
pub(crate) fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{seconds}.{} s", ms % 1000 / 100),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_say_when_they_are_rounded() {
        for (bytes, text) in [
            (0, "0 B"),
            (4096, "4 KiB"),
            (10 << 30, "10 GiB"),
            (3 << 39, "1.5 TiB"),
            (53_687_091_200, "50 GiB"),
            ((10 << 30) + 4096, "~10.0 GiB"),
            (u64::MAX, "~16383.9 PiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn spans_keep_two_places() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (12_345, "12.3 s"),
            (320_000, "5 min 20 s"),
            (11_520_000, "3 h 12 min"),
        ] {
            assert_eq!(span(ms), text);
        }
    }
}
