//! Sizes asked for: CSI 1.12, "CapacityRange".

use proto::csi::v1::CapacityRange;
use state_machine::ByteSize;

use super::RequestError;

/// The size of a volume when nothing is asked for, in bytes.
pub const DEFAULT_VOLUME_BYTES: u64 = 1 << 30;

/// The least size that will do, rounded up to a whole one, and the limit as it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeRange {
    /// The least size; within the limit.
    pub required: ByteSize,
    /// The largest size, in bytes.
    pub limit_bytes: Option<u64>,
}

impl SizeRange {
    /// For a new volume: what is asked for, else [`DEFAULT_VOLUME_BYTES`] or less where the limit is lower.
    pub(super) fn to_create(field: &str, range: Option<&CapacityRange>) -> Result<Self, RequestError> {
        let (required_bytes, limit_bytes) = bounds(field, range)?;
        let wanted = required_bytes.unwrap_or_else(|| {
            let largest = limit_bytes.map_or(u64::MAX, |limit| limit / ByteSize::GRANULE * ByteSize::GRANULE);
            DEFAULT_VOLUME_BYTES.min(largest)
        });
        Self::rounded(field, wanted, limit_bytes)
    }

    /// For a volume that is to grow: something has to be asked for.
    pub(super) fn to_expand(field: &str, range: Option<&CapacityRange>) -> Result<Self, RequestError> {
        match bounds(field, range)? {
            (None, None) => Err(RequestError::required(field)),
            (required_bytes, limit_bytes) => Self::rounded(field, required_bytes.unwrap_or(1), limit_bytes),
        }
    }

    fn rounded(field: &str, bytes: u64, limit_bytes: Option<u64>) -> Result<Self, RequestError> {
        let out_of_range = |problem| RequestError::OutOfRange { field: field.to_owned(), problem };
        let required = ByteSize::at_least(bytes).ok_or_else(|| {
            out_of_range(format!("{bytes} bytes are more than the largest size, {}", ByteSize::MAX))
        })?;
        match limit_bytes {
            Some(limit) if limit < required.bytes() => Err(out_of_range(format!(
                "sizes are multiples of {} bytes, and none is from {bytes} to {limit}",
                ByteSize::GRANULE
            ))),
            Some(_) | None => Ok(Self { required, limit_bytes }),
        }
    }
}

/// Both ends of a range; 0 stands for none.
fn bounds(field: &str, range: Option<&CapacityRange>) -> Result<(Option<u64>, Option<u64>), RequestError> {
    let Some(range) = range else { return Ok((None, None)) };
    let end = |name: &str, bytes: i64| {
        u64::try_from(bytes)
            .map(|bytes| (bytes > 0).then_some(bytes))
            .map_err(|_| RequestError::invalid(format!("{field}.{name}"), "must not be negative"))
    };
    let (required, limit) =
        (end("required_bytes", range.required_bytes)?, end("limit_bytes", range.limit_bytes)?);
    match (required, limit) {
        (Some(required), Some(limit)) if limit < required => {
            Err(RequestError::invalid(format!("{field}.limit_bytes"), "must not be less than required_bytes"))
        }
        (required, limit) => Ok((required, limit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(required_bytes: i64, limit_bytes: i64) -> Option<CapacityRange> {
        Some(CapacityRange { required_bytes, limit_bytes })
    }

    fn create(range: Option<CapacityRange>) -> Result<(u64, Option<u64>), RequestError> {
        SizeRange::to_create("r", range.as_ref()).map(|size| (size.required.bytes(), size.limit_bytes))
    }

    #[test]
    fn a_new_volume_is_as_large_as_asked_for() {
        assert_eq!(create(None), Ok((DEFAULT_VOLUME_BYTES, None)));
        assert_eq!(create(range(0, 0)), Ok((DEFAULT_VOLUME_BYTES, None)));
        assert_eq!(create(range(1, 0)), Ok((4096, None)));
        assert_eq!(create(range(53_687_091_200, 53_687_091_200)), Ok((53_687_091_200, Some(53_687_091_200))));
        assert_eq!(create(range(1_649_267_441_664, 0)), Ok((1_649_267_441_664, None)));
        assert_eq!(create(range(4097, 8192)), Ok((8192, Some(8192))));
        assert_eq!(create(range(0, 1 << 40)), Ok((DEFAULT_VOLUME_BYTES, Some(1 << 40))));
        assert_eq!(create(range(0, 10_000)), Ok((8192, Some(10_000))));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_field() {
        let invalid = |range, field: &str| {
            assert!(
                matches!(create(range), Err(RequestError::Invalid { field: found, .. }) if found == field)
            );
        };
        invalid(range(-1, 0), "r.required_bytes");
        invalid(range(0, -1), "r.limit_bytes");
        invalid(range(8192, 4096), "r.limit_bytes");
        for range in [range(4097, 8191), range(0, 4095), range(i64::MAX, 0), range(i64::MAX, i64::MAX)] {
            assert!(matches!(create(range), Err(RequestError::OutOfRange { .. })), "{range:?}");
        }
    }

    #[test]
    fn an_expansion_has_to_ask_for_something() {
        let expand = |range: Option<CapacityRange>| SizeRange::to_expand("r", range.as_ref());
        assert_eq!(expand(None), Err(RequestError::required("r")));
        assert_eq!(expand(range(0, 0)), Err(RequestError::required("r")));
        assert_eq!(expand(range(5000, 0)).unwrap().required.bytes(), 8192);
        assert_eq!(expand(range(0, 5000)).unwrap().required.bytes(), 4096);
    }

    proptest! {
        #[test]
        fn every_accepted_size_is_within_its_range(required in any::<i64>(), limit in any::<i64>()) {
            if let Ok((size, found_limit)) = create(range(required, limit)) {
                prop_assert!(required >= 0 && limit >= 0);
                prop_assert!(size % 4096 == 0 && size > 0 && size >= required as u64);
                prop_assert!(limit == 0 || (size <= limit as u64 && found_limit == Some(limit as u64)));
            }
        }
    }
}
