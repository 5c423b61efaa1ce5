//! The journal, as async callers use it.
//!
//! Writes are answered when they are durable; many callers share one fsync.
//! Reads go through the gate. Whether the last write succeeded is kept as the
//! condition JournalWritable.

use super::fault::{chain, from_journal, internal};
use super::figures::commit_seconds;
use super::gate::{Gate, Lane};
use crate::journal::{Batch, Journal, JournalError, OperationQuery};
use crate::model::event::Event;
use crate::model::fault::Fault;
use crate::model::ids::{OperationId, RequestId};
use crate::model::operation::Operation;
use crate::model::time::Timestamp;
use prometheus::Histogram;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// How long a read of the journal may take.
const READ_DEADLINE: Duration = Duration::from_secs(10);

/// The journal with the gate in front of it.
pub struct Ledger {
    journal: Arc<Journal>,
    gate: Arc<Gate>,
    trouble: watch::Sender<Option<Fault>>,
    commit_seconds: Histogram,
}

impl Ledger {
    /// Puts the gate in front of an open journal.
    pub fn new(journal: Arc<Journal>, gate: Arc<Gate>) -> Self {
        let commit_seconds = commit_seconds();
        let timed = commit_seconds.clone();
        journal.time_commits(move |took| timed.observe(took.as_secs_f64()));
        Self {
            journal,
            gate,
            trouble: watch::Sender::new(None),
            commit_seconds,
        }
    }

    /// Writes a batch, all or nothing, and returns when it is durable.
    ///
    /// # Errors
    /// `JOURNAL_UNAVAILABLE`; then nothing of the batch was written.
    pub async fn commit(&self, batch: Batch) -> Result<(), Fault> {
        let (done, answer) = oneshot::channel();
        self.journal
            .submit(batch, Box::new(move |result| drop(done.send(result))));
        match answer.await {
            Ok(Ok(())) => {
                self.trouble
                    .send_if_modified(|trouble| trouble.take().is_some());
                Ok(())
            }
            Ok(Err(error)) => {
                let fault = from_journal(&error);
                let former = self.trouble.send_replace(Some(fault.clone()));
                // What waits to be written is tried each second: told once.
                if former.as_ref() == Some(&fault) {
                    tracing::debug!(error = chain(&error), "journal write failed again");
                } else {
                    tracing::error!(error = chain(&error), "journal write failed");
                }
                Err(fault)
            }
            Err(_) => Err(internal("the journal's writer has ended")),
        }
    }

    /// Whether the journal still answers: a read and a write that come back; while
    /// its disk hangs, this waits as long. One that fails because the disk is full is
    /// alive: a restart would not help.
    pub async fn is_alive(&self) -> bool {
        let journal = self.journal.clone();
        let nobody = OperationId(uuid::Uuid::nil());
        let read = self.gate.run(Lane::Journal, READ_DEADLINE, move || {
            drop(journal.operation(nobody));
        });
        // What is read may be in memory: only a write asks the disk.
        read.await.is_ok() && self.write_comes_back().await
    }

    async fn write_comes_back(&self) -> bool {
        let (done, answer) = oneshot::channel();
        let told = move |result: Result<(), JournalError>| {
            // Then the writer was not asked.
            let refused = matches!(result, Err(JournalError::Overloaded | JournalError::Closed));
            drop(done.send((!refused, result.map_err(|error| from_journal(&error)))));
        };
        self.journal.submit(Batch::new().touch(), Box::new(told));
        let Ok((wrote, result)) = answer.await else {
            return false;
        };
        // So that JournalWritable is right while nothing else is written.
        match result {
            Ok(()) => drop(self.trouble.send_if_modified(|t| t.take().is_some())),
            Err(fault) => drop(self.trouble.send_replace(Some(fault))),
        }
        wrote
    }

    /// Commits of the journal since the start, each an fsync, and the batches that
    /// they made durable.
    pub fn written(&self) -> (u64, u64) {
        (self.journal.commits(), self.journal.batches())
    }

    /// How long the journal's commits took, in seconds.
    pub const fn commit_seconds(&self) -> &Histogram {
        &self.commit_seconds
    }

    /// Why the last write failed, if it did.
    pub fn trouble(&self) -> Option<Fault> {
        self.trouble.borrow().clone()
    }

    /// Reads one operation.
    ///
    /// # Errors
    /// `JOURNAL_UNAVAILABLE`.
    pub async fn operation(&self, id: OperationId) -> Result<Option<Operation>, Fault> {
        self.read(move |journal| journal.operation(id)).await
    }

