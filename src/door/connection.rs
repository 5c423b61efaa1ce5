//! One connection: its bytes, and what ends it when nothing comes any more, or
//! nothing is taken.
//!
//! Invariant: its end is looked for whenever it waits, also while it waits to write.
//! HTTP/2 does not read on while it must write first.

use super::figures::{SILENT, UNREAD};
use super::peer::Peer;
use prometheus::IntCounterVec;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;

/// What the bytes go through.
pub(super) enum Io {
    Unix(UnixStream),
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What is counted as long as the connection is there.
pub(super) struct Held {
    pub(super) _place: super::counts::Count,
    pub(super) _one_of_the_callers: super::counts::Count,
}

/// How long the other side may do nothing.
pub(super) struct Patience {
    /// Send nothing.
    pub(super) silence: Duration,
    /// Take nothing of what is to be sent.
    pub(super) unread: Duration,
}

/// One connection.
pub struct Connection {
    io: Io,
    peer: Arc<Peer>,
    patience: Patience,
    /// When something came last.
    heard: Instant,
    /// When it is looked at whether something came.
    look: Pin<Box<Sleep>>,
    /// When it ends, while a write waits.
    unread: Option<Pin<Box<Sleep>>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Connections that were closed, by why.
    closed: IntCounterVec,
    _held: Held,
}

impl Connection {
    pub(super) fn new(
        io: Io,
        peer: Arc<Peer>,
        patience: Patience,
        held: Held,
        closed: IntCounterVec,
    ) -> Self {
        Self {
            io,
            heard: Instant::now(),
            look: Box::pin(tokio::time::sleep(patience.silence)),
            patience,
            unread: None,
            closed,
            cut: Box::pin(peer.cut.clone().cancelled_owned()),
            peer,
            _held: held,
        }
    }

    /// Whether it is to end although it only waits.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        // Once it was cut off it stays so, and is not counted again.
        if self.peer.cut.is_cancelled() || self.cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(io::Error::other("the peer was cut off"));
        }
        if let Some(unread) = &mut self.unread
            && unread.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(self.end(UNREAD, "nothing was taken for too long"));
        }
        while self.look.as_mut().poll(context).is_ready() {
            let end = self.heard + self.patience.silence;
            if Instant::now() >= end {
                return Poll::Ready(self.end(SILENT, "nothing came for too long"));
            }
            self.look.as_mut().reset(end);
        }
        Poll::Pending
    }

    fn end(&self, reason: &str, words: &str) -> io::Error {
        self.closed.with_label_values(&[reason]).inc();
        self.peer.cut_off();
        io::Error::new(io::ErrorKind::TimedOut, words)
    }

    /// What a write came to, or the end of the connection while it waits.
    fn written<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.unread = None;
            return written;
        }
        let unread = self.patience.unread;
        self.unread
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(unread)));
        self.poll_end(context).map(Err)
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = match &mut self.io {
            Io::Unix(io) => Pin::new(io).poll_read(context, buffer),
            Io::Plain(io) => Pin::new(io).poll_read(context, buffer),
            Io::Tls(io) => Pin::new(io).poll_read(context, buffer),
        };
        if read.is_ready() && !self.peer.cut.is_cancelled() {
            self.heard = Instant::now();
            return read;
        }
        self.poll_end(context).map(Err)
    }
}

macro_rules! each {
    ($self:ident, $context:ident, $io:ident => $call:expr) => {{
        let this = $self.get_mut();
        let written = match &mut this.io {
            Io::Unix($io) => $call,
            Io::Plain($io) => $call,
            Io::Tls($io) => $call,
        };
        this.written(written, $context)
    }};
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, context, io => Pin::new(io).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, context, io => Pin::new(io).poll_write_vectored(context, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Unix(io) => io.is_write_vectored(),
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, context, io => Pin::new(io).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, context, io => Pin::new(io).poll_shutdown(context))
    }
}
