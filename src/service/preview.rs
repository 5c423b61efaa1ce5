//! What a request would do, for validate_only.

use super::operations::now;
use crate::model::bytes::Bytes;
use crate::model::ids::OperationId;
use crate::model::image::Image;
use crate::model::operation::{
    Intent, Operation, OperationResult, OperationState, Plan, PlanAction, PlanItem,
};
use crate::model::stop::StopPolicy;
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
pub fn change(vm: &Vm, operation: &Operation) -> Plan {
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
                    plan.items
                        .push(volume_item(PlanAction::Keep, volume, Some(until)));
                }
            }
        }
        Intent::ExpungeVm => expunge(&mut plan, vm),
        Intent::ReplaceRootVolume {
            new_root,
            after,
            stop,
            start_after,
            ..
        } => {
            plan.items
                .push(volume_item(PlanAction::Make, new_root, None));
            stop_item(&mut plan, vm, *stop);
            switch(&mut plan, vm, after, *start_after);
        }
        Intent::RevertRootVolume {
            after,
            stop,
            start_after,
            ..
        } => {
            stop_item(&mut plan, vm, *stop);
            switch(&mut plan, vm, after, *start_after);
        }
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
        | Intent::DeleteOrphan { .. } => {
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

fn switch(plan: &mut Plan, vm: &Vm, after: &Vm, start_after: bool) {
    plan.items.push(item(
        PlanAction::Change,
        "domain",
        vm,
        "the root volume is switched".to_owned(),
    ));
    for volume in &after.volumes {
        if let VolumeAttachment::Kept { until } = volume.attachment {
            plan.items
                .push(volume_item(PlanAction::Keep, volume, Some(until)));
        }
    }
    if start_after {
        plan.items
            .push(item(PlanAction::Change, "vm", vm, "started".to_owned()));
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
        let kept_root = matches!(volume.attachment, VolumeAttachment::Kept { .. });
        if volume.delete_with_vm || kept_root {
            plan.items
                .push(volume_item(PlanAction::Delete, volume, None));
        } else {
            plan.notes.push(format!(
                "volume {} is left in pool {}",
                volume.id, volume.pool
            ));
        }
    }
    plan.items
        .push(item(PlanAction::Delete, "vm", vm, "the record".to_owned()));
}

fn stop_item(plan: &mut Plan, vm: &Vm, stop: Option<StopPolicy>) {
    if let Some(policy) = stop {
        let how = match policy {
            StopPolicy::Force => "its power is cut",
            StopPolicy::Graceful { .. } => "it is asked to stop",
        };
        plan.items
            .push(item(PlanAction::Change, "vm", vm, how.to_owned()));
    }
}

fn item(action: PlanAction, kind: &str, vm: &Vm, description: String) -> PlanItem {
    PlanItem {
        action,
        kind: kind.to_owned(),
        id: vm.id.to_string(),
        pool: String::new(),
        size: Bytes::ZERO,
        time: None,
        description,
    }
}

fn volume_item(action: PlanAction, volume: &Volume, time: Option<Timestamp>) -> PlanItem {
    PlanItem {
        action,
        kind: "volume".to_owned(),
        id: volume.id.to_string(),
        pool: volume.pool.clone(),
        size: volume.size,
        time,
        description: match volume.image_id {
            Some(image) => format!("{}, from image {image}", volume.name),
            None => volume.name.clone(),
        },
    }
}
