//! What is in use in a cluster is not removed and not started, and whoever asks is
//! told by whom it is used.

use crate::lab::*;
use crate::support::PATIENCE;
use crate::support::api::id;
use crate::support::ceph::Cluster;
use crate::support::daemon::Daemon;
use crate::support::refusal::Refusal;
use crate::support::until;
use kvmlet::proto::v1::*;
use tonic::Code;

/// Asks for the end of a VM for good, and lets what uses its root be for as long as
/// it takes to be told of it.
async fn not_expunged(daemon: &Daemon, vm: &Vm) -> Refusal {
    let api = daemon.api();
    api.delete(&vm.id).await;
    let refusal = api.expunge(&vm.id).await.expect_err("its root is in use");
    let expected = (Code::FailedPrecondition, "VOLUME_IN_USE", vec![]);
    assert_eq!(refusal.brief(), expected, "{refusal:?}");
    assert!(is_in(shared(), "vms", &vm.root_volume_id));
    refusal
}

/// Expunges a VM that nothing uses any more; the sweeper may be about to.
async fn expunged(daemon: &Daemon, vm: &Vm) {
    let api = daemon.api();
    until("it to be expunged", PATIENCE, async || {
        match api.expunge(&vm.id).await {
            Ok(_) => Some(()),
            Err(refusal) if refusal.reason == "VM_NOT_FOUND" => Some(()),
            Err(refusal) => {
                assert_eq!(refusal.reason, "VM_BUSY", "{refusal:?}");
                None
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_with_a_snapshot_or_a_clone_is_not_expunged() {
    let cluster = shared();
    let daemon = host(cluster).await;
    let api = daemon.api();
    let image = image_on_ceph(&daemon).await;
    let vm = api.made(on_ceph(&image)).await;
    let root = format!("vms/vol-{}", vm.root_volume_id);
    let (snapshot, clone) = (format!("{root}@friday"), format!("data/{}", vm.id));
    cluster.rbd(&["snap", "create", "--no-progress", &snapshot]);
    cluster.rbd(&[
        "clone",
        "--rbd-default-clone-format",
        "2",
        &snapshot,
        &clone,
    ]);
    let refusal = not_expunged(&daemon, &vm).await;
    let used_by = &refusal.metadata["used_by"];
    assert!(used_by.contains("friday"), "{refusal:?}");
    assert!(used_by.contains(&clone), "{refusal:?}");
    assert!(refusal.message.contains(&clone), "{refusal:?}");

    cluster.rbd(&["rm", "--no-progress", &clone]);
    cluster.rbd(&["snap", "rm", "--no-progress", &snapshot]);
    expunged(&daemon, &vm).await;
    assert!(!is_in(cluster, "vms", &vm.root_volume_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_another_client_has_open_is_not_expunged() {
    let cluster = shared();
    let daemon = host(cluster).await;
    let api = daemon.api();
    let image = image_on_ceph(&daemon).await;
    let vm = api.made(on_ceph(&image)).await;
    let watcher = cluster.watch(&format!("vms/vol-{}", vm.root_volume_id));
    let refusal = not_expunged(&daemon, &vm).await;
    assert!(
        refusal.metadata["used_by"].contains(watcher.address()),
        "{refusal:?}"
    );
    drop(watcher);
    expunged(&daemon, &vm).await;
    assert!(!is_in(cluster, "vms", &vm.root_volume_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_it_meanwhile_does_not_keep_a_volume_from_being_expunged() {
    let daemon = started(setup(shared()).at_real_pace()).await;
    a_killed_client_is_waited_for(shared(), daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_killed_is_waited_for_as_long_as_ceph_takes_to_forget_it() {
    let cluster = Cluster::start_as_ceph_is();
    cluster.rbd(&["create", "--size", "8M", "vms/open"]);
    let watcher = cluster.watch("vms/open");
    let address = watcher.address().to_owned();
    watcher.kill9();
    let seen = cluster.watchers("vms/open");
    assert_eq!(seen, [address], "a killed client is not gone at once");
    let daemon = started(setup(&cluster).at_real_pace()).await;
    a_killed_client_is_waited_for(&cluster, daemon).await;
    let folder = cluster.folder().to_owned();
    drop(cluster);
    assert!(!folder.exists(), "the cluster leaves its folder");
}

/// Expunges a VM whose root is held by a client that dies after it was found to hold it.
async fn a_killed_client_is_waited_for(cluster: &Cluster, daemon: Daemon) {
    let api = daemon.api();
    let image = image_on_ceph(&daemon).await;
    let vm = api.made(on_ceph(&image)).await;
    let root = format!("vms/vol-{}", vm.root_volume_id);
    let watcher = cluster.watch(&root);
    api.delete(&vm.id).await;
    let request = ExpungeVmRequest {
        vm_id: vm.id.clone(),
        ..Default::default()
    };
    let begun = api.vms().expunge_vm(request).await.unwrap().into_inner();
    until("the volume to be found in use", PATIENCE, async || {
        let tried = daemon
            .log()
            .lines()
            .any(|line| line.contains("pool call failed") && line.contains(&vm.root_volume_id));
        tried.then_some(())
    })
    .await;
    // Killed, it is known to the cluster for a while.
    watcher.kill9();
    let ended = api.ended(&begun.id).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    assert!(!is_in(cluster, "vms", &vm.root_volume_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_between_two_looks_does_not_keep_a_volume_from_being_expunged() {
    let cluster = shared();
    let mut setup = setup(cluster);
    let held = cluster.folder().join(format!("held-{}", id()));
    let point = format!(
        "expunge-vm.remove-volume.in-use=1*return(hold:{})",
        held.display()
    );
    setup.environment.push(("FAILPOINTS".to_owned(), point));
    let daemon = started(setup).await;
    let api = daemon.api();
    let image = image_on_ceph(&daemon).await;
    let vm = api.made(on_ceph(&image)).await;
    let watcher = cluster.watch(&format!("vms/vol-{}", vm.root_volume_id));
    api.delete(&vm.id).await;
    let request = ExpungeVmRequest {
        vm_id: vm.id.clone(),
        ..Default::default()
    };
    let begun = api.vms().expunge_vm(request).await.unwrap().into_inner();
    until("the volume to be found in use", PATIENCE, async || {
        held.exists().then_some(())
    })
    .await;
    drop(watcher);
    std::fs::remove_file(&held).unwrap();
    let ended = api.ended(&begun.id).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    assert!(!is_in(cluster, "vms", &vm.root_volume_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_is_not_started_while_another_client_has_its_root_open() {
    let cluster = shared();
    let daemon = host(cluster).await;
    let api = daemon.api();
    let image = image_on_ceph(&daemon).await;
    let vm = api.made(on_ceph(&image)).await;
    let watcher = cluster.watch(&format!("vms/vol-{}", vm.root_volume_id));
    let refusal = api.start(&vm.id).await.expect_err("its root is open");
    let expected = (Code::FailedPrecondition, "VOLUME_IN_USE", vec![]);
    assert_eq!(refusal.brief(), expected, "{refusal:?}");
    assert!(
        refusal.metadata["used_by"].contains(watcher.address()),
        "{refusal:?}"
    );
    assert!(refusal.message.contains(watcher.address()), "{refusal:?}");
    assert_eq!(refusal.metadata["volume_id"], vm.root_volume_id);
    assert_eq!(api.state(&vm.id).await, VmState::Stopped);
    // Nor by a desired state, nor after a replacement of another's root.
    let on = SetVmPowerStateRequest {
        vm_id: vm.id.clone(),
        power_state: PowerState::On as i32,
        ..Default::default()
    };
    let answer = api.vms().set_vm_power_state(on).await;
    let refusal = api.outcome(answer).await.expect_err("its root is open");
    assert_eq!(refusal.reason, "VOLUME_IN_USE");
    drop(watcher);
    api.start(&vm.id)
        .await
        .expect("nobody has it open any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_is_open_elsewhere_is_not_started_by_a_revert_and_the_new_one_stays() {
    let cluster = shared();
    let daemon = host(cluster).await;
    let api = daemon.api();
    let image = image_on_ceph(&daemon).await;
    let vm = api.made(on_ceph(&image)).await;
    let replace = ReplaceRootVolumeRequest {
        vm_id: vm.id.clone(),
        image_id: image.clone(),
        system_tags: tag("vms-fast"),
        ..Default::default()
    };
    let replaced = api.replaced(replace).await;
    let watcher = cluster.watch(&format!("vms/vol-{}", vm.root_volume_id));
    let revert = RevertRootVolumeRequest {
        vm_id: vm.id.clone(),
        start_after: true,
        ..Default::default()
    };
    let answer = api.vms().revert_root_volume(revert.clone()).await;
    let refusal = api.outcome(answer).await.expect_err("the old root is open");
    assert_eq!(refusal.reason, "VOLUME_IN_USE", "{refusal:?}");
    assert!(refusal.metadata["used_by"].contains(watcher.address()));
    let after = api.vm(&vm.id).await.unwrap();
    assert_eq!(after.root_volume_id, replaced.root_volume_id);
    assert_eq!(after.state(), VmState::Stopped);
    drop(watcher);
    api.done(api.vms().revert_root_volume(revert).await).await;
    assert_eq!(api.state(&vm.id).await, VmState::Running);
}
