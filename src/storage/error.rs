//! What can go wrong in storage: a kind to decide by, and words for the log.

use std::error::Error;
use std::fmt;
use std::io;

/// A storage call that didn't do what it was asked.
///
/// The message says what was tried and what the tool or kernel said; it names
/// paths of this host and is for the log, not for callers of the API. It never
/// repeats its source.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StorageError {
    kind: StorageErrorKind,
    message: String,
    users: Vec<String>,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// Why a storage call failed, by what the caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StorageErrorKind {
    /// What the call needs isn't there: an image, a source file, a URL.
    NotFound,
    /// There is another one under this id.
    Exists,
    /// Something uses it: a guest, an overlay, another process.
    InUse,
    /// The pool has no space left, or too little for this.
    Full,
    /// The operating system or the server forbids it.
    Denied,
    /// A volume would be smaller than its image, or have no size at all.
    BadSize,
    /// The source isn't an image that may be imported.
    BadImage(BadImageKind),
    /// The source is outside what the configuration allows, or no regular file.
    SourceRefused,
    /// The source's bytes aren't those that the caller named.
    ChecksumMismatch,
    /// The source is larger than the configuration allows.
    TooLarge,
    /// The caller gave up.
    Cancelled,
    /// The time for the call ran out; nothing is left half made.
    DeadlinePassed,
    /// A tool failed, or passed the limits set for it.
    ToolFailed,
    /// The server can't be reached, broke off too often, or answered nonsense.
    Unreachable,
    /// Reading or writing failed.
    Io,
    /// The cluster doesn't answer; nothing is known to have been done.
    Away,
    /// The cluster refuses the configured user.
    Forbidden,
    /// The cluster has not the Ceph pool.
    CephPoolMissing,
    /// The configuration doesn't allow the Ceph pool for root volumes.
    CephPoolNotAllowed,
    /// A Ceph pool was asked for of a pool that isn't made of such.
    NotCeph,
}

/// Why an image from outside was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BadImageKind {
    /// Declared qcow2, and has not its magic number.
    NotQcow2,
    /// Declared raw, and begins like a file of some other format, which makes
    /// what a guest would see a matter of opinion.
    NotRaw,
    /// A qcow2 version other than 2 and 3.
    Version,
    /// It reads another file: a backing file, in whatever spelling.
    BackingFile,
    /// It keeps its data in another file.
    DataFile,
    /// It uses a feature that this reader doesn't know and mustn't ignore.
    UnknownFeature,
    /// It is encrypted.
    Encrypted,
    /// It has internal snapshots.
    Snapshots,
    /// It wasn't closed properly.
    Dirty,
    /// It is marked as corrupt.
    Corrupt,
    /// A field of the header is outside what the format allows.
    Header,
    /// A table or a cluster lies outside the file, overlaps, or is absurd.
    Tables,
    /// The file ends before what it declares.
    Truncated,
    /// The guest's disk would be empty, or larger than allowed.
    VirtualSize,
}

impl StorageError {
    /// Makes an error from a kind and words for the log.
    pub(crate) fn new(kind: StorageErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            users: Vec::new(),
            source: None,
        }
    }

    /// Makes an error that another one caused.
    pub(crate) fn caused(
        kind: StorageErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            message: message.into(),
            users: Vec::new(),
            source: Some(source.into()),
        }
    }

    /// Makes an error from a failed system call; `what` says what was tried.
    pub(crate) fn io(what: impl Into<String>, error: io::Error) -> Self {
        // A reader that its task interrupted carries our own error inside.
        match error.downcast::<Self>() {
            Ok(own) => own,
            Err(error) => Self::caused(kind_of(&error), what, error),
        }
    }

    /// Makes an error about something that `users` use: ids of volumes, names of
    /// snapshots, addresses of clients.
    pub(crate) fn in_use(what: &str, users: Vec<String>) -> Self {
        let message = format!("{what} is used by {}", users.join(", "));
        Self {
            users,
            ..Self::new(StorageErrorKind::InUse, message)
        }
    }

    /// Returns who uses what could not be changed, if that is why and known.
    pub fn users(&self) -> &[String] {
        &self.users
    }

    /// Returns why it failed.
    pub fn kind(&self) -> StorageErrorKind {
        self.kind
    }
}

/// Sorts a failed system call by what the caller can do.
pub(crate) fn kind_of(error: &io::Error) -> StorageErrorKind {
    match error.kind() {
        io::ErrorKind::NotFound => StorageErrorKind::NotFound,
        io::ErrorKind::AlreadyExists => StorageErrorKind::Exists,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            StorageErrorKind::Denied
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StorageErrorKind::Full,
        _ => StorageErrorKind::Io,
    }
}

impl fmt::Display for BadImageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotQcow2 => "is not a qcow2 file",
            Self::NotRaw => "is not a raw disk",
            Self::Version => "is of an unknown qcow2 version",
            Self::BackingFile => "has a backing file",
            Self::DataFile => "keeps its data in another file",
            Self::UnknownFeature => "uses an unknown feature",
            Self::Encrypted => "is encrypted",
            Self::Snapshots => "has internal snapshots",
            Self::Dirty => "was not closed properly",
            Self::Corrupt => "is marked as corrupt",
            Self::Header => "has a bad header",
            Self::Tables => "has bad tables",
            Self::Truncated => "is truncated",
            Self::VirtualSize => "has a virtual size that is not allowed",
        })
    }
}
