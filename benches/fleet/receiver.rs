//! The receiver: the example's account of a fleet, and when each change was used.

use crate::fleet::{Fleet, Outcome};
use kvmlet::proto::report::v1::report_request::Message as Request;
use kvmlet::proto::report::v1::report_response::Message as Response;
use kvmlet::proto::report::v1::report_service_server::{ReportService, ReportServiceServer};
use kvmlet::proto::report::v1::{Ack, ReportRequest, ReportResponse};
use kvmlet::proto::v1::WatchEventsResponse;
use kvmlet::proto::v1::watch_events_response::Event;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Status, Streaming};

/// What was received.
#[derive(Clone)]
pub(crate) struct Receiver {
    fleet: Arc<Mutex<Fleet>>,
    lags: Arc<Mutex<Vec<Duration>>>,
    /// Snapshots, changes and heartbeats so far.
    counts: Arc<watch::Sender<(usize, u64, u64)>>,
}

/// Serves on a Unix socket.
pub(crate) fn serve(socket: &Path) -> Receiver {
    let receiver = Receiver {
        fleet: Arc::default(),
        lags: Arc::default(),
        counts: Arc::new(watch::Sender::new((0, 0, 0))),
    };
    let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
    let service = ReportServiceServer::new(receiver.clone());
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    receiver
}

impl Receiver {
    pub(crate) async fn wait_for_snapshots(&self, count: usize) {
        let mut counts = self.counts.subscribe();
        drop(counts.wait_for(|(snapshots, ..)| *snapshots >= count).await);
    }

    pub(crate) async fn wait_for_changes(&self, count: u64) {
        let mut counts = self.counts.subscribe();
        drop(counts.wait_for(|(_, changes, _)| *changes >= count).await);
    }

    pub(crate) fn heartbeats(&self) -> u64 {
        self.counts.borrow().2
    }

    pub(crate) fn lags(&self) -> Vec<Duration> {
        self.lags.lock().unwrap().clone()
    }

    fn take(&self, node: &str, stream: u64, event: WatchEventsResponse) -> Option<Ack> {
        let is_mark = matches!(event.event, Some(Event::Snapshot(_)));
        let made = SystemTime::try_from(event.time?).ok()?;
        match self.fleet.lock().unwrap().event(node, stream, event)? {
            Outcome::Kept(point) => {
                if is_mark {
                    self.counts.send_modify(|counts| counts.0 += 1);
                } else {
                    let lag = made.elapsed().unwrap_or_default();
                    self.lags.lock().unwrap().push(lag);
                    self.counts.send_modify(|counts| counts.1 += 1);
                }
                Some(Ack { kept: Some(point) })
            }
            Outcome::Known(point) => Some(Ack { kept: Some(point) }),
            Outcome::Nothing => None,
        }
    }
}

#[tonic::async_trait]
impl ReportService for Receiver {
    type ReportStream = ReceiverStream<Result<ReportResponse, Status>>;

    async fn report(
        &self,
        call: tonic::Request<Streaming<ReportRequest>>,
    ) -> Result<tonic::Response<Self::ReportStream>, Status> {
        let mut requests = call.into_inner();
        let Some(Request::Hello(hello)) = requests.message().await?.unwrap().message else {
            panic!("an agent says hello first");
        };
        let (stream, welcome) = self.fleet.lock().unwrap().hello(&hello);
        let (answers, outgoing) = mpsc::channel(16);
        let receiver = self.clone();
        tokio::spawn(async move {
            let answer = |message| {
                Ok(ReportResponse {
                    message: Some(message),
                })
            };
            drop(answers.send(answer(Response::Welcome(welcome))).await);
            while let Ok(Some(request)) = requests.message().await {
                match request.message {
                    Some(Request::Event(event)) => {
                        if let Some(ack) = receiver.take(&hello.node_id, stream, event) {
                            drop(answers.send(answer(Response::Ack(ack))).await);
                        }
                    }
                    Some(Request::Heartbeat(_)) => {
                        receiver.counts.send_modify(|counts| counts.2 += 1);
                    }
                    Some(Request::Hello(_)) | None => {}
                }
            }
        });
        Ok(tonic::Response::new(ReceiverStream::new(outgoing)))
    }
}
