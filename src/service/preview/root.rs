//! What ReplaceRootVolume and RevertRootVolume would do, in the order in which it
//! happens: each volume with its size and pool, and of each former root when it is
//! deleted.

use super::{item, stop_item, volume_item};
use crate::model::image::Image;
use crate::model::operation::{Intent, Operation, Plan, PlanAction, PlanItem};
use crate::model::request::{HealthCheck, HealthSign};
use crate::model::stop::StopPolicy;
use crate::model::time::Timestamp;
use crate::model::vm::Vm;
use crate::model::volume::VolumeAttachment;

/// An image that has to be copied into a pool first.
pub struct Copied<'a> {
    /// The image.
    pub image: &'a Image,
    /// The pool that needs it.
    pub pool: &'a str,
}

/// The items of a replacement.
pub(super) fn replace(plan: &mut Plan, vm: &Vm, operation: &Operation, copied: Option<Copied<'_>>) {
    let Intent::ReplaceRootVolume {
        new_root,
        after,
        stop,
        start_after,
        health_check,
        ..
    } = &operation.intent
    else {
        return;
    };
    if let Some(Copied { image, pool }) = copied {
        plan.items.push(PlanItem {
            action: PlanAction::Make,
            kind: "image".to_owned(),
            id: image.id.to_string(),
            pool: pool.to_owned(),
            size: image.actual_size,
            time: None,
            description: format!("image {}, copied from pool {}", image.name, image.pool),
        });
    }
    plan.items
        .push(volume_item(PlanAction::Make, new_root, None));
    switch(plan, vm, after, *stop, *start_after);
    if let Some(check) = health_check {
        plan.items.push(checked(vm, *check));
    }
    former(plan, vm, after, operation.create_time);
    plan.notes.push(way_back(*stop, *health_check));
}

/// The items of a way back.
pub(super) fn revert(plan: &mut Plan, vm: &Vm, operation: &Operation) {
    let Intent::RevertRootVolume {
        after,
        stop,
        start_after,
        ..
    } = &operation.intent
    else {
        return;
    };
    switch(plan, vm, after, *stop, *start_after);
    former(plan, vm, after, operation.create_time);
    plan.notes.push(way_back(*stop, None));
}

/// The stop, the switch and the start.
fn switch(plan: &mut Plan, vm: &Vm, after: &Vm, stop: Option<StopPolicy>, start_after: bool) {
    stop_item(plan, vm, stop);
    if let Some(next) = after.root() {
        let was_kept = vm.volume(next.id).is_some();
        if was_kept {
            let mut root = volume_item(PlanAction::Change, next, None);
            root.description
                .push_str("; a former root, which is the root again");
            plan.items.push(root);
        }
        plan.items.push(item(
            PlanAction::Change,
            "domain",
            vm,
            match vm.root() {
                Some(root) => format!("its root volume is {} instead of {}", next.id, root.id),
                None => format!("its root volume is {}", next.id),
            },
        ));
    }
    if start_after {
        plan.items
            .push(item(PlanAction::Change, "vm", vm, "started".to_owned()));
    } else if stop.is_some() {
        plan.notes
            .push("the VM is STOPPED afterwards: start_after is not set".to_owned());
    }
}

fn checked(vm: &Vm, check: HealthCheck) -> PlanItem {
    let within = check.timeout.as_secs_f64();
    let sign = match check.sign {
        HealthSign::StillRunning => format!("it must still run after {within} s"),
        HealthSign::GuestAgent => format!("its guest agent must answer within {within} s"),
    };
    item(
        PlanAction::Change,
        "vm",
        vm,
        format!("watched: {sign}, else it is switched back"),
    )
}

/// What becomes of the roots that are none afterwards.
fn former(plan: &mut Plan, vm: &Vm, after: &Vm, at: Timestamp) {
    let present = vm.root().map(|root| root.id);
    for volume in &after.volumes {
        let VolumeAttachment::Kept { until } = volume.attachment else {
            continue;
        };
        let what = if Some(volume.id) == present {
            "the present root"
        } else {
            "an older root"
        };
        let (action, words) = if until > at {
            (PlanAction::Keep, "kept for RevertRootVolume until then")
        } else {
            (
                PlanAction::Delete,
                "kept no longer than until this has succeeded, then deleted within a minute",
            )
        };
        let mut root = volume_item(action, volume, Some(until));
        root.description.push_str(&format!("; {what}, {words}"));
        plan.items.push(root);
    }
}

fn way_back(stop: Option<StopPolicy>, check: Option<HealthCheck>) -> String {
    let when = if check.is_some() {
        "if a step fails or the guest does not come up healthy"
    } else {
        "if a step fails"
    };
    let started = if stop.is_some() {
        ", and the guest is started on it again"
    } else {
        ""
    };
    format!("{when}, the VM has its present root again{started}, and nothing else is left")
}
