//! The bytes of requests and answers, with an eye on memory and time.

use crate::door::{AtWork, Peer};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Bytes, StdError};

/// Frames of HTTP/2 as `http-body` has them.
type Frame = http_body::Frame<Bytes>;

/// Why a request was not read to its end.
#[derive(Debug, Default)]
pub(super) struct Broken {
    /// There was no memory for it.
    pub(super) memory: AtomicBool,
    /// It took too long.
    pub(super) time: AtomicBool,
}

/// A request that is being read.
pub(super) struct Request {
    inner: Body,
    /// Bytes of all requests that are being read.
    all: Arc<AtomicU64>,
    own: u64,
    most: u64,
    deadline: Option<Pin<Box<Sleep>>>,
    broken: Arc<Broken>,
}

impl Request {
    pub(super) fn new(
        inner: Body,
        all: Arc<AtomicU64>,
        most: u64,
        within: Option<Duration>,
        broken: Arc<Broken>,
    ) -> Self {
        Self {
            inner,
            all,
            own: 0,
            most,
            deadline: within.map(|within| Box::pin(tokio::time::sleep(within))),
            broken,
        }
    }
}

impl HttpBody for Request {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, StdError>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(context);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.own += bytes;
                if self.all.fetch_add(bytes, Ordering::Relaxed) + bytes > self.most {
                    self.broken.memory.store(true, Ordering::Relaxed);
                    return Poll::Ready(Some(Err("no memory for the request".into())));
                }
            }
            Poll::Ready(_) => {}
            Poll::Pending => {
                let deadline = self.deadline.as_mut();
                if deadline.is_some_and(|end| end.as_mut().poll(context).is_ready()) {
                    self.broken.time.store(true, Ordering::Relaxed);
                    return Poll::Ready(Some(Err("the request takes too long".into())));
                }
            }
        }
        frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.all.fetch_sub(self.own, Ordering::Relaxed);
    }
}

/// An answer that is being sent: its call counts as at work until it is.
pub(super) struct Answer {
    inner: Body,
    _work: AtWork,
    /// Ends the wait for a slow reader.
    _sent: Option<DropGuard>,
}

impl Answer {
    /// Cuts the peer off if it does not take the answer in time.
    pub(super) fn new(inner: Body, work: AtWork, slow: Option<(Duration, Arc<Peer>)>) -> Self {
        let sent = slow.map(|(time, peer)| {
            let sent = CancellationToken::new();
            let read = sent.clone().cancelled_owned();
            tokio::spawn(async move {
                if tokio::time::timeout(time, read).await.is_err() {
                    tracing::info!(from = peer.place(), "a peer does not read its answer");
                    peer.cut_off();
                }
            });
            sent.drop_guard()
        });
        Self {
            inner,
            _work: work,
            _sent: sent,
        }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, tonic::Status>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
}
