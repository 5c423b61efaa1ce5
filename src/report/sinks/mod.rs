//! Those whom the agent calls to tell what changes: control planes over gRPC, and
//! NATS.
//!
//! ```text
//!  Source ──open──▶ Events ──next──▶ runner ──send──▶ Link ──▶ receiver
//!    ▲                                 ▲ │               │
//!    └──keep── keeper ◀──cursor────────┘ └◀─acknowledged─┘
//! ```
//!
//! One [`runner`] for each sink does what all have in common. Its invariant: the
//! cursor that it keeps names only what the receiver has acknowledged, so that
//! every change arrives at least once and in order, whoever dies when. Nothing is
//! kept in memory for a receiver that is away: what is old is read again from
//! where the events come from.

pub mod backoff;
mod feed;
mod flight;
pub mod grpc;
mod keeper;
pub mod message;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(not(feature = "nats"))]
#[path = "without_nats.rs"]
pub mod nats;
pub mod runner;

pub use feed::start;

use crate::proto::report::v1::Hello;
use crate::proto::v1::{Node, ResumePoint, WatchEventsResponse};
use async_trait::async_trait;

/// Why something did not work, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Problem(String);

impl Problem {
    /// In these words.
    pub fn new(words: impl Into<String>) -> Self {
        Self(words.into())
    }

    /// What was tried, and the whole chain of why not.
    pub fn from_error(what: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self(format!("{what}: {}", crate::service::fault::chain(error)))
    }
}

/// From where events are sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Begin {
    /// After this; a snapshot first if that is not known any more.
    After(ResumePoint),
    /// With a snapshot.
    Snapshot,
}

/// From where a receiver wants events.
#[derive(Debug, Clone, PartialEq)]
pub enum Wish {
    /// From what was acknowledged last.
    GoOn,
    /// From here, whatever was acknowledged.
    From(Begin),
}

/// Where events come from, and where it is noted how far a receiver is.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// Opens the events from `begin` on.
    fn open(&self, begin: Begin) -> Box<dyn Events>;

    /// The newest change.
    fn head(&self) -> ResumePoint;

    /// The host as it is now.
    fn node(&self) -> Node;

    /// Who calls, with what was acknowledged last.
    fn hello(&self, acknowledged: Option<ResumePoint>) -> Hello;

    /// Makes it durable how far the receiver of `sink` is.
    ///
    /// # Errors
    /// What is durable is then what was before.
    async fn keep(&self, sink: &str, cursor: &ResumePoint) -> Result<(), Problem>;
}

/// Events in order, without an end.
#[async_trait]
pub trait Events: Send {
    /// Waits for the next one. Dropping the wait loses nothing.
    ///
    /// # Errors
    /// If it can't be read; it is worth to open them again later.
    async fn next(&mut self) -> Result<WatchEventsResponse, Problem>;
}

/// A way to a kind of receiver.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Where it can be reached; never empty.
    fn endpoints(&self) -> &[String];

    /// Connects to one of them and finds out from where it wants events.
    ///
    /// # Errors
    /// If there is nobody, or nobody that can be trusted.
    async fn connect(&self, endpoint: &str, hello: Hello)
    -> Result<(Box<dyn Link>, Wish), Problem>;
}

/// A connection to a receiver.
#[async_trait]
pub trait Link: Send {
    /// Hands over an event; what is handed over later arrives later. Waits for room
    /// on the way to the receiver, and not for the receiver.
    ///
    /// # Errors
    /// The connection is of no use any more.
    async fn send(&mut self, event: WatchEventsResponse) -> Result<(), Problem>;

    /// Tells how the host fares.
    ///
    /// # Errors
    /// The connection is of no use any more.
    async fn heartbeat(&mut self, node: Node, head: ResumePoint) -> Result<(), Problem>;

    /// Waits until more is acknowledged, and returns up to where. Dropping the wait
    /// loses nothing.
    ///
    /// # Errors
    /// The connection is of no use any more.
    async fn acknowledged(&mut self) -> Result<ResumePoint, Problem>;
}
