//! Replacing what a guest boots from, and going back.

use crate::bench::Bench;
use crate::sector::LINE;
use crate::support::api::{force, graceful, id};
use crate::support::refusal::{Refusal, refused};
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use nix::sys::signal::{Signal, kill};

pub async fn a_replaced_root_boots_the_new_image_and_a_reverted_one_the_old(bench: &Bench) {
    let api = bench.host.daemon.api();
    let second = bench.import(&bench.host, "acpi-2").await;
    let guest = bench.guest("acpi-1").await;
    guest.has_said("version 1 kind acpi up", 1).await;
    let old = guest.vm().await.root_volume_id;

    let mut replace = ReplaceRootVolumeRequest {
        vm_id: guest.id.clone(),
        image_id: second.clone(),
        start_after: true,
        ..Default::default()
    };
    let refusal = refused(api.vms().replace_root_volume(replace.clone()).await);
    assert_eq!(refusal.code, tonic::Code::FailedPrecondition);
    assert_eq!(guest.state().await, VmState::Running);

    replace.stop_policy = Some(graceful());
    let operation = api.done(api.vms().replace_root_volume(replace).await).await;
    let outcome = operation.power_outcome.expect("it was stopped for it");
    assert_eq!(outcome.method(), PowerMethod::Acpi);
    guest.has_said("version 2 kind acpi up", 1).await;
    let vm = guest.vm().await;
    assert_ne!(vm.root_volume_id, old);
    assert_eq!(vm.image_id, second);
    assert!(
        vm.volumes.iter().any(|volume| volume.id == old),
        "the old root is kept: {:?}",
        vm.volumes
    );

    // By force, from a paused guest.
    let pause = PauseVmRequest {
        vm_id: guest.id.clone(),
        ..Default::default()
    };
    api.done(api.vms().pause_vm(pause).await).await;
    let revert = RevertRootVolumeRequest {
        vm_id: guest.id.clone(),
        stop_policy: Some(force()),
        start_after: true,
        ..Default::default()
    };
    api.done(api.vms().revert_root_volume(revert).await).await;
    assert_eq!(guest.vm().await.root_volume_id, old);
    guest.has_said("version 1 kind acpi up", 2).await;
    guest.remove().await;
    let files = bench.host.files();
    assert!(
        !files.iter().any(|file| file.contains(&old)),
        "no root of it is left: {files:?}"
    );
}

pub async fn a_root_is_replaced_without_power_and_after_a_crash(bench: &Bench) {
    let api = bench.host.daemon.api();
    let other = bench.import(&bench.host, "idle-too").await;
    let guest = bench.guest("idle").await;
    let first = guest.vm().await;
    guest.force_off().await;
    let mut replace = ReplaceRootVolumeRequest {
        vm_id: guest.id.clone(),
        image_id: other,
        resource_id: id(),
        ..Default::default()
    };
    api.done(api.vms().replace_root_volume(replace.clone()).await)
        .await;
    let vm = guest.vm().await;
    assert_eq!(vm.state(), VmState::Stopped);
    assert_eq!(vm.root_volume_id, replace.resource_id);
    guest.start().await;
    let command = guest.command_line().join(" ");
    assert!(command.contains(&replace.resource_id));
    assert!(!command.contains(&first.root_volume_id));

    kill(guest.qemu(), Signal::SIGKILL).unwrap();
    guest.is(VmState::Crashed, StateReason::Crashed).await;
    replace.image_id = first.image_id.clone();
    replace.resource_id = id();
    replace.start_after = true;
    api.done(api.vms().replace_root_volume(replace.clone()).await)
        .await;
    guest.is(VmState::Running, StateReason::Operation).await;
    let vm = guest.vm().await;
    assert_eq!(vm.root_volume_id, replace.resource_id);
    assert_eq!(vm.image_id, first.image_id);
    let command = guest.command_line().join(" ");
    assert!(command.contains(&replace.resource_id));
    guest.remove().await;
}

