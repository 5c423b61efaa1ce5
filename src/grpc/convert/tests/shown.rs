//! What is shown of VMs and operations.

use crate::grpc::convert::{operation, vm};
use crate::model::fault::Fault;
use crate::model::ids::{ImageId, OperationId};
use crate::model::lifecycle::{Resting, Seen, StateReason};
use crate::model::operation::{
    Intent, Operation, OperationKind, OperationResult, OperationState, RollbackState,
};
use crate::model::reason::Reason;
use crate::model::time::Timestamp;
use crate::model::view::View;
use crate::model::vm::{Life, Vm};
use crate::proto::v1 as wire;
use serde_json::json;
use uuid::Uuid;

const HOST: Uuid = Uuid::from_u128(9);

fn record(resting: Resting) -> Vm {
    let id = "01234567-89ab-cdef-0123-456789abcdef";
    let volume = |n: u32, attachment: serde_json::Value| {
        json!({
            "id": Uuid::from_u128(n.into()), "name": "v", "pool": "local", "kind": "root",
            "format": "qcow2", "image_id": id, "size": 1, "actual_size": 1,
            "attachment": attachment, "shareable": false, "qos": {}, "delete_with_vm": true,
            "create_time": 0,
        })
    };
    let attached = |index: u32| json!({"attached": {"device_index": index}});
    let volumes = json!([
        volume(3, json!({"kept": {"until": 5_000_000}})),
        volume(2, attached(1)),
        volume(1, attached(0)),
    ]);
    let created_as = json!({
        "vm_id": null, "name": "a", "description": "", "labels": {}, "annotations": {},
        "package": "", "hardware_profile_id": null, "hardware": {}, "image_id": id,
        "root_volume": {"volume_id": null, "name": "", "pool": null, "size_bytes": 0,
            "image_id": null, "shareable": false, "qos": {}, "delete_with_vm": true},
        "data_volumes": [], "nics": [], "vnc": true, "system_tags": [], "user_tags": [],
        "platform": "", "os": "", "start": false,
    });
    let mut vm: Vm = serde_json::from_value(json!({
        "id": id, "name": "a", "description": "", "labels": {}, "annotations": {},
        "package": "", "platform": "", "os": "", "image_id": id, "hardware_profile_id": null,
        "hardware": {"vcpus": 1, "memory": 1 << 30, "cpu": "auto", "machine": "q35",
            "firmware": "bios", "accelerator": "auto"},
        "hypervisor": "kvm",
        "volumes": volumes,
        "nics": [], "vnc": true, "system_tags": [], "user_tags": [], "generation": 1,
        "create_time": 0, "update_time": 1_500_000, "life": "present",
        "seen": {"resting": "stopped", "reason": "none"}, "last_host_id": null,
        "created_by": id,
        "created_as": created_as,
    }))
    .unwrap();
    vm.seen = Seen {
        resting,
        reason: StateReason::IoError,
    };
    vm
}

fn view(resting: Resting, current: Option<OperationKind>) -> View {
    View {
        vm: Some(record(resting)),
        current: current.map(|kind| (OperationId(Uuid::from_u128(7)), kind)),
        ..View::default()
    }
}

#[test]
fn the_state_is_what_the_operation_does_else_what_the_vm_rests_in() {
    let state = |view: &View| vm::state(view).unwrap();
    assert_eq!(state(&view(Resting::Paused, None)), wire::VmState::Paused);
    let stopping = view(Resting::Running, Some(OperationKind::StopVm));
    assert_eq!(state(&stopping), wire::VmState::Stopping);
    let shown = vm::shown(&stopping, HOST).unwrap();
    assert_eq!(shown.state_reason(), wire::StateReason::Operation);
    assert_eq!(shown.current_operation_id, Uuid::from_u128(7).to_string());
    let away = View {
        away: true,
        ..view(Resting::Running, None)
    };
    assert_eq!(state(&away), wire::VmState::Unknown);
    assert_eq!(vm::shown(&View::default(), HOST), None);
}

