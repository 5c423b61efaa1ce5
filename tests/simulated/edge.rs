//! The gRPC edge over real sockets: what is refused before a service is asked,
//! health, reflection, who calls, and how it stops.
//!
//! The parts behind it are real (journal, a qcow2 pool, libvirt's test driver
//! by its URI), but no connection loop runs: nothing here needs libvirt.

use kvmlet::config::Config;
use kvmlet::door::{Door, Listeners};
use kvmlet::grpc;
use kvmlet::journal::Journal;
use kvmlet::libvirt::Owner;
use kvmlet::model::access::Role;
use kvmlet::proto::v1::image_service_client::ImageServiceClient;
use kvmlet::proto::v1::node_service_client::NodeServiceClient;
use kvmlet::proto::v1::operation_service_client::OperationServiceClient;
use kvmlet::proto::v1::vm_service_client::VmServiceClient;
use kvmlet::proto::v1::{self as wire};
use kvmlet::service::Core;
use kvmlet::service::addresses::Addresses;
use kvmlet::service::core::Readiness;
use kvmlet::service::feed::{Feed, catch_up};
use kvmlet::service::gate::Gate;
use kvmlet::service::hypervisor::Hypervisor;
use kvmlet::service::images::Images;
use kvmlet::service::ledger::Ledger;
use kvmlet::service::node::NodeIdentity;
use kvmlet::service::operations::Operations;
use kvmlet::service::orphans::Orphans;
use kvmlet::service::pools::Pools;
use kvmlet::service::sinks::Board;
use kvmlet::service::vms::Vms;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;
use uuid::Uuid;

const ID: &str = "01234567-89ab-cdef-0123-456789abcdef";
const PATIENCE: Duration = Duration::from_secs(20);

/// A server in this process, on sockets of its own.
struct Edge {
    core: Arc<Core>,
    tcp: SocketAddr,
    stop: CancellationToken,
    served: JoinHandle<Result<(), Box<dyn std::error::Error + Send + Sync>>>,
    folder: tempfile::TempDir,
}

impl Edge {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut config = Config::simulated(folder.path());
        config.api.plaintext_role = Some(Role::Admin);
        let uri = config
            .hypervisor
            .uri
            .parse()
            .expect("the simulated host's URI");
        let (journal, loaded) = Journal::open(&config.journal.path).expect("a new journal");
        let gate = Arc::new(Gate::default());
        let journal = Arc::new(journal);
        let feed = Arc::new(Feed::new(
            journal.clone(),
            loaded.epoch,
            loaded.revision,
            &loaded.told,
        ));
        let ledger = Arc::new(Ledger::new(journal, gate.clone()));
        let stopping = CancellationToken::new();
        let hypervisor = Hypervisor::new(
            uri,
            Owner::at(Uuid::nil(), &config.journal.path),
            config.hypervisor.connections,
            PATIENCE,
            gate.clone(),
        );
        let core = Arc::new(Core {
            hypervisor: Arc::new(hypervisor),
            pools: Pools::new(&config, gate.clone(), Uuid::from_u128(1)),
            operations: Operations::new(ledger.clone(), feed.clone(), stopping.clone()),
            vms: Vms::new(config.operations.queue),
            images: Images::new(Vec::new(), &config.images, feed.clone(), "0").expect("images"),
            addresses: Addresses::default(),
            orphans: Orphans::default(),
            sinks: Board::default(),
            feed,
            node: NodeIdentity::read(Uuid::from_u128(1), "0"),
            host_run: kvmlet::service::host_run::Known::default(),
            tasks: TaskTracker::new(),
            door: Arc::new(Door::open(&config)),
            current: kvmlet::service::current::Current::new(&config),
            ready: watch::Sender::new(Readiness::Starting),
            config,
            gate,
            ledger,
            stopping,
        });
        // No libvirt is asked here: it opens by itself.
        tokio::spawn(catch_up(core.clone()));
        let unix = UnixListener::bind(folder.path().join("edge.sock")).expect("a socket");
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = tcp.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let listeners = Listeners {
            unix,
            tcp: Some(tcp),
        };
        let served = tokio::spawn(grpc::serve(core.clone(), listeners, stop.clone()));
        Self {
            core,
            tcp: address,
            stop,
            served,
            folder,
        }
    }

    async fn unix(&self) -> Channel {
        let path = self.folder.path().join("edge.sock");
        let endpoint = Endpoint::from_shared(format!("unix://{}", path.display())).expect("a URI");
        endpoint.connect().await.expect("the socket listens")
    }

    async fn tcp(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.tcp)).expect("a URI");
        endpoint.connect().await.expect("the port listens")
    }

    async fn stop(self) {
        self.stop.cancel();
        let served = tokio::time::timeout(PATIENCE, self.served)
            .await
            .expect("it ends");
        served.expect("no panic").expect("no error");
    }
}

