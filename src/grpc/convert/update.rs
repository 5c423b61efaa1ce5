//! UpdateVm: what its mask names is taken, and nothing else is looked at.

use super::{Asked, envelope, hardware, invalid, required, text};
use crate::model::fault::Fault;
use crate::model::request::{Caller, HardwareWish, VmChanges, VmRequest};
use crate::proto::v1 as wire;

/// Reads an UpdateVm request.
pub(in super::super) fn update_vm(
    given: wire::UpdateVmRequest,
    caller: Caller,
) -> Result<Asked, Fault> {
    let envelope = envelope(&given.request_id, given.expected_generation, false, caller)?;
    let vm = given.vm.ok_or_else(|| required("vm"))?;
    let vm_id = text::required_id("vm.id", &vm.id)?;
    let paths = given.update_mask.unwrap_or_default().paths;
    if paths.is_empty() {
        return Err(required("update_mask"));
    }
    let mut changes = VmChanges::default();
    for (index, path) in paths.iter().enumerate() {
        if !take(&mut changes, path, &vm)? {
            let shown: String = path.chars().take(64).collect();
            return Err(invalid(
                &format!("update_mask.paths[{index}]"),
                format!("names {shown:?}, which UpdateVm can't change"),
            ));
        }
    }
    Ok(Asked {
        vm_id: Some(vm_id),
        envelope,
        request: VmRequest::UpdateVm(Box::new(changes)),
    })
}

/// Takes one field; `false` if there is none of this path.
fn take(changes: &mut VmChanges, path: &str, vm: &wire::Vm) -> Result<bool, Fault> {
    let line = |field: &str, text: &String| text::line(field, text.clone(), text::LINE);
    match path {
        "name" => {
            changes.name = Some(text::required_line("vm.name", vm.name.clone(), text::LINE)?);
        }
        "description" => {
            changes.description = Some(text::prose("vm.description", vm.description.clone())?);
        }
        "labels" => changes.labels = Some(text::labels("vm.labels", vm.labels.clone())?),
        "annotations" => {
            changes.annotations = Some(text::carried(
                "vm.annotations",
                vm.annotations.clone(),
                text::ANNOTATIONS,
            )?);
        }
        "package" => changes.package = Some(line("vm.package", &vm.package)?),
        "platform" => changes.platform = Some(line("vm.platform", &vm.platform)?),
        "os" => changes.os = Some(line("vm.os", &vm.os)?),
        "user_tags" => {
            changes.user_tags = Some(text::list("vm.user_tags", vm.user_tags.clone())?);
        }
        "hardware_profile_id" => {
            changes.hardware_profile_id = Some(text::required_line(
                "vm.hardware_profile_id",
                vm.hardware_profile_id.clone(),
                text::LINE,
            )?);
        }
        "hardware" => {
            let wish = hardware::wish("vm.hardware", vm.hardware.clone().unwrap_or_default())?;
            if wish == HardwareWish::default() {
                return Err(required("vm.hardware"));
            }
            let before = changes.hardware.take().unwrap_or_default();
            changes.hardware = Some(merge(wish, before));
        }
        _ => {
            let Some(name) = path.strip_prefix("hardware.") else {
                return Ok(false);
            };
            let given = vm.hardware.clone().unwrap_or_default();
            let mut wish = changes.hardware.clone().unwrap_or_default();
            if !hardware::take(&mut wish, "vm.hardware", name, &given)? {
                return Ok(false);
            }
            changes.hardware = Some(wish);
        }
    }
    Ok(true)
}

/// What `first` leaves open is taken from `second`, so that the order of paths
/// does not matter.
fn merge(first: HardwareWish, second: HardwareWish) -> HardwareWish {
    HardwareWish {
        vcpus: first.vcpus.or(second.vcpus),
        memory_bytes: first.memory_bytes.or(second.memory_bytes),
        cpu: first.cpu.or(second.cpu),
        machine: first.machine.or(second.machine),
        firmware: first.firmware.or(second.firmware),
        accelerator: first.accelerator.or(second.accelerator),
    }
}
