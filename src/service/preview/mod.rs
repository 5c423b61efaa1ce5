//! What a request would do, for validate_only.

mod root;

pub use root::Beyond;

use super::operations::now;
use crate::model::bytes::Bytes;
use crate::model::ids::OperationId;
use crate::model::image::Image;
use crate::model::operation::{
    Intent, Operation, OperationResult, OperationState, Plan, PlanAction, PlanItem,
};
use crate::model::stop::{OnTimeout, StopPolicy};
use crate::model::time::Timestamp;
use crate::model::vm::{Hypervisor, Life, Vm};
use crate::model::volume::{Volume, VolumeAttachment};
use uuid::Uuid;

/// The answer to a validate_only request: a plan, and no id, for it is not kept.
pub fn operation(mut operation: Operation, plan: Plan) -> Operation {
    operation.id = OperationId(Uuid::nil());
    operation.state = OperationState::Succeeded;
    operation.progress_percent = 100;
    operation.end_time = Some(now());
    operation.result = Some(OperationResult::Plan(plan));
    operation
}

/// Nothing would be done: it is so already.
pub fn nothing() -> Plan {
    Plan {
        items: Vec::new(),
        notes: vec!["it is so already; nothing would be done".to_owned()],
    }
}

/// What CreateVm would do.
pub fn create(vm: &Vm) -> Plan {
    let mut items: Vec<PlanItem> = vm
        .volumes
        .iter()
        .map(|volume| volume_item(PlanAction::Make, volume, None))
        .collect();
    items.push(item(
        PlanAction::Make,
        "vm",
        vm,
        match vm.hardware.vcpus {
            1 => format!("1 vCPU, {}", vm.hardware.memory),
            count => format!("{count} vCPUs, {}", vm.hardware.memory),
        },
    ));
    let notes = vec![
        match vm.hypervisor {
            Hypervisor::Kvm => "the VM would run with KVM",
            Hypervisor::Qemu => {
                "the VM would run without KVM, which is slow: this host has none, or it was not asked for"
            }
            Hypervisor::Test => "the VM would be simulated",
        }
        .to_owned(),
    ];
    Plan { items, notes }
}

/// What an operation on a VM that exists would do.
pub fn change(vm: &Vm, operation: &Operation, beyond: Beyond<'_>) -> Plan {
    let mut plan = Plan::default();
    match &operation.intent {
        Intent::DeleteVm {
            stop, retention, ..
        } => {
            stop_item(&mut plan, vm, *stop);
            if retention.is_zero() {
                expunge(&mut plan, vm);
            } else {
                let until = operation.create_time.plus(*retention);
                let mut deleted = item(
                    PlanAction::Keep,
                    "vm",
                    vm,
                    "kept until then for RecoverVm".to_owned(),
                );
                deleted.time = Some(until);
                plan.items.push(deleted);
                for volume in &vm.volumes {
                    if goes_with(volume) {
                        plan.items
                            .push(volume_item(PlanAction::Keep, volume, Some(until)));
                    } else {
                        plan.notes.push(left_in_pool(volume));
                    }
                }
            }
        }
        Intent::ExpungeVm => expunge(&mut plan, vm),
        Intent::ReplaceRootVolume { .. } => root::replace(&mut plan, vm, operation, beyond),
        Intent::RevertRootVolume { .. } => root::revert(&mut plan, vm, operation),
        Intent::CreateVm { .. }
        | Intent::UpdateVm { .. }
        | Intent::RecoverVm
        | Intent::StartVm { .. }
        | Intent::StopVm { .. }
        | Intent::RebootVm
        | Intent::ResetVm
        | Intent::PauseVm
        | Intent::ResumeVm
        | Intent::SaveVm
        | Intent::ImportImage { .. }
        | Intent::DeleteImage
        | Intent::DeleteOrphan { .. }
        | Intent::SetMaintenance { .. } => {
            plan.items.push(item(
                PlanAction::Change,
                "vm",
                vm,
                operation.intent.kind().as_str().to_owned(),
            ));
        }
    }
    plan
}

/// What DeleteImage would do.
pub fn delete_image(image: &Image, pools: &[String]) -> Plan {
    let items = pools
        .iter()
        .map(|pool| PlanItem {
            action: PlanAction::Delete,
            kind: "image".to_owned(),
            id: image.id.to_string(),
            pool: pool.clone(),
            ceph_pool: None,
            size: image.actual_size,
            time: None,
            description: format!("image {}", image.name),
        })
        .collect();
    Plan {
        items,
        notes: Vec::new(),
    }
}

fn expunge(plan: &mut Plan, vm: &Vm) {
    if vm.life != Life::Failed {
        plan.items.push(item(
            PlanAction::Delete,
            "domain",
            vm,
            "with its saved memory, if any".to_owned(),
        ));
    }
    for volume in &vm.volumes {
        if goes_with(volume) {
            plan.items
                .push(volume_item(PlanAction::Delete, volume, None));
        } else {
            plan.notes.push(left_in_pool(volume));
        }
    }
    plan.items
        .push(item(PlanAction::Delete, "vm", vm, "the record".to_owned()));
}

/// Whether a volume is removed when its VM is.
const fn goes_with(volume: &Volume) -> bool {
    volume.delete_with_vm || matches!(volume.attachment, VolumeAttachment::Kept { .. })
}

fn left_in_pool(volume: &Volume) -> String {
    format!(
        "volume {} is left in pool {} when the VM is expunged",
        volume.id, volume.pool
    )
}

fn stop_item(plan: &mut Plan, vm: &Vm, stop: Option<StopPolicy>) {
    if let Some(policy) = stop {
        let how = match policy {
            StopPolicy::Force => "its power is cut".to_owned(),
            StopPolicy::Graceful {
                timeout,
                on_timeout,
                ..
            } => format!(
                "it is asked to stop; after {} s {}",
                timeout.as_secs_f64(),
                match on_timeout {
                    OnTimeout::Fail => "this fails, and it is left running",
                    OnTimeout::Force => "its power is cut",
                }
            ),
        };
        plan.items.push(item(PlanAction::Change, "vm", vm, how));
    }
}

fn item(action: PlanAction, kind: &str, vm: &Vm, description: String) -> PlanItem {
    PlanItem {
        action,
        kind: kind.to_owned(),
        id: vm.id.to_string(),
        pool: String::new(),
        ceph_pool: None,
        size: Bytes::ZERO,
        time: None,
        description,
    }
}

fn volume_item(action: PlanAction, volume: &Volume, time: Option<Timestamp>) -> PlanItem {
    let mut description = match volume.image_id {
        Some(image) => format!("{}, from image {image}", volume.name),
        None => volume.name.clone(),
    };
    if let Some(ceph_pool) = &volume.ceph_pool {
        description.push_str(&format!(", in the Ceph pool {ceph_pool}"));
    }
    PlanItem {
        action,
        kind: "volume".to_owned(),
        id: volume.id.to_string(),
        pool: volume.pool.clone(),
        ceph_pool: volume.ceph_pool.clone(),
        size: volume.size,
        time,
        description,
    }
}
