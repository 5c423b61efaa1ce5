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
use crate::service::pools::PoolEntry;
use crate::storage::Backing;
use std::collections::{BTreeMap, BTreeSet};

/// Volumes are made in whole MiB.
const GRAIN: Bytes = Bytes::mib(1);
/// The largest volume that may be asked for.
const LARGEST_VOLUME: Bytes = Bytes::gib(64 << 10);

/// The field that the tag is in.
const TAGS: &str = "system_tags";

/// Where the root volume of a new VM goes: into the named pool, else, for a tag, the
/// one that is Ceph, else the default.
///
/// # Errors
/// See [`ceph_pool`]; `POOL_NOT_FOUND`.
pub(super) async fn root_place(
    core: &Core,
    tags: &Tags,
    named: Option<&str>,
) -> Result<(String, Option<String>), Fault> {
    let entry = match (named, &tags.ceph_root_pool) {
        (Some(name), _) => core.pools.named(name, "root_volume.pool")?,
        (None, None) => core.pools.default_pool(),
        (None, Some(wanted)) => pool_for(core, wanted).await?,
    };
    let pool = entry.pool.name().to_owned();
    let place = ceph_pool(
        core,
        &pool,
        VolumeKind::Root,
        tags.ceph_root_pool.as_deref(),
    )
    .await?;
    Ok((pool, place))
}

/// The pool for a root volume that a tag puts into a Ceph pool, if the request names
/// none: the default, if that is Ceph; else the first that takes the tag. If none
/// does, the first that is Ceph, which says why.
async fn pool_for<'a>(core: &'a Core, wanted: &str) -> Result<&'a PoolEntry, Fault> {
    let default = core.pools.default_pool();
    if default.pool.kind() == PoolKind::Rbd {
        return Ok(default);
    }
    let ceph = || {
        let all = core.pools.all().iter();
        all.filter(|entry| entry.pool.kind() == PoolKind::Rbd)
    };
    for entry in ceph() {
        if ceph_pool(core, entry.pool.name(), VolumeKind::Root, Some(wanted))
            .await
            .is_ok()
        {
            return Ok(entry);
        }
    }
    ceph().next().ok_or_else(|| {
        let problem = "names a Ceph pool, and no pool of this host is Ceph";
        Fault::field(Reason::PoolNotCeph, TAGS, problem).with("ceph_pool", wanted)
    })
}

/// The Ceph pool of a new volume: the tag's, else the usual one for its kind; `None`
/// in a pool that is not Ceph.
///
/// # Errors
/// `POOL_NOT_CEPH`, `CEPH_POOL_NOT_ALLOWED`, `CEPH_POOL_NOT_FOUND` about the tag, and
/// as any call to a pool.
pub(super) async fn ceph_pool(
    core: &Core,
    pool: &str,
    kind: VolumeKind,
    tag: Option<&str>,
) -> Result<Option<String>, Fault> {
    let wanted = tag.map(str::to_owned);
    let place = core
        .pools
        .call(pool, move |pool, _| pool.place(kind, wanted.as_deref()))
        .await;
    let (Err(fault), Some(tag)) = (&place, tag) else {
        return place;
    };
    let problem = match fault.reason {
        Reason::PoolNotCeph => format!("names a Ceph pool, and pool {pool} is not Ceph"),
        Reason::CephPoolNotAllowed => {
            format!("names {tag}, which pool {pool} does not allow for root volumes")
        }
        Reason::CephPoolNotFound => {
            format!("names {tag}, which the Ceph cluster of pool {pool} does not have")
        }
        _ => return place,
    };
    Err(Fault::field(fault.reason, TAGS, problem)
        .with("pool", pool)
        .with("ceph_pool", tag))
}

/// Where a volume goes, and how its fields are named in faults.
pub(super) struct Place<'a> {
    pub(super) index: u32,
    pub(super) pool: &'a str,
    pub(super) ceph_pool: Option<String>,
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
        ceph_pool: place.ceph_pool,
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
        let place = volume.reference();
        let found = core
            .pools
            .call(&volume.pool, move |pool, _| pool.volume(&place))
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
    let mut needed: BTreeMap<(&str, Option<&str>), Bytes> = BTreeMap::new();
    for volume in volumes {
        let place = (volume.pool.as_str(), volume.ceph_pool.as_deref());
        let sum = needed.entry(place).or_default();
        *sum = sum.saturating_add(volume.size);
    }
    for ((pool, ceph_pool), bytes) in needed {
        core.pools.check_room(pool, ceph_pool, bytes).await?;
    }
    Ok(())
}
