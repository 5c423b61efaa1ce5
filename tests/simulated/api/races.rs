//! Requests that must not all be granted, sent at once.

use crate::api::host::Host;
use crate::support::api::{Api, id, small};
use crate::support::daemon::{Daemon, Setup};
use crate::support::refusal::{Refusal, refused};
use crate::support::{PATIENCE, until};
use kvmlet::model::lifecycle::Resting;
use kvmlet::proto::v1::*;
use nix::sys::signal::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

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

/// A daemon that holds the first request that was compared with the other VMs, and is
/// not published yet, as long as the file is there.
async fn holding(point: &str) -> (Daemon, TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let held = folder.path().join("held");
    let point = format!("{point}=1*return(hold:{})", held.display());
    let daemon = Daemon::start(Setup {
        environment: vec![("FAILPOINTS".to_owned(), point)],
        ..Setup::default()
    })
    .await;
    (daemon, folder, held)
}

/// Waits until the first request is held, gives the second time to overtake it if
/// nothing keeps it from that, and lets the first go on.
async fn let_go(held: &Path) {
    until("the first to be held", PATIENCE, async || {
        held.exists().then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    fs::remove_file(held).unwrap();
}

/// What is compared with other VMs is compared with one that is being admitted, too.
#[tokio::test(flavor = "multi_thread")]
async fn two_vms_that_want_one_address_are_not_compared_at_once() {
    let (daemon, _folder, held) = holding("admission.create").await;
    let (api, image) = (daemon.api(), daemon.image().await);
    let requests = (0..2).map(|_| CreateVmRequest {
        nics: vec![NewNic {
            network_id: "lan".to_owned(),
            mac: "52:54:00:12:34:56".to_owned(),
            ..Default::default()
        }],
        ..small(&image)
    });
    let (outcomes, ()) = tokio::join!(all_at_once(&api, requests.collect()), let_go(&held));
    one_won(&outcomes, "MAC_IN_USE");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_starts_are_not_promised_the_same_memory() {
    let (daemon, _folder, held) = holding("admission.change").await;
    let (api, image) = (daemon.api(), daemon.image().await);
    let most = api.node().await.memory_bytes;
    let requests = (0..2).map(|_| CreateVmRequest {
        hardware: Some(Hardware {
            vcpus: 1,
            memory_bytes: (most / 3 * 2) >> 20 << 20,
            ..Default::default()
        }),
        ..small(&image)
    });
    let mut made = Vec::new();
    for request in requests {
        let answer = api.vms().create_vm(request).await;
        made.push(api.done(answer).await.vm_id);
    }
    let start = |vm_id: &String| StartVmRequest {
        vm_id: vm_id.clone(),
        ..Default::default()
    };
    let (mut first, mut second) = (api.vms(), api.vms());
    let (one, other, ()) = tokio::join!(
        first.start_vm(start(&made[0])),
        second.start_vm(start(&made[1])),
        let_go(&held)
    );
    let outcomes = [api.outcome(one).await, api.outcome(other).await];
    one_won(&outcomes, "HOST_MEMORY");
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
    // Reads are free, whatever libvirt does: each that asked it would wait for seconds.
    let reads = async {
        for _ in 0..500 {
            api.vm(&vm).await.unwrap();
            api.node().await;
        }
    };
    tokio::time::timeout(PATIENCE, reads)
        .await
        .expect("reads that don't wait for libvirt");
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

#[tokio::test(flavor = "multi_thread")]
async fn twenty_imports_of_one_image_are_one() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let request = ImportImageRequest {
        image_id: id(),
        source: daemon.blank("one.qcow2", 1).display().to_string(),
        format: ImageFormat::Qcow2 as i32,
        ..Default::default()
    };
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let (api, request) = (api.clone(), request.clone());
            tokio::spawn(async move { api.images().import_image(request).await })
        })
        .collect();
    let mut told = std::collections::BTreeSet::new();
    for call in calls {
        told.insert(call.await.unwrap().unwrap().into_inner().id);
    }
    assert_eq!(told.len(), 1);
    let ended = api.ended(told.first().unwrap()).await;
    assert_eq!(ended.state(), OperationState::Succeeded);
    assert_eq!(api.all_operations().await.len(), 1);
    let other = ImportImageRequest {
        name: "other".to_owned(),
        ..request
    };
    let refusal = refused(api.images().import_image(other).await);
    assert_eq!(refusal.reason, "IMAGE_EXISTS");
    assert_eq!(refusal.metadata["field"], "name");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_never_deleted_from_under_a_vm_that_is_being_made() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let mut seen = [0, 0];
    for _ in 0..15 {
        let image = daemon.image().await;
        let request = small(&image);
        let (create, delete) = (request.clone(), image.clone());
        let (one, two) = (api.clone(), api.clone());
        let created = tokio::spawn(async move {
            let answer = one.vms().create_vm(create).await;
            one.outcome(answer).await
        });
        let deleted = tokio::spawn(async move {
            let request = DeleteImageRequest {
                image_id: delete,
                ..Default::default()
            };
            let answer = two.images().delete_image(request).await;
            two.outcome(answer).await
        });
        let (created, deleted) = (created.await.unwrap(), deleted.await.unwrap());
        let base = daemon.pool_files().iter().any(|file| file.contains(&image));
        match (&created, &deleted) {
            (Ok(_), Err(refusal)) => {
                assert!(
                    ["IMAGE_IN_USE", "IMAGE_BUSY"].contains(&refusal.reason.as_str()),
                    "{refusal:?}"
                );
                assert!(base, "the VM's base is gone");
                seen[0] += 1;
            }
            (Err(refusal), Ok(_)) => {
                assert!(
                    ["IMAGE_NOT_FOUND", "IMAGE_NOT_READY"].contains(&refusal.reason.as_str()),
                    "{refusal:?}"
                );
                assert!(!base, "the deleted image is there");
                seen[1] += 1;
            }
            both => panic!("both or none: {both:?}"),
        }
    }
    eprintln!("made, deleted: {seen:?}");
}