/// Sends a message to a path, whatever belongs there.
async fn send<M: prost::Message + Default + 'static>(
    channel: Channel,
    path: &'static str,
    message: M,
) -> Status {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.expect("the channel is open");
    let codec = ProstCodec::<M, wire::Vm>::default();
    let path = PathAndQuery::from_static(path);
    client
        .unary(Request::new(message), path, codec)
        .await
        .expect_err("a refusal")
}

#[track_caller]
fn is(status: &Status, code: Code, reason: &str) {
    let details = status.get_error_details();
    let info = details
        .error_info()
        .unwrap_or_else(|| panic!("{status:?} has no ErrorInfo"));
    assert_eq!(
        (status.code(), info.reason.as_str()),
        (code, reason),
        "{status:?}"
    );
    assert_eq!(info.domain, "kvmlet");
}

#[tokio::test]
async fn what_tonic_refuses_by_itself_has_a_reason_too() {
    let edge = Edge::start().await;
    let channel = edge.unix().await;
    let unknown = wire::GetVmRequest::default();
    let status = send(
        channel.clone(),
        "/kvmlet.v1.VmService/NoSuchCall",
        unknown.clone(),
    )
    .await;
    is(&status, Code::Unimplemented, "NOT_YET");
    let status = send(channel.clone(), "/kvmlet.v1.NoSuchService/GetVm", unknown).await;
    is(&status, Code::Unimplemented, "NOT_YET");
    // Field 1 of GetVmRequest is a text, here it is a number.
    let other = wire::Hardware {
        vcpus: 1,
        ..Default::default()
    };
    let status = send(channel.clone(), "/kvmlet.v1.VmService/GetVm", other).await;
    is(&status, Code::InvalidArgument, "FIELD_INVALID");
    let large = wire::GetVmRequest {
        vm_id: "x".repeat(5 << 20),
    };
    let status = send(channel.clone(), "/kvmlet.v1.VmService/GetVm", large).await;
    is(&status, Code::ResourceExhausted, "REQUEST_TOO_LARGE");
    // The connection is as good as before.
    let node = NodeServiceClient::new(channel)
        .get_node(wire::GetNodeRequest {})
        .await;
    assert_eq!(
        node.expect("an answer").get_ref().id,
        Uuid::from_u128(1).to_string()
    );
    edge.stop().await;
}

#[tokio::test]
async fn a_bad_field_is_refused_with_its_path_and_an_unknown_id_with_its_reason() {
    let edge = Edge::start().await;
    let mut vms = VmServiceClient::new(edge.tcp().await);
    let malformed = wire::GetVmRequest {
        vm_id: "x".to_owned(),
    };
    let status = vms.get_vm(malformed).await.expect_err("no id");
    is(&status, Code::InvalidArgument, "MALFORMED_ID");
    let details = status.get_error_details();
    assert_eq!(
        details
            .bad_request()
            .expect("a BadRequest")
            .field_violations[0]
            .field,
        "vm_id"
    );
    let unknown = wire::GetVmRequest {
        vm_id: ID.to_owned(),
    };
    is(
        &vms.get_vm(unknown).await.expect_err("no VM"),
        Code::NotFound,
        "VM_NOT_FOUND",
    );
    let listed = vms
        .list_vms(wire::ListVmsRequest::default())
        .await
        .expect("a list");
    assert_eq!(
        (listed.get_ref().vms.len(), listed.get_ref().total_size),
        (0, 0)
    );

    let mut images = ImageServiceClient::new(edge.unix().await);
    let unknown = wire::GetImageRequest {
        image_id: ID.to_owned(),
    };
    is(
        &images.get_image(unknown).await.expect_err("none"),
        Code::NotFound,
        "IMAGE_NOT_FOUND",
    );

    let mut operations = OperationServiceClient::new(edge.unix().await);
    let unknown = wire::GetOperationRequest {
        operation_id: ID.to_owned(),
    };
    let status = operations.get_operation(unknown).await.expect_err("none");
    is(&status, Code::NotFound, "OPERATION_NOT_FOUND");
    let timeout = Some(prost_types::Duration {
        seconds: 601,
        nanos: 0,
    });
    let long = wire::WaitOperationRequest {
        operation_id: ID.to_owned(),
        timeout,
    };
    let status = operations.wait_operation(long).await.expect_err("too long");
    is(&status, Code::InvalidArgument, "FIELD_INVALID");
    edge.stop().await;
}

