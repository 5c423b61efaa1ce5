//! From a VM's record to its domain and back.
//!
//! The domain's metadata carries the record, so that a host whose journal is
//! lost still knows its VMs.

use super::core::Core;
use super::fault::internal;
use crate::libvirt::{
    DiskCache, DiskSpec, DomainAccelerator, DomainSpec, Metadata, OffReason, PanicDevice,
    PauseReason, Power, Sighting, VncSpec,
};
use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::ids::VmId;
use crate::model::lifecycle::{Observed, OffCause, PauseCause, Seen};
use crate::model::reason::Reason;
use crate::model::vm::{Hypervisor, Vm};
use crate::model::volume::{Volume, VolumeFormat};
use std::path::PathBuf;

/// The name of a VM's domain. Names for people need not be unique; these do.
pub fn domain_name(id: VmId) -> String {
    format!("kvmlet-{id}")
}

/// The file that a VM's serial console is written to.
pub fn console_log(core: &Core, id: VmId) -> PathBuf {
    core.config.vms.console_dir.join(format!("{id}.log"))
}

/// What the domain of a VM carries to be known by.
///
/// # Errors
/// `INTERNAL`; records can be written as JSON.
pub fn metadata(vm: &Vm) -> Result<Metadata, Fault> {
    // What is seen changes without being asked for; it is not part of the spec.
    let volumes = vm.volumes.iter().map(|volume| Volume {
        actual_size: Bytes::ZERO,
        ..volume.clone()
    });
    let spec = Vm {
        volumes: volumes.collect(),
        seen: Seen::NOTHING,
        update_time: vm.create_time,
        last_host_id: None,
        ..vm.clone()
    };
    let record = serde_json::to_string(&spec).map_err(|_| internal("a VM can't be recorded"))?;
    Ok(Metadata {
        id: vm.id,
        generation: vm.generation,
        record,
    })
}

/// The domain of a VM, with every choice made.
///
/// # Errors
/// `HYPERVISOR_AWAY`, or `INTERNAL` for a record without a root or pool.
pub fn spec(core: &Core, vm: &Vm) -> Result<DomainSpec, Fault> {
    let facts = core.hypervisor.facts()?;
    let mut disks = Vec::new();
    for (index, volume) in (0u32..).zip(vm.disks()) {
        let entry = core.pools.get(&volume.pool).ok_or_else(|| {
            Fault::new(
                Reason::PoolNotFound,
                format!("pool {} is no longer configured", volume.pool),
            )
            .with("pool", &volume.pool)
        })?;
        disks.push(DiskSpec {
            index,
            source: entry.pool.volume_source(&volume.reference()),
            format: volume.format,
            backing: match volume.format {
                VolumeFormat::Qcow2 => volume
                    .image_id
                    .map(|image| (entry.pool.image_source(image), VolumeFormat::Qcow2)),
                // The cluster knows what a volume is a clone of.
                VolumeFormat::Raw => None,
            },
            serial: volume.id.to_string(),
            cache: if entry.pool.direct_io() {
                DiskCache::None
            } else {
                DiskCache::Writeback
            },
            shareable: volume.shareable,
            read_only: false,
            qos: volume.qos,
        });
    }
    Ok(DomainSpec {
        id: vm.id,
        name: domain_name(vm.id),
        title: vm.name.clone(),
        description: vm.description.clone(),
        metadata: metadata(vm)?,
        accelerator: match vm.hypervisor {
            Hypervisor::Kvm => DomainAccelerator::Kvm,
            Hypervisor::Qemu => DomainAccelerator::Tcg,
            Hypervisor::Test => DomainAccelerator::Test,
        },
        arch: facts.arch.clone(),
        emulator: facts.emulator.clone(),
        machine: vm.hardware.machine.clone(),
        firmware: vm.hardware.firmware,
        vcpus: vm.hardware.vcpus,
        memory: vm.hardware.memory,
        cpu: vm.hardware.cpu.clone(),
        disks,
        nics: vm.nics.iter().map(Into::into).collect(),
        vnc: vm.vnc.then_some(VncSpec {
            listen: core.config.vnc.listen,
        }),
        panic: PanicDevice::of(&facts.arch, &vm.hardware.machine, facts.libvirt_version),
        console_log: console_log(core, vm.id),
    })
}

/// What libvirt shows of a domain, in the model's terms.
pub const fn observed(seen: Option<Sighting>) -> Observed {
    let Some(seen) = seen else {
        return Observed::Absent;
    };
    match seen.power {
        Power::Off(_) if seen.managed_save => Observed::Saved,
        Power::Off(reason) => Observed::Off(match reason {
            OffReason::Shutdown => OffCause::Shutdown,
            OffReason::Destroyed => OffCause::Destroyed,
            OffReason::Crashed | OffReason::Daemon => OffCause::Crashed,
            OffReason::Failed => OffCause::StartFailed,
            OffReason::Unknown
            | OffReason::Migrated
            | OffReason::Saved
            | OffReason::FromSnapshot => OffCause::Unknown,
        }),
        // A guest that has shut down still has its QEMU for a moment, and one
        // that sleeps wakes by itself.
        Power::Running(_) | Power::ShuttingDown | Power::Asleep => Observed::Running,
        Power::Paused(reason) => Observed::Paused(match reason {
            PauseReason::Request | PauseReason::Watchdog | PauseReason::ApiError => {
                PauseCause::User
            }
            PauseReason::IoError => PauseCause::IoError,
            PauseReason::Crashed => PauseCause::Crashed,
            PauseReason::Migration
            | PauseReason::Saving
            | PauseReason::Dumping
            | PauseReason::Snapshot
            | PauseReason::ShuttingDown => PauseCause::Busy,
            PauseReason::StartingUp => PauseCause::Starting,
            PauseReason::Unknown => PauseCause::Unknown,
        }),
        Power::Crashed => Observed::Paused(PauseCause::Crashed),
        Power::Unknown => Observed::Paused(PauseCause::Unknown),
    }
}
