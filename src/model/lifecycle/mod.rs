//! The states of a VM, what may be asked in each, and what is seen of it.
//!
//! ```text
//!             Start                 Pause
//!   STOPPED ─────────▶ RUNNING ◀──────────▶ PAUSED
//!      ▲  ◀─────────     │  │     Resume      │
//!      │     Stop        │  └──── Save ───┬───┘
//!      │                 ▼                ▼
//!      │              CRASHED ─ Start   SAVED ─ Start restores
//!      └─ Recover ─ DELETED ◀─ Delete ─ (each of these)
//! ```
//!
//! [`decide`] answers a request, [`observe`] takes in what the host shows. Both
//! are total: a request may be refused, an observation may not. Neither has a
//! wildcard arm, so that a new state or request can't be forgotten.
//! `docs/lifecycle.md` has the table for people and is held against `decide`.

mod decide;
mod observe;

pub use decide::{Ask, Decision, Instead, decide, decide_for};
pub use observe::{Observed, OffCause, PauseCause, Seen, StateReason, end_with_host, observe};

use super::vm::Life;
use serde::{Deserialize, Serialize};

/// A state that a VM stays in while no operation is at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resting {
    /// Without power.
    Stopped,
    /// With power.
    Running,
    /// With power, its processors standing still.
    Paused,
    /// Without power, its memory in a file.
    Saved,
    /// Without power because something failed.
    Crashed,
    /// Deleted, everything kept.
    Deleted,
    /// Its creation failed and was undone.
    Failed,
    /// In the records, gone from the host.
    Lost,
    /// libvirt is away.
    Unknown,
}

impl Resting {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 9] = [
        Self::Stopped,
        Self::Running,
        Self::Paused,
        Self::Saved,
        Self::Crashed,
        Self::Deleted,
        Self::Failed,
        Self::Lost,
        Self::Unknown,
    ];

    /// The name in the API and in the table.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "STOPPED",
            Self::Running => "RUNNING",
            Self::Paused => "PAUSED",
            Self::Saved => "SAVED",
            Self::Crashed => "CRASHED",
            Self::Deleted => "DELETED",
            Self::Failed => "FAILED",
            Self::Lost => "LOST",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// Whether the VM has power in it: QEMU runs.
    pub const fn has_power(self) -> bool {
        match self {
            Self::Running | Self::Paused => true,
            Self::Stopped
            | Self::Saved
            | Self::Crashed
            | Self::Deleted
            | Self::Failed
            | Self::Lost
            | Self::Unknown => false,
        }
    }
}

/// The state that a VM rests in, from how far its life has come, what was last
/// seen of its domain, and whether libvirt is there to ask.
pub const fn resting(life: Life, seen: Seen, hypervisor_away: bool) -> (Resting, StateReason) {
    match life {
        Life::Making | Life::Failed => (Resting::Failed, StateReason::CreateFailed),
        Life::Deleted { .. } | Life::Expunging => (Resting::Deleted, StateReason::Deleted),
        Life::Present if hypervisor_away => (Resting::Unknown, StateReason::HypervisorAway),
        Life::Present => (seen.resting, seen.reason),
    }
}
