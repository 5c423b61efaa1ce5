//! How those fare whom the agent reports to: one slot for each, written by what
//! sends, read by everyone.
//!
//! It sends nothing and waits for nobody.

use super::operations::now;
use crate::model::event::Position;
use crate::model::time::Timestamp;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A sink as readers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkStatus {
    /// Its configured name.
    pub name: String,
    /// What it is: "grpc" or "nats".
    pub kind: &'static str,
    /// Whether its receiver has welcomed the agent and is still there.
    pub connected: bool,
    /// Since when it is so.
    pub since: Timestamp,
    /// Where it is connected to, or was tried last.
    pub endpoint: String,
    /// What was acknowledged last.
    pub cursor: Option<Position>,
    /// The last problem, in words; `None` since something was acknowledged.
    pub problem: Option<String>,
}

impl SinkStatus {
    /// How many changes the receiver does not have yet, of those up to `head`; all
    /// of them if it has another epoch's.
    pub fn lag(&self, head: Position) -> u64 {
        match self.cursor {
            Some(cursor) if cursor.epoch == head.epoch => {
                head.revision.saturating_sub(cursor.revision)
            }
            Some(_) | None => head.revision,
        }
    }
}

/// One sink's place on the board.
#[derive(Debug)]
pub struct Slot(Mutex<SinkStatus>);

impl Slot {
    /// The sink as it is now.
    pub fn status(&self) -> SinkStatus {
        self.lock().clone()
    }

    /// Notes where the next attempt goes.
    pub fn tries(&self, endpoint: &str) {
        endpoint.clone_into(&mut self.lock().endpoint);
    }

    /// Notes that the receiver has welcomed the agent.
    pub fn connected(&self) {
        let mut status = self.lock();
        (status.connected, status.since) = (true, now());
    }

    /// Notes that there is no connection (any more), and why. Returns whether that
    /// is news.
    pub fn failed(&self, problem: String) -> bool {
        let mut status = self.lock();
        let news = status.connected || status.problem.as_ref() != Some(&problem);
        if status.connected {
            (status.connected, status.since) = (false, now());
        }
        status.problem = Some(problem);
        news
    }

    /// Notes how far the receiver is.
    pub fn acknowledged(&self, cursor: Position) {
        let mut status = self.lock();
        status.cursor = Some(cursor);
        status.problem = None;
    }

    fn lock(&self) -> MutexGuard<'_, SinkStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All sinks.
#[derive(Debug, Default)]
pub struct Board(Mutex<Vec<Arc<Slot>>>);

impl Board {
    /// Makes a place for a sink.
    pub fn add(
        &self,
        name: String,
        kind: &'static str,
        endpoint: String,
        cursor: Option<Position>,
    ) -> Arc<Slot> {
        let slot = Arc::new(Slot(Mutex::new(SinkStatus {
            name,
            kind,
            connected: false,
            since: now(),
            endpoint,
            cursor,
            problem: None,
        })));
        self.lock().push(slot.clone());
        slot
    }

    /// All of them, in the order of the configuration.
    pub fn list(&self) -> Vec<SinkStatus> {
        self.lock().iter().map(|slot| slot.status()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Slot>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_of_another_epoch_lacks_everything() {
        let at = |epoch, revision| Position {
            epoch: uuid::Uuid::from_u128(epoch),
            revision,
        };
        let board = Board::default();
        let slot = board.add("a".into(), "grpc", "x".into(), None);
        assert_eq!(slot.status().lag(at(1, 7)), 7);
        slot.acknowledged(at(1, 5));
        assert_eq!(slot.status().lag(at(1, 7)), 2);
        assert_eq!(board.list()[0].lag(at(2, 7)), 7);
    }

    #[test]
    fn the_same_problem_is_news_only_once() {
        let board = Board::default();
        let slot = board.add("a".into(), "grpc", "x".into(), None);
        assert!(slot.failed("refused".into()));
        assert!(!slot.failed("refused".into()));
        slot.connected();
        assert!(slot.failed("refused".into()));
        assert!(!slot.status().connected);
    }
}
