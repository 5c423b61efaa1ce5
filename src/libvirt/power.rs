//! What a domain does, and why: every state and reason that libvirt has.

use virt::domain::{
    Domain, DomainPausedReason, DomainRunningReason, DomainShutoffReason, DomainState as VirtState,
    DomainStateEnum, DomainStateReason,
};
use virt::enumutil::Enum;
use virt::error::Error as VirtError;

/// What a domain does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Power {
    /// Not running.
    Off(OffReason),
    /// Running, or waiting for something it asked for.
    Running(RunReason),
    /// Its vCPUs are paused; its memory is there.
    Paused(PauseReason),
    /// The guest has shut down, and QEMU is about to end.
    ShuttingDown,
    /// The guest panicked, and QEMU has kept it so.
    Crashed,
    /// The guest put itself to sleep.
    Asleep,
    /// libvirt does not know, or reports something newer than this version.
    Unknown,
}

impl Power {
    /// Whether a QEMU process exists for it, so that it uses host memory.
    pub const fn is_active(self) -> bool {
        match self {
            Self::Off(_) => false,
            Self::Running(_)
            | Self::Paused(_)
            | Self::ShuttingDown
            | Self::Crashed
            | Self::Asleep
            | Self::Unknown => true,
        }
    }
}

/// Why a domain does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OffReason {
    /// It has not run since libvirt began to watch.
    Unknown,
    /// The guest shut down.
    Shutdown,
    /// Somebody forced it off.
    Destroyed,
    /// QEMU ended without being asked to, or the guest panicked.
    Crashed,
    /// It moved to another host.
    Migrated,
    /// Its memory was saved.
    Saved,
    /// It could not be started.
    Failed,
    /// It was taken back to a snapshot that was off.
    FromSnapshot,
    /// libvirt stopped it, when it lost track of it.
    Daemon,
}

/// Why a domain runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunReason {
    /// It was started.
    Booted,
    /// Its saved memory was restored.
    Restored,
    /// It was paused, and somebody resumed it.
    Unpaused,
    /// It came from another host, or did not get away.
    Migrated,
    /// It was taken back to a snapshot.
    FromSnapshot,
    /// Saving it did not succeed.
    SaveCancelled,
    /// It woke up.
    Wakeup,
    /// It panicked and was started again.
    Crashed,
    /// libvirt does not know, or reports something newer than this version.
    Unknown,
}

/// Why a domain is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PauseReason {
    /// Somebody asked for it.
    Request,
    /// It is moving to another host.
    Migration,
    /// It is being saved.
    Saving,
    /// Its memory is being dumped.
    Dumping,
    /// A disk failed; its resumption tries again.
    IoError,
    /// The guest's watchdog expired.
    Watchdog,
    /// It was taken back to a snapshot that was paused, or is being one.
    Snapshot,
    /// It is shutting down.
    ShuttingDown,
    /// The guest panicked.
    Crashed,
    /// It is being started.
    StartingUp,
    /// Some call of libvirt's failed half-way.
    ApiError,
    /// libvirt does not know, or reports something newer than this version.
    Unknown,
}

/// Reads a domain's state; one call.
pub(super) fn read(domain: &Domain) -> Result<Power, VirtError> {
    let (state, reason) = domain.state()?;
    // The virt crate's `state` never fails: it leaves -1 where libvirt did.
    if state == Enum::Unknown(u32::MAX) {
        return Err(VirtError::last_error());
    }
    Ok(power_of(state, reason))
}

fn power_of(state: DomainStateEnum, reason: Enum<DomainStateReason, i32>) -> Power {
    let (Enum::Known(state), Enum::Known(reason)) = (state, reason) else {
        return Power::Unknown;
    };
    match (state, reason) {
        (VirtState::Running, DomainStateReason::Running(reason)) => {
            Power::Running(run_reason(reason.known()))
        }
        (VirtState::Running | VirtState::Blocked, _) => Power::Running(RunReason::Unknown),
        (VirtState::Paused, DomainStateReason::Paused(reason)) => {
            Power::Paused(pause_reason(reason.known()))
        }
        (VirtState::Paused, _) => Power::Paused(PauseReason::Unknown),
        (VirtState::Shutoff, DomainStateReason::Shutoff(reason)) => {
            Power::Off(off_reason(reason.known()))
        }
        (VirtState::Shutoff, _) => Power::Off(OffReason::Unknown),
        (VirtState::Shutdown, _) => Power::ShuttingDown,
        (VirtState::Crashed, _) => Power::Crashed,
        (VirtState::PMSuspended, _) => Power::Asleep,
        (VirtState::NoState, _) => Power::Unknown,
    }
}

