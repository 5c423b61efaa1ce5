//! What libvirt tells us unasked.
//!
//! Events say *that* something changed; the domain's state is read back by
//! whoever needs it. They arrive on libvirt's event thread, in the order in
//! which libvirt sent them; callbacks must be quick and must not call libvirt,
//! because nothing else arrives (not even an answer to a keepalive) meanwhile.

use super::power::OffReason;
use crate::model::ids::VmId;
use virt_sys as sys;

/// One event of one domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainEvent {
    /// The domain's UUID.
    pub id: VmId,
    /// What happened.
    pub what: DomainChange,
}

/// What happened to a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DomainChange {
    /// Defined, or its definition was replaced.
    Defined,
    /// Its definition was removed.
    Undefined,
    /// Began to run.
    Started(StartedBy),
    /// Its vCPUs are paused.
    Suspended(SuspendedBy),
    /// Its processors run again.
    Resumed,
    /// The guest has shut down; QEMU is about to end.
    ShuttingDown,
    /// Ended. For a QEMU that died libvirt says `Failed` here, and `Crashed`
    /// in the state that is read afterwards.
    Stopped(OffReason),
    /// The guest put itself to sleep.
    Asleep,
    /// The guest's kernel panicked.
    Panicked,
    /// The guest restarted, by itself or by a reset.
    Rebooted,
    /// The guest's agent came or went.
    Agent {
        /// It is there now.
        connected: bool,
    },
    /// A disk failed a read or a write.
    IoError {
        /// The disk's source as the host knows it.
        source: String,
        /// What QEMU did about it.
        action: IoErrorAction,
        /// QEMU's reason, such as `enospc`; often empty.
        reason: String,
    },
    /// libvirt lost control of the domain's QEMU.
    ControlLost,
    /// A lifecycle event of a kind that this version does not know.
    Unknown {
        /// libvirt's event type.
        event: i32,
        /// libvirt's detail.
        detail: i32,
    },
}

/// Why a domain began to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StartedBy {
    /// Booted.
    Boot,
    /// Its saved memory was restored.
    Restore,
    /// It came from another host.
    Migration,
    /// It was taken back to a snapshot.
    Snapshot,
    /// It woke up.
    Wakeup,
    /// Something newer than this version knows.
    Unknown,
}

/// Why a domain is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SuspendedBy {
    /// Somebody asked for it.
    Request,
    /// It is moving to another host.
    Migration,
    /// A disk failed a read or a write.
    IoError,
    /// The guest's watchdog expired.
    Watchdog,
    /// It was restored as paused.
    Restore,
    /// It was taken back to a snapshot.
    Snapshot,
    /// Some call of libvirt's failed half-way.
    ApiError,
    /// The guest has shut down and waits for what libvirt decides.
    GuestShutdown,
    /// Something newer than this version knows.
    Unknown,
}

/// What QEMU did when a disk failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IoErrorAction {
    /// Ignored it.
    None,
    /// Paused the guest.
    Paused,
    /// Passed it on to the guest.
    Reported,
    /// Something newer than this version knows.
    Unknown,
}

/// Why a connection to libvirt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The transport failed.
    Error,
    /// The daemon closed it: it stops or restarts.
    Eof,
    /// The daemon did not answer for too long.
    Keepalive,
    /// We closed it.
    Client,
    /// Something newer than this version knows.
    Unknown,
}

/// libvirt's numbers arrive signed, its constants are unsigned.
fn number(raw: i32) -> u32 {
    u32::try_from(raw).unwrap_or(u32::MAX)
}

