//! Volumes: where they go, how large they are, and whether there is room.

use super::{Core, check_text};
use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::ids::{VmId, VolumeId};
use crate::model::reason::Reason;
use crate::model::request::NewVolume;
use crate::model::tag::Tags;
use crate::model::time::Timestamp;
use crate::model::vm::{Life, Vm};
use crate::model::volume::{PoolKind, Volume, VolumeAttachment, VolumeFormat, VolumeKind};
use crate::storage::Backing;
use std::collections::{BTreeMap, BTreeSet};

/// Volumes are made in whole MiB.
const GRAIN: Bytes = Bytes::mib(1);
/// The largest volume that may be asked for.
const LARGEST_VOLUME: Bytes = Bytes::gib(64 << 10);

/// The pool of a root volume: the tag's, else the named one, else the default.
pub(super) fn root_pool<'a>(
    core: &'a Core,
    tags: &Tags,
    named: Option<&str>,
) -> Result<&'a str, Fault> {
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
pub(super) struct Place<'a> {
    pub(super) index: u32,
    pub(super) pool: &'a str,
    pub(super) field: &'a str,
    pub(super) image_field: &'a str,
}

pub(super) fn volume(
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
    let format = match core.pools.get(place.pool).map(|entry| entry.pool.kind()) {
        Some(PoolKind::Rbd) => VolumeFormat::Raw,
        Some(PoolKind::Qcow2) | None => VolumeFormat::Qcow2,
    };
    if wish.shareable && format == VolumeFormat::Qcow2 {
        // Each QEMU keeps the tables of a qcow2 file in its memory; libvirt refuses
        // to start such a VM.
        return Err(Fault::field(
            Reason::FieldInvalid,
            path("shareable"),
            "is for volumes of plain bytes, and this pool's are qcow2 files",
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
        format,
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

/// Refuses ids that another recorded volume has, or that are given twice.
pub(super) fn check_volume_ids(core: &Core, id: VmId, volumes: &[Volume]) -> Result<(), Fault> {
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
    Ok(())
}

/// Refuses ids that a file in the pool has, unless it is what `former`, a creation
/// that failed, could not remove: then it must be what is wanted now.
pub(super) async fn check_files(
    core: &Core,
    volumes: &[Volume],
    former: Option<&Vm>,
) -> Result<(), Fault> {
    for volume in volumes {
        let id = volume.id;
        let found = core
            .pools
            .call(&volume.pool, move |pool, _| pool.volume(id))
            .await?;
        let Some(found) = found else { continue };
        let left_over = former.is_some_and(|vm| vm.volume(id).is_some());
        let wanted = match volume.image_id {
            Some(image) => found.backing == Backing::Image(image),
            None => found.backing == Backing::Nothing,
        };
        if !(left_over && wanted && found.virtual_size == volume.size) {
            return Err(taken(volume));
        }
    }
    Ok(())
}

fn taken(volume: &Volume) -> Fault {
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
}

/// Refuses volumes that could outgrow what is free in their pools.
pub(super) async fn check_room(core: &Core, volumes: &[Volume]) -> Result<(), Fault> {
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
