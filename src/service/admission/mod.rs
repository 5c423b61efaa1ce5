//! From a request to an intent: every default filled in, every check made,
//! nothing touched.
//!
//! Invariant: what passes here can be done as far as can be known before doing
//! it; what does not pass has left nothing behind. Checks that compare VMs with
//! one another (MAC addresses, volume ids, the host's memory) run under one
//! lock, [`super::vms::Vms::admission`], until the record is published.

mod hardware;
mod nics;
mod size;
mod volumes;

use super::capacity;
use super::core::Core;
use super::current::Offered;
use super::fault::internal;
use super::gate::Lane;
use crate::config::VmSettings;
use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::ids::{OperationId, VmId};
use crate::model::lifecycle::Seen;
use crate::model::reason::Reason;
use crate::model::request::{CreateVm, NewVolume, ReplaceRoot, SizePolicy, StopWish, VmChanges};
use crate::model::stop::{OnTimeout, StopPolicy};
use crate::model::tag;
use crate::model::time::Timestamp;
use crate::model::vm::{Life, Vm};
use crate::model::volume::{Volume, VolumeKind};
use hardware::hardware;
pub use nics::check_networks;
use nics::{check_addresses, check_foreign_addresses, nics};
pub use size::{SizeOf, check_size};
use volumes::{Place, ceph_pool, check_files, check_room, check_volume_ids, root_place, volume};

/// How to stop a guest, with the configured times where the caller gave none.
pub fn stop_policy(wish: Option<StopWish>, settings: &VmSettings) -> StopPolicy {
    match wish {
        Some(StopWish::Force) => StopPolicy::Force,
        Some(StopWish::Graceful {
            timeout,
            resend_interval,
            on_timeout,
        }) => StopPolicy::Graceful {
            timeout: timeout.unwrap_or(settings.stop_timeout),
            resend_interval: resend_interval.unwrap_or(settings.stop_resend),
            on_timeout,
        },
        None => StopPolicy::Graceful {
            timeout: settings.stop_timeout,
            resend_interval: settings.stop_resend,
            on_timeout: OnTimeout::Fail,
        },
    }
}

/// The record of the VM that a CreateVm asks for. `former` is the record of a
/// creation that failed: what could not be undone of it keeps its ids, so that it
/// is found again. What other VMs may take meanwhile is left to [`compare`].
///
/// # Errors
/// See CreateVm in the API.
pub async fn create(
    core: &Core,
    id: VmId,
    operation: OperationId,
    wish: &CreateVm,
    former: Option<&Vm>,
    now: Timestamp,
) -> Result<Vm, Fault> {
    let tags = tag::parse(&wish.system_tags)?;
    check_domain(core, id, wish).await?;
    let offered = core.current.offered();
    let (hardware, hypervisor) = hardware(
        core,
        &offered,
        wish.hardware_profile_id.as_deref(),
        &wish.hardware,
        None,
    )?;
    let root_wish = NewVolume {
        image_id: Some(wish.image_id),
        ..wish.root_volume.clone()
    };
    let named = wish.root_volume.pool.as_deref();
    let (root_pool, root_ceph_pool) = root_place(core, &tags, named).await?;
    let root = volume(
        core,
        &root_wish,
        Place {
            index: 0,
            pool: &root_pool,
            ceph_pool: root_ceph_pool,
            field: "root_volume",
            image_field: "image_id",
        },
        now,
    )?;
    let mut volumes = vec![root];
    for (index, data) in (1u32..).zip(&wish.data_volumes) {
        let field = format!("data_volumes[{}]", index - 1);
        let pool = match &data.pool {
            Some(name) => core.pools.named(name, &format!("{field}.pool"))?,
            None => core.pools.default_pool(),
        };
        let image_field = format!("{field}.image_id");
        let place = Place {
            index,
            pool: pool.pool.name(),
            ceph_pool: ceph_pool(core, pool.pool.name(), VolumeKind::Data, None).await?,
            field: &field,
            image_field: &image_field,
        };
        volumes.push(volume(core, data, place, now)?);
    }
    if let Some(former) = former {
        let wished = std::iter::once(&wish.root_volume).chain(&wish.data_volumes);
        for ((volume, wished), former) in volumes.iter_mut().zip(wished).zip(&former.volumes) {
            volume.id = wished.volume_id.unwrap_or(former.id);
        }
    }
    // A cluster is not asked for ids that were made a moment ago.
    let wished = std::iter::once(&wish.root_volume).chain(&wish.data_volumes);
    let chosen: Vec<Volume> = volumes
        .iter()
        .zip(wished)
        .filter(|(volume, wished)| {
            volume.ceph_pool.is_none() || wished.volume_id.is_some() || former.is_some()
        })
        .map(|(volume, _)| volume.clone())
        .collect();
    check_files(core, &chosen, former).await?;
    check_room(core, &volumes).await?;
    let nics = nics(core, &offered, id, &wish.nics)?;
    check_foreign_addresses(core, &nics).await?;
    check_networks(core, &nics, true).await?;
    check_text(&wish.name, "name")?;
    let vm = Vm {
        id,
        name: wish.name.clone(),
        description: wish.description.clone(),
        labels: wish.labels.clone(),
        annotations: wish.annotations.clone(),
        package: wish.package.clone(),
        platform: wish.platform.clone(),
        os: wish.os.clone(),
        image_id: wish.image_id,
        hardware_profile_id: wish.hardware_profile_id.clone(),
        hardware,
        hypervisor,
        volumes,
        nics,
        vnc: wish.vnc,
        system_tags: wish.system_tags.clone(),
        user_tags: wish.user_tags.clone(),
        generation: 1,
        create_time: now,
        update_time: now,
        life: Life::Making,
        seen: Seen::NOTHING,
        last_host_id: None,
        created_by: operation,
        created_as: wish.clone(),
    };
    check_size(core, &vm, SizeOf::NewVm)?;
    Ok(vm)
}