pub(super) fn lifecycle(event: i32, detail: i32) -> DomainChange {
    match number(event) {
        sys::VIR_DOMAIN_EVENT_DEFINED => DomainChange::Defined,
        sys::VIR_DOMAIN_EVENT_UNDEFINED => DomainChange::Undefined,
        sys::VIR_DOMAIN_EVENT_STARTED => DomainChange::Started(match number(detail) {
            sys::VIR_DOMAIN_EVENT_STARTED_BOOTED => StartedBy::Boot,
            sys::VIR_DOMAIN_EVENT_STARTED_RESTORED => StartedBy::Restore,
            sys::VIR_DOMAIN_EVENT_STARTED_MIGRATED => StartedBy::Migration,
            sys::VIR_DOMAIN_EVENT_STARTED_FROM_SNAPSHOT => StartedBy::Snapshot,
            sys::VIR_DOMAIN_EVENT_STARTED_WAKEUP => StartedBy::Wakeup,
            _ => StartedBy::Unknown,
        }),
        sys::VIR_DOMAIN_EVENT_SUSPENDED => DomainChange::Suspended(match number(detail) {
            sys::VIR_DOMAIN_EVENT_SUSPENDED_PAUSED => SuspendedBy::Request,
            sys::VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED
            | sys::VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY
            | sys::VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY_FAILED => SuspendedBy::Migration,
            sys::VIR_DOMAIN_EVENT_SUSPENDED_IOERROR => SuspendedBy::IoError,
            sys::VIR_DOMAIN_EVENT_SUSPENDED_WATCHDOG => SuspendedBy::Watchdog,
            sys::VIR_DOMAIN_EVENT_SUSPENDED_RESTORED => SuspendedBy::Restore,
            sys::VIR_DOMAIN_EVENT_SUSPENDED_FROM_SNAPSHOT => SuspendedBy::Snapshot,
            sys::VIR_DOMAIN_EVENT_SUSPENDED_API_ERROR => SuspendedBy::ApiError,
            sys::VIR_DOMAIN_EVENT_SUSPENDED_GUEST_SHUTDOWN => SuspendedBy::GuestShutdown,
            _ => SuspendedBy::Unknown,
        }),
        sys::VIR_DOMAIN_EVENT_RESUMED => DomainChange::Resumed,
        sys::VIR_DOMAIN_EVENT_STOPPED => DomainChange::Stopped(match number(detail) {
            sys::VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN => OffReason::Shutdown,
            sys::VIR_DOMAIN_EVENT_STOPPED_DESTROYED => OffReason::Destroyed,
            sys::VIR_DOMAIN_EVENT_STOPPED_CRASHED => OffReason::Crashed,
            sys::VIR_DOMAIN_EVENT_STOPPED_MIGRATED => OffReason::Migrated,
            sys::VIR_DOMAIN_EVENT_STOPPED_SAVED => OffReason::Saved,
            sys::VIR_DOMAIN_EVENT_STOPPED_FAILED => OffReason::Failed,
            sys::VIR_DOMAIN_EVENT_STOPPED_FROM_SNAPSHOT => OffReason::FromSnapshot,
            _ => OffReason::Unknown,
        }),
        sys::VIR_DOMAIN_EVENT_SHUTDOWN => DomainChange::ShuttingDown,
        sys::VIR_DOMAIN_EVENT_PMSUSPENDED => DomainChange::Asleep,
        sys::VIR_DOMAIN_EVENT_CRASHED => DomainChange::Panicked,
        _ => DomainChange::Unknown { event, detail },
    }
}

pub(super) fn agent(state: i32) -> DomainChange {
    DomainChange::Agent {
        connected: number(state) == sys::VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED,
    }
}

pub(super) fn io_error(source: String, action: i32, reason: String) -> DomainChange {
    DomainChange::IoError {
        source,
        action: match number(action) {
            sys::VIR_DOMAIN_EVENT_IO_ERROR_NONE => IoErrorAction::None,
            sys::VIR_DOMAIN_EVENT_IO_ERROR_PAUSE => IoErrorAction::Paused,
            sys::VIR_DOMAIN_EVENT_IO_ERROR_REPORT => IoErrorAction::Reported,
            _ => IoErrorAction::Unknown,
        },
        reason,
    }
}

pub(super) fn close_reason(reason: i32) -> CloseReason {
    match number(reason) {
        sys::VIR_CONNECT_CLOSE_REASON_ERROR => CloseReason::Error,
        sys::VIR_CONNECT_CLOSE_REASON_EOF => CloseReason::Eof,
        sys::VIR_CONNECT_CLOSE_REASON_KEEPALIVE => CloseReason::Keepalive,
        sys::VIR_CONNECT_CLOSE_REASON_CLIENT => CloseReason::Client,
        _ => CloseReason::Unknown,
    }
}
