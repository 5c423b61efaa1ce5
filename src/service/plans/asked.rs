//! How a guest was asked to stop so far, and what its end is put down to.

use crate::libvirt::OffReason;
use crate::model::stop::{PowerMethod, PowerOutcome};
use crate::model::time::Timestamp;
use crate::service::operations::now;
use std::time::Duration;
use tokio::time::Instant;

/// How often a guest was asked, and for how long, also by former runs.
pub(super) struct Asked {
    pub(super) signals: u32,
    /// How it was asked last.
    pub(super) method: PowerMethod,
    /// Its agent was asked.
    pub(super) agent: bool,
    last: Option<Timestamp>,
    /// What had passed when this run began.
    pub(super) before: Duration,
    pub(super) begun: Instant,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            signals: 0,
            method: PowerMethod::Acpi,
            agent: false,
            last: None,
            before: Duration::ZERO,
            begun: Instant::now(),
        }
    }
}

impl Asked {
    /// What a run that was cut off has left. Between its last signal and now the
    /// host's clock counts; one that was set back adds nothing.
    pub(super) fn so_far(outcome: Option<PowerOutcome>) -> Self {
        let Some(outcome) = outcome else {
            return Self::default();
        };
        let since = outcome.last_signal.map(|last| now().since(last));
        Self {
            signals: outcome.signals_sent,
            method: outcome.method,
            // If it was the button last, whether the agent was asked before is not
            // known: it is asked once more at most.
            agent: outcome.method == PowerMethod::GuestAgent,
            last: outcome.last_signal,
            before: outcome.waited.saturating_add(since.unwrap_or_default()),
            begun: Instant::now(),
        }
    }

    /// Counts one signal more.
    pub(super) fn count(&mut self, method: PowerMethod) {
        self.signals += 1;
        self.method = method;
        self.agent |= method == PowerMethod::GuestAgent;
        self.last = Some(now());
    }

    pub(super) fn waited(&self) -> Duration {
        self.before.saturating_add(self.begun.elapsed())
    }

    pub(super) fn outcome(&self, method: PowerMethod) -> PowerOutcome {
        PowerOutcome {
            method,
            signals_sent: self.signals,
            waited: self.waited(),
            forced: method == PowerMethod::Force,
            last_signal: self.last,
        }
    }
}

/// What ended a guest that is off, by why libvirt says that it is; `asked` is how it
/// was asked last, and `host_ended` whether the host has ended since.
pub(super) const fn what_ended(
    why: OffReason,
    asked: PowerMethod,
    host_ended: bool,
) -> PowerMethod {
    match (why, asked) {
        (OffReason::Unknown, _) if host_ended => PowerMethod::Host,
        // A former run of the agent has cut its power. A libvirt that was just finding
        // its domains again takes that for a crash.
        (_, PowerMethod::Force) => PowerMethod::Force,
        // libvirt forgets why when it is restarted.
        (OffReason::Shutdown | OffReason::Unknown, _) => asked,
        (OffReason::Crashed | OffReason::Failed | OffReason::Daemon, _) => PowerMethod::Crashed,
        (
            OffReason::Destroyed | OffReason::Saved | OffReason::Migrated | OffReason::FromSnapshot,
            _,
        ) => PowerMethod::Destroyed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_guest_is_put_down_to_the_signal_only_if_the_guest_shut_down() {
        for asked in [
            PowerMethod::GuestAgent,
            PowerMethod::Acpi,
            PowerMethod::Guest,
        ] {
            assert_eq!(what_ended(OffReason::Shutdown, asked, false), asked);
            assert_eq!(what_ended(OffReason::Unknown, asked, false), asked);
            assert_eq!(
                what_ended(OffReason::Destroyed, asked, false),
                PowerMethod::Destroyed
            );
            assert_eq!(
                what_ended(OffReason::Crashed, asked, false),
                PowerMethod::Crashed
            );
        }
        assert_eq!(
            what_ended(OffReason::Unknown, PowerMethod::Acpi, true),
            PowerMethod::Host
        );
        let cut = PowerMethod::Force;
        assert_eq!(what_ended(OffReason::Destroyed, cut, false), cut);
    }

    #[test]
    fn a_run_that_goes_on_does_not_ask_the_agent_again() {
        let mut asked = Asked::default();
        asked.count(PowerMethod::GuestAgent);
        let again = Asked::so_far(Some(asked.outcome(asked.method)));
        assert!(again.agent);
        assert_eq!((again.signals, again.method), (1, PowerMethod::GuestAgent));
        assert!(!Asked::so_far(None).agent);
    }
}