#[tokio::test]
async fn while_it_starts_a_change_is_refused_with_the_time_to_try_again() {
    let edge = Edge::start().await;
    let mut vms = VmServiceClient::new(edge.unix().await);
    let create = wire::CreateVmRequest {
        name: "a".to_owned(),
        image_id: ID.to_owned(),
        ..Default::default()
    };
    let status = vms.create_vm(create).await.expect_err("it starts");
    is(&status, Code::Unavailable, "STARTING");
    assert!(status.get_error_details().retry_info().is_some());
    edge.stop().await;
}

#[tokio::test]
async fn a_watch_ends_with_a_reason_when_the_server_stops() {
    let edge = Edge::start().await;
    let mut node = NodeServiceClient::new(edge.unix().await);
    let mut stream = node
        .watch_events(wire::WatchEventsRequest::default())
        .await
        .expect("a stream")
        .into_inner();
    let first = stream.message().await.expect("no end yet");
    assert!(first.is_some_and(|first| !first.epoch.is_empty()));
    edge.stop.cancel();
    let status = stream.message().await.expect_err("the end");
    is(&status, Code::Unavailable, "STOPPING");
    edge.stop().await;
}

#[tokio::test]
async fn health_follows_readiness_for_the_whole_and_for_each_service() {
    let edge = Edge::start().await;
    let mut health = HealthClient::new(edge.tcp().await);
    let services = ["", "kvmlet.v1.VmService", "kvmlet.v1.NodeService"];
    let asked = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    for service in services {
        let answer = health
            .check(asked(service))
            .await
            .expect("known from the start");
        assert_eq!(
            answer.get_ref().status(),
            ServingStatus::NotServing,
            "{service:?}"
        );
    }
    let unknown = health
        .check(asked("no.such.Service"))
        .await
        .expect_err("unknown");
    assert_eq!(unknown.code(), Code::NotFound);
    for (readiness, expected) in [
        (Readiness::Ready, ServingStatus::Serving),
        (Readiness::HypervisorAway, ServingStatus::NotServing),
        (Readiness::Ready, ServingStatus::Serving),
        (Readiness::Stopping, ServingStatus::NotServing),
    ] {
        edge.core.ready.send_replace(readiness);
        for service in services {
            let mut watch = health
                .watch(asked(service))
                .await
                .expect("a stream")
                .into_inner();
            let reached = async {
                while let Some(answer) = watch.message().await.expect("the stream goes on") {
                    if answer.status() == expected {
                        return;
                    }
                }
                panic!("the stream ended");
            };
            tokio::time::timeout(PATIENCE, reached)
                .await
                .expect("it follows");
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_watcher_of_health_does_not_keep_the_server_from_stopping() {
    let edge = Edge::start().await;
    let mut health = HealthClient::new(edge.unix().await);
    let asked = HealthCheckRequest {
        service: String::new(),
    };
    let mut watch = health.watch(asked).await.expect("a stream").into_inner();
    assert!(watch.message().await.expect("the first status").is_some());
    edge.stop().await;
}

#[tokio::test]
async fn both_reflections_list_all_services() {
    use tonic_reflection::pb::{v1, v1alpha};
    let edge = Edge::start().await;
    let all = ["Vm", "Image", "Volume", "Console", "Operation", "Node"];
    let channel = edge.unix().await;

    let ask = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let answers = client
        .server_reflection_info(tokio_stream::iter([ask]))
        .await;
    let answer = answers
        .expect("an answer")
        .into_inner()
        .message()
        .await
        .expect("one")
        .expect("one");
    let text = format!("{answer:?}");
    for service in all {
        assert!(
            text.contains(&format!("kvmlet.v1.{service}Service")),
            "{text}"
        );
    }

    let ask = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
                "kvmlet.v1.VmService".to_owned(),
            ),
        ),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let answers = client
        .server_reflection_info(tokio_stream::iter([ask]))
        .await;
    let answer = answers
        .expect("an answer")
        .into_inner()
        .message()
        .await
        .expect("one")
        .expect("one");
    assert!(
        format!("{answer:?}").contains("FileDescriptorResponse"),
        "{answer:?}"
    );
    edge.stop().await;
}
