//! HTTP/2 frame by frame, for what no client would do.
//!
//! Headers are written without compression (RFC 7541, literals) and not read: which
//! kind of frame comes back is all that is looked at.

use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// Of `SETTINGS`: how much may be sent on a stream before more is asked for.
const INITIAL_WINDOW: u16 = 4;

pub(crate) const GET_VM: &str = "/kvmlet.v1.VmService/GetVm";
pub(crate) const LIST_VMS: &str = "/kvmlet.v1.VmService/ListVms";
pub(crate) const GET_NODE: &str = "/kvmlet.v1.NodeService/GetNode";

/// A message without any field.
pub(crate) const EMPTY: [u8; 5] = [0; 5];

/// How a connection ended, or what came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Came {
    Frame {
        kind: u8,
        flags: u8,
        stream: u32,
        payload: Vec<u8>,
    },
    Closed,
}

impl Came {
    /// The code of an error that ends a call or the connection.
    pub(crate) fn code(&self) -> Option<u32> {
        let Self::Frame { kind, payload, .. } = self else {
            return None;
        };
        let at = match *kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        let bytes = payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().unwrap()))
    }

    pub(crate) fn is(&self, wished: u8) -> bool {
        matches!(self, Self::Frame { kind, .. } if *kind == wished)
    }
}

/// One connection.
pub(crate) struct Raw {
    io: TlsStream<TcpStream>,
}

impl Raw {
    pub(crate) fn over(io: TlsStream<TcpStream>) -> Self {
        Self { io }
    }

    /// Says hello, with this window for each stream.
    pub(crate) async fn greet(&mut self, window: u32) -> io::Result<()> {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let mut setting = INITIAL_WINDOW.to_be_bytes().to_vec();
        setting.extend(window.to_be_bytes());
        bytes.extend(frame(SETTINGS, 0, 0, &setting));
        // Or the other side would say that its settings were not seen.
        bytes.extend(frame(SETTINGS, ACK, 0, &[]));
        self.send(&bytes).await
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.io.write_all(bytes).await?;
        self.io.flush().await
    }

    /// The next frame.
    pub(crate) async fn next(&mut self) -> Came {
        self.read().await.unwrap_or(Came::Closed)
    }

    async fn read(&mut self) -> io::Result<Came> {
        let mut head = [0; 9];
        self.io.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.io.read_exact(&mut payload).await?;
        Ok(Came::Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]),
            payload,
        })
    }

    /// Reads until something is as wished, answering nothing.
    pub(crate) async fn until(
        &mut self,
        patience: Duration,
        wished: impl Fn(&Came) -> bool,
    ) -> Came {
        let read = async {
            loop {
                let came = self.next().await;
                if came == Came::Closed || wished(&came) {
                    return came;
                }
            }
        };
        timeout(patience, read).await.expect("a frame in time")
    }

    /// Reads to the end of the connection. What is told is the last error.
    pub(crate) async fn end(&mut self, patience: Duration) -> Option<u32> {
        let mut last = None;
        let read = async {
            loop {
                match self.next().await {
                    Came::Closed => return,
                    came if came.is(GOAWAY) => last = came.code(),
                    _ => {}
                }
            }
        };
        timeout(patience, read).await.expect("an end in time");
        last
    }

    /// Reads until calls are answered, one way or the other, or the connection ends.
    pub(crate) async fn answered(&mut self, calls: usize, patience: Duration) -> usize {
        let mut answered = 0;
        let read = async {
            while answered < calls {
                match self.next().await {
                    Came::Closed => return,
                    Came::Frame {
                        kind: HEADERS | DATA,
                        flags,
                        ..
                    } if flags & END_STREAM != 0 => {
                        answered += 1;
                    }
                    Came::Frame {
                        kind: RST_STREAM, ..
                    } => answered += 1,
                    Came::Frame { .. } => {}
                }
            }
        };
        drop(timeout(patience, read).await);
        answered
    }

    /// Begins a call and leaves its request unfinished: it is at work until then.
    pub(crate) async fn half(&mut self, stream: u32) -> io::Result<()> {
        self.send(&headers(stream, GET_VM, &[])).await
    }
}

/// A frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    let mut rest = text.len();
    // An integer with a prefix of 7 bits.
    if rest < 127 {
        bytes.push(u8::try_from(rest).unwrap());
    } else {
        bytes.push(127);
        rest -= 127;
        while rest >= 128 {
            bytes.push(u8::try_from(rest % 128).unwrap() | 0x80);
            rest /= 128;
        }
        bytes.push(u8::try_from(rest).unwrap());
    }
    bytes.extend(text.as_bytes());
}

/// A field that is not remembered.
pub(crate) fn field(bytes: &mut Vec<u8>, name: &str, value: &str) {
    bytes.push(0);
    text(bytes, name);
    text(bytes, value);
}

/// The block of headers of a call.
pub(crate) fn block(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    // From the static table: POST, https.
    let mut bytes = vec![0x83, 0x87];
    field(&mut bytes, ":path", path);
    field(&mut bytes, ":authority", "localhost");
    field(&mut bytes, "content-type", "application/grpc");
    field(&mut bytes, "te", "trailers");
    for (name, value) in more {
        field(&mut bytes, name, value);
    }
    bytes
}

/// Begins a call.
pub(crate) fn headers(stream: u32, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block(path, more))
}

/// A whole call with an empty request.
pub(crate) fn call(stream: u32, path: &str) -> Vec<u8> {
    let mut bytes = headers(stream, path, &[]);
    bytes.extend(frame(DATA, END_STREAM, stream, &EMPTY));
    bytes
}

/// Takes a call back.
pub(crate) fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())
}

/// The numbers of a caller's streams.
pub(crate) fn streams(many: usize) -> impl Iterator<Item = u32> {
    (0..many).map(|index| u32::try_from(2 * index + 1).unwrap())
}
