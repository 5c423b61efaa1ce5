//! Whether a VM's record is small enough for what it has to go through.

use super::Core;
use crate::libvirt::definition_size;
use crate::model::fault::Fault;
use crate::model::reason::Reason;
use crate::model::vm::Vm;
use crate::service::domains;

/// The most that a VM's definition may take, with its record in it. libvirt takes 4 MiB of
/// text in one call (`VIR_NET_MESSAGE_STRING_MAX`), and adds to it what it chooses itself.
const MOST: usize = (4 << 20) - (512 << 10);

/// Refuses a record that libvirt would not take, before anything is made for it. `prefix`
/// is what the fields of the request begin with.
///
/// # Errors
/// `FIELD_INVALID`, naming the field that takes most of it.
pub(super) fn check_size(core: &Core, vm: &Vm, prefix: &str) -> Result<(), Fault> {
    let spec = domains::spec(core, vm)?;
    // What can't be written at all, another check or libvirt says.
    let Ok(size) = definition_size(&spec) else {
        return Ok(());
    };
    if size <= MOST {
        return Ok(());
    }
    let bytes = |texts: &mut dyn Iterator<Item = (&String, &String)>| -> usize {
        texts.map(|(key, value)| key.len() + value.len()).sum()
    };
    let volumes = vm.volumes.iter().flat_map(|volume| &volume.annotations);
    let nics = vm.nics.iter().flat_map(|nic| &nic.metadata);
    let parts = [
        ("annotations", bytes(&mut vm.annotations.iter())),
        ("data_volumes", bytes(&mut volumes.into_iter())),
        ("nics", bytes(&mut nics.into_iter())),
    ];
    let (field, _) = parts
        .into_iter()
        .max_by_key(|(_, size)| *size)
        .unwrap_or_default();
    Err(Fault::field(
        Reason::FieldInvalid,
        format!("{prefix}{field}"),
        format!("make the VM's record too large: its domain would take {size} bytes of {MOST}"),
    ))
}
