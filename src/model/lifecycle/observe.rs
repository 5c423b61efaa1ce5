//! What the host shows of a VM, taken in as a state and a reason.

use super::Resting;
use serde::{Deserialize, Serialize};

/// What was last seen of a VM's domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Seen {
    /// The state that it comes to; never DELETED, FAILED or UNKNOWN.
    pub resting: Resting,
    /// Why.
    pub reason: StateReason,
}

impl Seen {
    /// Nothing has been seen yet: what a VM is before its domain is defined.
    pub const NOTHING: Self = Self {
        resting: Resting::Stopped,
        reason: StateReason::None,
    };
}

/// Why a VM is in its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateReason {
    /// No particular reason is known.
    None,
    /// One of kvmlet's operations brought it there.
    Operation,
    /// The guest shut itself down.
    GuestShutdown,
    /// Something else on the host cut its power.
    Destroyed,
    /// QEMU died or the guest panicked.
    Crashed,
    /// It could not be started.
    StartFailed,
    /// Something else on the host paused it.
    PausedOnHost,
    /// QEMU paused it: a read or write of a volume failed.
    IoError,
    /// QEMU paused it: a pool is full.
    NoSpace,
    /// libvirt holds it for a short while.
    HypervisorBusy,
    /// Its domain is no longer defined.
    DomainMissing,
    /// libvirt can't be reached.
    HypervisorAway,
    /// CreateVm failed.
    CreateFailed,
    /// DeleteVm.
    Deleted,
    /// Something else on the host started it.
    StartedOnHost,
    /// The journal was lost, and with it what brought the VM here.
    JournalLost,
    /// Its host was shut down.
    HostShutdown,
    /// Its host ended without a shutdown.
    HostPowerLoss,
    /// Its host was started anew; how it had ended is not known.
    HostRestarted,
}

/// What libvirt shows of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Observed {
    /// It is not defined.
    Absent,
    /// Without power and without saved memory.
    Off(OffCause),
    /// Without power, with saved memory.
    Saved,
    /// With power.
    Running,
    /// With power, its processors standing still.
    Paused(PauseCause),
}

impl Observed {
    /// All of them, for tests.
    pub const ALL: [Self; 15] = [
        Self::Absent,
        Self::Off(OffCause::Unknown),
        Self::Off(OffCause::Shutdown),
        Self::Off(OffCause::Destroyed),
        Self::Off(OffCause::Crashed),
        Self::Off(OffCause::StartFailed),
        Self::Saved,
        Self::Running,
        Self::Paused(PauseCause::Unknown),
        Self::Paused(PauseCause::User),
        Self::Paused(PauseCause::IoError),
        Self::Paused(PauseCause::NoSpace),
        Self::Paused(PauseCause::Busy),
        Self::Paused(PauseCause::Starting),
        Self::Paused(PauseCause::Crashed),
    ];
}

/// Why libvirt says that a domain has no power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OffCause {
    /// It does not know (it was restarted since).
    Unknown,
    /// The guest shut down.
    Shutdown,
    /// Its power was cut.
    Destroyed,
    /// QEMU died, or the guest panicked.
    Crashed,
    /// It could not be started.
    StartFailed,
}

/// Why libvirt says that a domain is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PauseCause {
    /// It does not know.
    Unknown,
    /// Someone asked for it.
    User,
    /// A volume could not be read or written.
    IoError,
    /// A volume could not grow.
    NoSpace,
    /// libvirt needs it so for a short while: save, dump, snapshot.
    Busy,
    /// It is being given power.
    Starting,
    /// The guest panicked and is held.
    Crashed,
}

/// Takes in what is seen of a domain whose state was last seen as `before`.
///
/// What libvirt has forgotten (it forgets why a domain is off when it is
/// restarted) is kept from before, and the reason of a state that goes on is not
/// changed: who paused it is not told anew by each look.
pub const fn observe(before: Seen, observed: Observed) -> Seen {
    match observed {
        Observed::Absent => Seen {
            resting: Resting::Lost,
            reason: StateReason::DomainMissing,
        },
        Observed::Saved => keep(before, Resting::Saved, StateReason::None),
        Observed::Running => match before.resting {
            Resting::Running => before,
            Resting::Paused => Seen {
                resting: Resting::Running,
                reason: StateReason::None,
            },
            Resting::Stopped
            | Resting::Saved
            | Resting::Crashed
            | Resting::Deleted
            | Resting::Failed
            | Resting::Lost
            | Resting::Unknown => Seen {
                resting: Resting::Running,
                reason: StateReason::StartedOnHost,
            },
        },
        Observed::Paused(cause) => match cause {
            PauseCause::User => keep(before, Resting::Paused, StateReason::PausedOnHost),
            PauseCause::Unknown => keep(before, Resting::Paused, StateReason::None),
            PauseCause::IoError => paused(StateReason::IoError),
            PauseCause::NoSpace => paused(StateReason::NoSpace),
            PauseCause::Crashed => paused(StateReason::Crashed),
            PauseCause::Busy => paused(StateReason::HypervisorBusy),
            // QEMU is there and the guest is not: it is what it was until libvirt
            // says how the start ended.
            PauseCause::Starting => before,
        },
        Observed::Off(cause) => match cause {
            OffCause::Unknown => match before.resting {
                Resting::Stopped | Resting::Crashed => before,
                Resting::Running
                | Resting::Paused
                | Resting::Saved
                | Resting::Deleted
                | Resting::Failed
                | Resting::Lost
                | Resting::Unknown => Seen {
                    resting: Resting::Stopped,
                    reason: StateReason::None,
                },
            },
            OffCause::Shutdown => keep(before, Resting::Stopped, StateReason::GuestShutdown),
            OffCause::Destroyed => keep(before, Resting::Stopped, StateReason::Destroyed),
            OffCause::StartFailed => keep(before, Resting::Stopped, StateReason::StartFailed),
            // An end that we brought about while libvirt was finding its domains
            // again looks like a crash to it; it was told as what it was.
            OffCause::Crashed => match before {
                Seen {
                    resting: Resting::Stopped,
                    reason: StateReason::Operation,
                } => before,
                Seen { .. } => Seen {
                    resting: Resting::Crashed,
                    reason: StateReason::Crashed,
                },
            },
        },
    }
}

