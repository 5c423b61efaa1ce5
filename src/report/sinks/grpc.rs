//! Control planes that implement `kvmlet.report.v1.ReportService`.
//!
//! A peer that is dead without a word is found by HTTP/2's own pings; one that
//! lives and does not acknowledge, by the runner.

use super::{Begin, Link, Problem, Sink, Wish};
use crate::config::{ReportSettings, TlsFiles};
use crate::proto::report::v1::report_request::Message as Request;
use crate::proto::report::v1::report_response::Message as Response;
use crate::proto::report::v1::report_service_client::ReportServiceClient;
use crate::proto::report::v1::{Heartbeat, Hello, ReportRequest, ReportResponse, Welcome};
use crate::proto::v1::{Node, ResumePoint, WatchEventsResponse};
use async_trait::async_trait;
use std::path::Path;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::Streaming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use zeroize::Zeroizing;

/// What waits in front of the connection; more is held back.
const QUEUE: usize = 16;
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);
/// How often the peer is asked whether it lives, and how long it may take to say so.
const PING: Duration = Duration::from_secs(10);

/// A control plane.
#[derive(Debug)]
pub struct GrpcSink {
    endpoints: Vec<String>,
    tls: Option<TlsFiles>,
    user_agent: String,
}

impl GrpcSink {
    /// The one that is configured so, told by an agent of this version.
    pub fn new(settings: &ReportSettings, version: &str) -> Self {
        Self {
            endpoints: settings.endpoints.clone(),
            tls: settings.tls.clone(),
            user_agent: format!("kvmlet/{version}"),
        }
    }

    async fn channel(&self, endpoint: &str) -> Result<Channel, Problem> {
        let mut way = Endpoint::from_shared(endpoint.to_owned())
            .map_err(|error| Problem::from_error("the endpoint", &error))?
            .user_agent(self.user_agent.clone())
            .map_err(|error| Problem::from_error("the endpoint", &error))?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .keep_alive_while_idle(true);
        if endpoint.starts_with("https://") {
            let tls = self.tls().await?;
            way = way
                .tls_config(tls)
                .map_err(|error| Problem::from_error("TLS", &error))?;
        }
        way.connect()
            .await
            .map_err(|error| Problem::from_error("can't connect", &error))
    }

    /// Read anew each time, so that certificates can be renewed.
    async fn tls(&self) -> Result<ClientTlsConfig, Problem> {
        let mut tls = ClientTlsConfig::new();
        if let Some(files) = &self.tls {
            tls = tls.ca_certificate(Certificate::from_pem(read(&files.ca_file).await?));
            if let Some((cert, key)) = &files.own {
                tls = tls.identity(Identity::from_pem(read(cert).await?, read(key).await?));
            }
        }
        Ok(tls)
    }
}

/// Reads a file, which may hold a secret, and whose path is named in the problem.
pub(super) async fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Problem> {
    tokio::fs::read(path)
        .await
        .map(Zeroizing::new)
        .map_err(|error| Problem::from_error(&path.display().to_string(), &error))
}

#[async_trait]
impl Sink for GrpcSink {
    fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    async fn connect(
        &self,
        endpoint: &str,
        hello: Hello,
    ) -> Result<(Box<dyn Link>, Wish), Problem> {
        let channel = self.channel(endpoint).await?;
        let (requests, outgoing) = mpsc::channel(QUEUE);
        let hello = ReportRequest {
            message: Some(Request::Hello(hello)),
        };
        // There is room for the first one.
        drop(requests.try_send(hello));
        let mut answers = ReportServiceClient::new(channel)
            .report(ReceiverStream::new(outgoing))
            .await
            .map_err(|status| refused(&status))?
            .into_inner();
        let welcome = match next(&mut answers).await? {
            Some(Response::Welcome(welcome)) => welcome,
            _ => return Err(Problem::new("answered Hello with something else")),
        };
        let (told, kept) = watch::channel(Ok(None));
        let reader = tokio::spawn(read_answers(answers, told));
        let link = GrpcLink {
            requests,
            kept,
            _reader: AbortOnDropHandle::new(reader),
        };
        Ok((Box::new(link), wish(welcome)))
    }
}

fn wish(welcome: Welcome) -> Wish {
    match welcome {
        Welcome {
            full_snapshot: true,
            ..
        } => Wish::From(Begin::Snapshot),
        Welcome {
            resume: Some(point),
            ..
        } => Wish::From(Begin::After(point)),
        Welcome { resume: None, .. } => Wish::GoOn,
    }
}

fn refused(status: &tonic::Status) -> Problem {
    Problem::new(format!("{}: {}", status.code(), status.message()))
}

async fn next(answers: &mut Streaming<ReportResponse>) -> Result<Option<Response>, Problem> {
    match answers.message().await {
        Ok(Some(answer)) => Ok(answer.message),
        Ok(None) => Err(Problem::new("ended the stream")),
        Err(status) => Err(refused(&status)),
    }
}

/// How far the receiver is, or why it can't be told any more.
type Kept = Result<Option<ResumePoint>, Problem>;

/// Reads answers as they come, so that a receiver never waits to give them. Only
/// the last acknowledgement counts.
async fn read_answers(mut answers: Streaming<ReportResponse>, told: watch::Sender<Kept>) {
    loop {
        match next(&mut answers).await {
            Ok(Some(Response::Ack(ack))) => {
                if ack.kept.is_some() {
                    drop(told.send_replace(Ok(ack.kept)));
                }
            }
            // Something of a later version.
            Ok(None) => {}
            Ok(Some(Response::Welcome(_))) => {
                drop(told.send_replace(Err(Problem::new("sent Welcome twice"))));
                return;
            }
            Err(problem) => {
                drop(told.send_replace(Err(problem)));
                return;
            }
        }
    }
}

/// An open stream.
struct GrpcLink {
    requests: mpsc::Sender<ReportRequest>,
    kept: watch::Receiver<Kept>,
    _reader: AbortOnDropHandle<()>,
}

impl GrpcLink {
    async fn put(&self, message: Request) -> Result<(), Problem> {
        let request = ReportRequest {
            message: Some(message),
        };
        match self.requests.send(request).await {
            Ok(()) => Ok(()),
            // The answers say why.
            Err(_) => match &*self.kept.borrow() {
                Err(problem) => Err(problem.clone()),
                Ok(_) => Err(Problem::new("the stream has ended")),
            },
        }
    }
}

#[async_trait]
impl Link for GrpcLink {
    async fn send(&mut self, event: WatchEventsResponse) -> Result<(), Problem> {
        self.put(Request::Event(event)).await
    }

    async fn heartbeat(&mut self, node: Node, head: ResumePoint) -> Result<(), Problem> {
        self.put(Request::Heartbeat(Heartbeat {
            time: Some(prost_types::Timestamp::from(SystemTime::now())),
            node: Some(node),
            head: Some(head),
        }))
        .await
    }

    async fn acknowledged(&mut self) -> Result<ResumePoint, Problem> {
        loop {
            let seen = self.kept.changed().await;
            let kept = self.kept.borrow_and_update().clone()?;
            match (seen, kept) {
                (Ok(()), Some(kept)) => return Ok(kept),
                (Ok(()), None) => {}
                (Err(_), _) => return Err(Problem::new("the stream has ended")),
            }
        }
    }
}
