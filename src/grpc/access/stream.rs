//! An answer that goes on as long as the caller likes: who asks is judged again while
//! it does, because a stream may stay open for weeks.

use super::table::Rule;
use super::{stranger, unless_allowed};
use crate::door::{Door, Peer};
use crate::grpc::status;
use crate::model::fault::Fault;
use crate::pace;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Bytes};

/// An answer that goes on.
pub(super) struct Stream {
    inner: Body,
    door: Arc<Door>,
    peer: Arc<Peer>,
    rule: Rule,
    again: Pin<Box<Sleep>>,
    ended: bool,
}

impl Stream {
    pub(super) fn new(inner: Body, door: Arc<Door>, peer: Arc<Peer>, rule: Rule) -> Self {
        Self {
            inner,
            door,
            peer,
            rule,
            again: Box::pin(tokio::time::sleep(pace::judging())),
            ended: false,
        }
    }

    /// Why he may not have more of it.
    fn refusal(&self) -> Option<Fault> {
        match self.door.judge(&self.peer) {
            Ok(known) => unless_allowed(&self.rule, known.role).err(),
            Err(why) => Some(stranger(why)),
        }
    }
}

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        while self.again.as_mut().poll(context).is_ready() {
            if let Some(fault) = self.refusal() {
                let rpc = self.rule.rpc;
                tracing::info!(rpc, reason = fault.reason.as_str(), "a stream ends");
                self.ended = true;
                let last = status::refusal(&fault).into_http::<()>().into_parts().0;
                return Poll::Ready(Some(Ok(http_body::Frame::trailers(last.headers))));
            }
            self.again.as_mut().reset(Instant::now() + pace::judging());
        }
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }
}
