//! What can be changed, wished and asked of a VM, on guests that run.

use crate::bench::Bench;
use crate::support::api::force;
use crate::support::refusal::refused;
use kvmlet::proto::v1::*;

const LINE: &str = "kvmlet test guest";

/// Changes the fields named by the mask.
async fn update(
    bench: &Bench,
    vm: Vm,
    mask: &[&str],
) -> Result<tonic::Response<Operation>, tonic::Status> {
    let request = UpdateVmRequest {
        vm: Some(vm),
        update_mask: Some(prost_types::FieldMask {
            paths: mask.iter().map(|&path| path.to_owned()).collect(),
        }),
        ..Default::default()
    };
    bench.host.daemon.api().vms().update_vm(request).await
}

pub async fn a_changed_name_is_at_once_and_changed_hardware_is_what_qemu_gets(bench: &Bench) {
    let api = bench.host.daemon.api();
    let guest = bench.guest("idle").await;
    let before = guest.vm().await;
    let process = guest.qemu();
    let wish = Vm {
        id: guest.id.clone(),
        name: "another <name> & 'more'".to_owned(),
        hardware: Some(Hardware {
            vcpus: 2,
            memory_bytes: 192 << 20,
            ..Default::default()
        }),
        ..Default::default()
    };

    api.done(update(bench, wish.clone(), &["name"]).await).await;
    let after = guest.vm().await;
    assert_eq!(after.name, wish.name);
    assert!(after.generation > before.generation);
    assert_eq!(after.state(), VmState::Running);
    assert_eq!(guest.qemu(), process);
    assert_eq!(after.hardware, before.hardware);

    let refusal = refused(update(bench, wish.clone(), &["hardware"]).await);
    assert_eq!(refusal.reason, "WRONG_STATE");
    assert!(guest.has_option("-m", "size=131072k"));
    assert!(guest.has_option("-smp", "1,"));

    guest.force_off().await;
    api.done(update(bench, wish, &["hardware"]).await).await;
    guest.start().await;
    assert!(guest.has_option("-m", "size=196608k"));
    assert!(guest.has_option("-smp", "2,"));
    let hardware = guest.vm().await.hardware.unwrap();
    assert_eq!((hardware.vcpus, hardware.memory_bytes), (2, 192 << 20));
    guest.remove().await;
}

pub async fn a_wished_power_state_is_reached_from_every_other(bench: &Bench) {
    let api = bench.host.daemon.api();
    let guest = bench.guest("acpi-1").await;
    let up = "version 1 kind acpi up";
    guest.has_said(up, 1).await;
    let wish = async |power_state: PowerState, graceful_shutdown| {
        let request = SetVmPowerStateRequest {
            vm_id: guest.id.clone(),
            power_state: power_state as i32,
            graceful_shutdown,
            ..Default::default()
        };
        api.done(api.vms().set_vm_power_state(request).await).await
    };
    let process = guest.qemu();
    for _ in 0..2 {
        wish(PowerState::Paused, false).await;
        guest.is(VmState::Paused, StateReason::Operation).await;
    }
    wish(PowerState::On, false).await;
    guest.is(VmState::Running, StateReason::Operation).await;
    assert_eq!(guest.qemu(), process, "it was resumed");

    let save = SaveVmRequest {
        vm_id: guest.id.clone(),
        ..Default::default()
    };
    api.done(api.vms().save_vm(save).await).await;
    wish(PowerState::On, false).await;
    guest.is(VmState::Running, StateReason::Operation).await;
    assert_eq!(guest.says(up), 1, "its memory was restored");

    let outcome = wish(PowerState::Off, true).await.power_outcome.unwrap();
    assert_eq!(outcome.method(), PowerMethod::Acpi);
    assert!(!outcome.forced);
    assert_eq!(guest.says("powering off"), 1);
    guest.is(VmState::Stopped, StateReason::Operation).await;
    wish(PowerState::On, false).await;
    guest.is(VmState::Running, StateReason::Operation).await;
    let outcome = wish(PowerState::Off, false).await.power_outcome.unwrap();
    assert_eq!(outcome.method(), PowerMethod::Force);
    guest.is(VmState::Stopped, StateReason::Operation).await;
    guest.remove().await;
}

