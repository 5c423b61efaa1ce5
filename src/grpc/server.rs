//! The server: all services on the listeners that it is given.
//!
//! It binds nothing by itself, so that sockets can come from systemd, and a port
//! in use is found before anything else is begun. Who comes in is for the door to
//! say, and which calls he may make for [`access`](super::access).

use super::access::Guard;
use super::console::ConsoleCalls;
use super::edge::Edge;
use super::health;
use super::image::ImageCalls;
use super::node::NodeCalls;
use super::operation::OperationCalls;
use super::vm::VmCalls;
use super::volume::VolumeCalls;
use crate::door::{self, Limits, Listeners};
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
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// The largest answer: a page of VMs, or a screenshot.
const LARGEST_ANSWER: usize = 64 << 20;
/// Resets of calls by a peer that wait to be handled: more are an attack
/// (CVE-2023-44487), and end the connection.
const RESETS: usize = 64;
/// What a peer may send ahead of what is read, on one call and on one connection.
const CALL_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
/// How many pings there are in the time that a peer may be silent.
const PINGS: u32 = 3;

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

/// For how long what was let in last is served before connections are closed: HTTP/2
/// drops one that has not shaken hands yet. Others wait in the sockets' queues, for the
/// next agent, where systemd holds the socket.
const LAST_GUESTS: Duration = Duration::from_millis(200);

/// When connections are to be closed: nobody is let in any more, and nobody is on the
/// doorstep.
async fn shut(stop: CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(LAST_GUESTS).await;
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
    let door = core.door.clone();
    let limits = door.limits();
    let routes = routes(
        Edge {
            core,
            stop: stop.clone(),
        },
        &reporter,
        &limits,
    )?;
    // Its end would end the connections at once.
    let connections = door::connections(&door, listeners, &stop).chain(tokio_stream::pending());
    let served = server(&limits, Guard(door))
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections, shut(stop.clone()));
    let health = async {
        health::follow(reporter, &SERVICES, readiness, stop.clone()).await;
        Ok(())
    };
    tokio::try_join!(served, health)?;
    Ok(())
}

type Layers = tower::layer::util::Stack<Guard, tower::layer::util::Identity>;

fn server(limits: &Limits, guard: Guard) -> Server<Layers> {
    let header = u32::try_from(limits.header_size.get()).unwrap_or(u32::MAX);
    Server::builder()
        .max_concurrent_streams(limits.calls_per_connection)
        .http2_max_header_list_size(header)
        .initial_stream_window_size(CALL_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_pending_accept_reset_streams(Some(RESETS))
        // A caller that vanished without a word is noticed and its calls end.
        .http2_keepalive_interval(Some(limits.silence / PINGS))
        .http2_keepalive_timeout(Some(limits.silence / PINGS))
        .layer(guard)
}

fn routes(
    edge: Edge,
    reporter: &HealthReporter,
    limits: &Limits,
) -> Result<Routes, tonic_reflection::server::Error> {
    let health = tonic_health::server::HealthService::from_health_reporter(reporter.clone());
    let largest = usize::try_from(limits.request_size.get()).unwrap_or(usize::MAX);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    macro_rules! limited {
        ($server:ident, $calls:ident) => {
            $server::new($calls(edge.clone()))
                .max_decoding_message_size(largest)
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
