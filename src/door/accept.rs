//! Lets connections in: as many as there may be, and those that prove in time who
//! they are.

use super::connection::{Connection, Held, Io, Patience};
use super::counts::Count;
use super::handshakes::Handshake;
use super::peer::{Certificate, Identity, Peer};
use super::{Door, Stranger};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Connections that wait for the server.
const WAITING: usize = 64;
/// After an error of the host's, such as no file descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections of a caller who may do nothing: enough to be told so.
const WITHOUT_ROLE: usize = 8;
/// Of the connections that there may be, those whose handshake is not done.
const HANDSHAKES_SHARE: usize = 2;

const UNIX: &str = "unix";
const TCP: &str = "tcp";

/// Where callers come in: sockets that are bound and listen already.
#[derive(Debug)]
pub struct Listeners {
    /// The Unix socket.
    pub unix: UnixListener,
    /// A TCP socket, if one is configured.
    pub tcp: Option<TcpListener>,
}

/// The connections that are let in, until `stop` is cancelled.
pub fn connections(
    door: &Arc<Door>,
    listeners: Listeners,
    stop: &CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> + use<> {
    let (inside, connections) = mpsc::channel(WAITING);
    let way = |entrance| Way {
        door: door.clone(),
        entrance,
        inside: inside.clone(),
        stop: stop.clone(),
    };
    tokio::spawn(from_unix(listeners.unix, way(UNIX)));
    if let Some(tcp) = listeners.tcp {
        tokio::spawn(from_tcp(tcp, way(TCP)));
    }
    ReceiverStream::new(connections)
}

/// The way in.
#[derive(Clone)]
struct Way {
    door: Arc<Door>,
    entrance: &'static str,
    inside: mpsc::Sender<io::Result<Connection>>,
    stop: CancellationToken,
}

async fn from_unix(listener: UnixListener, way: Way) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = way.stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                if let Some(place) = way.place() {
                    tokio::spawn(local(stream, place, way.clone()));
                }
            }
            Err(error) => way.pause(&error).await,
        }
    }
}

async fn from_tcp(listener: TcpListener, way: Way) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = way.stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, from)) => {
                // Small answers are not held back for more.
                drop(stream.set_nodelay(true));
                match &way.door.tls {
                    None => {
                        if let Some(place) = way.place() {
                            tokio::spawn(plain(stream, from, place, way.clone()));
                        }
                    }
                    Some(_) => {
                        if let Some(handshake) = way.handshake() {
                            tokio::spawn(encrypted(stream, from, handshake, way.clone()));
                        }
                    }
                }
            }
            Err(error) => way.pause(&error).await,
        }
    }
}

async fn local(stream: UnixStream, place: Count, way: Way) {
    let identity = match stream.peer_cred() {
        Ok(peer) => Identity::Local {
            uid: peer.uid(),
            groups: way.door.groups.of(peer.uid(), peer.gid()).await,
        },
        Err(_) => Identity::Unknown,
    };
    let peer = Peer::new(identity, None, 0);
    way.let_in(Io::Unix(stream), peer, place).await;
}

async fn plain(stream: TcpStream, from: SocketAddr, place: Count, way: Way) {
    let peer = Peer::new(Identity::Plaintext(from.ip()), Some(from), 0);
    way.let_in(Io::Plain(stream), peer, place).await;
}

/// Has no place before the handshake is done: those who never finish theirs take none.
async fn encrypted(stream: TcpStream, from: SocketAddr, one: Handshake, way: Way) {
    let Some(tls) = &way.door.tls else {
        return;
    };
    let Some(material) = tls.material() else {
        return way.refuse("handshake", &from, "the agent has no certificate yet");
    };
    let time = way.door.limits().request_time;
    let handshake = TlsAcceptor::from(material.server.clone()).accept(stream);
    let stream = tokio::select! {
        done = tokio::time::timeout(time, handshake) => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return way.refuse("handshake", &from, &error.to_string()),
            Err(_) => return way.refuse("handshake", &from, "it took too long"),
        },
        () = one.given_up() => {
            return way.refuse("handshake", &from, "it gave way to newer ones");
        }
        () = way.stop.cancelled() => return,
    };
    drop(one);
    let Some(place) = way.place() else {
        return;
    };
    let chain = stream.get_ref().1.peer_certificates();
    let identity = chain.map_or(Identity::Unknown, |chain| {
        Identity::Certificate(Box::new(Certificate::read(chain)))
    });
    let peer = Peer::new(identity, Some(from), material.generation);
    way.let_in(Io::Tls(Box::new(stream)), peer, place).await;
}

impl Way {
    /// A place for one more connection, if there is one.
    fn place(&self) -> Option<Count> {
        let most = self.door.limits().connections;
        let place = self.door.entrances.add(self.entrance, most, usize::MAX);
        if place.is_none() {
            self.refuse("limit", &self.entrance, "there are too many connections");
        }
        place
    }

    /// A handshake, if there is a place for what comes of it.
    fn handshake(&self) -> Option<Handshake> {
        // Only looked at: it is taken when the handshake is done.
        drop(self.place()?);
        let most = self.door.limits().connections / HANDSHAKES_SHARE;
        Some(self.door.handshakes.begin(most))
    }

    async fn let_in(&self, io: Io, peer: Peer, place: Count) {
        let from = peer.place();
        let (name, role) = match self.door.judge(&peer) {
            Ok(known) => (known.name, known.role),
            Err(Stranger::Nameless | Stranger::Expired | Stranger::Distrusted) => {
                return self.refuse("unidentified", &from, "nobody knows who it is");
            }
        };
        let limits = self.door.limits();
        let own = match role {
            Some(_) => limits.connections_per_caller,
            None => limits.connections_per_caller.min(WITHOUT_ROLE),
        };
        let Some(one_of_the_callers) = self.door.callers.add(&name, own, usize::MAX) else {
            let words = format!("{name} has too many connections");
            return self.refuse("caller_limit", &from, &words);
        };
        let held = Held {
            _place: place,
            _one_of_the_callers: one_of_the_callers,
        };
        let patience = Patience {
            silence: limits.silence,
            unread: limits.answer_time,
        };
        let figures = self.door.figures.connections_refused.clone();
        let connection = Connection::new(io, Arc::new(peer), patience, held, figures);
        // Nobody takes it any more once the server has stopped.
        drop(self.inside.send(Ok(connection)).await);
    }

    /// Counts a connection that is closed, and says so in the log now and then.
    fn refuse(&self, reason: &str, from: &dyn std::fmt::Display, why: &str) {
        let figures = &self.door.figures.connections_refused;
        figures.with_label_values(&[reason]).inc();
        if self.door.connections_told.is_due() {
            tracing::info!(reason, %from, why, "connection refused");
        } else {
            tracing::debug!(reason, %from, why, "connection refused");
        }
    }

    async fn pause(&self, error: &io::Error) {
        tracing::warn!(%error, entrance = self.entrance, "no connection can be accepted");
        tokio::time::sleep(PAUSE).await;
    }
}