pub async fn a_vm_deleted_while_saved_goes_on_where_it_was(bench: &Bench) {
    let api = bench.host.daemon.api();
    let guest = bench.guest("idle").await;
    guest.has_said(LINE, 1).await;
    let save = SaveVmRequest {
        vm_id: guest.id.clone(),
        ..Default::default()
    };
    api.done(api.vms().save_vm(save).await).await;
    let delete = DeleteVmRequest {
        vm_id: guest.id.clone(),
        ..Default::default()
    };
    api.done(api.vms().delete_vm(delete).await).await;
    guest.has_state(VmState::Deleted).await;
    let recover = RecoverVmRequest {
        vm_id: guest.id.clone(),
        ..Default::default()
    };
    api.done(api.vms().recover_vm(recover).await).await;
    guest.has_state(VmState::Saved).await;
    guest.start().await;
    guest.is(VmState::Running, StateReason::Operation).await;

    // It would say it again if it booted again, as it does now.
    let reset = ResetVmRequest {
        vm_id: guest.id.clone(),
        ..Default::default()
    };
    assert_eq!(guest.says(LINE), 1);
    api.done(api.vms().reset_vm(reset).await).await;
    guest.has_said(LINE, 2).await;
    assert_eq!(guest.says(LINE), 2, "the start was no boot");
    guest.remove().await;
}

pub async fn a_plan_for_a_guest_that_runs_changes_nothing(bench: &Bench) {
    let api = bench.host.daemon.api();
    let other = bench.import(&bench.host, "idle-too").await;
    let guest = bench.guest("idle").await;
    guest.has_said(LINE, 1).await;
    let before = guest.vm().await;
    let process = guest.qemu();
    let mut replace = ReplaceRootVolumeRequest {
        vm_id: guest.id.clone(),
        image_id: other,
        resource_id: crate::support::api::id(),
        start_after: true,
        validate_only: true,
        ..Default::default()
    };
    let mut delete = DeleteVmRequest {
        vm_id: guest.id.clone(),
        validate_only: true,
        ..Default::default()
    };
    let refusal = refused(api.vms().replace_root_volume(replace.clone()).await);
    assert_eq!(refusal.reason, "STOP_POLICY_REQUIRED");
    let refusal = refused(api.vms().delete_vm(delete.clone()).await);
    assert_eq!(refusal.reason, "STOP_POLICY_REQUIRED");

    replace.stop_policy = Some(force());
    delete.stop_policy = Some(force());
    let answer = api.vms().replace_root_volume(replace.clone()).await;
    let ids = planned(answer.unwrap().into_inner());
    assert!(ids.contains(&(PlanAction::Make, replace.resource_id.clone())));
    assert!(ids.contains(&(PlanAction::Keep, before.root_volume_id.clone())));
    let answer = api.vms().delete_vm(delete.clone()).await;
    let ids = planned(answer.unwrap().into_inner());
    assert!(ids.contains(&(PlanAction::Keep, before.root_volume_id.clone())));
    delete.retention = Some(prost_types::Duration::default());
    let answer = api.vms().delete_vm(delete).await;
    let ids = planned(answer.unwrap().into_inner());
    assert!(ids.contains(&(PlanAction::Delete, before.root_volume_id.clone())));

    assert_eq!(guest.vm().await, before);
    assert_eq!(guest.qemu(), process);
    assert_eq!(guest.says(LINE), 1);
    let files = bench.host.files();
    assert!(!files.iter().any(|f| f.contains(&replace.resource_id)));
    let operations = api.all_operations().await;
    let own = operations.iter().filter(|o| o.vm_id == guest.id).count();
    assert_eq!(own, 1, "none but the one that made it");
    guest.remove().await;
}

/// What a plan says will be done, and to what.
fn planned(operation: Operation) -> Vec<(PlanAction, String)> {
    assert_eq!(operation.id, "", "it is not kept");
    let Some(operation::Result::Plan(plan)) = operation.result else {
        panic!("no plan: {operation:?}");
    };
    let items = plan.items.into_iter();
    items.map(|item| (item.action(), item.id)).collect()
}
