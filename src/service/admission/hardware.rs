//! Hardware: what is asked for on top of what is configured, and whether this host
//! has such.

use super::{Core, Offered};
use crate::libvirt::{CpuMode, HostFacts};
use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::hardware::{Accelerator, Cpu, Firmware, Hardware};
use crate::model::reason::Reason;
use crate::model::request::HardwareWish;
use crate::model::vm::Hypervisor;

/// Memory comes in whole MiB.
const GRAIN: Bytes = Bytes::mib(1);
const LEAST_MEMORY: Bytes = Bytes::mib(16);
const PLAIN_MACHINE: &str = "q35";

/// The hardware that is asked for: the profile or `base`, with what the request
/// says on top, and every choice made.
pub(super) fn hardware(
    core: &Core,
    offered: &Offered,
    profile: Option<&str>,
    wish: &HardwareWish,
    base: Option<&Hardware>,
) -> Result<(Hardware, Hypervisor), Fault> {
    let profile = match profile {
        Some(id) => Some(offered.hardware_profile(id).ok_or_else(|| {
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
            "needs KVM, and this VM would run without it: ask for MAXIMUM",
        ));
    }
    check_model(&facts, &cpu, hypervisor)?;
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
            "is not a machine type that VMs can have on this host; GetNode returns those",
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

/// Refuses a CPU model that the hypervisor does not know. One that it can't give in full
/// it gives without what is lacking; what libvirt says nothing of is left to the start.
fn check_model(facts: &HostFacts, cpu: &Cpu, hypervisor: Hypervisor) -> Result<(), Fault> {
    let Cpu::Custom(model) = cpu else {
        return Ok(());
    };
    let (modes, with) = match hypervisor {
        Hypervisor::Kvm => (&facts.kvm_cpu_modes, "with KVM"),
        Hypervisor::Qemu => (&facts.cpu_modes, "without KVM"),
        Hypervisor::Test => return Ok(()),
    };
    let custom = modes.iter().find(|mode| mode.name == "custom");
    let is_known = |mode: &CpuMode| {
        let mut known = mode.models.iter().chain(&mode.lacking).peekable();
        known.peek().is_none() || known.any(|known| known == model)
    };
    if custom.is_none_or(is_known) {
        return Ok(());
    }
    Err(Fault::field(
        Reason::FieldInvalid,
        "hardware.cpu_model",
        format!("is not a model that guests {with} can have on this host; GetNode returns those that they can have in full"),
    )
    .with("cpu_model", model))
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
