//! A receiver of reports that a test can kill, start again and look into.
//!
//! What it knows ([`Book`]) is what a real one has in its database: it outlives the
//! server. The server has a runtime of its own, so that its end is as sudden as a
//! process's.

use super::fleet::{Fleet, Outcome};
use crate::support::{PATIENCE, until};
use kvmlet::proto::report::v1::report_request::Message as Request;
use kvmlet::proto::report::v1::report_response::Message as Response;
use kvmlet::proto::report::v1::report_service_server::{ReportService, ReportServiceServer};
use kvmlet::proto::report::v1::{Ack, Heartbeat, Hello, ReportRequest, ReportResponse, Welcome};
use kvmlet::proto::v1::watch_events_response::Event;
use kvmlet::proto::v1::{ResumePoint, SnapshotMark, WatchEventsResponse};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream};
use tonic::transport::{Server, ServerTlsConfig};

/// What a receiver knows and has seen.
#[derive(Debug, Default)]
pub(crate) struct Book {
    known: Mutex<Known>,
    /// Does not acknowledge.
    pub silent: AtomicBool,
    /// Lets the agent say from where to go on.
    pub trusting: AtomicBool,
}

#[derive(Debug, Default)]
pub(crate) struct Known {
    pub fleet: Fleet,
    /// All hellos, in order; a stream is called by its place here, from 1.
    pub hellos: Vec<Hello>,
    /// All events as they came, each with its stream.
    pub events: Vec<(usize, WatchEventsResponse)>,
    /// Changes that were not known before, by revision, in the order in which they
    /// were used.
    pub used: Vec<u64>,
    pub heartbeats: Vec<Heartbeat>,
}

impl Book {
    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    /// Waits until something is so.
    pub(crate) async fn wait<T>(&self, what: &str, ask: impl Fn(&Known) -> Option<T>) -> T {
        until(what, PATIENCE, async || ask(&self.known())).await
    }
}

impl Known {
    /// The events of one stream.
    pub(crate) fn of(&self, stream: usize) -> Vec<&WatchEventsResponse> {
        let of_stream = self.events.iter().filter(|(of, _)| *of == stream);
        of_stream.map(|(_, event)| event).collect()
    }

    /// The marks of the snapshots that came.
    pub(crate) fn marks(&self) -> Vec<SnapshotMark> {
        let mark = |(_, told): &(usize, WatchEventsResponse)| match &told.event {
            Some(Event::Snapshot(mark)) => Some(*mark),
            _ => None,
        };
        self.events.iter().filter_map(mark).collect()
    }
}

#[derive(Clone)]
struct Calls(Arc<Book>);

#[tonic::async_trait]
impl ReportService for Calls {
    type ReportStream = ReceiverStream<Result<ReportResponse, tonic::Status>>;

    async fn report(
        &self,
        call: tonic::Request<tonic::Streaming<ReportRequest>>,
    ) -> Result<tonic::Response<Self::ReportStream>, tonic::Status> {
        let mut requests = call.into_inner();
        let Some(Request::Hello(hello)) = requests.message().await?.unwrap().message else {
            panic!("an agent says hello first");
        };
        let (node, book) = (hello.node_id.clone(), self.0.clone());
        let (stream, mut welcome, number) = {
            let mut known = book.known();
            let (stream, welcome) = known.fleet.hello(&hello);
            known.hellos.push(hello);
            (stream, welcome, known.hellos.len())
        };
        if book.trusting.load(Ordering::Relaxed) {
            welcome = Welcome::default();
        }
        let (answers, outgoing) = mpsc::channel(16);
        answers
            .try_send(Ok(answer(Response::Welcome(welcome))))
            .unwrap();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                let kept = match request.message {
                    Some(Request::Event(event)) => take(&book, &node, stream, number, event),
                    Some(Request::Heartbeat(heartbeat)) => {
                        book.known().heartbeats.push(heartbeat);
                        None
                    }
                    Some(Request::Hello(_)) | None => panic!("hello comes once"),
                };
                if let Some(kept) = kept
                    && !book.silent.load(Ordering::Relaxed)
                {
                    let ack = answer(Response::Ack(Ack { kept: Some(kept) }));
                    if answers.send(Ok(ack)).await.is_err() {
                        break;
                    }
                }
            }
            book.known().fleet.bye(&node, stream);
        });
        Ok(tonic::Response::new(ReceiverStream::new(outgoing)))
    }
}

fn answer(message: Response) -> ReportResponse {
    ReportResponse {
        message: Some(message),
    }
}

fn take(
    book: &Book,
    node: &str,
    stream: u64,
    number: usize,
    event: WatchEventsResponse,
) -> Option<ResumePoint> {
    let mut known = book.known();
    let mark = matches!(event.event, Some(Event::Snapshot(_)));
    known.events.push((number, event.clone()));
    match known.fleet.event(node, stream, event)? {
        Outcome::Kept(point) => {
            if !mark {
                known.used.push(point.revision);
            }
            Some(point)
        }
        Outcome::Known(point) => Some(point),
        Outcome::Nothing => None,
    }
}

/// Where a receiver listens.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Unix(PathBuf),
    Tcp(SocketAddr, Box<ServerTlsConfig>),
}

/// A server, gone when dropped.
pub(crate) struct Running(Option<Runtime>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// Serves a book at a place until the answer is dropped, which ends it with all of
/// its connections and no word to anyone.
pub(crate) fn serve(book: &Arc<Book>, place: &Place) -> Running {
    match place.clone() {
        Place::Unix(path) => {
            let runtime = runtime();
            let service = ReportServiceServer::new(Calls(book.clone()));
            drop(std::fs::remove_file(&path));
            let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
            listener.set_nonblocking(true).unwrap();
            runtime.spawn(async move {
                let listener = UnixListener::from_std(listener).unwrap();
                Server::builder()
                    .add_service(service)
                    .serve_with_incoming(UnixListenerStream::new(listener))
                    .await
            });
            Running(Some(runtime))
        }
        Place::Tcp(address, tls) => {
            let listener = std::net::TcpListener::bind(address).unwrap();
            serve_on(book, listener, Some(*tls))
        }
    }
}

/// The same on a listener that is there, of whatever network.
pub(crate) fn serve_on(
    book: &Arc<Book>,
    listener: std::net::TcpListener,
    tls: Option<ServerTlsConfig>,
) -> Running {
    let runtime = runtime();
    let service = ReportServiceServer::new(Calls(book.clone()));
    listener.set_nonblocking(true).unwrap();
    runtime.spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        let mut server = Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls).unwrap();
        }
        server
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
    });
    Running(Some(runtime))
}

/// A folder for sockets.
pub(crate) struct Sockets(TempDir);

impl Sockets {
    pub(crate) fn new() -> Self {
        Self(
            tempfile::Builder::new()
                .prefix("kvmlet-r")
                .tempdir_in("/tmp")
                .unwrap(),
        )
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn place(&self, name: &str) -> Place {
        Place::Unix(self.0.path().join(name))
    }
}

/// The configuration of a sink that reports to these places.
pub(crate) fn sink(places: &[&Place], ack_timeout: Duration) -> String {
    let endpoints: Vec<String> = places
        .iter()
        .map(|place| match place {
            Place::Unix(path) => format!("\"unix://{}\"", path.display()),
            Place::Tcp(address, _) => format!("\"https://localhost:{}\"", address.port()),
        })
        .collect();
    format!(
        "\n[[report]]\nname = \"cp\"\nendpoints = [{}]\nheartbeat = \"1s\"\nack_timeout = \"{}s\"\n",
        endpoints.join(", "),
        ack_timeout.as_secs()
    )
}
