//! Volumes and pools.

use super::time::timestamp;
use super::{invalid, text};
use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::ids::VmId;
use crate::model::request::NewVolume;
use crate::model::volume::{
    PoolKind, Volume, VolumeAttachment, VolumeFormat, VolumeKind, VolumeQos,
};
use crate::proto::v1 as wire;
use crate::service::volumes::{self, CephPoolCondition, CephPoolView, PoolView};

/// QEMU's throttling takes no larger numbers.
const LARGEST_LIMIT: u64 = 1_000_000_000_000_000;

/// Reads a volume to make; absent: all by default.
pub(super) fn new_volume(field: &str, given: Option<wire::NewVolume>) -> Result<NewVolume, Fault> {
    let given = given.unwrap_or_default();
    let path = |name: &str| format!("{field}.{name}");
    Ok(NewVolume {
        volume_id: text::id(&path("volume_id"), &given.volume_id)?,
        name: text::line(&path("name"), given.name, text::LINE)?,
        pool: text::optional_line(&path("pool"), given.pool)?,
        size_bytes: size(&path("size_bytes"), given.size_bytes)?,
        image_id: text::id(&path("image_id"), &given.image_id)?,
        shareable: given.shareable,
        qos: limits(&path("qos"), given.qos.unwrap_or_default())?,
        delete_with_vm: given.delete_with_vm.unwrap_or(true),
        description: text::prose(&path("description"), given.description)?,
        annotations: text::carried(&path("annotations"), given.annotations, text::ANNOTATIONS)?,
    })
}

/// Reads a size: files, SQLite and qemu-img count in 63 bits.
pub(super) fn size(field: &str, bytes: u64) -> Result<Bytes, Fault> {
    // Rounding up to 1 MiB must stay within them.
    const LARGEST: u64 = (i64::MAX as u64) & !((1 << 20) - 1);
    if bytes > LARGEST {
        return Err(invalid(field, "is more than 8 EiB"));
    }
    Ok(Bytes(bytes))
}

/// Reads the limits of a volume. QEMU takes one on reads and writes together, or
/// one on either of them, not both.
fn limits(field: &str, qos: wire::VolumeQos) -> Result<VolumeQos, Fault> {
    let path = |name: &str| format!("{field}.{name}");
    let both = |together: u64, read: u64, write: u64| together > 0 && (read > 0 || write > 0);
    if both(
        qos.bytes_per_second,
        qos.read_bytes_per_second,
        qos.write_bytes_per_second,
    ) {
        return Err(invalid(
            &path("bytes_per_second"),
            "can't be combined with one on reads or writes",
        ));
    }
    if both(qos.iops, qos.read_iops, qos.write_iops) {
        return Err(invalid(
            &path("iops"),
            "can't be combined with one on reads or writes",
        ));
    }
    Ok(VolumeQos {
        bytes_per_second: limit(&path("bytes_per_second"), qos.bytes_per_second)?,
        iops: limit(&path("iops"), qos.iops)?,
        read_bytes_per_second: limit(&path("read_bytes_per_second"), qos.read_bytes_per_second)?,
        write_bytes_per_second: limit(&path("write_bytes_per_second"), qos.write_bytes_per_second)?,
        read_iops: limit(&path("read_iops"), qos.read_iops)?,
        write_iops: limit(&path("write_iops"), qos.write_iops)?,
    })
}

fn limit(field: &str, value: u64) -> Result<u64, Fault> {
    if value > LARGEST_LIMIT {
        return Err(invalid(field, format!("must be at most {LARGEST_LIMIT}")));
    }
    Ok(value)
}

/// A volume of a VM; `pending` while it is made or removed with its VM.
pub(in super::super) fn shown(vm: VmId, volume: &Volume, pending: bool) -> wire::Volume {
    let (device_index, state, until) = match volume.attachment {
        VolumeAttachment::Attached { device_index } => {
            (device_index, wire::VolumeState::Attached, None)
        }
        VolumeAttachment::Kept { until } => (0, wire::VolumeState::Kept, Some(until)),
    };
    let state = if pending {
        wire::VolumeState::Pending
    } else {
        state
    };
    wire::Volume {
        id: volume.id.to_string(),
        name: volume.name.clone(),
        vm_id: vm.to_string(),
        pool: volume.pool.clone(),
        kind: match volume.kind {
            VolumeKind::Root => wire::VolumeKind::Root,
            VolumeKind::Data => wire::VolumeKind::Data,
        }
        .into(),
        format: match volume.format {
            VolumeFormat::Qcow2 => wire::VolumeFormat::Qcow2,
            VolumeFormat::Raw => wire::VolumeFormat::Raw,
        }
        .into(),
        install_path: volumes::install_path(volume),
        image_id: volume.image_id.map(|id| id.to_string()).unwrap_or_default(),
        size_bytes: volume.size.get(),
        actual_size_bytes: volume.actual_size.get(),
        device_index,
        state: state.into(),
        shareable: volume.shareable,
        qos: Some(wire::VolumeQos {
            bytes_per_second: volume.qos.bytes_per_second,
            iops: volume.qos.iops,
            read_bytes_per_second: volume.qos.read_bytes_per_second,
            write_bytes_per_second: volume.qos.write_bytes_per_second,
            read_iops: volume.qos.read_iops,
            write_iops: volume.qos.write_iops,
        }),
        delete_with_vm: volume.delete_with_vm,
        create_time: Some(timestamp(volume.create_time)),
        expire_time: until.map(timestamp),
        description: volume.description.clone(),
        annotations: volume.annotations.clone().into_iter().collect(),
        ceph_pool: volume.ceph_pool.clone().unwrap_or_default(),
    }
}

/// A pool as last measured.
pub(in super::super) fn shown_pool(pool: &PoolView) -> wire::Pool {
    wire::Pool {
        name: pool.name.clone(),
        kind: match pool.kind {
            PoolKind::Qcow2 => wire::PoolKind::Qcow2,
            PoolKind::Rbd => wire::PoolKind::Rbd,
        }
        .into(),
        capacity_bytes: pool.capacity.get(),
        free_bytes: pool.free.get(),
        promised_bytes: pool.promised.get(),
        ready: pool.ready,
        reason: pool.reason.clone(),
        default: pool.default,
        ceph_pools: pool.ceph_pools.iter().map(shown_ceph_pool).collect(),
    }
}

fn shown_ceph_pool(pool: &CephPoolView) -> wire::CephPool {
    wire::CephPool {
        name: pool.name.clone(),
        capacity_bytes: pool.capacity.get(),
        free_bytes: pool.free.get(),
        state: match pool.state {
            CephPoolCondition::Ready => wire::CephPoolState::Ready,
            CephPoolCondition::NearFull => wire::CephPoolState::NearFull,
            CephPoolCondition::Full => wire::CephPoolState::Full,
            CephPoolCondition::Missing => wire::CephPoolState::Missing,
        }
        .into(),
    }
}