pub async fn a_root_that_does_not_come_up_healthy_is_switched_back(bench: &Bench) {
    let api = bench.host.daemon.api();
    let with_agent = bench.import(&bench.host, "agent-1").await;
    let without = bench.import(&bench.host, "acpi-2").await;
    let guest = bench.guest("idle").await;
    let replace = |image_id: &str, seconds| ReplaceRootVolumeRequest {
        vm_id: guest.id.clone(),
        image_id: image_id.to_owned(),
        resource_id: id(),
        stop_policy: Some(force()),
        start_after: true,
        health_check: Some(HealthCheck {
            sign: HealthSign::GuestAgent as i32,
            timeout: Some(prost_types::Duration { seconds, nanos: 0 }),
        }),
        ..Default::default()
    };
    let good = replace(&with_agent, 120);
    api.done(api.vms().replace_root_volume(good.clone()).await)
        .await;
    guest.is(VmState::Running, StateReason::Operation).await;
    guest.has_said("kind agent up", 1).await;

    let bad = replace(&without, 4);
    let answer = api.vms().replace_root_volume(bad.clone()).await;
    let operation = api.ended(&answer.unwrap().into_inner().id).await;
    assert_eq!(operation.state(), OperationState::Failed);
    assert_eq!(operation.rollback_state(), RollbackState::Done);
    assert_eq!(problem(&operation), "guest_agent_silent");
    let vm = guest.vm().await;
    assert_eq!(vm.state(), VmState::Running);
    assert_eq!(vm.root_volume_id, good.resource_id);
    assert_eq!(vm.image_id, with_agent);
    guest.has_said("kind agent up", 2).await;
    let files = bench.host.files();
    assert!(!files.iter().any(|file| file.contains(&bad.resource_id)));

    // Connected is not enough: it must answer.
    let mute = bench.import(&bench.host, "mute-1").await;
    let stuck = replace(&mute, 60);
    let answer = api.vms().replace_root_volume(stuck).await;
    let operation = api.ended(&answer.unwrap().into_inner().id).await;
    assert_eq!(guest.says("kind mute up"), 1, "{}", guest.console());
    assert_eq!(problem(&operation), "guest_agent_silent");
    assert_eq!(operation.rollback_state(), RollbackState::Done);
    assert_eq!(guest.vm().await.root_volume_id, good.resource_id);
    guest.has_said("kind agent up", 3).await;
    guest.remove().await;
}

/// What a check of a guest's start said was wrong with it.
pub fn problem(operation: &Operation) -> String {
    let refusal = Refusal::from(operation.error.as_ref().unwrap());
    assert_eq!(refusal.reason, "START_FAILED");
    refusal.metadata["problem"].clone()
}

