//! The host's clock, as far as it can be trusted with what can't be undone.
//!
//! Retention ends by the clock, and clocks are set: by hand, by a time server that
//! was wrong, by a host that booted with a flat battery. Within one run of the
//! agent a jump can be told from time that passed, because the kernel's monotonic
//! clock does not jump. What would be due only by a jump forward is not due until
//! the new time has stood for a day; a clock that is set right again before that
//! has removed nothing.
//!
//! Across a restart of the agent a jump can't be told from time that passed. It
//! does not slow down or order anything: timeouts count monotonic time, and times
//! that are shown are the clock's.

use super::operations::now;
use crate::model::time::Timestamp;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Steps up to this are how clocks are kept right.
const STEP: Duration = Duration::from_secs(10);
/// How long a new time must have stood until it is believed.
const PROOF: Duration = Duration::from_secs(24 * 3600);

static WATCH: Mutex<Option<Watch>> = Mutex::new(None);

/// The present, without what the clock was set forward by lately. To be called now
/// and then, so that jumps are seen; for what removes something.
pub fn proven_now() -> Timestamp {
    let mut watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    let (instant, wall) = (Instant::now(), now());
    let watch = watch.get_or_insert(Watch::new(instant, wall));
    let (proven, seen) = watch.look(instant, wall);
    match seen {
        Seen::Nothing => {}
        Seen::Forward(by) => tracing::warn!(
            by_seconds = by.as_secs(),
            "the clock was set forward; nothing is removed because of that for a day"
        ),
        Seen::Back(by) => {
            tracing::warn!(by_seconds = by.as_secs(), "the clock was set back");
        }
        Seen::Proven => tracing::info!("the clock's new time has stood for a day"),
    }
    proven
}

/// By how much the clock was set forward and is not believed, as far as was seen.
pub fn unproven() -> Option<Duration> {
    let watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    let (by, _) = watch.as_ref()?.ahead?;
    Some(by)
}

/// Compares the clock with monotonic time.
#[derive(Debug, Clone, Copy)]
struct Watch {
    instant: Instant,
    wall: Timestamp,
    /// By how much the clock was set forward, and when last.
    ahead: Option<(Duration, Instant)>,
}

/// What happened to the clock since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Nothing,
    Forward(Duration),
    Back(Duration),
    Proven,
}

impl Watch {
    const fn new(instant: Instant, wall: Timestamp) -> Self {
        Self {
            instant,
            wall,
            ahead: None,
        }
    }

    /// Returns the time that is proven, and what happened.
    fn look(&mut self, instant: Instant, wall: Timestamp) -> (Timestamp, Seen) {
        let expected = self.wall.plus(instant.duration_since(self.instant));
        let (forward, back) = (wall.since(expected), expected.since(wall));
        (self.instant, self.wall) = (instant, wall);
        let mut seen = Seen::Nothing;
        if forward > STEP {
            let before = self.ahead.map_or(Duration::ZERO, |(by, _)| by);
            self.ahead = Some((before.saturating_add(forward), instant));
            seen = Seen::Forward(forward);
        } else if back > STEP {
            self.ahead = self
                .ahead
                .map(|(by, when)| (by.saturating_sub(back), when))
                .filter(|(by, _)| *by > STEP);
            seen = Seen::Back(back);
        }
        if let Some((_, when)) = self.ahead
            && instant.duration_since(when) >= PROOF
        {
            self.ahead = None;
            seen = Seen::Proven;
        }
        let ahead = self.ahead.map_or(Duration::ZERO, |(by, _)| by);
        let ahead = u64::try_from(ahead.as_micros()).unwrap_or(u64::MAX);
        (Timestamp(wall.0.saturating_sub(ahead)), seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// A watch with a clock that runs, and can be set.
    struct Bench {
        watch: Watch,
        instant: Instant,
        wall: Timestamp,
    }

    impl Bench {
        fn new() -> Self {
            let (instant, wall) = (Instant::now(), Timestamp(1 << 50));
            Self {
                watch: Watch::new(instant, wall),
                instant,
                wall,
            }
        }

        fn pass(&mut self, time: Duration) -> (Timestamp, Seen) {
            self.instant += time;
            self.wall = self.wall.plus(time);
            self.watch.look(self.instant, self.wall)
        }

        fn set_back(&mut self, by: Duration) {
            self.wall.0 -= u64::try_from(by.as_micros()).expect("a test's time");
        }
    }

    #[test]
    fn time_that_passes_is_proven_and_small_steps_are_not_told() {
        let mut bench = Bench::new();
        assert_eq!(bench.pass(100 * HOUR), (bench.wall, Seen::Nothing));
        bench.wall = bench.wall.plus(STEP);
        assert_eq!(bench.pass(HOUR), (bench.wall, Seen::Nothing));
        bench.set_back(STEP);
        assert_eq!(bench.pass(HOUR), (bench.wall, Seen::Nothing));
    }

    #[test]
    fn a_jump_forward_counts_only_when_it_has_stood_for_a_day() {
        let mut bench = Bench::new();
        let years = 10 * 365 * 24 * HOUR;
        let true_time = bench.wall.plus(HOUR);
        bench.wall = bench.wall.plus(years);
        assert_eq!(bench.pass(HOUR), (true_time, Seen::Forward(years)));
        assert_eq!(bench.pass(HOUR), (true_time.plus(HOUR), Seen::Nothing));
        assert_eq!(bench.pass(23 * HOUR), (bench.wall, Seen::Proven));
        assert_eq!(bench.pass(HOUR), (bench.wall, Seen::Nothing));
    }

    #[test]
    fn a_jump_that_is_taken_back_was_none() {
        let mut bench = Bench::new();
        bench.wall = bench.wall.plus(48 * HOUR);
        let (_, seen) = bench.pass(HOUR);
        assert_eq!(seen, Seen::Forward(48 * HOUR));
        bench.set_back(48 * HOUR);
        assert_eq!(bench.pass(HOUR), (bench.wall, Seen::Back(48 * HOUR)));
        assert_eq!(bench.pass(HOUR), (bench.wall, Seen::Nothing));
    }

    #[test]
    fn a_clock_that_is_set_back_is_believed_at_once() {
        let mut bench = Bench::new();
        bench.set_back(48 * HOUR);
        assert_eq!(bench.pass(HOUR), (bench.wall, Seen::Back(48 * HOUR)));
        assert_eq!(bench.pass(HOUR), (bench.wall, Seen::Nothing));
    }
}
