//! From a request to an intent: every default filled in, every check made,
//! nothing touched.
//!
//! Invariant: what passes here can be done as far as can be known before doing
//! it; what does not pass has left nothing behind. Checks that compare VMs with
//! one another (MAC addresses, volume ids, the host's memory) run under one
//! lock, [`super::vms::Vms::admission`], until the record is published.

use super::core::Core;
use super::fault::internal;
use crate::config::VmSettings;
use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::hardware::{Accelerator, Cpu, Firmware, Hardware};
use crate::model::ids::{NicId, OperationId, VmId, VolumeId};
use crate::model::lifecycle::Seen;
use crate::model::nic::{MacAddress, Nic};
use crate::model::reason::Reason;
use crate::model::request::{
    CreateVm, HardwareWish, NewNic, NewVolume, ReplaceRoot, SizePolicy, StopWish, VmChanges,
};
use crate::model::stop::StopPolicy;
use crate::model::tag::{self, Tags};
use crate::model::time::Timestamp;
use crate::model::vm::{Hypervisor, Life, Vm};
use crate::model::volume::{PoolKind, Volume, VolumeAttachment, VolumeFormat, VolumeKind};
use std::collections::{BTreeMap, BTreeSet};

/// Volumes are made in whole MiB.
const GRAIN: Bytes = Bytes::mib(1);
/// The largest volume that may be asked for.
const LARGEST_VOLUME: Bytes = Bytes::gib(64 << 10);
const LEAST_MEMORY: Bytes = Bytes::mib(16);
const PLAIN_MACHINE: &str = "q35";

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
            on_timeout: crate::model::stop::OnTimeout::Fail,
        },
    }
}

/// The record of the VM that a CreateVm asks for. The caller holds the
/// admission lock.
///
/// # Errors
/// See CreateVm in the API.
pub async fn create(
    core: &Core,
    id: VmId,
    operation: OperationId,
    wish: &CreateVm,
    now: Timestamp,
) -> Result<Vm, Fault> {
    let tags = tag::parse(&wish.system_tags)?;
    let (hardware, hypervisor) = hardware(
        core,
        wish.hardware_profile_id.as_deref(),
        &wish.hardware,
        None,
    )?;
    let root_wish = NewVolume {
        image_id: Some(wish.image_id),
        ..wish.root_volume.clone()
    };
    let root_pool = root_pool(core, &tags, wish.root_volume.pool.as_deref())?;
    let root = volume(
        core,
        &root_wish,
        Place {
            index: 0,
            pool: root_pool,
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
            field: &field,
            image_field: &image_field,
        };
        volumes.push(volume(core, data, place, now)?);
    }
    check_volume_ids(core, id, &volumes).await?;
    check_room(core, &volumes).await?;
    let nics = nics(core, id, &wish.nics)?;
    if wish.start {
        check_host(core, id, &hardware)?;
    }
    check_text(&wish.name, "name")?;
    Ok(Vm {
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
    })
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
        (after.hardware, after.hypervisor) = hardware(core, profile, &wish, base)?;
        if let Some(profile) = profile {
            after.hardware_profile_id = Some(profile.to_owned());
        }
    }
    Ok(after)
}

/// The new root volume of a ReplaceRootVolume. The caller holds the admission
/// lock.
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
    let pool = match &tags.ceph_root_pool {
        Some(_) => root_pool(core, &tags, None)?,
        None => core.pools.named(&old.pool, "vm_id")?.pool.name(),
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
        field: "",
        image_field: "image_id",
    };
    let volume = volume(core, &new, place, now)?;
    check_volume_ids(core, vm.id, std::slice::from_ref(&volume))
        .await
        .map_err(|mut fault| {
            // The field has another name here.
            fault
                .metadata
                .insert("field".to_owned(), "resource_id".to_owned());
            for field in &mut fault.fields {
                "resource_id".clone_into(&mut field.field);
            }
            fault
        })?;
    check_room(core, std::slice::from_ref(&volume)).await?;
    Ok(volume)
}

