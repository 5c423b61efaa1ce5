//! What VMs may take of the host, have taken, and can still take.
//!
//! Invariant: what readers are shown and what a start is held against are the same
//! figures, counted here and nowhere else. Nothing is kept: they follow from the
//! configuration, the host's facts and the VMs as they are now.

use super::core::Core;
use crate::config::VmSettings;
use crate::libvirt::HostFacts;
use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::hardware::Hardware;
use crate::model::ids::VmId;
use crate::model::reason::Reason;

/// vCPUs and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// Virtual processors.
    pub vcpus: u64,
    /// Memory.
    pub memory: Bytes,
}

impl Share {
    /// What a VM with this hardware takes while it has power.
    pub const fn of(hardware: &Hardware) -> Self {
        Self {
            vcpus: hardware.vcpus as u64,
            memory: hardware.memory,
        }
    }

    /// What both take.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_add(other.vcpus),
            memory: self.memory.saturating_add(other.memory),
        }
    }

    /// What is left of it without `other`; nothing where that is more.
    #[must_use]
    pub const fn less(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_sub(other.vcpus),
            memory: self.memory.saturating_sub(other.memory),
        }
    }
}

/// What VMs may take in all: threads and memory by the configured ratios, less the
/// memory that they never get.
pub fn total(facts: &HostFacts, settings: &VmSettings) -> Share {
    let vcpus = scale(u64::from(facts.cpus), settings.vcpu_overcommit).max(1);
    let memory = Bytes(scale(facts.memory.get(), settings.memory_overcommit));
    Share {
        vcpus,
        memory: memory.saturating_sub(settings.reserved_memory),
    }
}

/// What the VMs have that have power or are about to get it, all but one.
pub fn promised(core: &Core, but: Option<VmId>) -> Share {
    core.vms
        .list()
        .iter()
        .filter(|view| view.claims_host())
        .filter_map(|view| view.vm.as_ref())
        .filter(|vm| Some(vm.id) != but)
        .fold(Share::default(), |sum, vm| {
            sum.plus(Share::of(&vm.hardware))
        })
}

/// Refuses a start that the host has no room for. The caller holds the admission
/// lock.
///
/// # Errors
/// `HOST_MEMORY`, `HOST_VCPUS`, `HYPERVISOR_AWAY`.
pub fn check_room(core: &Core, id: VmId, hardware: &Hardware) -> Result<(), Fault> {
    let total = total(&*core.hypervisor.facts()?, &core.config.vms);
    fits(
        Share::of(hardware),
        total.less(promised(core, Some(id))),
        total,
    )
}

fn fits(asked: Share, free: Share, total: Share) -> Result<(), Fault> {
    if asked.memory > free.memory {
        let (asked, free, total) = (asked.memory, free.memory, total.memory);
        return Err(Fault::new(
            Reason::HostMemory,
            format!("the VM needs {asked}; of the {total} that the host gives, {free} are free"),
        )
        .with("asked_bytes", asked.get())
        .with("free_bytes", free.get())
        .with("capacity_bytes", total.get()));
    }
    if asked.vcpus > free.vcpus {
        let (asked, free, total) = (asked.vcpus, free.vcpus, total.vcpus);
        return Err(Fault::new(
            Reason::HostVcpus,
            format!(
                "the VM needs {asked} vCPUs; of the {total} that the host gives, {free} are free"
            ),
        )
        .with("asked", asked)
        .with("free", free)
        .with("capacity", total));
    }
    Ok(())
}

fn scale(amount: u64, by: f64) -> u64 {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    // an over-commit ratio is not exact in the first place
    let scaled = (amount as f64 * by) as u64;
    scaled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(vcpus: u64, memory: u64) -> Share {
        Share {
            vcpus,
            memory: Bytes::mib(memory),
        }
    }

    #[test]
    fn what_is_exactly_free_fits_and_one_more_does_not() {
        let (free, total) = (share(2, 100), share(8, 400));
        assert!(fits(share(2, 100), free, total).is_ok());
        let vcpus = fits(share(3, 100), free, total).unwrap_err();
        assert_eq!(vcpus.reason, Reason::HostVcpus);
        for (key, value) in [("asked", "3"), ("free", "2"), ("capacity", "8")] {
            assert_eq!(vcpus.metadata[key], value);
        }
        let memory = fits(share(2, 101), free, total).unwrap_err();
        assert_eq!(memory.reason, Reason::HostMemory);
        let mib = |number: u64| (number << 20).to_string();
        assert_eq!(memory.metadata["asked_bytes"], mib(101));
        assert_eq!(memory.metadata["free_bytes"], mib(100));
        assert_eq!(memory.metadata["capacity_bytes"], mib(400));
    }

    #[test]
    fn more_promised_than_there_is_leaves_nothing() {
        assert_eq!(share(4, 100).less(share(5, 99)), share(0, 1));
    }
}