pub async fn a_guest_that_ends_while_its_new_root_is_checked_is_back_on_the_old(bench: &Bench) {
    let api = bench.host.daemon.api();
    let power_off = bench.import(&bench.host, "power-off-later").await;
    let idle = bench.import(&bench.host, "idle-too").await;
    let guest = bench.guest("idle").await;
    guest.has_said(LINE, 1).await;
    let before = guest.vm().await;
    let defined = guest.definition();
    let replace = |image_id: &str| ReplaceRootVolumeRequest {
        vm_id: guest.id.clone(),
        image_id: image_id.to_owned(),
        resource_id: id(),
        stop_policy: Some(force()),
        start_after: true,
        health_check: Some(HealthCheck {
            sign: HealthSign::StillRunning as i32,
            timeout: Some(prost_types::Duration {
                seconds: 600,
                nanos: 0,
            }),
        }),
        ..Default::default()
    };

    // It shuts itself down within the time.
    let answer = api.vms().replace_root_volume(replace(&power_off)).await;
    let shut_down = api.ended(&answer.unwrap().into_inner().id).await;
    assert_eq!(problem(&shut_down), "guest_shut_down");
    guest.is(VmState::Running, StateReason::Operation).await;

    // Its QEMU dies within the time.
    let answer = api.vms().replace_root_volume(replace(&idle)).await;
    let operation = answer.unwrap().into_inner().id;
    until("the check of its health", PATIENCE, async || {
        let request = GetOperationRequest {
            operation_id: operation.clone(),
        };
        let shown = api.operations().get_operation(request).await.unwrap();
        let step = shown.into_inner().steps.pop()?;
        (step.state() == StepState::Running).then_some(())
    })
    .await;
    kill(guest.qemu(), Signal::SIGKILL).unwrap();
    let died = api.ended(&operation).await;
    assert_eq!(problem(&died), "qemu_died");
    guest.is(VmState::Running, StateReason::Operation).await;

    for operation in [shut_down, died] {
        assert_eq!(operation.state(), OperationState::Failed);
        assert_eq!(operation.rollback_state(), RollbackState::Done);
        let steps = operation.steps.iter();
        let steps: Vec<_> = steps.map(|step| (&*step.name, step.state())).collect();
        assert_eq!(
            steps,
            [
                ("cache-image", StepState::Skipped),
                ("make-volume", StepState::Undone),
                ("stop-guest", StepState::Undone),
                ("switch-root", StepState::Undone),
                ("start-guest", StepState::Done),
                ("check-health", StepState::Failed),
            ]
        );
    }
    let after = guest.vm().await;
    assert_eq!(after.volumes, before.volumes);
    assert_eq!(after.generation, before.generation);
    assert_eq!(guest.definition(), defined);
    let command = guest.command_line().join(" ");
    assert!(command.contains(&before.root_volume_id));
    guest.remove().await;
}

pub async fn a_switch_of_the_root_changes_nothing_else_of_the_domain(bench: &Bench) {
    let api = bench.host.daemon.api();
    let other = bench.import(&bench.host, "idle-too").await;
    let guest = bench
        .guest_with("idle", |request| {
            request.description = "a domain with much in it".to_owned();
            request.data_volumes = [8, 16]
                .map(|mib| NewVolume {
                    size_bytes: mib << 20,
                    ..Default::default()
                })
                .into();
            request.nics = ["52:54:00:ab:ce:01", "52:54:00:ab:ce:02"]
                .map(|mac| NewNic {
                    mac: mac.to_owned(),
                    attachment: Some(new_nic::Attachment::User(UserAttachment {})),
                    ..Default::default()
                })
                .into();
            request.vnc = Some(NewVnc { enabled: true });
            request.start = false;
        })
        .await;
    let (before, defined) = (guest.vm().await, guest.definition());
    for needed in [
        "<address type='pci'",
        "<graphics type='vnc'",
        "<boot order='1'/>",
    ] {
        assert!(defined.contains(needed), "{defined}");
    }
    let replace = ReplaceRootVolumeRequest {
        vm_id: guest.id.clone(),
        image_id: other.clone(),
        resource_id: id(),
        ..Default::default()
    };
    api.done(api.vms().replace_root_volume(replace.clone()).await)
        .await;
    // The root's file, what is under it, and its serial number: nothing else.
    let wanted = defined
        .replace(&before.root_volume_id, &replace.resource_id)
        .replace(&before.image_id, &other);
    assert_ne!(wanted, defined);
    assert_eq!(guest.definition(), wanted);
    let after = guest.vm().await;
    assert_eq!(after.nics, before.nics);
    assert_eq!(after.volumes[1..3], before.volumes[1..], "the data volumes");
    assert_eq!(after.vnc, before.vnc);
    assert_eq!(after.hardware, before.hardware);

    guest.start().await;
    guest.has_said(LINE, 1).await;
    let revert = RevertRootVolumeRequest {
        vm_id: guest.id.clone(),
        stop_policy: Some(force()),
        start_after: true,
        ..Default::default()
    };
    api.done(api.vms().revert_root_volume(revert).await).await;
    assert_eq!(guest.definition(), defined, "all is as it was");
    guest.has_said(LINE, 2).await;
    guest.remove().await;
}