/// Refuses a start that the host has no room for. The caller holds the admission
/// lock.
///
/// # Errors
/// `HOST_MEMORY`, `HOST_VCPUS`, `HYPERVISOR_AWAY`.
pub fn check_host(core: &Core, id: VmId, hardware: &Hardware) -> Result<(), Fault> {
    let facts = core.hypervisor.facts()?;
    let settings = &core.config.vms;
    let mut vcpus = u64::from(hardware.vcpus);
    let mut memory = hardware.memory;
    for view in core.vms.list() {
        if let Some(vm) = &view.vm
            && vm.id != id
            && view.claims_host()
        {
            vcpus += u64::from(vm.hardware.vcpus);
            memory = memory.saturating_add(vm.hardware.memory);
        }
    }
    let limit =
        scale(facts.memory, settings.memory_overcommit).saturating_sub(settings.reserved_memory);
    if memory > limit {
        return Err(Fault::new(
            Reason::HostMemory,
            format!(
                "the running VMs and this one would take {memory}; the host gives at most {limit}"
            ),
        )
        .with("limit_bytes", limit.get())
        .with("needed_bytes", memory.get()));
    }
    let limit = scale(Bytes(u64::from(facts.cpus)), settings.vcpu_overcommit)
        .get()
        .max(1);
    if vcpus > limit {
        return Err(Fault::new(
            Reason::HostVcpus,
            format!("the running VMs and this one would take {vcpus} vCPUs; the host gives at most {limit}"),
        )
        .with("limit", limit)
        .with("needed", vcpus));
    }
    Ok(())
}

fn scale(amount: Bytes, by: f64) -> Bytes {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    // an over-commit ratio is not exact in the first place
    Bytes((amount.get() as f64 * by) as u64)
}

/// The pool of a root volume: the tag's, else the named one, else the default.
fn root_pool<'a>(core: &'a Core, tags: &Tags, named: Option<&str>) -> Result<&'a str, Fault> {
    if let Some(wanted) = &tags.ceph_root_pool {
        let pool = core
            .pools
            .get(wanted)
            .filter(|entry| entry.pool.kind() == PoolKind::Rbd);
        let entry = pool.ok_or_else(|| {
            Fault::field(
                Reason::PoolNotCeph,
                "system_tags",
                "names a Ceph pool, and no Ceph pool of that name is configured on this host",
            )
            .with("pool", wanted)
        })?;
        if named.is_some_and(|named| named != wanted) {
            return Err(Fault::field(
                Reason::FieldInvalid,
                "root_volume.pool",
                "names another pool than the tag does",
            ));
        }
        return Ok(entry.pool.name());
    }
    match named {
        Some(name) => Ok(core.pools.named(name, "root_volume.pool")?.pool.name()),
        None => Ok(core.pools.default_pool().pool.name()),
    }
}

/// Where a volume goes, and how its fields are named in faults.
struct Place<'a> {
    index: u32,
    pool: &'a str,
    field: &'a str,
    image_field: &'a str,
}

fn volume(
    core: &Core,
    wish: &NewVolume,
    place: Place<'_>,
    now: Timestamp,
) -> Result<Volume, Fault> {
    let path = |name: &str| {
        if place.field.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", place.field)
        }
    };
    let least = match wish.image_id {
        Some(image) => core.images.ready(image, place.image_field)?.virtual_size,
        None => Bytes::ZERO,
    };
    let size = if wish.size_bytes == Bytes::ZERO {
        least
    } else {
        wish.size_bytes
    };
    if size == Bytes::ZERO {
        return Err(Fault::field(
            Reason::FieldRequired,
            path("size_bytes"),
            "is needed for an empty volume",
        ));
    }
    if size < least {
        return Err(Fault::field(
            Reason::VolumeTooSmall,
            path("size_bytes"),
            format!("is {size}, and the image needs {least}"),
        )
        .with("least_bytes", least.get()));
    }
    if size > LARGEST_VOLUME {
        return Err(Fault::field(
            Reason::FieldInvalid,
            path("size_bytes"),
            format!("is more than {LARGEST_VOLUME}"),
        ));
    }
    let (kind, name) = if place.index == 0 {
        (VolumeKind::Root, "root".to_owned())
    } else {
        (VolumeKind::Data, format!("data-{}", place.index))
    };
    if !wish.name.is_empty() {
        check_text(&wish.name, &path("name"))?;
    }
    Ok(Volume {
        id: wish.volume_id.unwrap_or_else(VolumeId::random),
        name: if wish.name.is_empty() {
            name
        } else {
            wish.name.clone()
        },
        pool: place.pool.to_owned(),
        kind,
        format: match core.pools.get(place.pool).map(|entry| entry.pool.kind()) {
            Some(PoolKind::Rbd) => VolumeFormat::Raw,
            Some(PoolKind::Qcow2) | None => VolumeFormat::Qcow2,
        },
        image_id: wish.image_id,
        size: size.round_up(GRAIN).unwrap_or(size),
        actual_size: Bytes::ZERO,
        attachment: VolumeAttachment::Attached {
            device_index: place.index,
        },
        shareable: wish.shareable,
        qos: wish.qos,
        delete_with_vm: wish.delete_with_vm,
        create_time: now,
        description: wish.description.clone(),
        annotations: wish.annotations.clone(),
    })
}