/// Takes in that the host itself has ended since `before` was seen.
pub const fn end_with_host(before: Seen, reason: StateReason) -> Seen {
    if before.resting.has_power() {
        Seen {
            resting: Resting::Stopped,
            reason,
        }
    } else {
        before
    }
}

/// The same state as before keeps its reason.
const fn keep(before: Seen, resting: Resting, reason: StateReason) -> Seen {
    let same = matches!(
        (before.resting, resting),
        (Resting::Stopped, Resting::Stopped)
            | (Resting::Paused, Resting::Paused)
            | (Resting::Saved, Resting::Saved)
    );
    // A reason that only says "by whom" must not outlive one that QEMU gave.
    let stale = matches!(
        before.reason,
        StateReason::IoError | StateReason::NoSpace | StateReason::HypervisorBusy
    );
    if same && !stale {
        before
    } else {
        Seen { resting, reason }
    }
}

const fn paused(reason: StateReason) -> Seen {
    Seen {
        resting: Resting::Paused,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_seen() -> impl Strategy<Value = Seen> {
        let resting = prop::sample::select(vec![
            Resting::Stopped,
            Resting::Running,
            Resting::Paused,
            Resting::Saved,
            Resting::Crashed,
            Resting::Lost,
        ]);
        let reason = prop::sample::select(vec![
            StateReason::None,
            StateReason::Operation,
            StateReason::GuestShutdown,
            StateReason::IoError,
            StateReason::Crashed,
        ]);
        (resting, reason).prop_map(|(resting, reason)| Seen { resting, reason })
    }

    proptest! {
        #[test]
        fn after_any_sequence_the_state_is_what_was_seen_last(
            start in any_seen(),
            looks in prop::collection::vec(prop::sample::select(Observed::ALL.to_vec()), 1..20),
        ) {
            let last = *looks.last().unwrap();
            let seen = looks.iter().fold(start, |seen, look| observe(seen, *look));
            let before_last = looks[..looks.len() - 1].iter().fold(start, |s, l| observe(s, *l));
            let expected = match last {
                Observed::Absent => Resting::Lost,
                Observed::Saved => Resting::Saved,
                Observed::Running => Resting::Running,
                Observed::Paused(PauseCause::Starting) => before_last.resting,
                Observed::Paused(_) => Resting::Paused,
                Observed::Off(OffCause::Crashed)
                    if before_last == (Seen { resting: Resting::Stopped, reason: StateReason::Operation }) =>
                {
                    Resting::Stopped
                }
                Observed::Off(OffCause::Crashed) => Resting::Crashed,
                // libvirt has forgotten: a crash that was seen stays one.
                Observed::Off(OffCause::Unknown) if before_last.resting == Resting::Crashed => Resting::Crashed,
                Observed::Off(_) => Resting::Stopped,
            };
            prop_assert_eq!(seen.resting, expected);
            prop_assert_eq!(observe(seen, last), seen, "a second look changes nothing");
        }
    }

    #[test]
    fn who_stopped_it_is_kept_when_libvirt_has_forgotten() {
        let seen = observe(Seen::NOTHING, Observed::Running);
        assert_eq!(seen.reason, StateReason::StartedOnHost);
        let off = observe(seen, Observed::Off(OffCause::Destroyed));
        assert_eq!(
            off,
            Seen {
                resting: Resting::Stopped,
                reason: StateReason::Destroyed
            }
        );
        assert_eq!(observe(off, Observed::Off(OffCause::Unknown)), off);
    }

    #[test]
    fn a_start_by_others_that_is_seen_half_way_is_told_as_one() {
        let off = observe(Seen::NOTHING, Observed::Off(OffCause::Destroyed));
        let half_way = observe(off, Observed::Paused(PauseCause::Starting));
        assert_eq!(half_way, off);
        let running = observe(half_way, Observed::Running);
        assert_eq!(running.reason, StateReason::StartedOnHost);
    }

    #[test]
    fn a_vm_that_qemu_paused_says_why() {
        let running = observe(Seen::NOTHING, Observed::Running);
        let full = observe(running, Observed::Paused(PauseCause::NoSpace));
        assert_eq!(
            full,
            Seen {
                resting: Resting::Paused,
                reason: StateReason::NoSpace
            }
        );
        assert_eq!(observe(full, Observed::Running).resting, Resting::Running);
    }
}
