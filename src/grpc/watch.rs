//! One stream of WatchEvents: from the feed's reader to the caller, as fast as the
//! caller takes it.
//!
//! Few events wait here. A caller that takes none of them for too long is cut off:
//! it can resume, and nobody else has waited for it.

use super::convert::event;
use super::edge::Edge;
use super::status;
use crate::model::fault::Fault;
use crate::model::reason::Reason;
use crate::proto::v1 as wire;
use crate::service::feed::{Reader, Start};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::Status;
use tracing::Instrument;

/// Elements that wait for the caller.
const WAITING: usize = 16;

/// How a stream ends; set before its channel is closed.
type End = Arc<Mutex<Option<Fault>>>;

/// What the caller reads.
pub(super) struct Watch {
    elements: mpsc::Receiver<wire::WatchEventsResponse>,
    end: End,
}

/// Begins a stream.
///
/// # Errors
/// `TOO_MANY_WATCHERS`.
pub(super) fn open(edge: &Edge, start: Start) -> Result<Watch, Fault> {
    let core = &edge.core;
    // Sinks read, too, and are no callers.
    let others = core.sinks.list().len();
    if core.feed.readers() >= core.config.events.watchers + others {
        return Err(Fault::new(
            Reason::TooManyWatchers,
            "too many streams of events are open already",
        ));
    }
    let reader = Reader::new(core, start);
    let (to_caller, elements) = mpsc::channel(WAITING);
    let end = End::default();
    let (edge, told) = (edge.clone(), end.clone());
    let pump = async move {
        let fault = pump(&edge, reader, &to_caller).await;
        if let Some(fault) = &fault {
            tracing::info!(reason = fault.reason.as_str(), "a watch ends");
        }
        *told.lock().unwrap_or_else(PoisonError::into_inner) = fault;
        // Closed after the end is set, so that the caller finds it.
        drop(to_caller);
    };
    tokio::spawn(pump.in_current_span());
    Ok(Watch { elements, end })
}

/// Returns why the stream ends; `None`: the caller has gone.
async fn pump(
    edge: &Edge,
    mut reader: Reader,
    to_caller: &mpsc::Sender<wire::WatchEventsResponse>,
) -> Option<Fault> {
    let patience = edge.core.config.events.slow_reader;
    loop {
        let item = tokio::select! {
            () = to_caller.closed() => return None,
            () = edge.stop.cancelled() => {
                return Some(Fault::new(Reason::Stopping, "the agent is stopping"));
            }
            item = reader.next() => match item {
                Ok(item) => item,
                Err(fault) => return Some(fault),
            },
        };
        let element = event::shown(&item, &edge.core);
        let sent = tokio::time::timeout(patience, to_caller.send(element)).await;
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return None,
            Err(_) => {
                return Some(
                    Fault::new(
                        Reason::ReaderTooSlow,
                        format!("nothing was read for {} s", patience.as_secs()),
                    )
                    .with("lag", reader.lag()),
                );
            }
        }
    }
}

impl Stream for Watch {
    type Item = Result<wire::WatchEventsResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.elements.poll_recv(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(element)) => Poll::Ready(Some(Ok(element))),
            Poll::Ready(None) => {
                let end = self
                    .end
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take();
                Poll::Ready(end.map(|fault| Err(status::refusal(&fault))))
            }
        }
    }
}