/// Compares a VM that is to be made with all others: images that it needs, ids
/// and addresses that it takes; and with what the host takes. The caller holds the
/// admission lock until the VM is published.
///
/// # Errors
/// See CreateVm in the API.
pub fn compare(core: &Core, vm: &Vm, start: bool) -> Result<(), Fault> {
    for volume in &vm.volumes {
        if let Some(image) = volume.image_id {
            core.images.ready(image, "image_id")?;
        }
    }
    check_volume_ids(core, vm.id, &vm.volumes)?;
    check_addresses(core, vm)?;
    core.node.check_takes_guests()?;
    if start {
        capacity::check_room(core, vm.id, &vm.hardware)?;
    }
    Ok(())
}

/// As [`compare`], for a new root volume of a VM that is there.
///
/// # Errors
/// See ReplaceRootVolume in the API.
pub fn compare_root(core: &Core, vm: &Vm, volume: &Volume) -> Result<(), Fault> {
    if let Some(image) = volume.image_id {
        core.images.ready(image, "image_id")?;
    }
    check_volume_ids(core, vm.id, std::slice::from_ref(volume)).map_err(of_resource)
}

/// The same fault, where the volume's field has another name.
fn of_resource(mut fault: Fault) -> Fault {
    fault
        .metadata
        .insert("field".to_owned(), "resource_id".to_owned());
    fault.message = fault
        .message
        .replace("root_volume.volume_id", "resource_id");
    for field in &mut fault.fields {
        "resource_id".clone_into(&mut field.field);
    }
    fault
}

/// The record after an UpdateVm.
///
/// # Errors
/// See UpdateVm in the API.
pub fn update(core: &Core, vm: &Vm, changes: &VmChanges) -> Result<Vm, Fault> {
    let mut after = Vm {
        generation: vm.generation + 1,
        ..vm.clone()
    };
    let set = |to: &mut String, from: &Option<String>| {
        if let Some(value) = from {
            to.clone_from(value);
        }
    };
    if let Some(name) = &changes.name {
        check_text(name, "vm.name")?;
    }
    set(&mut after.name, &changes.name);
    set(&mut after.description, &changes.description);
    set(&mut after.package, &changes.package);
    set(&mut after.platform, &changes.platform);
    set(&mut after.os, &changes.os);
    if let Some(labels) = &changes.labels {
        after.labels.clone_from(labels);
    }
    if let Some(annotations) = &changes.annotations {
        after.annotations.clone_from(annotations);
    }
    if let Some(tags) = &changes.user_tags {
        after.user_tags.clone_from(tags);
    }
    if changes.changes_hardware() {
        let profile = changes.hardware_profile_id.as_deref();
        let wish = changes.hardware.clone().unwrap_or_default();
        let base = if profile.is_some() {
            None
        } else {
            Some(&vm.hardware)
        };
        (after.hardware, after.hypervisor) =
            hardware(core, &core.current.offered(), profile, &wish, base)?;
        if let Some(profile) = profile {
            after.hardware_profile_id = Some(profile.to_owned());
        }
    }
    check_size(core, &after, SizeOf::Changes)?;
    Ok(after)
}

