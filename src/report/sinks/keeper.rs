//! Makes durable how far a receiver is: soon, and seldom.
//!
//! Each write is an fsync that other writes wait for. What is acknowledged in
//! between is written as one; an end of the agent repeats at most what came since.

use super::{Problem, Source};
use crate::proto::v1::ResumePoint;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Time between two writes.
const INTERVAL: Duration = Duration::from_millis(200);
/// Time until a write that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Keeps one sink's cursor.
#[derive(Debug)]
pub(super) struct Keeper {
    cursor: watch::Sender<Option<ResumePoint>>,
    task: JoinHandle<()>,
}

impl Keeper {
    pub(super) fn new(sink: String, source: Arc<dyn Source>) -> Self {
        let (cursor, seen) = watch::channel(None);
        Self {
            cursor,
            task: tokio::spawn(keep(sink, source, seen)),
        }
    }

    /// Notes how far the receiver is; returns at once.
    pub(super) fn note(&self, cursor: ResumePoint) {
        self.cursor.send_replace(Some(cursor));
    }

    /// Writes what is not written yet and ends.
    pub(super) async fn end(self) {
        drop(self.cursor);
        drop(self.task.await);
    }
}

async fn keep(
    sink: String,
    source: Arc<dyn Source>,
    mut seen: watch::Receiver<Option<ResumePoint>>,
) {
    // The last one is seen also after the sender has gone.
    while seen.changed().await.is_ok() {
        loop {
            let Some(cursor) = seen.borrow_and_update().clone() else {
                break;
            };
            match source.keep(&sink, &cursor).await {
                Ok(()) => break,
                Err(Problem(problem)) => {
                    // The journal tells of itself; a former cursor does no harm.
                    tracing::debug!(sink, problem, "a cursor was not written");
                    if seen.has_changed().is_err() {
                        return;
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
