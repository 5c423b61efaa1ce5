//! CreateVm.

use super::{Asked, envelope, hardware, invalid, nic, required, text, volume};
use crate::model::fault::Fault;
use crate::model::request::{Caller, CreateVm, NewNic, NewVolume, VmRequest};
use crate::model::tag;
use crate::proto::v1 as wire;
use std::collections::HashSet;

/// Data volumes of one VM.
const DATA_VOLUMES: usize = 64;
/// Network interfaces of one VM.
const NICS: usize = 16;

/// Reads a CreateVm request.
pub(in super::super) fn create_vm(
    given: wire::CreateVmRequest,
    caller: Caller,
) -> Result<Asked, Fault> {
    let envelope = envelope(&given.request_id, None, given.validate_only, caller)?;
    let create = CreateVm {
        vm_id: text::id("vm_id", &given.vm_id)?,
        name: text::required_line("name", given.name, text::LINE)?,
        description: text::prose("description", given.description)?,
        labels: text::labels("labels", given.labels)?,
        annotations: text::carried("annotations", given.annotations, text::ANNOTATIONS)?,
        package: text::line("package", given.package, text::LINE)?,
        hardware_profile_id: text::optional_line("hardware_profile_id", given.hardware_profile_id)?,
        hardware: hardware::wish("hardware", given.hardware.unwrap_or_default())?,
        image_id: text::required_id("image_id", &given.image_id)?,
        root_volume: root_volume(given.root_volume)?,
        data_volumes: data_volumes(given.data_volumes)?,
        nics: nics(given.nics)?,
        vnc: given.vnc.is_none_or(|vnc| vnc.enabled),
        system_tags: text::list("system_tags", given.system_tags)?,
        user_tags: text::list("user_tags", given.user_tags)?,
        platform: text::line("platform", given.platform, text::LINE)?,
        os: text::line("os", given.os, text::LINE)?,
        start: given.start,
    };
    tag::parse(&create.system_tags)?;
    no_volume_twice(&create.root_volume, &create.data_volumes)?;
    no_nic_twice(&create.nics)?;
    Ok(Asked {
        vm_id: None,
        envelope,
        request: VmRequest::CreateVm(Box::new(create)),
    })
}

fn root_volume(given: Option<wire::NewVolume>) -> Result<NewVolume, Fault> {
    let root = volume::new_volume("root_volume", given)?;
    if root.image_id.is_some() {
        return Err(invalid(
            "root_volume.image_id",
            "is only for data volumes; set image_id",
        ));
    }
    Ok(root)
}

fn data_volumes(given: Vec<wire::NewVolume>) -> Result<Vec<NewVolume>, Fault> {
    if given.len() > DATA_VOLUMES {
        return Err(invalid(
            "data_volumes",
            format!("has more than {DATA_VOLUMES} entries"),
        ));
    }
    given
        .into_iter()
        .enumerate()
        .map(|(index, given)| {
            let path = format!("data_volumes[{index}]");
            let data = volume::new_volume(&path, Some(given))?;
            if data.image_id.is_none() && data.size_bytes.get() == 0 {
                return Err(required(&format!("{path}.size_bytes")));
            }
            Ok(data)
        })
        .collect()
}

fn nics(given: Vec<wire::NewNic>) -> Result<Vec<NewNic>, Fault> {
    if given.len() > NICS {
        return Err(invalid("nics", format!("has more than {NICS} entries")));
    }
    given
        .into_iter()
        .enumerate()
        .map(|(index, given)| nic::new_nic(&format!("nics[{index}]"), given))
        .collect()
}

fn no_volume_twice(root: &NewVolume, data: &[NewVolume]) -> Result<(), Fault> {
    let mut seen: HashSet<_> = root.volume_id.into_iter().collect();
    for (index, volume) in data.iter().enumerate() {
        if volume.volume_id.is_some_and(|id| !seen.insert(id)) {
            return Err(invalid(
                &format!("data_volumes[{index}].volume_id"),
                "is given to another volume of the request too",
            ));
        }
    }
    Ok(())
}

fn no_nic_twice(nics: &[NewNic]) -> Result<(), Fault> {
    let (mut ids, mut macs) = (HashSet::new(), HashSet::new());
    for (index, nic) in nics.iter().enumerate() {
        let twice = |name: &str| {
            invalid(
                &format!("nics[{index}].{name}"),
                "is given to another interface of the request too",
            )
        };
        if nic.nic_id.is_some_and(|id| !ids.insert(id)) {
            return Err(twice("nic_id"));
        }
        if nic.mac.is_some_and(|mac| !macs.insert(mac)) {
            return Err(twice("mac"));
        }
    }
    Ok(())
}
