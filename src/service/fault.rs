//! What the adapters' errors come to for a caller.
//!
//! The adapters say what the tool said, for the log; a caller is told one of the
//! documented reasons and a sentence without paths, XML or tool output. This is
//! where the one becomes the other, and where the whole chain is logged.

use super::gate::GateError;
use crate::journal::JournalError;
use crate::libvirt::{ErrorKind, LibvirtError};
use crate::model::fault::Fault;
use crate::model::reason::Reason;
use crate::storage::{BadImageKind, StorageError, StorageErrorKind};
use std::error::Error;

/// The whole chain of an error in one line, for the log.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// A call to libvirt that the gate gave up.
pub fn from_gate_libvirt(error: GateError) -> Fault {
    match error {
        GateError::NotSent => Fault::new(
            Reason::HypervisorAway,
            "libvirt is busy with other calls; nothing was sent",
        ),
        GateError::Abandoned => Fault::new(
            Reason::OutcomeUnknown,
            "libvirt did not answer in time; whether it will still do it is not known",
        ),
        GateError::Panicked => internal("a call to libvirt panicked"),
    }
}

/// A call to a pool that the gate gave up.
pub fn from_gate_storage(error: GateError, pool: &str) -> Fault {
    match error {
        GateError::NotSent => Fault::new(
            Reason::PoolAway,
            format!("pool {pool} is busy; nothing was done"),
        ),
        GateError::Abandoned => Fault::new(
            Reason::OutcomeUnknown,
            format!("pool {pool} did not answer in time; whether it will still do it is not known"),
        ),
        GateError::Panicked => internal("a call to a pool panicked"),
    }
    .with("pool", pool)
}

/// An error of libvirt's, where no more is known about its meaning.
pub fn from_libvirt(error: &LibvirtError) -> Fault {
    let refused = |why: &str| Fault::new(Reason::HypervisorRefused, why);
    match error.kind {
        ErrorKind::Unreachable => Fault::new(
            Reason::HypervisorAway,
            "libvirt can't be reached; nothing was sent",
        ),
        ErrorKind::Interrupted => Fault::new(
            Reason::OutcomeUnknown,
            "the connection to libvirt broke during the call; whether it was done is not known",
        ),
        ErrorKind::Busy => Fault::new(
            Reason::DeadlinePassed,
            "the hypervisor is busy with the VM's domain",
        ),
        ErrorKind::NotFound => refused("the VM's domain is not on the host"),
        ErrorKind::AlreadyExists => refused("another domain has the VM's id or name"),
        ErrorKind::WouldLose => Fault::new(
            Reason::DomainDrifted,
            format!(
                "with another board the definition is written anew, and what somebody has added to it would be lost: {}",
                error.message
            ),
        )
        .with("differences", &error.message),
        ErrorKind::Foreign => Fault::new(
            Reason::DomainForeign,
            "the domain under the VM's id is not kvmlet's, and is left as it is",
        ),
        ErrorKind::InvalidState => {
            refused("the hypervisor refused it in the state that the VM is in now")
        }
        ErrorKind::Unsupported => refused("the hypervisor does not support it"),
        ErrorKind::Invalid => {
            refused("the hypervisor does not accept the VM's hardware; the host's log says why")
        }
        ErrorKind::NoResources => refused("the host has not the resources for it"),
        ErrorKind::Denied => refused("libvirt does not permit it to kvmlet"),
        ErrorKind::AgentUnavailable => refused("the guest agent does not answer"),
        ErrorKind::Other => refused("the hypervisor refused it; the host's log says why"),
    }
}

/// An error of a pool's.
pub fn from_storage(error: &StorageError, pool: &str) -> Fault {
    match error.kind() {
        StorageErrorKind::Full => Fault::new(
            Reason::PoolFull,
            format!("pool {pool} has not enough free space"),
        ),
        StorageErrorKind::NotFound => Fault::new(
            Reason::VolumesMissing,
            format!("pool {pool} has not what is needed"),
        ),
        StorageErrorKind::Exists => Fault::new(
            Reason::VolumeExists,
            format!("pool {pool} has another volume or image under this id"),
        ),
        StorageErrorKind::InUse => in_use(error, pool),
        StorageErrorKind::Away => Fault::new(
            Reason::PoolAway,
            format!("the Ceph cluster of pool {pool} does not answer"),
        ),
        StorageErrorKind::Forbidden => Fault::new(
            Reason::PoolDenied,
            format!("the Ceph cluster refuses the user of pool {pool}"),
        ),
        StorageErrorKind::CephPoolMissing => Fault::new(
            Reason::CephPoolNotFound,
            format!("the Ceph cluster of pool {pool} has no such Ceph pool"),
        ),
        StorageErrorKind::CephPoolNotAllowed => Fault::new(
            Reason::CephPoolNotAllowed,
            format!("pool {pool} does not allow the Ceph pool for root volumes"),
        ),
        StorageErrorKind::NotCeph => Fault::new(
            Reason::PoolNotCeph,
            format!("pool {pool} is not made of Ceph pools"),
        ),
        StorageErrorKind::BadSize => Fault::new(
            Reason::VolumeTooSmall,
            "the volume would be smaller than the image it is made from",
        ),
        StorageErrorKind::Denied | StorageErrorKind::Io => Fault::new(
            Reason::PoolAway,
            format!("pool {pool} can't be read or written"),
        ),
        StorageErrorKind::DeadlinePassed => Fault::new(
            Reason::DeadlinePassed,
            format!("work in pool {pool} took longer than it may"),
        ),
        StorageErrorKind::Cancelled => Fault::new(Reason::CancelledByCaller, "it was cancelled"),
        StorageErrorKind::ToolFailed => Fault::new(
            Reason::PoolAway,
            format!("a tool failed in pool {pool}; the host's log says why"),
        ),
        StorageErrorKind::BadImage(_)
        | StorageErrorKind::SourceRefused
        | StorageErrorKind::ChecksumMismatch
        | StorageErrorKind::TooLarge
        | StorageErrorKind::Unreachable => from_source(error),
    }
    .with("pool", pool)
}

