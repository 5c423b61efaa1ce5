//! What the host is and can do, as libvirt reports it.

use super::connection::Host;
use super::error::{ErrorKind, LibvirtError};
use super::xml::{CpuMode, NumaCell, Processor, host};
use crate::model::bytes::Bytes;
use std::fmt;
use std::path::PathBuf;
use virt::connect::Connect;

/// What the host is and can do. Gathered once per connection: nothing in it
/// changes without a restart of libvirt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// The libvirt that answers (the daemon's, not the linked library's).
    pub libvirt_version: Version,
    /// libvirt's name of the driver: `QEMU` or `TEST`.
    pub hypervisor: String,
    /// The hypervisor's own version.
    pub hypervisor_version: Version,
    /// The host's name.
    pub hostname: String,
    /// The host's processor architecture, such as `x86_64`.
    pub arch: String,
    /// Processors that are online.
    pub cpus: u32,
    /// The host's memory.
    pub memory: Bytes,
    /// libvirt offers KVM. Whether it truly works is not libvirt's to know.
    pub kvm: bool,
    /// The program that runs guests of the host's architecture; `None` where
    /// guests are simulated.
    pub emulator: Option<PathBuf>,
    /// Board types that guests of the host's architecture can have.
    pub machines: Vec<String>,
    /// libvirt finds a UEFI firmware for guests of the host's architecture.
    pub uefi: bool,
    /// The processors.
    pub processor: Processor,
    /// The NUMA nodes; memory and huge pages as they were when this was gathered.
    pub numa: Vec<NumaCell>,
    /// How guests with KVM can choose their processor; empty without KVM.
    pub kvm_cpu_modes: Vec<CpuMode>,
    /// How guests without KVM can.
    pub cpu_modes: Vec<CpuMode>,
}

/// A version in libvirt's counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Changes with each year or epoch.
    pub major: u32,
    /// Changes with each release.
    pub minor: u32,
    /// Changes with each repair.
    pub patch: u32,
}

impl Version {
    /// From libvirt's single number: major * 1,000,000 + minor * 1,000 + patch.
    const fn from_number(number: u32) -> Self {
        Self {
            major: number / 1_000_000,
            minor: number / 1000 % 1000,
            patch: number % 1000,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Host {
    /// Gathers what the host is and can do; about ten calls.
    ///
    /// # Errors
    /// As any call; a hypervisor without domain capabilities is no error.
    pub fn facts(&self) -> Result<HostFacts, LibvirtError> {
        let capabilities = self.call("read capabilities", Connect::capabilities)?;
        let capabilities = host::capabilities(&capabilities)
            .map_err(|e| LibvirtError::refused("read capabilities", ErrorKind::Other, e))?;
        let node = self.call("read node information", Connect::node_info)?;
        // The simulated driver claims to have every kind of guest.
        let (without_kvm, with_kvm) = if self.is_simulated() {
            (self.domain_capabilities(None)?, None)
        } else {
            let without = self.domain_capabilities(Some("qemu"))?;
            (without, self.domain_capabilities(Some("kvm"))?)
        };
        let any = with_kvm.as_ref().or(without_kvm.as_ref());
        Ok(HostFacts {
            libvirt_version: Version::from_number(
                self.call("read libvirt's version", Connect::lib_version)?,
            ),
            hypervisor: self.call("read the driver's name", Connect::driver_type)?,
            hypervisor_version: Version::from_number(
                self.call("read the hypervisor's version", Connect::hyp_version)?,
            ),
            hostname: self.call("read the host's name", Connect::hostname)?,
            arch: capabilities.arch,
            cpus: node.cpus,
            memory: Bytes::kib(node.memory),
            kvm: with_kvm.is_some(),
            emulator: any.and_then(|c| c.emulator.clone()),
            machines: capabilities.machines,
            uefi: any.is_some_and(|c| c.uefi),
            processor: capabilities.processor,
            numa: capabilities.numa,
            kvm_cpu_modes: with_kvm.map(|c| c.cpu_modes).unwrap_or_default(),
            cpu_modes: without_kvm.map(|c| c.cpu_modes).unwrap_or_default(),
        })
    }

    /// What guests of one kind can have; `None` when there are no such guests.
    fn domain_capabilities(
        &self,
        virt_type: Option<&str>,
    ) -> Result<Option<host::DomainCapabilities>, LibvirtError> {
        const WHAT: &str = "read domain capabilities";
        let answer = self.call(WHAT, |c| {
            c.domain_capabilities(None, None, None, virt_type, 0)
        });
        match answer {
            Ok(xml) => host::domain_capabilities(&xml)
                .map(Some)
                .map_err(|e| LibvirtError::refused(WHAT, ErrorKind::Other, e)),
            Err(error) if error.is_connection_lost() => Err(error),
            // Refused with various codes by the drivers that lack the type.
            Err(_) => Ok(None),
        }
    }
}
