//! The daemon as a process: its start, its end, its socket, its health.

use crate::api::host::Host;
use crate::support::api::{Start, small};
use crate::support::daemon::Daemon;
use crate::support::refusal::refused;
use crate::support::{PATIENCE, until};
use kvmlet::model::lifecycle::Resting;
use kvmlet::proto::v1::{StopVmRequest, VmState};
use std::os::unix::fs::PermissionsExt;
use tokio_stream::iter;
use tonic::Code;

const SERVICES: [&str; 6] = [
    "kvmlet.v1.ConsoleService",
    "kvmlet.v1.ImageService",
    "kvmlet.v1.NodeService",
    "kvmlet.v1.OperationService",
    "kvmlet.v1.VmService",
    "kvmlet.v1.VolumeService",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_made_started_and_known_after_a_restart() {
    let mut daemon = Daemon::simulated().await;
    let image = daemon.image().await;
    let vm = daemon.api().create(&image, Start::Yes).await;
    assert_eq!(daemon.api().state(&vm).await, VmState::Running);
    daemon.stop().await;
    assert!(!daemon.socket().exists(), "its socket goes with it");
    daemon.restart().await;
    // The simulated host went with the process.
    assert_eq!(daemon.api().state(&vm).await, VmState::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_stop_nor_a_kill_touches_a_guest() {
    let mut host = Host::start().await;
    let (running, _) = host.vm_in(Resting::Running).await;
    let (paused, _) = host.vm_in(Resting::Paused).await;
    for kill in [false, true] {
        if kill {
            host.daemon.kill9();
        } else {
            host.daemon.stop().await;
        }
        assert!(host.domain(&running).is_active().unwrap());
        assert!(host.domain(&paused).is_active().unwrap());
        host.daemon.restart().await;
        assert_eq!(host.api().state(&running).await, VmState::Running);
        assert_eq!(host.api().state(&paused).await, VmState::Paused);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_while_it_was_away_is_found_when_it_comes_back() {
    let mut host = Host::start().await;
    let (gone, _) = host.vm_in(Resting::Stopped).await;
    let (stopped, _) = host.vm_in(Resting::Running).await;
    host.daemon.stop().await;
    host.domain(&gone).undefine().unwrap();
    host.domain(&stopped).destroy().unwrap();
    host.daemon.restart().await;
    assert_eq!(host.api().state(&gone).await, VmState::Lost);
    assert_eq!(host.api().state(&stopped).await, VmState::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sockets_mode_lets_only_owner_and_group_in() {
    let daemon = Daemon::simulated().await;
    let mode = daemon.socket().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o660);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_socket_or_journal_is_refused() {
    let daemon = Daemon::simulated().await;
    let (code, words) = daemon.second(|text| text);
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("another daemon answers there"), "{words}");
    let (code, words) = daemon.second(|text| text.replace(".sock", "-2.sock"));
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("journal"), "{words}");
    assert!(daemon.api().serving("").await.unwrap(), "the first goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_libvirt_and_changes_are_refused_while_it_is_away() {
    let mut host = Host::start().await;
    let api = host.api();
    let (vm, _) = host.vm_in(Resting::Stopped).await;
    for service in SERVICES {
        assert!(api.serving(service).await.unwrap(), "{service}");
    }
    host.libvirtd.kill9();
    until("NOT_SERVING", PATIENCE, async || {
        (!api.serving("").await.unwrap()).then_some(())
    })
    .await;
    assert!(!api.serving(SERVICES[4]).await.unwrap());
    let create = refused(api.vms().create_vm(small(&host.image)).await);
    let stop = StopVmRequest {
        vm_id: vm.clone(),
        ..Default::default()
    };
    let stop = refused(api.vms().stop_vm(stop).await);
    for refusal in [create, stop] {
        assert_eq!(
            (refusal.code, refusal.reason.as_str()),
            (Code::Unavailable, "HYPERVISOR_AWAY")
        );
        assert!(refusal.retry.is_some(), "{refusal:?}");
    }
    let node = api.node().await;
    let ready = node.conditions.iter().find(|c| c.r#type == "LibvirtReady");
    assert!(!ready.unwrap().status);
    assert_eq!(api.all_vms().await.len(), 1);
    host.libvirtd.restart();
    host.connection = host.libvirtd.connect();
    host.daemon.wait_until_serving().await;
    // That libvirt kept no domain.
    assert_eq!(api.state(&vm).await, VmState::Lost);
    let (again, _) = host.vm_in(Resting::Running).await;
    assert!(host.domain(&again).is_active().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_every_service_in_both_versions() {
    let daemon = Daemon::simulated().await;
    macro_rules! services {
        ($version:ident) => {{
            use tonic_reflection::pb::$version as pb;
            let mut client =
                pb::server_reflection_client::ServerReflectionClient::new(daemon.api().channel);
            let request = pb::ServerReflectionRequest {
                host: String::new(),
                message_request: Some(pb::server_reflection_request::MessageRequest::ListServices(
                    String::new(),
                )),
            };
            let mut answers = client
                .server_reflection_info(iter([request]))
                .await
                .unwrap()
                .into_inner();
            let answer = answers.message().await.unwrap().unwrap();
            match answer.message_response.unwrap() {
                pb::server_reflection_response::MessageResponse::ListServicesResponse(list) => {
                    list.service.into_iter().map(|s| s.name).collect::<Vec<_>>()
                }
                other => panic!("{other:?}"),
            }
        }};
    }
    for listed in [services!(v1), services!(v1alpha)] {
        for service in SERVICES.iter().chain(&["grpc.health.v1.Health"]) {
            assert!(listed.iter().any(|name| name == service), "{listed:?}");
        }
    }
}
