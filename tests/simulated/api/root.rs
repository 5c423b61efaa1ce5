//! The root volume: replaced, switched back, and the VM's life around it.

use crate::api::host::Host;
use crate::support::api::{Start, force, id};
use crate::support::daemon::Daemon;
use crate::support::refusal::refused;
use crate::support::{PATIENCE, until};
use kvmlet::model::lifecycle::Resting;
use kvmlet::proto::v1::*;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_running_vms_root_is_replaced_kept_and_switched_back() {
    let host = Host::start().await;
    let api = host.api();
    let other = host.another_image().await;
    let (vm, _) = host.vm_in(Resting::Running).await;
    let before = api.vm(&vm).await.unwrap();
    let new_root = id();
    let request = ReplaceRootVolumeRequest {
        vm_id: vm.clone(),
        image_id: other.clone(),
        resource_id: new_root.clone(),
        stop_policy: Some(force()),
        start_after: true,
        user_tags: vec!["second".to_owned()],
        ..Default::default()
    };
    let operation = api
        .done(api.vms().replace_root_volume(request.clone()).await)
        .await;
    assert!(operation.power_outcome.unwrap().forced);
    let after = api.vm(&vm).await.unwrap();
    assert_eq!(after.state(), VmState::Running);
    assert_eq!(after.root_volume_id, new_root);
    assert_eq!(after.image_id, other);
    assert_eq!(after.user_tags, ["second"]);
    assert!(after.generation > before.generation);
    let kept: Vec<_> = after
        .volumes
        .iter()
        .filter(|volume| volume.state() == VolumeState::Kept)
        .collect();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].id, before.root_volume_id);
    assert!(kept[0].expire_time.is_some());
    let xml = host.domain(&vm).xml_desc(0).unwrap();
    let has = |volume: &str| xml.contains(&format!("/{volume}.qcow2'"));
    assert!(has(&new_root) && !has(&before.root_volume_id), "{xml}");

    let again = api.vms().replace_root_volume(request.clone()).await;
    assert_eq!(again.unwrap().get_ref().id, operation.id, "a repeat");
    let differs = ReplaceRootVolumeRequest {
        image_id: before.image_id.clone(),
        ..request
    };
    let refusal = refused(api.vms().replace_root_volume(differs).await);
    assert_eq!(
        refusal.brief(),
        (Code::AlreadyExists, "VOLUME_EXISTS", vec!["resource_id"])
    );

    let revert = || RevertRootVolumeRequest {
        vm_id: vm.clone(),
        stop_policy: Some(force()),
        ..Default::default()
    };
    api.done(api.vms().revert_root_volume(revert()).await).await;
    let back = api.vm(&vm).await.unwrap();
    assert_eq!(back.state(), VmState::Stopped);
    assert_eq!(back.root_volume_id, before.root_volume_id);
    assert_eq!(back.image_id, before.image_id);
    api.done(api.vms().revert_root_volume(revert()).await).await;
    let forth = api.vm(&vm).await.unwrap();
    assert_eq!(forth.root_volume_id, new_root);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_does_not_come_up_healthy_is_switched_back_by_itself() {
    let host = Host::start().await;
    let api = host.api();
    let other = host.another_image().await;
    let (vm, _) = host.vm_in(Resting::Running).await;
    let before = api.vm(&vm).await.unwrap();
    let volumes = host.daemon.pool_files();
    let replace = |sign: HealthSign| ReplaceRootVolumeRequest {
        vm_id: vm.clone(),
        image_id: other.clone(),
        stop_policy: Some(force()),
        start_after: true,
        health_check: Some(HealthCheck {
            sign: sign.into(),
            timeout: Some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
        }),
        ..Default::default()
    };
    // A simulated guest has no agent.
    let started = api
        .vms()
        .replace_root_volume(replace(HealthSign::GuestAgent))
        .await;
    let operation = api.ended(&started.unwrap().get_ref().id).await;
    assert_eq!(operation.state(), OperationState::Failed);
    assert_eq!(operation.rollback_state(), RollbackState::Done);
    let steps: Vec<_> = operation
        .steps
        .iter()
        .map(|step| (step.name.as_str(), step.state()))
        .collect();
    assert_eq!(
        steps,
        [
            ("cache-image", StepState::Skipped),
            ("make-volume", StepState::Undone),
            ("stop-guest", StepState::Undone),
            ("switch-root", StepState::Undone),
            ("start-guest", StepState::Undone),
            ("check-health", StepState::Failed),
        ]
    );
    let after = api.vm(&vm).await.unwrap();
    assert_eq!(after.state(), VmState::Running, "it ran before");
    assert_eq!(after.state_reason(), StateReason::Operation);
    assert_eq!(after.root_volume_id, before.root_volume_id);
    assert_eq!(after.volumes.len(), before.volumes.len());
    assert_eq!(after.generation, before.generation);
    assert_eq!(host.daemon.pool_files(), volumes, "nothing is left");

    api.done(
        api.vms()
            .replace_root_volume(replace(HealthSign::StillRunning))
            .await,
    )
    .await;
    let after = api.vm(&vm).await.unwrap();
    assert_eq!(after.state(), VmState::Running);
    assert_ne!(after.root_volume_id, before.root_volume_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_that_a_kill_cuts_off_leaves_the_started_guest_alone_and_can_be_undone() {
    let mut host = Host::start().await;
    let other = host.another_image().await;
    let (vm, _) = host.vm_in(Resting::Running).await;
    let before = host.api().vm(&vm).await.unwrap();
    let volumes = host.daemon.pool_files();
    let request = ReplaceRootVolumeRequest {
        vm_id: vm.clone(),
        image_id: other.clone(),
        stop_policy: Some(force()),
        start_after: true,
        health_check: Some(HealthCheck {
            sign: HealthSign::StillRunning.into(),
            timeout: Some(prost_types::Duration {
                seconds: 600,
                nanos: 0,
            }),
        }),
        ..Default::default()
    };
    let begun = host.api().vms().replace_root_volume(request).await;
    let operation = begun.unwrap().into_inner().id;
    let checking = async |host: &Host| {
        let api = host.api();
        until("the check of its health", PATIENCE, async || {
            let request = GetOperationRequest {
                operation_id: operation.clone(),
            };
            let shown = api.operations().get_operation(request).await.unwrap();
            let step = shown.into_inner().steps.pop()?;
            (step.state() == StepState::Running).then_some(())
        })
        .await;
    };
    checking(&host).await;
    let started = host.domain(&vm).id();
    host.daemon.kill9();
    host.daemon.restart().await;
    checking(&host).await;
    assert_eq!(host.domain(&vm).id(), started, "it was not started anew");

    let cancel = CancelOperationRequest {
        operation_id: operation.clone(),
    };
    let api = host.api();
    api.operations().cancel_operation(cancel).await.unwrap();
    let ended = api.ended(&operation).await;
    assert_eq!(ended.state(), OperationState::Cancelled);
    assert_eq!(ended.rollback_state(), RollbackState::Done);
    let after = api.vm(&vm).await.unwrap();
    assert_eq!(after.state(), VmState::Running, "it ran before");
    assert_eq!(after.root_volume_id, before.root_volume_id);
    assert_eq!(host.daemon.pool_files(), volumes, "nothing is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_root_is_as_large_as_its_policy_says() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let small = daemon.image().await;
    let large = daemon.blank("large.qcow2", 4);
    let large = api.import(&large).await;
    let vm = api.create(&large, Start::No).await;
    let request = |size_policy: SizePolicy, size_bytes| ReplaceRootVolumeRequest {
        vm_id: vm.clone(),
        image_id: small.clone(),
        size_policy: size_policy as i32,
        size_bytes,
        ..Default::default()
    };
    for (policy, asked, mib) in [
        (SizePolicy::KeepLarger, 0, 4),
        (SizePolicy::Exact, 9 << 20, 9),
        (SizePolicy::Unspecified, 0, 9),
        (SizePolicy::Image, 0, 1),
    ] {
        let answer = api.vms().replace_root_volume(request(policy, asked)).await;
        api.done(answer).await;
        let now = api.vm(&vm).await.unwrap();
        assert_eq!(now.volumes[0].size_bytes, mib << 20, "{policy:?}");
    }
    for (policy, asked, reason) in [
        (SizePolicy::Exact, 0, "FIELD_REQUIRED"),
        (SizePolicy::Exact, 512 << 10, "VOLUME_TOO_SMALL"),
        (SizePolicy::Image, 9 << 20, "FIELD_INVALID"),
    ] {
        let answer = api.vms().replace_root_volume(request(policy, asked)).await;
        let refusal = refused(answer);
        assert_eq!(
            refusal.brief(),
            (Code::InvalidArgument, reason, vec!["size_bytes"]),
            "{policy:?}"
        );
    }
    let tagged = ReplaceRootVolumeRequest {
        system_tags: vec!["ceph::rootPoolName::fast".to_owned()],
        ..request(SizePolicy::Image, 0)
    };
    let refusal = refused(api.vms().replace_root_volume(tagged).await);
    assert_eq!(refusal.reason, "POOL_NOT_CEPH");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_vm_that_is_deleted_and_recovered_is_saved_and_restored() {
    let host = Host::start().await;
    let api = host.api();
    let (vm, _) = host.vm_in(Resting::Saved).await;
    let delete = DeleteVmRequest {
        vm_id: vm.clone(),
        ..Default::default()
    };
    api.done(api.vms().delete_vm(delete).await).await;
    let deleted = api.vm(&vm).await.unwrap();
    assert_eq!(deleted.state(), VmState::Deleted);
    assert!(deleted.delete_time.is_some() && deleted.expunge_time.is_some());
    let recover = RecoverVmRequest {
        vm_id: vm.clone(),
        ..Default::default()
    };
    api.done(api.vms().recover_vm(recover).await).await;
    let back = api.vm(&vm).await.unwrap();
    assert_eq!(back.state(), VmState::Saved);
    assert_eq!((back.delete_time, back.expunge_time), (None, None));
    let start = StartVmRequest {
        vm_id: vm.clone(),
        ..Default::default()
    };
    api.done(api.vms().start_vm(start).await).await;
    assert!(!host.domain(&vm).has_managed_save(0).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_expunged_leaves_only_what_is_to_be_left() {
    let host = Host::start().await;
    let api = host.api();
    let request = CreateVmRequest {
        data_volumes: vec![NewVolume {
            size_bytes: 1 << 20,
            delete_with_vm: Some(false),
            ..Default::default()
        }],
        ..crate::support::api::small(&host.image)
    };
    let before = host.daemon.pool_files();
    api.done(api.vms().create_vm(request.clone()).await).await;
    let vm = api.vm(&request.vm_id).await.unwrap();
    let delete = DeleteVmRequest {
        vm_id: vm.id.clone(),
        ..Default::default()
    };
    api.done(api.vms().delete_vm(delete).await).await;
    let expunge = ExpungeVmRequest {
        request_id: id(),
        vm_id: vm.id.clone(),
        ..Default::default()
    };
    let first = api.done(api.vms().expunge_vm(expunge.clone()).await).await;
    let again = api.done(api.vms().expunge_vm(expunge.clone()).await).await;
    assert_eq!(again.id, first.id);
    assert!(!host.has_domain(&vm.id));
    assert_eq!(refused(api.vm(&vm.id).await).reason, "VM_NOT_FOUND");
    let after = host.daemon.pool_files();
    let left: Vec<_> = after.iter().filter(|file| !before.contains(file)).collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left[0].contains(&vm.volumes[1].id), "{left:?}");
    // The id is free again.
    api.done(
        api.vms()
            .create_vm(CreateVmRequest {
                data_volumes: Vec::new(),
                ..request
            })
            .await,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_screenshot_is_a_png_and_needs_power() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let image = daemon.image().await;
    let (on, off) = (
        api.create(&image, Start::Yes).await,
        api.create(&image, Start::No).await,
    );
    let ask = |vm_id: String| CaptureScreenshotRequest { vm_id };
    let shot = api
        .consoles()
        .capture_screenshot(ask(on.clone()))
        .await
        .unwrap();
    assert!(shot.get_ref().png.starts_with(b"\x89PNG\r\n\x1a\n"));
    let refusal = refused(api.consoles().capture_screenshot(ask(off.clone())).await);
    assert_eq!(refusal.reason, "WRONG_STATE");
    let vnc = GetVncConsoleRequest { vm_id: on };
    let refusal = refused(api.consoles().get_vnc_console(vnc).await);
    assert_eq!(refusal.reason, "CONSOLE_UNSUPPORTED");
}
