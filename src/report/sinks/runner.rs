//! What all sinks have in common: connect, send in order, keep the cursor, begin
//! again.
//!
//! A receiver that is away costs one attempt now and then; one that does not
//! acknowledge halts the sending after some changes and is called again after its
//! time. Nobody else waits for either.

use super::backoff::Backoff;
use super::flight::Flight;
use super::keeper::Keeper;
use super::{Begin, Link, Problem, Sink, Source, Wish};
use crate::config::Pace;
use crate::model::event::Position;
use crate::pace;
use crate::proto::v1::ResumePoint;
use crate::service::sinks::Slot;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long a receiver may take to welcome the agent.
const WELCOME: Duration = Duration::from_secs(10);
/// How long what was sent may be acknowledged when the agent stops.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// A sink that is to be served.
pub struct Runner {
    /// Its configured name.
    pub name: String,
    /// The way to its receiver.
    pub sink: Arc<dyn Sink>,
    /// Where events come from.
    pub source: Arc<dyn Source>,
    /// Where it is told how it fares.
    pub slot: Arc<Slot>,
    /// What was acknowledged last, if anything was.
    pub cursor: Option<ResumePoint>,
    /// How long to wait.
    pub pace: Pace,
}

/// How a connection ended.
enum End {
    Stopped,
    Failed(Problem),
}

impl Runner {
    /// Serves it until `stop` is cancelled. Ends soon after that, with the cursor
    /// durable.
    pub async fn run(mut self, stop: CancellationToken) {
        let keeper = Keeper::new(self.name.clone(), self.source.clone());
        let mut backoff = Backoff::default();
        let endpoints = self.sink.endpoints().to_vec();
        for endpoint in endpoints.iter().cycle() {
            self.slot.tries(endpoint);
            let problem = match self.serve(endpoint, &keeper, &mut backoff, &stop).await {
                End::Stopped => break,
                End::Failed(problem) => problem.to_string(),
            };
            if self.slot.failed(problem.clone()) {
                tracing::warn!(sink = self.name, endpoint, problem, "a sink has a problem");
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(backoff.wait()) => {}
            }
        }
        keeper.end().await;
    }

    /// One connection, from its beginning to its end.
    async fn serve(
        &mut self,
        endpoint: &str,
        keeper: &Keeper,
        backoff: &mut Backoff,
        stop: &CancellationToken,
    ) -> End {
        let hello = self.source.hello(self.cursor.clone());
        let connect = timeout(WELCOME, self.sink.connect(endpoint, hello));
        let connected = tokio::select! {
            () = stop.cancelled() => return End::Stopped,
            connected = connect => connected,
        };
        let (mut link, wish) = match connected {
            Ok(Ok(welcomed)) => welcomed,
            Ok(Err(problem)) => return End::Failed(problem),
            Err(_) => return End::Failed(Problem::new("did not welcome the agent in time")),
        };
        let begin = self.begin(wish, keeper);
        tracing::info!(sink = self.name, endpoint, "a sink is connected");
        self.slot.connected();
        let since = Instant::now();
        let mut flight = Flight::default();
        let end = tokio::select! {
            () = stop.cancelled() => End::Stopped,
            Err(problem) = self.send(begin, &mut *link, &mut flight, keeper, backoff) => {
                End::Failed(problem)
            }
        };
        if since.elapsed() > pace::good_connection() {
            backoff.reset();
        }
        if matches!(end, End::Stopped) {
            let rest = self.await_rest(&mut *link, &mut flight, keeper);
            drop(timeout(LAST_ANSWERS, rest).await);
        }
        end
    }

    /// From where to send; what the receiver says counts more than what is known.
    fn begin(&mut self, wish: Wish, keeper: &Keeper) -> Begin {
        match wish {
            Wish::GoOn => self.cursor.clone().map_or(Begin::Snapshot, Begin::After),
            Wish::From(Begin::After(point)) => {
                // Its own word for what it has, also where that is less than it had.
                self.note(point.clone(), keeper);
                Begin::After(point)
            }
            Wish::From(Begin::Snapshot) => Begin::Snapshot,
        }
    }

    /// Sends until something fails.
    async fn send(
        &mut self,
        begin: Begin,
        link: &mut dyn Link,
        flight: &mut Flight,
        keeper: &Keeper,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, Problem> {
        let patience = self.pace.ack_timeout;
        let silent = || Problem::new("acknowledged nothing in time");
        let blocked = |_| Problem::new("took nothing in time");
        let mut events = self.source.open(begin);
        let mut heartbeat = tokio::time::interval(self.pace.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let deadline = flight.deadline(patience);
            tokio::select! {
                acknowledged = link.acknowledged() => {
                    if let Some(cursor) = flight.acknowledged(&acknowledged?, Instant::now()) {
                        self.note(cursor, keeper);
                        backoff.reset();
                    }
                }
                event = events.next(), if flight.has_room() => {
                    let event = event?;
                    flight.sent(&event, Instant::now());
                    timeout(patience, link.send(event)).await.map_err(blocked)??;
                }
                _ = heartbeat.tick() => {
                    let (node, head) = (self.source.node(), self.source.head());
                    timeout(patience, link.heartbeat(node, head)).await.map_err(blocked)??;
                }
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    return Err(silent());
                }
            }
        }
    }

    /// Waits for what was sent to be acknowledged.
    async fn await_rest(&mut self, link: &mut dyn Link, flight: &mut Flight, keeper: &Keeper) {
        while !flight.is_empty() {
            let Ok(acknowledged) = link.acknowledged().await else {
                return;
            };
            if let Some(cursor) = flight.acknowledged(&acknowledged, Instant::now()) {
                self.note(cursor, keeper);
            }
        }
    }

    /// Notes how far the receiver is. What is no epoch at all, as a receiver may
    /// have it, is not kept.
    fn note(&mut self, cursor: ResumePoint, keeper: &Keeper) {
        let Ok(epoch) = Uuid::try_parse(&cursor.epoch) else {
            return;
        };
        self.slot.acknowledged(Position {
            epoch,
            revision: cursor.revision,
        });
        keeper.note(cursor.clone());
        self.cursor = Some(cursor);
    }
}
