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

/// What a replacement's intent does not tell.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beyond<'a> {
    /// The image that the new root is made from, if it has to be copied into the
    /// pool first.
    pub copied: Option<&'a Image>,
    /// Whether the caller gave the new root's id; else another one is made up when
    /// it is made.
    pub id_given: bool,
}

/// The items of a replacement.
pub(super) fn replace(plan: &mut Plan, vm: &Vm, operation: &Operation, beyond: Beyond<'_>) {
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
    if let Some(image) = beyond.copied {
        plan.items.push(PlanItem {
            action: PlanAction::Make,
            kind: "image".to_owned(),
            id: image.id.to_string(),
            pool: new_root.pool.clone(),
            ceph_pool: None,
            size: image.actual_size,
            time: None,
            description: format!("image {}, copied from pool {}", image.name, image.pool),
        });
    }
    let mut made = volume_item(PlanAction::Make, new_root, None);
    let id = if beyond.id_given {
        made.id.clone()
    } else {
        made.id.clear();
        made.description.push_str("; its id is not chosen yet");
        "the new one".to_owned()
    };
    plan.items.push(made);
    stop_item(plan, vm, *stop);
    switch(plan, vm, &id, *stop, *start_after);
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
    stop_item(plan, vm, *stop);
    if let Some(next) = after.root() {
        let mut root = volume_item(PlanAction::Change, next, None);
        root.description
            .push_str("; a former root, which is the root again");
        plan.items.push(root);
        switch(plan, vm, &next.id.to_string(), *stop, *start_after);
    }
    former(plan, vm, after, operation.create_time);
    plan.notes.push(way_back(*stop, None));
}

/// The switch and the start.
fn switch(plan: &mut Plan, vm: &Vm, next: &str, stop: Option<StopPolicy>, start_after: bool) {
    let words = match vm.root() {
        Some(root) => format!("its root volume is {next} instead of {}", root.id),
        None => format!("its root volume is {next}"),
    };
    plan.items
        .push(item(PlanAction::Change, "domain", vm, words));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::bytes::Bytes;
    use crate::model::ids::VolumeId;
    use crate::model::request::Caller;
    use crate::model::volume::Volume;
    use crate::service::operations::new_operation;
    use std::time::Duration;

    /// A VM with a root of 1 MiB that has replaced one of 2 MiB, and the time until
    /// which that one is kept.
    fn replaced() -> (Vm, Timestamp) {
        let record = r#"{"id":"10010000-0000-4000-8000-000000000001","name":"a",
            "description":"","labels":{},"annotations":{},"package":"","platform":"","os":"",
            "image_id":"10020000-0000-4000-8000-000000000001","hardware_profile_id":null,
            "hardware":{"vcpus":1,"memory":16777216,"cpu":"auto","machine":"q35",
            "firmware":"bios","accelerator":"auto"},"hypervisor":"test","volumes":[
            {"id":"10030000-0000-4000-8000-000000000001","name":"root","pool":"fast",
            "kind":"root","format":"raw","image_id":null,"size":2097152,"actual_size":0,
            "attachment":{"attached":{"device_index":0}},"shareable":false,"qos":{},
            "delete_with_vm":true,"create_time":1}],"nics":[],"vnc":true,"system_tags":[],
            "user_tags":[],"generation":1,"create_time":1,"update_time":1,"life":"present",
            "seen":{"resting":"running","reason":"none"},"last_host_id":null,
            "created_by":"10050000-0000-4000-8000-000000000001","created_as":{"vm_id":null,
            "name":"a","description":"","labels":{},"annotations":{},"package":"",
            "hardware_profile_id":null,"hardware":{"vcpus":1,"memory_bytes":16777216,
            "cpu":null,"machine":null,"firmware":null,"accelerator":null},
            "image_id":"10020000-0000-4000-8000-000000000001","root_volume":{"volume_id":null,
            "name":"","pool":null,"size_bytes":0,"image_id":null,"shareable":false,"qos":{},
            "delete_with_vm":true,"description":"","annotations":{}},"data_volumes":[],
            "nics":[],"vnc":true,"system_tags":[],"user_tags":[],"platform":"","os":"",
            "start":true}}"#;
        let mut vm: Vm = serde_json::from_str(record).expect("a record");
        let next = Volume {
            id: VolumeId::random(),
            pool: "default".to_owned(),
            size: Bytes::mib(1),
            ..vm.volumes[0].clone()
        };
        let until = super::super::now().plus(Duration::from_secs(3600));
        vm.volumes.push(next.clone());
        vm.switch_root(next.id, until);
        (vm, until)
    }

    #[test]
    fn a_way_back_names_the_root_that_it_goes_to_and_the_one_that_it_leaves() {
        let (vm, until) = replaced();
        let former = vm.kept_roots()[0].clone();
        let root = vm.root().expect("a root").clone();
        let mut after = vm.clone();
        after.switch_root(former.id, until);
        let intent = Intent::RevertRootVolume {
            before: Box::new(vm.clone()),
            after: Box::new(after),
            stop: Some(StopPolicy::Force),
            start_after: true,
        };
        let operation = new_operation(intent, serde_json::Value::Null, None, Caller::own(""));
        let plan = super::super::change(&vm, &operation, Beyond::default());
        let items: Vec<_> = plan
            .items
            .iter()
            .map(|item| (item.action, &*item.kind, &*item.pool, item.size, item.time))
            .collect();
        let change = PlanAction::Change;
        assert_eq!(
            items,
            [
                (change, "vm", "", Bytes::ZERO, None),
                (change, "volume", "fast", Bytes::mib(2), None),
                (change, "domain", "", Bytes::ZERO, None),
                (change, "vm", "", Bytes::ZERO, None),
                (
                    PlanAction::Keep,
                    "volume",
                    "default",
                    Bytes::mib(1),
                    Some(until)
                ),
            ]
        );
        assert_eq!(plan.items[1].id, former.id.to_string());
        assert_eq!(plan.items[4].id, root.id.to_string());
    }

    #[test]
    fn an_id_that_is_not_chosen_yet_is_not_shown() {
        let (vm, until) = replaced();
        let new_root = Volume {
            id: VolumeId::random(),
            ..vm.root().expect("a root").clone()
        };
        let mut after = vm.clone();
        after.volumes.push(new_root.clone());
        after.switch_root(new_root.id, until);
        let intent = Intent::ReplaceRootVolume {
            new_root: Box::new(new_root.clone()),
            before: Box::new(vm.clone()),
            after: Box::new(after),
            stop: None,
            start_after: false,
            health_check: None,
        };
        let operation = new_operation(intent, serde_json::Value::Null, None, Caller::own(""));
        let chosen = new_root.id.to_string();
        for id_given in [true, false] {
            let beyond = Beyond {
                id_given,
                ..Beyond::default()
            };
            let plan = super::super::change(&vm, &operation, beyond);
            let mut words = plan.items.iter().map(|item| &item.description);
            assert_eq!(plan.items[0].id == chosen, id_given);
            assert_eq!(words.any(|words| words.contains(&chosen)), id_given);
        }
    }
}
