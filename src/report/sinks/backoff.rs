//! How long to wait before the next attempt: longer each time, and never the same
//! for all hosts of a fleet. None is longer than [`pace::receiver`].

use crate::pace;
use rand::Rng;
use std::time::Duration;

/// The first wait is at most this.
const SHORTEST: Duration = Duration::from_millis(100);

/// Doubling waits, of each a random part between half and all.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: SHORTEST }
    }
}

impl Backoff {
    /// The time until the next attempt.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(pace::receiver());
        wait.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Begins anew: an attempt came to something.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew() {
        let mut backoff = Backoff::default();
        let mut most = SHORTEST;
        for _ in 0..12 {
            let wait = backoff.wait();
            assert!(wait >= most / 2 && wait <= most, "{wait:?}");
            most = (most * 2).min(pace::receiver());
        }
        assert_eq!(most, pace::receiver());
        backoff.reset();
        assert!(backoff.wait() <= SHORTEST);
    }
}