#[test]
fn the_host_is_named_only_while_the_vm_has_power() {
    for resting in [Resting::Running, Resting::Paused] {
        let shown = vm::shown(&view(resting, None), HOST).unwrap();
        assert_eq!(shown.host_id, HOST.to_string());
        assert_eq!(shown.state_reason(), wire::StateReason::IoError);
    }
    for resting in [
        Resting::Stopped,
        Resting::Saved,
        Resting::Crashed,
        Resting::Lost,
    ] {
        assert_eq!(vm::shown(&view(resting, None), HOST).unwrap().host_id, "");
    }
}

#[test]
fn volumes_are_shown_by_device_index_and_kept_roots_last() {
    let shown = vm::shown(&view(Resting::Stopped, None), HOST).unwrap();
    let ids: Vec<_> = shown
        .volumes
        .iter()
        .map(|volume| volume.id.clone())
        .collect();
    assert_eq!(ids, [1, 2, 3].map(|n| Uuid::from_u128(n).to_string()));
    assert_eq!(shown.root_volume_id, ids[0]);
    assert_eq!(shown.volumes[2].state(), wire::VolumeState::Kept);
    assert_eq!(shown.volumes[2].expire_time.unwrap().seconds, 5);
    assert_eq!(shown.update_time.unwrap().nanos, 500_000_000);
}

#[test]
fn deleted_vms_are_listed_when_they_are_asked_for() {
    use wire::VmState::{Deleted, Running};
    let read = |states: &[wire::VmState], deleted| {
        let states: Vec<i32> = states.iter().map(|state| *state as i32).collect();
        vm::States::read(&states, deleted).unwrap()
    };
    let plain = read(&[], false);
    assert!(plain.take(Running) && !plain.take(Deleted));
    assert!(read(&[], true).take(Deleted));
    let named = read(&[Deleted], false);
    assert!(named.take(Deleted) && !named.take(Running));
    assert_eq!(
        vm::States::read(&[0], false).unwrap_err().fields[0].field,
        "states[0]"
    );
    assert_eq!(
        vm::States::read(&[2, 77], false).unwrap_err().fields[0].field,
        "states[1]"
    );
}

fn ended(id: Uuid) -> Operation {
    Operation {
        id: OperationId(id),
        vm_id: None,
        image_id: None,
        intent: Intent::StartVm {
            discard_saved_memory: false,
            was_saved: false,
        },
        state: OperationState::Failed,
        rollback: RollbackState::Done,
        steps: Vec::new(),
        progress_percent: 40,
        request_id: None,
        request: json!({}),
        caller: "uid:0".to_owned(),
        create_time: Timestamp(1),
        start_time: None,
        end_time: Some(Timestamp(2)),
        error: Some(Fault::new(Reason::StartFailed, "it did not start")),
        result: Some(OperationResult::Vm(Box::new(record(Resting::Running)))),
        power_outcome: None,
        cancelled: None,
        trace: None,
    }
}

#[test]
fn an_operation_is_shown_with_its_error_and_the_vm_as_it_left_it() {
    let none = |_: ImageId| 0;
    let shown = operation::shown(&ended(Uuid::from_u128(7)), HOST, none);
    assert_eq!(shown.r#type(), wire::OperationType::StartVm);
    let error = shown.error.as_ref().unwrap();
    assert_eq!(
        (error.code, error.message.as_str()),
        (9, "it did not start")
    );
    let Some(wire::operation::Result::Vm(vm)) = &shown.result else {
        panic!("a VM")
    };
    assert_eq!(
        (vm.state(), vm.host_id.as_str()),
        (wire::VmState::Running, &*HOST.to_string())
    );
    assert_eq!(operation::shown(&ended(Uuid::nil()), HOST, none).id, "");
}

#[test]
fn a_vm_that_is_being_made_shows_its_volumes_as_pending() {
    let mut making = view(Resting::Stopped, Some(OperationKind::CreateVm));
    making.vm.as_mut().unwrap().life = Life::Making;
    let shown = vm::shown(&making, HOST).unwrap();
    assert_eq!(shown.state(), wire::VmState::Provisioning);
    assert!(
        shown
            .volumes
            .iter()
            .all(|volume| volume.state() == wire::VolumeState::Pending)
    );
}
