//! One connection: its bytes, and what ends it when nothing comes any more.

use super::peer::Peer;
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

/// One connection.
pub struct Connection {
    io: Io,
    peer: Arc<Peer>,
    silence: Duration,
    /// When something came last.
    heard: Instant,
    /// When it is looked at whether something came.
    look: Pin<Box<Sleep>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _held: Held,
}

impl Connection {
    pub(super) fn new(io: Io, peer: Arc<Peer>, silence: Duration, held: Held) -> Self {
        Self {
            io,
            silence,
            heard: Instant::now(),
            look: Box::pin(tokio::time::sleep(silence)),
            cut: Box::pin(peer.cut.clone().cancelled_owned()),
            peer,
            _held: held,
        }
    }

    /// Whether it is to end although nothing has come.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if self.cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(io::Error::other("the peer was cut off"));
        }
        while self.look.as_mut().poll(context).is_ready() {
            let end = self.heard + self.silence;
            if Instant::now() >= end {
                let words = "nothing came for too long";
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, words));
            }
            self.look.as_mut().reset(end);
        }
        Poll::Pending
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
    ($self:ident, $io:ident => $call:expr) => {
        match &mut $self.get_mut().io {
            Io::Unix($io) => $call,
            Io::Plain($io) => $call,
            Io::Tls($io) => $call,
        }
    };
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write_vectored(context, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Unix(io) => io.is_write_vectored(),
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_shutdown(context))
    }
}
