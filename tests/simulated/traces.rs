//! Traces, as a collector gets them: from the real daemon, on libvirt's simulated
//! driver, over OTLP.

use crate::support::api::{Start, force, small};
use crate::support::daemon::{Daemon, Setup};
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::{CreateVmRequest, OperationState, StopVmRequest, VmState};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// A span, and what is said of its sender.
#[derive(Debug)]
struct Sent {
    span: Span,
    sender: Vec<KeyValue>,
}

/// What a collector got.
#[derive(Debug, Clone, Default)]
struct Got(Arc<Mutex<Vec<Sent>>>);

#[tonic::async_trait]
impl TraceService for Got {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut got = self.0.lock().unwrap();
        for sent in request.into_inner().resource_spans {
            let sender = sent.resource.unwrap_or_default().attributes;
            let spans = sent.scope_spans.into_iter().flat_map(|scope| scope.spans);
            got.extend(spans.map(|span| Sent {
                span,
                sender: sender.clone(),
            }));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector; it ends with the test.
struct Collector {
    got: Got,
    address: SocketAddr,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (got, address) = (Got::default(), listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(got.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        Self {
            got,
            address,
            server: tokio::spawn(server),
        }
    }

    fn setup(&self) -> Setup {
        sending_to(self.address)
    }

    /// The spans with these names and attributes.
    fn all(&self, name: &str, attributes: &[(&str, &str)]) -> Vec<Span> {
        let got = self.got.0.lock().unwrap();
        let is = |span: &Span| {
            let has = |(key, value): &(&str, &str)| text(&span.attributes, key) == *value;
            span.name == name && attributes.iter().all(has)
        };
        let spans = got.iter().map(|sent| &sent.span);
        spans.filter(|span| is(span)).cloned().collect()
    }

    /// The one span with this name and these attributes, once it has come.
    async fn span(&self, name: &str, attributes: &[(&str, &str)]) -> Span {
        let what = format!("a span {name} with {attributes:?}");
        let mut found = until(&what, PATIENCE, async || {
            Some(self.all(name, attributes)).filter(|found| !found.is_empty())
        })
        .await;
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    /// The names of the spans below one, in the order in which they began.
    fn below(&self, parent: &Span) -> Vec<String> {
        let got = self.got.0.lock().unwrap();
        let spans = got.iter().map(|sent| &sent.span);
        let mut below: Vec<&Span> = spans
            .filter(|span| span.parent_span_id == parent.span_id)
            .collect();
        below.sort_by_key(|span| span.start_time_unix_nano);
        for span in &below {
            assert_eq!(span.trace_id, parent.trace_id);
        }
        below.iter().map(|span| span.name.clone()).collect()
    }
}

fn sending_to(collector: SocketAddr) -> Setup {
    Setup {
        more: format!("[traces]\nendpoint = \"http://{collector}\"\n"),
        ..Setup::default()
    }
}

/// What an attribute says; empty if it is not there.
fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|found| found.value.as_ref()?.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        _ => String::new(),
    }
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request from a span of the caller's.
fn traced<T>(request: T, parent: &str) -> Request<T> {
    let mut request = Request::new(request);
    let value = MetadataValue::try_from(parent).unwrap();
    request.metadata_mut().insert("traceparent", value);
    let state = MetadataValue::from_static("vendor=1");
    request.metadata_mut().insert("tracestate", state);
    request
}

fn stop(vm_id: &str) -> StopVmRequest {
    StopVmRequest {
        vm_id: vm_id.to_owned(),
        stop_policy: Some(force()),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_is_a_child_of_its_callers_span_and_its_steps_are_its_children() {
    let collector = Collector::start().await;
    let mut daemon = Daemon::start(collector.setup()).await;
    let (api, image) = (daemon.api(), daemon.image().await);
    let vm = api.create(&image, Start::Yes).await;
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let answer = api.vms().stop_vm(traced(stop(&vm), &parent)).await;
    let stopped = api.done(answer).await;

    let call = collector.span("StopVm", &[("rpc", "StopVm")]).await;
    assert_eq!(call.kind(), SpanKind::Server);
    assert_eq!(text(&call.attributes, "vm_id"), vm);
    let of = [("operation_id", stopped.id.as_str()), ("vm_id", &vm)];
    let operation = collector.span("stop-vm", &of).await;
    for span in [&call, &operation] {
        assert_eq!(hex(&span.trace_id), TRACE);
        assert_eq!(hex(&span.parent_span_id), CALLER);
        assert_eq!(span.trace_state, "vendor=1");
    }
    let steps: Vec<&str> = stopped.steps.iter().map(|step| &*step.name).collect();
    assert!(!steps.is_empty());
    // Steps end before their operation, and are sent before it.
    assert_eq!(collector.below(&operation), steps);
    let log = daemon.log();
    for message in ["operation begins", "operation succeeded"] {
        let line = log
            .lines()
            .find(|line| line.contains(message) && line.contains(&stopped.id))
            .unwrap_or_else(|| panic!("no {message:?} in\n{log}"));
        assert!(line.contains(TRACE), "{line}");
    }

    // Without a caller's span: a trace of its own, which the operation is in.
    let made = collector.span("create-vm", &[("vm_id", &vm)]).await;
    let call = collector.span("CreateVm", &[]).await;
    assert_eq!(call.parent_span_id, [0; 0]);
    assert_eq!(made.parent_span_id, call.span_id);
    assert_eq!(made.trace_id, call.trace_id);

    // What has ended is sent at the end.
    let nobody = "00000000-0000-4000-8000-000000000000";
    assert!(api.vms().stop_vm(stop(nobody)).await.is_err());
    let node = api.node().await.id;
    daemon.stop().await;
    let refused = collector.all("StopVm", &[("vm_id", nobody)]);
    assert_eq!(refused.len(), 1);
    let status = refused[0].status.clone().unwrap();
    assert_eq!(status.code(), StatusCode::Error);
    assert_eq!(status.message, "VM_NOT_FOUND");
    let got = collector.got.0.lock().unwrap();
    for Sent { sender, .. } in got.iter() {
        assert_eq!(text(sender, "service.name"), "kvmlet");
        assert_eq!(text(sender, "service.instance.id"), node);
        assert_ne!(text(sender, "service.version"), "");
        assert_ne!(text(sender, "host.name"), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_parent_is_no_parent_and_an_unsampled_one_is_not_sent() {
    let collector = Collector::start().await;
    let mut daemon = Daemon::start(collector.setup()).await;
    let (api, image) = (daemon.api(), daemon.image().await);
    let vm = api.create(&image, Start::Yes).await;
    let malformed = format!("00-{}-{CALLER}-01", TRACE.to_uppercase());
    let answer = api.vms().stop_vm(traced(stop(&vm), &malformed)).await;
    let stopped = api.done(answer).await;
    let unsampled = format!("00-{TRACE}-{CALLER}-00");
    let answer = api.vms().stop_vm(traced(stop(&vm), &unsampled)).await;
    api.done(answer).await;
    daemon.stop().await;

    let calls = collector.all("StopVm", &[]);
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert_eq!(calls[0].parent_span_id, [0; 0]);
    assert_ne!(hex(&calls[0].trace_id), TRACE);
    let operations = collector.all("stop-vm", &[("operation_id", &stopped.id)]);
    assert_eq!(operations[0].trace_id, calls[0].trace_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_on_after_a_kill_is_in_the_same_trace() {
    let collector = Collector::start().await;
    let points = tempfile::tempdir().unwrap();
    let (armed, held) = (points.path().join("armed"), points.path().join("held"));
    let mut setup = collector.setup();
    let file = ("FAILPOINTS_FILE".to_owned(), armed.display().to_string());
    setup.environment.push(file);
    let mut daemon = Daemon::start(setup).await;
    let image = daemon.image().await;
    hold(&armed, "create-vm.start-guest.before", &held);
    let create = CreateVmRequest {
        start: true,
        ..small(&image)
    };
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let created = daemon.api().vms().create_vm(traced(create, &parent)).await;
    let created = created.unwrap().into_inner();
    until("the start to be held", PATIENCE, async || {
        held.exists().then_some(())
    })
    .await;
    daemon.kill9();
    std::fs::remove_file(&armed).unwrap();
    assert_eq!(collector.all("create-vm", &[]).len(), 0);
    daemon.restart().await;
    let ended = daemon.api().ended(&created.id).await;
    assert!(ended.state() >= OperationState::Succeeded);

    let of = [("operation_id", created.id.as_str())];
    let operation = collector.span("create-vm", &of).await;
    assert_eq!(hex(&operation.trace_id), TRACE);
    assert_eq!(hex(&operation.parent_span_id), CALLER);
    assert_eq!(operation.trace_state, "vendor=1");
    assert!(!collector.below(&operation).is_empty());
}

fn hold(armed: &Path, point: &str, held: &Path) {
    let line = format!("{point}=1*return(hold:{})", held.display());
    std::fs::write(armed, line).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_holds_up_nothing_and_is_told_of_once() {
    // Bound and never accepted from: calls to it hang.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut daemon = Daemon::start(sending_to(silent.local_addr().unwrap())).await;
    let (api, image) = (daemon.api(), daemon.image().await);
    let vm = api.create(&image, Start::Yes).await;
    api.done(api.vms().stop_vm(stop(&vm)).await).await;
    assert_eq!(api.state(&vm).await, VmState::Stopped);
    assert!(daemon.stop().await < Duration::from_secs(30));
    drop(silent);

    // Refused at once.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let mut daemon = Daemon::start(sending_to(address)).await;
    daemon.image().await;
    let dropped = "the collector of traces does not take spans";
    until("the log to tell", PATIENCE, async || {
        daemon.log().contains(dropped).then_some(())
    })
    .await;
    daemon.image().await;
    daemon.stop().await;
    assert_eq!(daemon.log().matches(dropped).count(), 1);
}
