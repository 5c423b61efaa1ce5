//! `[events]`: how long changes are kept, and who may read them.

use super::section::Section;
use std::ops::RangeInclusive;
use std::time::Duration;

const KEEP: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(366 * 86_400);
const SLOW: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// How long changes are kept, and who may read them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventSettings {
    /// How long a change can be read after it happened.
    pub keep: Duration,
    /// How many changes can be read, at most.
    pub keep_count: u64,
    /// How long a reader may take nothing of what is there for it.
    pub slow_reader: Duration,
    /// Streams of WatchEvents that may be open at once; the next one is refused.
    pub watchers: usize,
}

impl Default for EventSettings {
    fn default() -> Self {
        Self {
            keep: Duration::from_secs(86_400),
            keep_count: 10_000,
            slow_reader: Duration::from_secs(10),
            watchers: 256,
        }
    }
}

pub(super) fn read(section: Section<'_>) -> EventSettings {
    let default = EventSettings::default();
    let settings = EventSettings {
        keep: section.duration("keep", KEEP).unwrap_or(default.keep),
        keep_count: section
            .number("keep_count", 1..=10_000_000)
            .unwrap_or(default.keep_count),
        slow_reader: section
            .duration("slow_reader", SLOW)
            .unwrap_or(default.slow_reader),
        watchers: section
            .number("watchers", 1..=100_000)
            .unwrap_or(default.watchers),
    };
    section.finish();
    settings
}
