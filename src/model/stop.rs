//! How a guest is stopped, and how that went.

use super::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How to stop a guest, with every choice made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopPolicy {
    /// Cut its power.
    Force,
    /// Ask it, and ask again, because a busy guest misses the first signal.
    Graceful {
        /// How long to wait in all.
        timeout: Duration,
        /// How long to wait before asking again.
        resend_interval: Duration,
        /// What to do when the time is up.
        on_timeout: OnTimeout,
    },
}

/// What to do with a guest that did not stop in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    /// Leave it running and fail.
    Fail,
    /// Cut its power.
    Force,
}

/// What ended a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerMethod {
    /// It shut down, and its agent was asked last.
    GuestAgent,
    /// It shut down, and its ACPI power button was pressed last.
    Acpi,
    /// The operation cut its power.
    Force,
    /// It powered itself off before it was asked.
    Guest,
    /// Something else on the host took its power.
    Destroyed,
    /// Its QEMU died, or it panicked.
    Crashed,
    /// The host ended.
    Host,
}

/// How a guest was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerOutcome {
    /// What ended it; while it goes on, how it was asked last.
    pub method: PowerMethod,
    /// How often it was asked.
    pub signals_sent: u32,
    /// From the first signal to the end.
    pub waited: Duration,
    /// Whether its power was cut, by request or after the timeout.
    pub forced: bool,
    /// When it was last asked, to go on from there after a restart of the agent.
    #[serde(default)]
    pub last_signal: Option<Timestamp>,
}

impl PowerOutcome {
    /// Its power was cut, and nobody had asked it before.
    pub const FORCED: Self = Self {
        method: PowerMethod::Force,
        signals_sent: 0,
        waited: Duration::ZERO,
        forced: true,
        last_signal: None,
    };
}