/// Something that is used, with its users where they are known: clients have
/// addresses, which a caller may see; files have paths, which are for the log.
fn in_use(error: &StorageError, pool: &str) -> Fault {
    let users = error.users().join(", ");
    if users.is_empty() {
        return Fault::new(
            Reason::VolumeInUse,
            format!("something on the host still uses it in pool {pool}"),
        );
    }
    Fault::new(
        Reason::VolumeInUse,
        format!("it is in use in pool {pool}, by {users}"),
    )
    .with("used_by", users)
}

/// An error about the source of an image.
pub fn from_source(error: &StorageError) -> Fault {
    let field = |reason, problem: &str| Fault::field(reason, "source", problem);
    match error.kind() {
        StorageErrorKind::BadImage(kind) => {
            let (word, problem) = bad_image(kind);
            field(Reason::ImageRefused, problem).with("problem", word)
        }
        StorageErrorKind::SourceRefused => field(
            Reason::SourceNotAllowed,
            "is outside the allowed directories and URL prefixes, or not a regular file",
        ),
        StorageErrorKind::ChecksumMismatch => Fault::field(
            Reason::ChecksumMismatch,
            "sha256",
            "is not that of the source's bytes",
        ),
        StorageErrorKind::TooLarge => field(Reason::ImageTooLarge, "is larger than configured"),
        StorageErrorKind::Unreachable => field(
            Reason::SourceUnreadable,
            "can't be fetched: the server does not answer, breaks off, or answers nonsense",
        ),
        StorageErrorKind::NotFound => field(Reason::SourceUnreadable, "does not exist"),
        StorageErrorKind::Denied => field(Reason::SourceUnreadable, "may not be read by kvmlet"),
        StorageErrorKind::ToolFailed => field(
            Reason::ImageRefused,
            "could not be converted within the limits for images from outside",
        )
        .with("problem", "conversion_failed"),
        StorageErrorKind::Cancelled => Fault::new(Reason::CancelledByCaller, "it was cancelled"),
        StorageErrorKind::DeadlinePassed => {
            Fault::new(Reason::DeadlinePassed, "the import took longer than it may")
        }
        StorageErrorKind::InUse => Fault::new(
            Reason::ImageBusy,
            "the same image is being imported already",
        ),
        StorageErrorKind::Full => Fault::new(
            Reason::PoolFull,
            "the pool has not enough free space for the image",
        ),
        StorageErrorKind::Exists
        | StorageErrorKind::BadSize
        | StorageErrorKind::Io
        | StorageErrorKind::Away
        | StorageErrorKind::Forbidden
        | StorageErrorKind::CephPoolMissing
        | StorageErrorKind::CephPoolNotAllowed
        | StorageErrorKind::NotCeph => {
            Fault::new(Reason::PoolAway, "the pool can't be read or written")
        }
    }
}

const fn bad_image(kind: BadImageKind) -> (&'static str, &'static str) {
    match kind {
        BadImageKind::NotQcow2 => ("not_qcow2", "is declared qcow2 and is not"),
        BadImageKind::NotRaw => (
            "not_raw",
            "is declared raw and has the header of another format",
        ),
        BadImageKind::Version => ("version", "is qcow2 of a version other than 2 and 3"),
        BadImageKind::BackingFile => ("backing_file", "has a backing file"),
        BadImageKind::DataFile => ("data_file", "keeps its data in another file"),
        BadImageKind::UnknownFeature => (
            "unknown_feature",
            "uses a feature that kvmlet does not know",
        ),
        BadImageKind::Encrypted => ("encrypted", "is encrypted"),
        BadImageKind::Snapshots => ("snapshots", "has internal snapshots"),
        BadImageKind::Dirty => ("dirty", "was not closed properly"),
        BadImageKind::Corrupt => ("corrupt", "is marked as corrupt"),
        BadImageKind::Header => (
            "header",
            "has a header field outside what the format allows",
        ),
        BadImageKind::Tables => (
            "tables",
            "has tables outside the file, overlapping or absurd",
        ),
        BadImageKind::Truncated => ("truncated", "ends before what it declares"),
        BadImageKind::VirtualSize => (
            "virtual_size",
            "declares a disk that is empty or larger than allowed",
        ),
    }
}

/// An error of the journal's.
pub fn from_journal(error: &JournalError) -> Fault {
    let unavailable = |why: &str| Fault::new(Reason::JournalUnavailable, why);
    match error {
        JournalError::Full(_) => unavailable("the journal's file system is full; nothing was done")
            .with("problem", "full"),
        JournalError::Overloaded => Fault::new(Reason::QueueFull, "the journal's queue is full"),
        JournalError::Closed => Fault::new(Reason::Stopping, "the agent is stopping"),
        JournalError::Conflict(_) => internal("the journal holds contradicting records"),
        JournalError::Busy(_)
        | JournalError::InUse(_)
        | JournalError::Newer { .. }
        | JournalError::Foreign(_)
        | JournalError::Corrupt(_)
        | JournalError::Io(_)
        | JournalError::Database(_) => {
            unavailable("the journal can't be read or written; nothing was done")
        }
    }
}

/// A fault of our own; what it was goes to the log.
pub fn internal(what: &str) -> Fault {
    tracing::error!(what, "internal fault");
    Fault::new(
        Reason::Internal,
        "kvmlet itself failed; the host's log says more",
    )
}