    /// Reads the operation that a request id belongs to.
    ///
    /// # Errors
    /// `JOURNAL_UNAVAILABLE`.
    pub async fn operation_by_request(&self, id: RequestId) -> Result<Option<Operation>, Fault> {
        self.read(move |journal| journal.operation_by_request(id))
            .await
    }

    /// Lists operations, newest first.
    ///
    /// # Errors
    /// `JOURNAL_UNAVAILABLE`.
    pub async fn operations(&self, query: OperationQuery) -> Result<Vec<Operation>, Fault> {
        self.read(move |journal| journal.operations(&query)).await
    }

    /// Forgets operations that ended before a time, but for those in `keep`.
    ///
    /// # Errors
    /// `JOURNAL_UNAVAILABLE`.
    pub async fn prune(
        &self,
        ended_before: Timestamp,
        keep: HashSet<OperationId>,
    ) -> Result<usize, Fault> {
        self.read(move |journal| journal.prune_operations(ended_before, &keep))
            .await
    }

    /// Reads the events after a revision, in order, at most so many.
    ///
    /// # Errors
    /// `JOURNAL_UNAVAILABLE`.
    pub async fn events(&self, after: u64, limit: usize) -> Result<Vec<Event>, Fault> {
        self.read(move |journal| journal.events(after, limit)).await
    }

    /// Forgets events that are older than `before` or not among the last `count`.
    ///
    /// # Errors
    /// `JOURNAL_UNAVAILABLE`.
    pub async fn prune_events(&self, before: Timestamp, count: u64) -> Result<usize, Fault> {
        self.read(move |journal| journal.prune_events(before, count))
            .await
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Journal) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, Fault> {
        let journal = self.journal.clone();
        match self
            .gate
            .run(Lane::Journal, READ_DEADLINE, move || read(&journal))
            .await
        {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                tracing::error!(error = chain(&error), "journal read failed");
                Err(from_journal(&error))
            }
            Err(_) => Err(internal("a read of the journal did not return")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Told;
    use crate::model::event::{Change, What};
    use crate::model::ids::VmId;
    use std::sync::mpsc;

    fn ledger(folder: &std::path::Path) -> Ledger {
        let (journal, _) = Journal::open(&folder.join("journal.db")).unwrap();
        Ledger::new(Arc::new(journal), Arc::new(Gate::default()))
    }

    #[tokio::test]
    async fn each_sign_of_life_is_a_write_that_reached_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = ledger(folder.path());
        let log = || std::fs::read(folder.path().join("journal.db-wal")).unwrap();
        for _ in 0..3 {
            let (before, commits) = (log(), ledger.written().0);
            assert!(ledger.is_alive().await);
            assert_ne!(log(), before);
            assert_eq!(ledger.written().0, commits + 1);
        }
    }

    #[tokio::test]
    async fn a_writer_that_hangs_is_not_alive_and_neither_is_a_full_queue() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = ledger(folder.path());
        let (release, held) = mpsc::channel::<()>();
        let (hangs, hung) = oneshot::channel();
        let hold = Box::new(move |_| {
            let _ = hangs.send(());
            let _ = held.recv();
        });
        let change = Change {
            time: Timestamp(0),
            cause: None,
            caller: None,
            what: What::VmExpunged(VmId(uuid::Uuid::nil())),
            labels: Default::default(),
            former_labels: None,
        };
        let told = Told {
            thing: "node".to_owned(),
            digest: None,
        };
        let batch = Batch::new().put_event(&change, told, hold);
        ledger.journal.submit(batch, Box::new(drop));
        hung.await.unwrap();
        let soon = Duration::from_millis(200);
        let asked = tokio::time::timeout(soon, ledger.is_alive()).await;
        assert!(asked.is_err(), "reads come back, and the write does not");
        let full = || {
            let (told, heard) = mpsc::channel();
            let tell = move |result: Result<(), JournalError>| {
                let _ = told.send(matches!(result, Err(JournalError::Overloaded)));
            };
            ledger.journal.submit(Batch::new(), Box::new(tell));
            heard.try_recv() == Ok(true)
        };
        while !full() {}
        assert!(
            !ledger.is_alive().await,
            "an answer that is not the writer's"
        );
        drop(release);
        // The queue empties by itself.
        while !ledger.is_alive().await {}
    }
}
