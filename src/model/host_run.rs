//! Runs of the host's kernel, and how one ended while nobody looked.

use super::lifecycle::StateReason;
use super::time::Timestamp;
use serde::{Deserialize, Serialize};

/// A run of the host's kernel, as the agent last knew it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRun {
    /// The kernel's own name for it.
    pub boot_id: String,
    /// What became of the agent in it.
    pub agent: LastSeen,
    /// Since when.
    pub time: Timestamp,
}

/// What became of the agent in a run of the host's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LastSeen {
    /// It runs, or was cut off.
    Running,
    /// It ended, and the host went on.
    Ended,
    /// It ended because the host was shutting down.
    EndedWithHost,
}

/// How a run of the host's kernel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostEnd {
    /// What the guests that had power are without it for.
    pub reason: StateReason,
    /// When, if that is known.
    pub time: Option<Timestamp>,
}

impl HostRun {
    /// How this run has ended, if the present one has another `boot_id`. Of a kernel
    /// that does not name its runs nothing is known.
    pub fn ended(&self, boot_id: &str) -> Option<HostEnd> {
        if self.boot_id == boot_id || self.boot_id.is_empty() || boot_id.is_empty() {
            return None;
        }
        Some(match self.agent {
            LastSeen::Running => HostEnd {
                reason: StateReason::HostPowerLoss,
                time: None,
            },
            LastSeen::Ended => HostEnd {
                reason: StateReason::HostRestarted,
                time: None,
            },
            LastSeen::EndedWithHost => HostEnd {
                reason: StateReason::HostShutdown,
                time: Some(self.time),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_run_ended_is_told_by_what_became_of_the_agent() {
        let run = |agent| HostRun {
            boot_id: "a".to_owned(),
            agent,
            time: Timestamp(7),
        };
        for (agent, reason, time) in [
            (LastSeen::Running, StateReason::HostPowerLoss, None),
            (LastSeen::Ended, StateReason::HostRestarted, None),
            (
                LastSeen::EndedWithHost,
                StateReason::HostShutdown,
                Some(Timestamp(7)),
            ),
        ] {
            assert_eq!(run(agent).ended("b"), Some(HostEnd { reason, time }));
            assert_eq!(run(agent).ended("a"), None);
            assert_eq!(run(agent).ended(""), None);
        }
    }
}
