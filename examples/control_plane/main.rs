//! A small, complete control plane's ear: takes the reports of a fleet of agents,
//! and shows which VMs there are.
//!
//! ```text
//! cargo run --example control_plane -- --listen 127.0.0.1:7443
//! ```
//!
//! On each host, in /etc/kvmlet/kvmlet.toml:
//!
//! ```toml
//! [[report]]
//! name = "control-plane"
//! endpoints = ["http://127.0.0.1:7443"]
//! ```
//!
//! What any receiver needs is in `fleet.rs`; the rest is one gRPC call and a table.
//! It keeps what it knows in memory, so that after a restart it asks every host for
//! a snapshot.

#![allow(missing_docs, unreachable_pub)]

mod fleet;

use clap::Parser;
use fleet::{Fleet, Outcome};
use kvmlet::proto::report::v1::report_request::Message as Request;
use kvmlet::proto::report::v1::report_response::Message as Response;
use kvmlet::proto::report::v1::report_service_server::{ReportService, ReportServiceServer};
use kvmlet::proto::report::v1::{Ack, ReportRequest, ReportResponse};
use kvmlet::proto::v1::WatchEventsResponse;
use kvmlet::proto::v1::watch_events_response::Event;
use std::io::{IsTerminal, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request as Call, Response as Answer, Status, Streaming};

/// Takes the reports of a fleet of agents.
#[derive(Parser)]
struct Arguments {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:7443")]
    listen: SocketAddr,
    /// A line for each change, instead of a table.
    #[arg(long)]
    plain: bool,
}

#[derive(Clone)]
struct Receiver {
    fleet: Arc<Mutex<Fleet>>,
    changed: Arc<Notify>,
    plain: bool,
}

#[tonic::async_trait]
impl ReportService for Receiver {
    type ReportStream = ReceiverStream<Result<ReportResponse, Status>>;

    async fn report(
        &self,
        call: Call<Streaming<ReportRequest>>,
    ) -> Result<Answer<Self::ReportStream>, Status> {
        let mut requests = call.into_inner();
        // Hello comes first.
        let Some(ReportRequest {
            message: Some(Request::Hello(hello)),
        }) = requests.message().await?
        else {
            return Err(Status::invalid_argument("the first message must be hello"));
        };
        let (stream, welcome) = self.fleet().hello(&hello);
        let (answers, outgoing) = mpsc::channel(16);
        let receiver = self.clone();
        tokio::spawn(async move {
            let node = &hello.node_id;
            let first = answer(Response::Welcome(welcome));
            if answers.send(Ok(first)).await.is_ok() {
                receiver.listen(node, stream, requests, &answers).await;
            }
            receiver.fleet().bye(node, stream);
            receiver.changed.notify_one();
        });
        Ok(Answer::new(ReceiverStream::new(outgoing)))
    }
}

impl Receiver {
    fn fleet(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a host sends until it ends, or calls again.
    async fn listen(
        &self,
        node: &str,
        stream: u64,
        mut requests: Streaming<ReportRequest>,
        answers: &mpsc::Sender<Result<ReportResponse, Status>>,
    ) {
        while let Ok(Some(request)) = requests.message().await {
            let outcome = match request.message {
                Some(Request::Event(event)) => {
                    let words = self.plain.then(|| words(&event)).flatten();
                    let outcome = self.fleet().event(node, stream, event);
                    if let (Some(words), Some(Outcome::Kept(_) | Outcome::Nothing)) =
                        (words, &outcome)
                    {
                        println!("{node} {words}");
                    }
                    outcome
                }
                Some(Request::Heartbeat(heartbeat)) => self
                    .fleet()
                    .heartbeat(node, stream, heartbeat)
                    .then_some(Outcome::Nothing),
                // Something of a later version.
                Some(Request::Hello(_)) | None => Some(Outcome::Nothing),
            };
            self.changed.notify_one();
            // Rule 3: whatever was kept, or known already, is not needed again.
            let kept = match outcome {
                Some(Outcome::Kept(point) | Outcome::Known(point)) => point,
                Some(Outcome::Nothing) => continue,
                // The host has called again.
                None => return,
            };
            let ack = answer(Response::Ack(Ack { kept: Some(kept) }));
            if answers.send(Ok(ack)).await.is_err() {
                return;
            }
        }
    }
}

fn answer(message: Response) -> ReportResponse {
    ReportResponse {
        message: Some(message),
    }
}

/// A change in one line.
fn words(told: &WatchEventsResponse) -> Option<String> {
    let revision = told.revision;
    Some(match told.event.as_ref()? {
        Event::Vm(vm) => format!(
            "{revision} vm {} is {}",
            vm.id,
            state(vm.state().as_str_name())
        ),
        Event::VmExpunged(id) => format!("{revision} vm {id} is gone"),
        Event::Snapshot(mark) if mark.end => format!("{revision} the snapshot is whole"),
        Event::Snapshot(_) => format!("{revision} a snapshot begins"),
        _ => return None,
    })
}

fn state(name: &str) -> &str {
    name.trim_start_matches("VM_STATE_")
}

/// All VMs of all hosts.
fn table(fleet: &Fleet) -> String {
    let mut text = String::new();
    let line = |text: &mut String, cells: [&str; 4]| {
        let [host, vm, name, state] = cells;
        text.push_str(&format!("{host:20} {vm:36} {name:20} {state}\n"));
    };
    line(&mut text, ["HOST", "VM", "NAME", "STATE"]);
    for host in fleet.hosts.values() {
        let away = if host.online { "" } else { " (no connection)" };
        for vm in host.vms.values() {
            let state = format!("{}{away}", state(vm.state().as_str_name()));
            line(&mut text, [&host.hostname, &vm.id, &vm.name, &state]);
        }
        if host.vms.is_empty() {
            line(&mut text, [&host.hostname, "-", "-", away.trim()]);
        }
    }
    text
}

/// Draws the table anew when something has changed, and not too often.
async fn draw(receiver: Receiver) {
    let terminal = std::io::stdout().is_terminal();
    loop {
        receiver.changed.notified().await;
        let text = table(&receiver.fleet());
        // Home, and clear what follows.
        let begin = if terminal { "\x1b[H\x1b[2J" } else { "\n" };
        print!("{begin}{text}");
        drop(std::io::stdout().flush());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let receiver = Receiver {
        fleet: Arc::default(),
        changed: Arc::default(),
        plain: arguments.plain,
    };
    println!("Listening on {}", arguments.listen);
    if !arguments.plain {
        tokio::spawn(draw(receiver.clone()));
    }
    Server::builder()
        // Hosts that vanish without a word are noticed.
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .add_service(ReportServiceServer::new(receiver))
        .serve(arguments.listen)
        .await?;
    Ok(())
}
