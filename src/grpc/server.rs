//! The server: all services on the listeners that it is given.
//!
//! It binds nothing by itself, so that sockets can come from systemd, and a port
//! in use is found before anything else is begun.

use super::console::ConsoleCalls;
use super::edge::Edge;
use super::health;
use super::image::ImageCalls;
use super::node::NodeCalls;
use super::operation::OperationCalls;
use super::refusals::Refusals;
use super::vm::VmCalls;
use super::volume::VolumeCalls;
use crate::proto::v1::DESCRIPTORS;
use crate::proto::v1::console_service_server::ConsoleServiceServer;
use crate::proto::v1::image_service_server::ImageServiceServer;
use crate::proto::v1::node_service_server::NodeServiceServer;
use crate::proto::v1::operation_service_server::OperationServiceServer;
use crate::proto::v1::vm_service_server::VmServiceServer;
use crate::proto::v1::volume_service_server::VolumeServiceServer;
use crate::service::Core;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// The largest request: annotations and a few hundred fields fit many times.
const LARGEST_REQUEST: usize = 4 << 20;
/// The largest answer: a page of VMs, or a screenshot.
const LARGEST_ANSWER: usize = 64 << 20;
/// Calls at once on one connection; most of them only wait for operations.
const CALLS_PER_CONNECTION: u32 = 1024;
/// Bytes of a request's headers.
const HEADERS: u32 = 16 << 10;

/// All services, by the names that health knows them by.
const SERVICES: [&str; 7] = [
    "",
    VmServiceServer::<VmCalls>::NAME,
    ImageServiceServer::<ImageCalls>::NAME,
    VolumeServiceServer::<VolumeCalls>::NAME,
    ConsoleServiceServer::<ConsoleCalls>::NAME,
    OperationServiceServer::<OperationCalls>::NAME,
    NodeServiceServer::<NodeCalls>::NAME,
];

/// Where callers come in: sockets that are bound and listen already.
#[derive(Debug)]
pub struct Listeners {
    /// The Unix socket.
    pub unix: UnixListener,
    /// A TCP socket, if one is configured.
    pub tcp: Option<TcpListener>,
}

/// Serves until `stop` is cancelled, then lets the calls at work finish.
///
/// A caller that keeps a stream open keeps this from returning: put a deadline
/// on it.
///
/// # Errors
/// A listener that failed for good, or reflection that could not be built.
pub async fn serve(
    core: Arc<Core>,
    listeners: Listeners,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let readiness = core.readiness();
    let reporter = HealthReporter::new();
    // Before the first caller can ask.
    health::tell(&reporter, &SERVICES, ServingStatus::NotServing).await;
    let routes = routes(
        Edge {
            core,
            stop: stop.clone(),
        },
        &reporter,
    )?;

    let unix = server()
        .add_routes(routes.clone())
        .serve_with_incoming_shutdown(
            UnixListenerStream::new(listeners.unix),
            stop.clone().cancelled_owned(),
        );
    let tcp = async {
        match listeners.tcp {
            Some(tcp) => {
                server()
                    .add_routes(routes)
                    .serve_with_incoming_shutdown(
                        TcpListenerStream::new(tcp),
                        stop.clone().cancelled_owned(),
                    )
                    .await
            }
            None => Ok(()),
        }
    };
    let health = async {
        health::follow(reporter, &SERVICES, readiness, stop.clone()).await;
        Ok(())
    };
    tokio::try_join!(unix, tcp, health)?;
    Ok(())
}

type Layers = tower::layer::util::Stack<Refusals, tower::layer::util::Identity>;

fn server() -> Server<Layers> {
    Server::builder()
        .max_concurrent_streams(CALLS_PER_CONNECTION)
        .http2_max_header_list_size(HEADERS)
        // A caller that vanished without a word is noticed and its calls end.
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .tcp_nodelay(true)
        .layer(Refusals)
}

fn routes(
    edge: Edge,
    reporter: &HealthReporter,
) -> Result<Routes, tonic_reflection::server::Error> {
    let health = tonic_health::server::HealthService::from_health_reporter(reporter.clone());
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    macro_rules! limited {
        ($server:ident, $calls:ident) => {
            $server::new($calls(edge.clone()))
                .max_decoding_message_size(LARGEST_REQUEST)
                .max_encoding_message_size(LARGEST_ANSWER)
        };
    }
    Ok(Routes::new(limited!(VmServiceServer, VmCalls))
        .add_service(limited!(ImageServiceServer, ImageCalls))
        .add_service(limited!(VolumeServiceServer, VolumeCalls))
        .add_service(limited!(ConsoleServiceServer, ConsoleCalls))
        .add_service(limited!(OperationServiceServer, OperationCalls))
        .add_service(limited!(NodeServiceServer, NodeCalls))
        .add_service(tonic_health::pb::health_server::HealthServer::new(health))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?))
}
