//! What can go wrong with the journal, by what the caller can do about it.

use rusqlite::ErrorCode;
use std::path::PathBuf;

/// Why the journal did not do what it was asked.
///
/// Unless a variant says otherwise, nothing of a failed batch was recorded.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Too many batches wait to be written; later there may be room.
    #[error("the journal's queue is full")]
    Overloaded,
    /// The file system has no room. The journal works again when it has.
    #[error("no space left for the journal")]
    Full(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another process keeps the journal locked (a backup, `sqlite3`).
    #[error("the journal is locked by another process")]
    Busy(#[source] rusqlite::Error),
    /// Another daemon has this journal open.
    #[error("the journal {} is in use by another daemon", .0.display())]
    InUse(PathBuf),
    /// A later version of kvmlet wrote it.
    #[error("the journal has schema {found}, this kvmlet knows up to {known}: use a newer one")]
    Newer {
        /// The version that the file says.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// The file is something else.
    #[error("{} is not a journal of kvmlet's", .0.display())]
    Foreign(PathBuf),
    /// The file is damaged, or a record in it can't be understood.
    #[error("the journal is damaged: {0}")]
    Corrupt(String),
    /// The batch contradicts what is recorded: a request id is taken.
    #[error("the records contradict others in the journal")]
    Conflict(#[source] rusqlite::Error),
    /// Reading or writing failed otherwise. A batch that failed with this is
    /// gone as far as this process sees, but a power failure soon after may
    /// bring it back: its bytes can have reached the disk.
    #[error("reading or writing the journal failed")]
    Io(#[source] std::io::Error),
    /// The same, as the database told it.
    #[error("reading or writing the journal failed")]
    Database(#[source] rusqlite::Error),
    /// The journal has been closed.
    #[error("the journal is closed")]
    Closed,
}

impl From<rusqlite::Error> for JournalError {
    fn from(error: rusqlite::Error) -> Self {
        let rusqlite::Error::SqliteFailure(failure, _) = &error else {
            return Self::Database(error);
        };
        match failure.code {
            ErrorCode::DiskFull => Self::Full(error.into()),
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Self::Busy(error),
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
                Self::Corrupt(error.to_string())
            }
            ErrorCode::ConstraintViolation => Self::Conflict(error),
            // The shared index of the write-ahead log could not grow: it is on
            // the same file system, and nothing else makes that fail.
            _ if failure.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE => {
                Self::Full(error.into())
            }
            _ => Self::Database(error),
        }
    }
}

impl From<std::io::Error> for JournalError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull => Self::Full(error.into()),
            _ => Self::Io(error),
        }
    }
}
