//! The journal: what must outlive the daemon, in one SQLite file.
//!
//! It holds the records of VMs, images and operations (with their request
//! ids), as JSON of the model's types. Invariant: when `done` is called with
//! `Ok`, the batch is on the disk, whole; a failed one has left nothing.
//!
//! ```text
//!  callers --submit--> bounded queue --> one writer thread: all that waits,
//!                                        one transaction, one fsync, answers
//!  callers --read----> a connection of its own (WAL: never waits for a write)
//! ```
//!
//! It gives events their revisions, in the order of the commits and without holes.
//! It does not decide what is worth recording, and it knows no tokio: everything
//! here blocks, except [`Journal::submit`].

mod audit;
mod batch;
mod error;
mod outside;
mod read;
mod schema;
#[cfg(test)]
pub(crate) mod tests;
mod writer;

pub use audit::{Audit, audit};
pub use batch::{Announce, Batch, Told};
use batch::{MAINTENANCE, REBUILD};
pub use error::JournalError;
pub use outside::{export, schema_of};
pub use read::{Loaded, OperationQuery, Rebuild};

use crate::model::event::Event;
use crate::model::ids::{OperationId, RequestId};
use crate::model::operation::Operation;
use crate::model::time::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, OpenFlags};
use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use writer::{Counted, Done, Request, Writer};

/// Batches that may wait; the next one is refused.
const QUEUE: usize = 1024;
/// How long SQLite waits for another process that has the file locked.
const BUSY: Duration = Duration::from_secs(5);

/// An open journal. Dropping it writes what waits, then closes the file.
#[derive(Debug)]
pub struct Journal {
    requests: Option<SyncSender<Request>>,
    writer: Option<JoinHandle<()>>,
    reader: Mutex<Connection>,
    counted: Arc<Counted>,
    /// Held as long as the journal is open; the kernel frees it when we die.
    _lock: Flock<File>,
}

impl Journal {
    /// Opens the journal at `path`, or makes it, and reads what it holds.
    ///
    /// The file is brought to the newest schema and made readable for its
    /// owner only. Its directory is made if it is missing.
    ///
    /// # Errors
    /// `InUse` if another daemon has it open; `Newer` and `Foreign` for files
    /// that this program must not touch (they are left as they were);
    /// `Corrupt` if the file is damaged or a record can't be understood.
    pub fn open(path: &Path) -> Result<(Self, Loaded), JournalError> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let lock = lock(path)?;
        refuse_log_alone(path)?;
        make_file(path)?;
        let mut connection = connect(path)?;
        let version = schema::recognise(&connection, path)?;
        make_private(path)?;
        read::quick_check(&connection)?;
        schema::prepare(&mut connection, version)?;
        let reader = connect(path)?;
        reader.pragma_update(None, "query_only", true)?;
        let loaded = read::load(&reader)?;

