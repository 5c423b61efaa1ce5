//! Points in time and durations.

use super::{invalid, required};
use crate::model::fault::Fault;
use crate::model::time::Timestamp;
use std::ops::RangeInclusive;
use std::time::Duration;

/// How long anything may be kept: 100 years. Without a limit the end of a
/// retention could lie past the year 9999, which the wire can't say.
pub(super) const KEPT: RangeInclusive<Duration> =
    Duration::ZERO..=Duration::from_secs(36_500 * 86_400);

/// How long a guest may be waited for.
pub(super) const WAITED: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(86_400);

/// A point in time.
pub(in super::super) fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(time.seconds()).unwrap_or(i64::MAX),
        nanos: i32::try_from(time.subsecond_nanos()).expect("below 10^9"),
    }
}

/// A duration on the wire.
pub(in super::super) fn wire(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).expect("below 10^9"),
    }
}

/// A duration that may be absent.
pub(in super::super) fn duration(
    field: &str,
    given: Option<prost_types::Duration>,
    allowed: &RangeInclusive<Duration>,
) -> Result<Option<Duration>, Fault> {
    let Some(given) = given else { return Ok(None) };
    let read = match (u64::try_from(given.seconds), u32::try_from(given.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Duration::new(seconds, nanos),
        _ => return Err(invalid(field, "must be a duration that is not negative")),
    };
    if allowed.contains(&read) {
        return Ok(Some(read));
    }
    Err(invalid(
        field,
        format!(
            "must be from {} s to {} s",
            allowed.start().as_secs(),
            allowed.end().as_secs()
        ),
    ))
}

/// A duration that is needed.
pub(super) fn required_duration(
    field: &str,
    given: Option<prost_types::Duration>,
    allowed: &RangeInclusive<Duration>,
) -> Result<Duration, Fault> {
    duration(field, given, allowed)?.ok_or_else(|| required(field))
}