/// The new root volume of a ReplaceRootVolume; see [`compare_root`].
///
/// # Errors
/// See ReplaceRootVolume in the API.
pub async fn new_root(
    core: &Core,
    vm: &Vm,
    wish: &ReplaceRoot,
    now: Timestamp,
) -> Result<Volume, Fault> {
    let tags = tag::parse(&wish.system_tags)?;
    let old = vm
        .root()
        .ok_or_else(|| internal("a VM has no root volume"))?;
    let pool = core.pools.named(&old.pool, "vm_id")?.pool.name();
    let place = match &tags.ceph_root_pool {
        Some(tag) => ceph_pool(core, pool, VolumeKind::Root, Some(tag)).await?,
        None => old.ceph_pool.clone(),
    };
    let image = core.images.ready(wish.image_id, "image_id")?;
    let size = match wish.size_policy {
        SizePolicy::KeepLarger => old.size.max(image.virtual_size),
        SizePolicy::Image => Bytes::ZERO,
        SizePolicy::Exact(size) if size == Bytes::ZERO => {
            return Err(Fault::field(
                Reason::FieldRequired,
                "size_bytes",
                "is needed with EXACT",
            ));
        }
        SizePolicy::Exact(size) => size,
    };
    let new = NewVolume {
        volume_id: wish.resource_id,
        name: old.name.clone(),
        size_bytes: size,
        image_id: Some(wish.image_id),
        shareable: old.shareable,
        qos: old.qos,
        delete_with_vm: old.delete_with_vm,
        description: old.description.clone(),
        annotations: old.annotations.clone(),
        pool: None,
    };
    let place = Place {
        index: 0,
        pool,
        ceph_pool: place,
        field: "",
        image_field: "image_id",
    };
    let volume = volume(core, &new, place, now)?;
    if wish.resource_id.is_some() || volume.ceph_pool.is_none() {
        // A cluster is not asked for an id that was made a moment ago.
        check_files(core, std::slice::from_ref(&volume), None)
            .await
            .map_err(of_resource)?;
    }
    check_room(core, std::slice::from_ref(&volume)).await?;
    Ok(volume)
}

/// Refuses the id of a domain that is on the host and not this VM's: defining it anew
/// would take it over, and undoing that would remove it.
async fn check_domain(core: &Core, id: VmId, wish: &CreateVm) -> Result<(), Fault> {
    if wish.vm_id.is_none() {
        return Ok(());
    }
    let recorded = core.vms.get(id).is_ok();
    let found = core
        .hypervisor
        .call(Lane::Read, move |host| host.get(id))
        .await?;
    let Some(domain) = found else { return Ok(()) };
    match &domain.metadata {
        Ok(_) if recorded => Ok(()),
        Ok(_) => {
            let problem = "is the id of a domain on this host that is in no record";
            Err(Fault::field(Reason::VmExists, "vm_id", problem).with("vm_id", id))
        }
        Err(whose) => {
            let problem =
                format!("is the id of a domain on this host that is not kvmlet's: {whose}");
            Err(Fault::field(Reason::DomainForeign, "vm_id", problem)
                .with("vm_id", id)
                .with("domain", &domain.name))
        }
    }
}

/// Refuses text that XML can't carry: it would be lost in the domain.
fn check_text(text: &str, field: &str) -> Result<(), Fault> {
    crate::libvirt::xml::check_title(text).map_err(|_| {
        Fault::field(
            Reason::FieldInvalid,
            field,
            "has a character that can't be stored",
        )
    })
}
