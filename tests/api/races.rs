//! Requests that must not all be granted, sent at once.

use crate::host::Host;
use crate::support::api::{Api, id, small};
use crate::support::daemon::{Daemon, Setup};
use crate::support::refusal::Refusal;
use crate::support::{PATIENCE, until};
use kvmlet::model::lifecycle::Resting;
use kvmlet::proto::v1::*;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// Sends them all at once; returns what came of each.
async fn all_at_once(api: &Api, requests: Vec<CreateVmRequest>) -> Vec<Result<Operation, Refusal>> {
    let calls: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let api = api.clone();
            tokio::spawn(async move {
                let answer = api.vms().create_vm(request).await;
                api.outcome(answer).await
            })
        })
        .collect();
    let mut outcomes = Vec::new();
    for call in calls {
        outcomes.push(call.await.unwrap());
    }
    outcomes
}

fn one_won(outcomes: &[Result<Operation, Refusal>], reason: &str) {
    let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(won, 1, "{outcomes:?}");
    for refusal in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert_eq!(refusal.reason, reason, "{refusal:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_twenty_vms_that_want_one_address_one_gets_it() {
    let daemon = Daemon::simulated().await;
    let image = daemon.image().await;
    let requests = (0..20).map(|_| CreateVmRequest {
        nics: vec![NewNic {
            network_id: "lan".to_owned(),
            mac: "52:54:00:12:34:56".to_owned(),
            ..Default::default()
        }],
        ..small(&image)
    });
    one_won(
        &all_at_once(&daemon.api(), requests.collect()).await,
        "MAC_IN_USE",
    );
    assert_eq!(daemon.api().all_vms().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_twenty_vms_that_want_one_volume_id_one_gets_it() {
    let daemon = Daemon::simulated().await;
    let image = daemon.image().await;
    let volume_id = id();
    let requests = (0..20).map(|_| CreateVmRequest {
        root_volume: Some(NewVolume {
            volume_id: volume_id.clone(),
            ..Default::default()
        }),
        ..small(&image)
    });
    one_won(
        &all_at_once(&daemon.api(), requests.collect()).await,
        "VOLUME_EXISTS",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_twenty_different_vms_with_one_id_one_is_made() {
    let daemon = Daemon::simulated().await;
    let image = daemon.image().await;
    let vm_id = id();
    let requests = (0..20).map(|number| CreateVmRequest {
        vm_id: vm_id.clone(),
        name: number.to_string(),
        ..small(&image)
    });
    one_won(
        &all_at_once(&daemon.api(), requests.collect()).await,
        "VM_EXISTS",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_memory_is_not_promised_twice() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let image = daemon.image().await;
    let host = api.node().await.memory_bytes;
    let each = (host / 4) >> 20 << 20;
    let requests = (0..12).map(|_| CreateVmRequest {
        start: true,
        hardware: Some(Hardware {
            vcpus: 1,
            memory_bytes: each,
            ..Default::default()
        }),
        ..small(&image)
    });
    let outcomes = all_at_once(&api, requests.collect()).await;
    let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(won, 4, "{outcomes:?}");
    let node = api.node().await;
    assert!(node.promised_memory_bytes <= host);
    assert_eq!(node.promised_memory_bytes, 4 * each);
    for refusal in outcomes.into_iter().filter_map(Result::err) {
        assert_eq!(refusal.reason, "HOST_MEMORY");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_says_when_to_come_again() {
    let daemon = Daemon::start(Setup::default().with("operations", "queue = 1")).await;
    let image = daemon.image().await;
    let requests = (0..50).map(|_| small(&image)).collect();
    let outcomes = all_at_once(&daemon.api(), requests).await;
    let refused: Vec<_> = outcomes.iter().filter_map(|o| o.as_ref().err()).collect();
    assert!(!refused.is_empty() && refused.len() < 50);
    for refusal in refused {
        assert_eq!(refusal.reason, "QUEUE_FULL");
        assert!(refusal.retry.is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_libvirt_that_hangs_holds_up_no_reader_and_is_found_again() {
    let host = Host::start().await;
    let api = host.api();
    let (vm, _) = host.vm_in(Resting::Stopped).await;
    host.libvirtd.signal(Signal::SIGSTOP);
    let start = StartVmRequest {
        vm_id: vm.clone(),
        ..Default::default()
    };
    let asked = {
        let api = api.clone();
        tokio::spawn(async move { api.vms().start_vm(start).await })
    };
    // Reads are free, whatever libvirt does: far more than it could answer.
    let begin = Instant::now();
    for _ in 0..500 {
        api.vm(&vm).await.unwrap();
        api.node().await;
    }
    assert!(begin.elapsed() < Duration::from_secs(10));
    host.libvirtd.signal(Signal::SIGCONT);
    let answer = asked.await.unwrap();
    // It waited, or was refused; it was not lost.
    let started = api.outcome(answer).await;
    host.daemon.wait_until_serving().await;
    let agrees = until("agreement with libvirt", PATIENCE, async || {
        let state = api.state(&vm).await;
        let active = host.domain(&vm).is_active().unwrap();
        ((state == VmState::Running) == active).then_some(active)
    })
    .await;
    assert_eq!(started.is_ok(), agrees, "{started:?}");
}