        let (requests, receiver) = mpsc::sync_channel(QUEUE);
        let counted = Arc::new(Counted::default());
        let writer = Writer::new(connection, receiver, Arc::clone(&counted), loaded.revision);
        let writer = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run())?;
        let journal = Self {
            requests: Some(requests),
            writer: Some(writer),
            reader: Mutex::new(reader),
            counted,
            _lock: lock,
        };
        Ok((journal, loaded))
    }

    /// Queues a batch and returns at once. `done` is called exactly once, from
    /// the writer's thread when the batch is durable or has failed, or from
    /// this one if it was not queued (`Overloaded`, `Closed`): it must neither
    /// block nor panic. Batches are written in the order of their submission.
    pub fn submit(&self, batch: Batch, done: Box<dyn FnOnce(Result<(), JournalError>) + Send>) {
        self.send(Request::Write(batch, done));
    }

    /// Writes a batch and waits until it is durable.
    ///
    /// # Errors
    /// As told by the writer; the batch has then left nothing.
    pub fn commit(&self, batch: Batch) -> Result<(), JournalError> {
        self.wait(|done| Request::Write(batch, done))
    }

    /// Finds an operation.
    ///
    /// # Errors
    /// If reading fails.
    pub fn operation(&self, id: OperationId) -> Result<Option<Operation>, JournalError> {
        read::operation(&self.reader(), id)
    }

    /// Finds the operation that a request made.
    ///
    /// # Errors
    /// If reading fails.
    pub fn operation_by_request(&self, id: RequestId) -> Result<Option<Operation>, JournalError> {
        read::operation_by_request(&self.reader(), id)
    }

    /// Lists operations, newest first.
    ///
    /// # Errors
    /// If reading fails.
    pub fn operations(&self, query: &OperationQuery) -> Result<Vec<Operation>, JournalError> {
        read::operations(&self.reader(), query)
    }

    /// Forgets operations that ended before `ended_before`, and with them
    /// their request ids. Those in `keep` stay, and so does the one that made
    /// a VM (its `created_by`) as long as that VM is recorded. Returns how
    /// many were forgotten. Other batches are written in between.
    ///
    /// # Errors
    /// If writing fails; some may be forgotten then, and a repeat goes on.
    pub fn prune_operations(
        &self,
        ended_before: Timestamp,
        keep: &HashSet<OperationId>,
    ) -> Result<usize, JournalError> {
        let keep = keep.clone();
        self.wait(|done| Request::Prune {
            ended_before,
            keep,
            done,
        })
    }

    /// Reads the events after a revision, in order, at most so many.
    ///
    /// # Errors
    /// If reading fails, or one can't be understood.
    pub fn events(&self, after: u64, limit: usize) -> Result<Vec<Event>, JournalError> {
        read::events(&self.reader(), after, limit)
    }

    /// Forgets events that are older than `before` or not among the last `count`;
    /// never the last one. Returns how many were forgotten. Which of them are young
    /// is told by the first that is: those after it stay, whatever their time.
    ///
    /// # Errors
    /// If writing fails; some may be forgotten then.
    pub fn prune_events(&self, before: Timestamp, count: u64) -> Result<usize, JournalError> {
        self.wait(|done| Request::PruneEvents {
            before,
            count,
            done,
        })
    }

    /// Reads the whole file and says what is wrong with it; nothing if all is
    /// well. Takes time in proportion to the file.
    ///
    /// # Errors
    /// If reading fails.
    pub fn integrity_check(&self) -> Result<Vec<String>, JournalError> {
        read::integrity_check(&self.reader())
    }

    /// Counts the commits since the journal was opened; each one is an `fsync`.
    pub fn commits(&self) -> u64 {
        self.counted.commits.load(Ordering::Relaxed)
    }

    /// Counts the batches that became durable since the journal was opened; those
    /// that waited together share a commit.
    pub fn batches(&self) -> u64 {
        self.counted.batches.load(Ordering::Relaxed)
    }

    /// Has `timed` called after each commit with how long it took, on the writer's
    /// thread: it must neither block nor panic. The first one stays.
    pub fn time_commits(&self, timed: impl Fn(Duration) + Send + Sync + 'static) {
        // A second one is not asked for.
        drop(self.counted.timed.set(Box::new(timed)));
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        // A reader that panicked has changed nothing.
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, request: Request) {
        let Some(requests) = &self.requests else {
            return request.refuse(JournalError::Closed);
        };
        match requests.try_send(request) {
            Ok(()) => {}
            Err(TrySendError::Full(request)) => request.refuse(JournalError::Overloaded),
            Err(TrySendError::Disconnected(request)) => request.refuse(JournalError::Closed),
        }
    }

    /// Sends a request and waits for its answer.
    fn wait<T: Send + 'static>(
        &self,
        request: impl FnOnce(Done<T>) -> Request,
    ) -> Result<T, JournalError> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.send(request(Box::new(move |result| {
            // Its receiver waits just below.
            let _ = answer.send(result);
        })));
        answered.recv().unwrap_or(Err(JournalError::Closed))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the journal's writer panicked");
        }
    }
}

/// Takes the lock that makes this process the journal's only daemon.
fn lock(path: &Path) -> Result<Flock<File>, JournalError> {
    // Beside the file and not in it: SQLite loses its own locks when anyone in
    // the process closes another handle of the same file.
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(sibling(path, ".lock"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => JournalError::InUse(path.to_owned()),
        errno => JournalError::Io(errno.into()),
    })
}

/// Makes an empty file, for its owner only, if there is none.
fn make_file(path: &Path) -> Result<(), JournalError> {
    let made = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path);
    match (made, path.parent()) {
        // The name must be as durable as what will be in the file.
        (Ok(_), Some(directory)) => Ok(File::open(directory)?.sync_all()?),
        (Ok(_), None) => Ok(()),
        (Err(error), _) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        (Err(error), _) => Err(error.into()),
    }
}

/// Refuses a log whose file is gone: SQLite would remove the log, and with it what
/// may be the only copy of the last records.
fn refuse_log_alone(path: &Path) -> Result<(), JournalError> {
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |found| found.len());
    let log = sibling(path, "-wal");
    if length(path) == 0 && length(&log) > 0 {
        return Err(JournalError::Corrupt(format!(
            "{} is there, and what it belongs to is not",
            log.display()
        )));
    }
    Ok(())
}

/// Closes the file and what belongs to it to everyone but the owner. SQLite
/// gives its log and index the mode that the file has when it makes them.
fn make_private(path: &Path) -> Result<(), JournalError> {
    for path in [
        path.to_owned(),
        sibling(path, "-wal"),
        sibling(path, "-shm"),
    ] {
        match std::fs::set_permissions(&path, Permissions::from_mode(0o600)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

fn connect(path: &Path) -> Result<Connection, JournalError> {
    // One thread at a time uses each connection, so SQLite need not lock it.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}
