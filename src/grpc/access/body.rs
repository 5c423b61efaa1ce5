//! The bytes of requests and answers, with an eye on memory and time.

use crate::door::{AtWork, Door, Peer, Unread};
use std::future::poll_fn;
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
///
/// The last byte of its message goes by itself. The transport takes a part whole as
/// soon as the peer takes one byte of it, and asks for the next one when all of that
/// is taken: so what is not read does not look as if it were.
pub(super) struct Answer {
    inner: Body,
    /// What was made of it already, in reverse.
    made: Vec<Frame>,
    _unread: Option<Unread>,
    _work: AtWork,
    _watch: Option<AtWork>,
    /// Ends the wait for a slow reader.
    _sent: Option<DropGuard>,
}

impl Answer {
    /// An answer that goes on as long as the caller likes.
    pub(super) fn stream(inner: Body, work: AtWork, watch: Option<AtWork>) -> Self {
        Self {
            inner,
            made: Vec::new(),
            _unread: None,
            _work: work,
            _watch: watch,
            _sent: None,
        }
    }

    /// An answer whose message was made already. Cuts the peer off if it does not
    /// take it in time.
    pub(super) fn whole(
        made: Made,
        unread: Option<Unread>,
        work: AtWork,
        within: Duration,
        door: Arc<Door>,
        peer: Arc<Peer>,
    ) -> Self {
        let sent = CancellationToken::new();
        let read = sent.clone().cancelled_owned();
        tokio::spawn(async move {
            if tokio::time::timeout(within, read).await.is_err() {
                door.is_unread(&peer);
            }
        });
        Self {
            inner: made.rest,
            made: made.first.map(split).unwrap_or_default(),
            _unread: unread,
            _work: work,
            _watch: None,
            _sent: Some(sent.drop_guard()),
        }
    }
}

fn split(frame: Frame) -> Vec<Frame> {
    match frame.into_data() {
        Ok(mut data) if data.len() > 1 => {
            let last = data.split_off(data.len() - 1);
            vec![Frame::data(last), Frame::data(data)]
        }
        Ok(data) => vec![Frame::data(data)],
        Err(other) => vec![other],
    }
}

/// An answer of one message, which is there as bytes.
pub(super) struct Made {
    first: Option<Frame>,
    rest: Body,
}

impl Made {
    /// Has the message written.
    pub(super) async fn of(mut rest: Body) -> Result<Self, tonic::Status> {
        let first = poll_fn(|context| Pin::new(&mut rest).poll_frame(context)).await;
        let first = first.transpose()?;
        Ok(Self { first, rest })
    }

    /// How large it is.
    pub(super) fn bytes(&self) -> usize {
        let data = self.first.as_ref().and_then(|frame| frame.data_ref());
        data.map_or(0, Bytes::len)
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame, tonic::Status>>> {
        if let Some(frame) = self.made.pop() {
            return Poll::Ready(Some(Ok(frame)));
        }
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.made.is_empty() && self.inner.is_end_stream()
    }
}
