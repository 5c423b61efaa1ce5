//! Whether a VM's record is small enough for what it has to go through.

use super::Core;
use crate::libvirt::definition_size;
use crate::model::fault::Fault;
use crate::model::reason::Reason;
use crate::model::vm::Vm;
use crate::model::volume::VolumeKind;
use crate::service::domains;
use serde::Serialize;

/// The most that a VM's definition may take, with its record in it. libvirt takes 4 MiB of
/// text in one call (`REMOTE_STRING_MAX`), and adds to it what it chooses itself.
const MOST: usize = (4 << 20) - (512 << 10);

/// What is asked for, by which the fields have their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeOf {
    /// CreateVm.
    NewVm,
    /// UpdateVm.
    Changes,
    /// ReplaceRootVolume: one more volume.
    NewRoot,
}

/// Refuses a record that libvirt would not take, before anything is made for it.
///
/// # Errors
/// `FIELD_INVALID`, naming the field that takes most of it.
pub fn check_size(core: &Core, vm: &Vm, of: SizeOf) -> Result<(), Fault> {
    let spec = domains::spec(core, vm)?;
    // What can't be written at all, another check or libvirt says.
    let Ok(size) = definition_size(&spec) else {
        return Ok(());
    };
    if size <= MOST {
        return Ok(());
    }
    let field = match of {
        SizeOf::NewVm => largest(vm, true),
        SizeOf::Changes => format!("vm.{}", largest(vm, false)),
        SizeOf::NewRoot => "vm_id".to_owned(),
    };
    Err(Fault::field(
        Reason::FieldInvalid,
        field,
        format!(
            "makes the VM's record too large: its domain would take {size} bytes, and may take {MOST}"
        ),
    ))
}

/// The part of a VM that takes most room: among all that a new one has, or among those
/// that can be changed.
fn largest(vm: &Vm, is_new: bool) -> String {
    let volumes = |root: bool| {
        let of_kind = move |kind| (kind == VolumeKind::Root) == root;
        vm.volumes
            .iter()
            .filter(move |volume| of_kind(volume.kind))
            .map(|volume| (&volume.description, &volume.annotations))
            .collect::<Vec<_>>()
    };
    let nics: Vec<_> = vm.nics.iter().map(|nic| &nic.metadata).collect();
    let mut parts = vec![
        ("annotations", weight(&vm.annotations)),
        ("labels", weight(&vm.labels)),
        ("description", weight(&vm.description)),
        ("user_tags", weight(&vm.user_tags)),
    ];
    if is_new {
        parts.push(("root_volume", weight(&volumes(true))));
        parts.push(("data_volumes", weight(&volumes(false))));
        parts.push(("nics", weight(&nics)));
    }
    let first = ("annotations", 0);
    let most = parts.into_iter().fold(
        first,
        |most, part| if part.1 > most.1 { part } else { most },
    );
    most.0.to_owned()
}

/// How many bytes something takes in the record, as it is written in XML.
fn weight(part: &impl Serialize) -> usize {
    let text = serde_json::to_string(part).unwrap_or_default();
    let bytes = text.bytes().map(|byte| match byte {
        b'"' | b'\'' => 6,
        b'&' => 5,
        b'<' | b'>' => 4,
        _ => 1,
    });
    bytes.sum()
}