/// Refuses ids that a recorded volume has, or a file in the pool.
async fn check_volume_ids(core: &Core, id: VmId, volumes: &[Volume]) -> Result<(), Fault> {
    let taken = |volume: &Volume| {
        let field = match volume.attachment {
            VolumeAttachment::Attached { device_index: 0 } => "root_volume.volume_id".to_owned(),
            VolumeAttachment::Attached { device_index } => {
                format!("data_volumes[{}].volume_id", device_index - 1)
            }
            VolumeAttachment::Kept { .. } => "resource_id".to_owned(),
        };
        Fault::field(
            Reason::VolumeExists,
            field,
            "is the id of a volume that exists",
        )
        .with("volume_id", volume.id)
    };
    let mut seen = BTreeSet::new();
    for volume in volumes {
        if !seen.insert(volume.id) {
            return Err(taken(volume));
        }
    }
    for view in core.vms.list() {
        // A VM that failed is made again with the ids that it had.
        let Some(vm) = view
            .vm
            .as_ref()
            .filter(|vm| vm.id != id || vm.life == Life::Present)
        else {
            continue;
        };
        if let Some(volume) = volumes.iter().find(|volume| vm.volume(volume.id).is_some()) {
            return Err(taken(volume));
        }
    }
    for volume in volumes {
        let id = volume.id;
        if core
            .pools
            .call(&volume.pool, move |pool, _| pool.volume(id))
            .await?
            .is_some()
        {
            return Err(taken(volume));
        }
    }
    Ok(())
}

/// Refuses volumes that could outgrow what is free in their pools.
async fn check_room(core: &Core, volumes: &[Volume]) -> Result<(), Fault> {
    let mut needed: BTreeMap<&str, Bytes> = BTreeMap::new();
    for volume in volumes {
        let sum = needed.entry(&volume.pool).or_default();
        *sum = sum.saturating_add(volume.size);
    }
    for (pool, bytes) in needed {
        core.pools.check_room(pool, bytes).await?;
    }
    Ok(())
}

fn nics(core: &Core, vm: VmId, wishes: &[NewNic]) -> Result<Vec<Nic>, Fault> {
    let mut nics = Vec::new();
    for (index, wish) in (0u32..).zip(wishes) {
        let path = |name: &str| format!("nics[{index}].{name}");
        let (attachment, network_mtu) = match (&wish.attachment, &wish.network_id) {
            (Some(_), Some(_)) => {
                return Err(Fault::field(
                    Reason::FieldInvalid,
                    path("network_id"),
                    "can't be given together with an attachment",
                ));
            }
            (Some(attachment), None) => (attachment.clone(), None),
            (None, Some(network)) => {
                let found = core.config.network(network).ok_or_else(|| {
                    Fault::field(
                        Reason::NetworkNotFound,
                        path("network_id"),
                        "is not configured",
                    )
                    .with("network_id", network)
                })?;
                (found.attachment.clone(), found.mtu)
            }
            (None, None) => {
                return Err(Fault::field(
                    Reason::FieldRequired,
                    path("network_id"),
                    "or an attachment is needed",
                ));
            }
        };
        let mtu = wish.mtu.or(network_mtu);
        if mtu.is_some() && attachment == crate::model::nic::Attachment::User {
            return Err(Fault::field(
                Reason::FieldInvalid,
                path("mtu"),
                "can't be set on a user network",
            ));
        }
        let id = wish.nic_id.unwrap_or_else(NicId::random);
        let mac = wish.mac.unwrap_or_else(|| MacAddress::derived(id, vm));
        check_mac(core, vm, mac, &nics, &path("mac"))?;
        if nics.iter().any(|nic: &Nic| nic.id == id) {
            return Err(Fault::field(
                Reason::FieldInvalid,
                path("nic_id"),
                "is given twice",
            ));
        }
        nics.push(Nic {
            id,
            network_id: wish.network_id.clone(),
            mac,
            device_index: index,
            model: wish.model,
            mtu,
            ip_addresses: wish.ip_addresses.clone(),
            metadata: wish.metadata.clone(),
            attachment,
        });
    }
    Ok(nics)
}

fn check_mac(
    core: &Core,
    vm: VmId,
    mac: MacAddress,
    own: &[Nic],
    field: &str,
) -> Result<(), Fault> {
    if own.iter().any(|nic| nic.mac == mac) {
        return Err(Fault::field(Reason::MacInUse, field, "is given twice").with("mac", mac));
    }
    for view in core.vms.list() {
        if let Some(other) = &view.vm
            && other.id != vm
            && other.nics.iter().any(|nic| nic.mac == mac)
        {
            return Err(Fault::field(
                Reason::MacInUse,
                field,
                format!("is used by VM {}", other.id),
            )
            .with("mac", mac)
            .with("vm_id", other.id));
        }
    }
    Ok(())
}