fn run_reason(reason: Option<DomainRunningReason>) -> RunReason {
    match reason {
        Some(DomainRunningReason::Booted) => RunReason::Booted,
        Some(DomainRunningReason::Restored) => RunReason::Restored,
        Some(DomainRunningReason::Unpaused) => RunReason::Unpaused,
        Some(
            DomainRunningReason::Migrated
            | DomainRunningReason::MigrationCancelled
            | DomainRunningReason::PostCopy
            | DomainRunningReason::PostCopyFailed,
        ) => RunReason::Migrated,
        Some(DomainRunningReason::FromSnapshot) => RunReason::FromSnapshot,
        Some(DomainRunningReason::SaveCancelled) => RunReason::SaveCancelled,
        Some(DomainRunningReason::Wakeup) => RunReason::Wakeup,
        Some(DomainRunningReason::Crashed) => RunReason::Crashed,
        Some(DomainRunningReason::Unknown) | None => RunReason::Unknown,
    }
}

fn pause_reason(reason: Option<DomainPausedReason>) -> PauseReason {
    match reason {
        Some(DomainPausedReason::User) => PauseReason::Request,
        Some(
            DomainPausedReason::Migration
            | DomainPausedReason::PostCopy
            | DomainPausedReason::PostCopyFailed,
        ) => PauseReason::Migration,
        Some(DomainPausedReason::Save) => PauseReason::Saving,
        Some(DomainPausedReason::Dump) => PauseReason::Dumping,
        Some(DomainPausedReason::IOError) => PauseReason::IoError,
        Some(DomainPausedReason::Watchdog) => PauseReason::Watchdog,
        Some(DomainPausedReason::FromSnapshot | DomainPausedReason::Snapshot) => {
            PauseReason::Snapshot
        }
        Some(DomainPausedReason::ShuttingDown) => PauseReason::ShuttingDown,
        Some(DomainPausedReason::Crashed) => PauseReason::Crashed,
        Some(DomainPausedReason::StartingUp) => PauseReason::StartingUp,
        Some(DomainPausedReason::APIError) => PauseReason::ApiError,
        Some(DomainPausedReason::Unknown) | None => PauseReason::Unknown,
    }
}

fn off_reason(reason: Option<DomainShutoffReason>) -> OffReason {
    match reason {
        Some(DomainShutoffReason::Shutdown) => OffReason::Shutdown,
        Some(DomainShutoffReason::Destroyed) => OffReason::Destroyed,
        Some(DomainShutoffReason::Crashed) => OffReason::Crashed,
        Some(DomainShutoffReason::Migrated) => OffReason::Migrated,
        Some(DomainShutoffReason::Saved) => OffReason::Saved,
        Some(DomainShutoffReason::Failed) => OffReason::Failed,
        Some(DomainShutoffReason::FromSnapshot) => OffReason::FromSnapshot,
        Some(DomainShutoffReason::Daemon) => OffReason::Daemon,
        Some(DomainShutoffReason::Unknown) | None => OffReason::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virt::enumutil::RawEnum;

    #[test]
    fn a_state_or_reason_from_a_newer_libvirt_is_unknown() {
        let newer = Enum::Unknown(99);
        assert_eq!(power_of(newer, Enum::Unknown(0)), Power::Unknown);
        let paused = Enum::Known(VirtState::Paused);
        let reason = DomainStateReason::Paused(Enum::Unknown(99));
        assert_eq!(
            power_of(paused, Enum::Known(reason)),
            Power::Paused(PauseReason::Unknown)
        );
    }

    #[test]
    fn only_a_domain_that_is_off_has_no_process() {
        for raw in 0..=7 {
            let state = VirtState::from_raw(raw).expect("libvirt's states so far");
            let reason = match state {
                VirtState::NoState => DomainStateReason::NoState(Enum::Unknown(0)),
                VirtState::Running => DomainStateReason::Running(Enum::Unknown(0)),
                VirtState::Blocked => DomainStateReason::Blocked(Enum::Unknown(0)),
                VirtState::Paused => DomainStateReason::Paused(Enum::Unknown(0)),
                VirtState::Shutdown => DomainStateReason::Shutdown(Enum::Unknown(0)),
                VirtState::Shutoff => DomainStateReason::Shutoff(Enum::Unknown(0)),
                VirtState::Crashed => DomainStateReason::Crashed(Enum::Unknown(0)),
                VirtState::PMSuspended => DomainStateReason::PMSuspended(Enum::Unknown(0)),
            };
            let power = power_of(Enum::Known(state), Enum::Known(reason));
            assert_eq!(power.is_active(), state != VirtState::Shutoff, "{power:?}");
        }
    }

    #[test]
    fn reasons_that_decide_about_a_vm_are_told_apart() {
        assert_eq!(
            off_reason(Some(DomainShutoffReason::Crashed)),
            OffReason::Crashed
        );
        assert_eq!(
            off_reason(Some(DomainShutoffReason::Saved)),
            OffReason::Saved
        );
        assert_eq!(
            pause_reason(Some(DomainPausedReason::IOError)),
            PauseReason::IoError
        );
        assert_eq!(
            pause_reason(Some(DomainPausedReason::User)),
            PauseReason::Request
        );
    }
}
