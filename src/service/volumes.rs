//! Volumes and pools, as readers see them.

use super::core::Core;
use crate::model::bytes::Bytes;
use crate::model::ids::VmId;
use crate::model::vm::Life;
use crate::model::volume::{PoolKind, Volume, VolumeFormat};
use crate::storage::{CephPoolState, CephPoolUsage};

/// A volume with its VM.
#[derive(Debug, Clone)]
pub struct VolumeView {
    /// The volume.
    pub volume: Volume,
    /// Its VM.
    pub vm_id: VmId,
    /// It is being made or removed with its VM.
    pub pending: bool,
}

/// A pool with its space, as last measured.
#[derive(Debug, Clone)]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// What it is made of.
    pub kind: PoolKind,
    /// Its whole space.
    pub capacity: Bytes,
    /// What was free.
    pub free: Bytes,
    /// What its volumes may grow to, all together.
    pub promised: Bytes,
    /// Whether it can be used.
    pub ready: bool,
    /// Why not.
    pub reason: String,
    /// Whether VMs are created here unless another pool is named.
    pub default: bool,
    /// The Ceph pools that it is made of, if of such.
    pub ceph_pools: Vec<CephPoolView>,
}

/// A Ceph pool, as last measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CephPoolView {
    /// Its name.
    pub name: String,
    /// Its whole space.
    pub capacity: Bytes,
    /// What was free.
    pub free: Bytes,
    /// Whether it takes data.
    pub state: CephPoolCondition,
}

/// Whether a Ceph pool takes data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CephPoolCondition {
    /// It does.
    Ready,
    /// It does, and takes nothing new.
    NearFull,
    /// It is full, or at its quota.
    Full,
    /// The cluster has no such pool.
    Missing,
}

/// Lists the volumes of all VMs, by id.
pub fn list(core: &Core) -> Vec<VolumeView> {
    let mut volumes: Vec<VolumeView> = core
        .vms
        .list()
        .iter()
        .filter_map(|view| view.vm.as_ref())
        .flat_map(|vm| {
            let pending = is_pending(vm.life);
            vm.volumes.iter().map(move |volume| VolumeView {
                volume: volume.clone(),
                vm_id: vm.id,
                pending,
            })
        })
        .collect();
    volumes.sort_by_key(|view| view.volume.id);
    volumes
}

/// Whether a VM's volumes are being made or removed.
pub const fn is_pending(life: Life) -> bool {
    match life {
        Life::Making | Life::Failed | Life::Expunging => true,
        Life::Present | Life::Deleted { .. } => false,
    }
}

/// Where a volume is in its pool.
pub fn install_path(volume: &Volume) -> String {
    match volume.format {
        VolumeFormat::Qcow2 => format!("volumes/{}.qcow2", volume.id),
        VolumeFormat::Raw => format!(
            "{}/vol-{}",
            volume.ceph_pool.as_deref().unwrap_or_default(),
            volume.id
        ),
    }
}

/// Lists the pools, in the order of the configuration.
pub fn pools(core: &Core) -> Vec<PoolView> {
    let volumes = list(core);
    core.pools
        .all()
        .iter()
        .map(|entry| {
            let measured = entry.measured();
            let name = entry.pool.name();
            let promised = volumes
                .iter()
                .filter(|view| view.volume.pool == name)
                .fold(Bytes::ZERO, |sum, view| {
                    sum.saturating_add(view.volume.size)
                });
            let (capacity, free) = measured.usage.map_or((Bytes::ZERO, Bytes::ZERO), |usage| {
                (usage.capacity, usage.free)
            });
            PoolView {
                name: name.to_owned(),
                kind: entry.pool.kind(),
                capacity,
                free,
                promised,
                ready: measured.trouble.is_none() && measured.usage.is_some(),
                reason: measured
                    .trouble
                    .map_or(String::new(), |fault| fault.message),
                default: entry.default,
                ceph_pools: entry.pool.ceph_pools().iter().map(ceph_pool).collect(),
            }
        })
        .collect()
}

fn ceph_pool(pool: &CephPoolUsage) -> CephPoolView {
    CephPoolView {
        name: pool.name.clone(),
        capacity: pool.usage.capacity,
        free: pool.usage.free,
        state: match pool.state {
            CephPoolState::Ready => CephPoolCondition::Ready,
            CephPoolState::NearFull => CephPoolCondition::NearFull,
            CephPoolState::Full => CephPoolCondition::Full,
            CephPoolState::Missing => CephPoolCondition::Missing,
        },
    }
}