/// The hardware that is asked for: the profile or `base`, with what the request
/// says on top, and every choice made.
fn hardware(
    core: &Core,
    profile: Option<&str>,
    wish: &HardwareWish,
    base: Option<&Hardware>,
) -> Result<(Hardware, Hypervisor), Fault> {
    let profile = match profile {
        Some(id) => Some(core.config.hardware_profile(id).ok_or_else(|| {
            Fault::field(
                Reason::ProfileNotFound,
                "hardware_profile_id",
                "is not configured",
            )
            .with("hardware_profile_id", id)
        })?),
        None => None,
    };
    let base = profile.map(|profile| &profile.hardware).or(base);
    let needed = |field: &str| {
        Fault::field(
            Reason::FieldRequired,
            field,
            "is needed without a hardware profile",
        )
    };
    let vcpus = wish
        .vcpus
        .or(base.map(|base| base.vcpus))
        .ok_or_else(|| needed("hardware.vcpus"))?;
    let memory = wish
        .memory_bytes
        .or(base.map(|base| base.memory))
        .ok_or_else(|| needed("hardware.memory_bytes"))?;
    let facts = core.hypervisor.facts()?;
    if vcpus == 0 || vcpus > core.config.vms.max_vcpus_per_vm {
        return Err(Fault::field(
            Reason::FieldInvalid,
            "hardware.vcpus",
            format!("must be 1 to {}", core.config.vms.max_vcpus_per_vm),
        ));
    }
    if memory < LEAST_MEMORY || !memory.get().is_multiple_of(GRAIN.get()) {
        return Err(Fault::field(
            Reason::FieldInvalid,
            "hardware.memory_bytes",
            "must be a multiple of 1 MiB, from 16 MiB",
        ));
    }
    if memory > facts.memory {
        return Err(Fault::field(
            Reason::HostMemory,
            "hardware.memory_bytes",
            format!("is {memory}, and the host has {}", facts.memory),
        ));
    }
    let cpu = wish
        .cpu
        .clone()
        .or(base.map(|base| base.cpu.clone()))
        .unwrap_or_default();
    let wished = wish
        .accelerator
        .or(base.map(|base| base.accelerator))
        .unwrap_or_default();
    let wished = if wished == Accelerator::Auto {
        core.config.hypervisor.accelerator
    } else {
        wished
    };
    let (accelerator, hypervisor) = accelerator(core, wished)?;
    if matches!(cpu, Cpu::HostPassthrough | Cpu::HostModel) && hypervisor == Hypervisor::Qemu {
        return Err(Fault::field(
            Reason::KvmUnavailable,
            "hardware.cpu_mode",
            "needs KVM, and this VM would run without it",
        ));
    }
    let firmware = wish
        .firmware
        .or(base.map(|base| base.firmware))
        .unwrap_or_default();
    if firmware == Firmware::Uefi && !facts.uefi && hypervisor != Hypervisor::Test {
        return Err(Fault::field(
            Reason::FieldInvalid,
            "hardware.firmware",
            "can't be UEFI here: libvirt finds no UEFI firmware on this host",
        ));
    }
    let machine = wish
        .machine
        .clone()
        .or(base.map(|base| base.machine.clone()))
        .unwrap_or_else(|| PLAIN_MACHINE.to_owned());
    if hypervisor != Hypervisor::Test
        && !facts.machines.is_empty()
        && !facts.machines.contains(&machine)
    {
        return Err(Fault::field(
            Reason::FieldInvalid,
            "hardware.machine",
            "is not a machine type that this host's QEMU has",
        )
        .with("machine", machine));
    }
    Ok((
        Hardware {
            vcpus,
            memory,
            cpu,
            machine,
            firmware,
            accelerator,
        },
        hypervisor,
    ))
}

fn accelerator(core: &Core, wished: Accelerator) -> Result<(Accelerator, Hypervisor), Fault> {
    if core.hypervisor.is_simulated() {
        return Ok((wished, Hypervisor::Test));
    }
    let kvm = core.node.kvm_works();
    match wished {
        Accelerator::Auto if kvm => Ok((Accelerator::Kvm, Hypervisor::Kvm)),
        Accelerator::Auto | Accelerator::Tcg => Ok((Accelerator::Tcg, Hypervisor::Qemu)),
        Accelerator::Kvm if kvm => Ok((Accelerator::Kvm, Hypervisor::Kvm)),
        Accelerator::Kvm => Err(Fault::field(
            Reason::KvmUnavailable,
            "hardware.accelerator",
            "can't be KVM: /dev/kvm can't be opened, or the processor has no vmx or svm",
        )),
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
