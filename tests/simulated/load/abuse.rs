//! Callers who don't mean well, each in a way of its own, again and again.

use crate::load::place::Caller;
use crate::load::raw::{self, CONTINUATION, GET_VM, HEADERS, LIST_VMS, Raw};
use crate::support::api::Api;
use futures_util::future::join_all;
use kvmlet::proto::v1::*;
use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tonic_types::StatusExt;

/// Longer than any attempt takes before it is ended.
const PATIENCE: Duration = Duration::from_secs(60);
/// From one attempt to the next, at least: the daemon that is tried is not optimised,
/// and has the processors with those who call it.
const EVERY: Duration = Duration::from_secs(2);

/// What they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Hundreds of calls at once.
    Flood,
    /// Calls without a role.
    Stranger,
    /// Requests that are too large.
    Large,
    /// A TCP connection, and nothing on it.
    HalfOpen,
    /// Another protocol under TLS.
    OldProtocol,
    /// Calls whose answers are given no window.
    NoWindow,
    /// Calls whose answers are not taken from the kernel.
    Deaf,
    /// Calls that are taken back at once.
    Resets,
    /// Pings whose answers are not taken.
    Pings,
    /// Headers without end.
    Headers,
    /// Handshakes, and away again.
    Reconnect,
    /// Bytes that mean nothing.
    Garbage,
    /// A request, byte by byte.
    Slow,
}

use Kind::*;

/// All kinds, and how many there are of each: 50.
pub(crate) const ALL: [(Kind, usize); 13] = [
    (Flood, 8),
    (Stranger, 3),
    (Large, 4),
    (HalfOpen, 4),
    (OldProtocol, 3),
    (NoWindow, 4),
    (Deaf, 4),
    (Resets, 4),
    (Pings, 3),
    (Headers, 3),
    (Reconnect, 3),
    (Garbage, 3),
    (Slow, 4),
];

/// What came of attempts, by their kind.
pub(crate) type Seen = BTreeMap<(Kind, String), u64>;

/// Goes on until the end, and tells what comes of it. What is at work in the end is
/// given up, and not told.
pub(crate) async fn abuse(kind: Kind, caller: Caller, end: &CancellationToken, seen: &Mutex<Seen>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let api = caller.lazily();
    loop {
        ticks.tick().await;
        let came = tokio::select! {
            () = end.cancelled() => return,
            came = attempt(kind, &caller, &api) => came,
        };
        let words = came.unwrap_or_else(|_| vec!["closed".to_owned()]);
        let mut seen = seen.lock().unwrap();
        for word in words {
            *seen.entry((kind, word)).or_default() += 1;
        }
    }
}

async fn attempt(kind: Kind, caller: &Caller, api: &Api) -> io::Result<Vec<String>> {
    match kind {
        Flood => Ok(join_all((0..100).map(|_| node(api))).await),
        Stranger => Ok(join_all((0..50).map(|_| node(api))).await),
        Large => {
            let vm_id = "x".repeat(5 << 20);
            let answer = api.vms().get_vm(GetVmRequest { vm_id }).await;
            Ok(vec![word(&answer)])
        }
        HalfOpen => {
            let mut silent = TcpStream::connect(("127.0.0.1", caller.port())).await?;
            ended(silent.read(&mut [0; 64]).await?)
        }
        OldProtocol => {
            let mut io = caller.tls(None).await?;
            io.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .await?;
            io.flush().await?;
            let mut said = Vec::new();
            io.read_to_end(&mut said).await?;
            ended(0)
        }
        Reconnect => {
            drop(caller.tls(Some(b"h2")).await?);
            ended(0)
        }
        NoWindow | Deaf | Resets | Pings | Headers | Garbage | Slow => {
            frames(kind, &mut caller.raw().await?).await
        }
    }
}

async fn frames(kind: Kind, raw: &mut Raw) -> io::Result<Vec<String>> {
    let window = match kind {
        NoWindow => 0,
        Deaf => 1 << 30,
        _ => 65_535,
    };
    raw.greet(window).await?;
    match kind {
        NoWindow => {
            for stream in raw::streams(64) {
                raw.send(&raw::call(stream, LIST_VMS)).await?;
            }
        }
        Deaf => {
            raw.send(&raw::frame(8, 0, 0, &(1u32 << 30).to_be_bytes()))
                .await?;
            for stream in raw::streams(1000) {
                raw.send(&raw::call(stream, LIST_VMS)).await?;
            }
        }
        Resets => {
            let mut storm = Vec::new();
            for stream in raw::streams(500) {
                storm.extend(raw::headers(stream, LIST_VMS, &[]));
                storm.extend(raw::reset(stream));
            }
            raw.send(&storm).await?;
        }
        Pings => loop {
            raw.send(&raw::frame(raw::PING, 0, 0, &[7; 8]).repeat(1000))
                .await?;
        },
        Headers => {
            raw.send(&raw::frame(HEADERS, 0, 1, &raw::block(GET_VM, &[])))
                .await?;
            let mut more = Vec::new();
            raw::field(&mut more, "x-padding", &"x".repeat(8000));
            loop {
                raw.send(&raw::frame(CONTINUATION, 0, 1, &more)).await?;
            }
        }
        Garbage => {
            let bytes: Vec<u8> = (0..5000).map(|_| rand::random()).collect();
            raw.send(&bytes).await?;
        }
        Slow => {
            raw.half(1).await?;
            let begun = Instant::now();
            // The refusal comes meanwhile; what goes on is not read.
            while begun.elapsed() < PATIENCE {
                raw.send(&raw::frame(raw::DATA, 0, 1, &[0])).await?;
                if raw.answered(1, Duration::from_millis(200)).await == 1 {
                    return Ok(vec!["refused".to_owned()]);
                }
            }
            return Ok(vec!["not refused".to_owned()]);
        }
        _ => unreachable!("is done without frames"),
    }
    raw.end(PATIENCE).await;
    ended(0)
}

async fn node(api: &Api) -> String {
    word(&api.nodes().get_node(GetNodeRequest {}).await)
}

fn ended(bytes: usize) -> io::Result<Vec<String>> {
    assert_eq!(bytes, 0, "an answer to nothing");
    Ok(vec!["closed".to_owned()])
}

/// The reason of a refusal, or else its code.
fn word<T>(answer: &Result<T, tonic::Status>) -> String {
    match answer {
        Ok(_) => "answered".to_owned(),
        Err(status) => match status.get_details_error_info() {
            Some(info) => info.reason,
            None => format!("{:?}", status.code()),
        },
    }
}
