//! What went wrong in a call to libvirt, as something to match on.
//!
//! The kind comes from libvirt's codes only, never from its texts. The text is
//! kept for the log; it may name host paths, and is never shown to a caller.

use std::fmt;
use virt::enumutil::Enum;
use virt::error::{Error as VirtError, ErrorNumber};

/// A failed call to libvirt, or one that was refused before libvirt saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibvirtError {
    /// What to do about it.
    pub kind: ErrorKind,
    /// What was asked for, such as `define`.
    pub operation: &'static str,
    /// libvirt's error number; 0 when libvirt was not asked.
    pub code: u32,
    /// libvirt's words, for the log.
    pub message: String,
}

/// What a failed call means for whoever made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// There is no such domain, snapshot or network.
    NotFound,
    /// Another domain has that name or UUID.
    AlreadyExists,
    /// The domain under that UUID is not ours. Nothing was changed.
    Foreign,
    /// Something that somebody else added to the domain would be lost. Nothing was
    /// changed.
    WouldLose,
    /// The domain's state forbids it. Nothing was changed.
    InvalidState,
    /// No connection could be had. Nothing was sent.
    Unreachable,
    /// The connection was lost during the call: it may have happened.
    Interrupted,
    /// This hypervisor, or this libvirt, can't do that.
    Unsupported,
    /// The request itself is wrong: libvirt refuses its XML or an argument.
    Invalid,
    /// The host is out of something.
    NoResources,
    /// libvirt does not let us.
    Denied,
    /// The guest's agent does not answer, or refuses.
    AgentUnavailable,
    /// Another call holds the domain. Nothing was changed; later may do.
    Busy,
    /// Anything else; the text says what.
    Other,
}

impl LibvirtError {
    pub(super) fn refused(
        operation: &'static str,
        kind: ErrorKind,
        message: impl fmt::Display,
    ) -> Self {
        Self {
            kind,
            operation,
            code: 0,
            message: message.to_string(),
        }
    }

    pub(super) fn from_virt(operation: &'static str, error: &VirtError) -> Self {
        Self {
            kind: kind_of(error),
            operation,
            code: error.code().to_raw(),
            message: error.message().to_owned(),
        }
    }

    /// Whether the connection is gone, before or during the call.
    pub const fn is_connection_lost(&self) -> bool {
        matches!(self.kind, ErrorKind::Unreachable | ErrorKind::Interrupted)
    }
}

impl fmt::Display for LibvirtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.operation, self.message)?;
        if self.code != 0 {
            write!(f, " (libvirt error {})", self.code)?;
        }
        Ok(())
    }
}

impl std::error::Error for LibvirtError {}

fn kind_of(error: &VirtError) -> ErrorKind {
    let Enum::Known(number) = error.code() else {
        return ErrorKind::Other;
    };
    match number {
        ErrorNumber::NoDomain | ErrorNumber::NoDomainSnapshot | ErrorNumber::NoNetwork => {
            ErrorKind::NotFound
        }
        ErrorNumber::DomExist => ErrorKind::AlreadyExists,
        ErrorNumber::OperationInvalid => ErrorKind::InvalidState,
        ErrorNumber::NoSupport
        | ErrorNumber::OperationUnsupported
        | ErrorNumber::ArgumentUnsupported
        | ErrorNumber::ConfigUnsupported => ErrorKind::Unsupported,
        ErrorNumber::XmlError
        | ErrorNumber::XmlDetail
        | ErrorNumber::XmlInvalidSchema
        | ErrorNumber::InvalidArg
        | ErrorNumber::InvalidMac
        | ErrorNumber::Overflow => ErrorKind::Invalid,
        ErrorNumber::NoMemory => ErrorKind::NoResources,
        ErrorNumber::AccessDenied
        | ErrorNumber::OperationDenied
        | ErrorNumber::AuthFailed
        | ErrorNumber::AuthCancelled
        | ErrorNumber::AuthUnavailable => ErrorKind::Denied,
        ErrorNumber::AgentUnresponsive
        | ErrorNumber::AgentUnsynced
        | ErrorNumber::AgentCommandTimeout
        | ErrorNumber::AgentCommandFailed => ErrorKind::AgentUnavailable,
        ErrorNumber::OperationTimeout | ErrorNumber::ResourceBusy => ErrorKind::Busy,
        _ => ErrorKind::Other,
    }
}
