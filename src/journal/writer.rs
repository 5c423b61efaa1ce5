//! The one thread that writes.
//!
//! It takes all batches that wait and makes them durable with one commit, so
//! that one `fsync` serves many callers. If that fails, each batch gets a
//! transaction of its own: a bad one fails alone.

use super::batch::{Batch, column};
use super::error::JournalError;
use crate::model::ids::OperationId;
use crate::model::time::Timestamp;
use rusqlite::{Connection, TransactionBehavior, params};
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// Called once with what became of a request.
pub(super) type Done<T> = Box<dyn FnOnce(Result<T, JournalError>) + Send>;

/// What the writer is asked to do.
pub(super) enum Request {
    Write(Batch, Done<()>),
    Prune {
        ended_before: Timestamp,
        keep: HashSet<OperationId>,
        done: Done<usize>,
    },
    PruneEvents {
        before: Timestamp,
        count: u64,
        done: Done<usize>,
    },
}

impl Request {
    /// Answers without having done anything.
    pub(super) fn refuse(self, error: JournalError) {
        match self {
            Self::Write(_, done) => done(Err(error)),
            Self::Prune { done, .. } | Self::PruneEvents { done, .. } => done(Err(error)),
        }
    }
}

/// Batches that share one commit at most: bounds the wait of the first one.
const GROUP: usize = 256;
/// Operations that are pruned in one transaction: bounds the wait of others.
const PRUNED_AT_ONCE: usize = 500;

pub(super) struct Writer {
    connection: Connection,
    requests: Receiver<Request>,
    counted: Arc<Counted>,
    /// The last one that was given out.
    revision: u64,
}

/// Called with how long each commit took.
pub(super) type Timed = Box<dyn Fn(Duration) + Send + Sync>;

/// What was made durable since the journal was opened.
#[derive(Default)]
pub(super) struct Counted {
    pub(super) commits: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) timed: OnceLock<Timed>,
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counted")
            .field("commits", &self.commits)
            .field("batches", &self.batches)
            .finish_non_exhaustive()
    }
}

impl Writer {
    pub(super) fn new(
        connection: Connection,
        requests: Receiver<Request>,
        counted: Arc<Counted>,
        revision: u64,
    ) -> Self {
        Self {
            connection,
            requests,
            counted,
            revision,
        }
    }

    /// Serves requests until nobody can send one any more.
    pub(super) fn run(mut self) {
        while let Ok(request) = self.requests.recv() {
            let mut group = Vec::new();
            let mut next = Some(request);
            while let Some(request) = next {
                match request {
                    Request::Write(batch, done) => group.push((batch, done)),
                    Request::Prune {
                        ended_before,
                        keep,
                        done,
                    } => {
                        // What was asked for before is written before.
                        self.write(std::mem::take(&mut group));
                        done(self.prune(ended_before, &keep));
                    }
                    Request::PruneEvents {
                        before,
                        count,
                        done,
                    } => {
                        self.write(std::mem::take(&mut group));
                        done(self.prune_events(before, count));
                    }
                }
                next = (group.len() < GROUP)
                    .then(|| self.requests.try_recv().ok())
                    .flatten();
            }
            self.write(group);
        }
    }

    /// Makes a group of batches durable and answers each.
    fn write(&mut self, group: Vec<(Batch, Done<()>)>) {
        if group.len() > 1 {
            match self.commit(group.iter().map(|(batch, _)| batch)) {
                Ok(first) => {
                    let mut next = first;
                    for (batch, done) in group {
                        let events = batch.events();
                        batch.announce(next);
                        next += events;
                        done(Ok(()));
                    }
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, batches = group.len(), "writing each batch by itself");
                }
            }
        }
        for (batch, done) in group {
            done(
                self.commit([&batch])
                    .map(|revision| batch.announce(revision)),
            );
        }
    }

    /// Makes batches durable as one. Returns the revision of their first event.
    fn commit<'b>(
        &mut self,
        batches: impl IntoIterator<Item = &'b Batch>,
    ) -> Result<u64, JournalError> {
        let mut revision = self.revision;
        let count = self.transaction(|connection| {
            batches.into_iter().try_fold(0, |count, batch| {
                batch.apply(connection, &mut revision)?;
                Ok(count + 1)
            })
        })?;
        let first = self.revision + 1;
        // Only what is durable was given out: what failed leaves no hole.
        self.revision = revision;
        self.counted.batches.fetch_add(count, Ordering::Relaxed);
        Ok(first)
    }

    fn transaction<T>(
        &mut self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, JournalError> {
        let begin = Instant::now();
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Dropped without a commit, the transaction is rolled back.
        let result = work(&transaction)?;
        transaction.commit()?;
        self.counted.commits.fetch_add(1, Ordering::Relaxed);
        if let Some(timed) = self.counted.timed.get() {
            timed(begin.elapsed());
        }
        Ok(result)
    }

    fn prune_events(&mut self, before: Timestamp, count: u64) -> Result<usize, JournalError> {
        let mut pruned = 0;
        loop {
            let some =
                self.transaction(|connection| prune_some_events(connection, before, count))?;
            pruned += some;
            if some < PRUNED_AT_ONCE {
                return Ok(pruned);
            }
        }
    }

    fn prune(
        &mut self,
        ended_before: Timestamp,
        keep: &HashSet<OperationId>,
    ) -> Result<usize, JournalError> {
        let mut pruned = 0;
        loop {
            let some = self.transaction(|connection| prune_some(connection, ended_before, keep))?;
            pruned += some;
            if some == 0 {
                return Ok(pruned);
            }
        }
    }
}

/// Removes some of the events that are older than `before`, or not among the last
/// `count`; zero when there is no more. The last one always stays.
fn prune_some_events(
    connection: &Connection,
    before: Timestamp,
    count: u64,
) -> rusqlite::Result<usize> {
    let count = i64::try_from(count.max(1)).unwrap_or(i64::MAX);
    let limit = i64::try_from(PRUNED_AT_ONCE).unwrap_or(i64::MAX);
    // Clocks are set; revisions are not. So the oldest that is young enough keeps
    // all that came after it.
    connection
        .prepare_cached(
            "DELETE FROM events WHERE revision IN (
                 SELECT revision FROM events
                 WHERE revision <= (SELECT max(revision) FROM events) - ?2
                    OR revision < (SELECT coalesce(
                           (SELECT min(revision) FROM events WHERE time >= ?1),
                           (SELECT max(revision) FROM events)))
                 ORDER BY revision LIMIT ?3)",
        )?
        .execute(params![column(before), count, limit])
}

/// Removes some of what is to be removed; zero when there is no more.
fn prune_some(
    connection: &Connection,
    ended_before: Timestamp,
    keep: &HashSet<OperationId>,
) -> rusqlite::Result<usize> {
    let limit = i64::try_from(PRUNED_AT_ONCE + keep.len()).unwrap_or(i64::MAX);
    let ids: Vec<String> = connection
        .prepare_cached(
            "SELECT id FROM operations
             WHERE end_time < ?1 AND id NOT IN (SELECT created_by FROM vms)
             ORDER BY end_time LIMIT ?2",
        )?
        .query_map(params![column(ended_before), limit], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let kept: HashSet<String> = keep.iter().map(OperationId::to_string).collect();
    let mut delete = connection.prepare_cached("DELETE FROM operations WHERE id = ?1")?;
    let mut pruned = 0;
    for id in ids.iter().filter(|id| !kept.contains(*id)) {
        pruned += delete.execute([id])?;
    }
    Ok(pruned)
}
