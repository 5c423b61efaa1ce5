//! The leash of a long call: cancellation, deadline, progress.
//!
//! It is asked between chunks and while a child process runs; a call that is
//! inside the kernel is not interrupted. It starts nothing by itself.

use super::error::{StorageError, StorageErrorKind};
use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What is told of how far a call has come: done, and of how much; both in
/// bytes, the second 0 while it isn't known.
type Progress = dyn Fn(u64, u64) + Send + Sync;

/// How a caller watches a long call and ends it.
#[derive(Clone)]
pub struct Task {
    cancelled: Arc<AtomicBool>,
    progress: Arc<Progress>,
    deadline: Option<Instant>,
}

impl Task {
    /// Makes a task that ends when `cancelled` becomes true or `deadline`
    /// passes, and tells `progress` (bytes done, bytes in all or 0).
    pub fn new(
        cancelled: Arc<AtomicBool>,
        deadline: Option<Instant>,
        progress: impl Fn(u64, u64) + Send + Sync + 'static,
    ) -> Self {
        Self {
            cancelled,
            progress: Arc::new(progress),
            deadline,
        }
    }

    /// Makes a task that nobody watches, with a time limit from now.
    pub fn within(limit: Duration) -> Self {
        Self::new(Arc::default(), Some(Instant::now() + limit), |_, _| ())
    }

    /// Fails with `Cancelled` or `DeadlinePassed` once the call should end.
    pub fn check(&self) -> Result<(), StorageError> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(StorageError::new(
                StorageErrorKind::Cancelled,
                "cancelled by the caller",
            ));
        }
        if self
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
        {
            return Err(StorageError::new(
                StorageErrorKind::DeadlinePassed,
                "the deadline passed",
            ));
        }
        Ok(())
    }

    /// Tells how far the call has come.
    pub(crate) fn report(&self, done: u64, total: u64) {
        (self.progress)(done, total);
    }

    /// Wraps a reader so that it fails once the call should end.
    pub(crate) fn watch<R>(&self, inner: R) -> Watched<'_, R> {
        Watched { task: self, inner }
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("cancelled", &self.cancelled)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// A reader that fails once its task should end.
pub(crate) struct Watched<'a, R> {
    task: &'a Task,
    inner: R,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.task.check().map_err(io::Error::other)?;
        self.inner.read(buffer)
    }
}

impl<R: Seek> Seek for Watched<'_, R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}
