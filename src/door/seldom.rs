//! What many callers can bring about is told in the log only now and then, so that
//! they can't fill it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often it is told.
const BETWEEN: Duration = Duration::from_secs(10);

/// When it was told last.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// Whether it is time to tell it again; if so, it counts as told.
    pub fn is_due(&self) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = told.is_none_or(|told| told.elapsed() >= BETWEEN);
        if due {
            *told = Some(Instant::now());
        }
        due
    }
}
