//! Hardware: what is wished, and what a VM has.

use super::{invalid, required, text, unknown_value};
use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::hardware::{Accelerator, Cpu, Firmware, Hardware};
use crate::model::request::HardwareWish;
use crate::proto::v1 as wire;

/// Reads hardware; what is zero or absent is not wished.
pub(super) fn wish(field: &str, given: wire::Hardware) -> Result<HardwareWish, Fault> {
    let path = |name: &str| format!("{field}.{name}");
    Ok(HardwareWish {
        vcpus: (given.vcpus != 0).then_some(given.vcpus),
        memory_bytes: match given.memory_bytes {
            0 => None,
            bytes => Some(memory(&path("memory_bytes"), bytes)?),
        },
        cpu: match cpu(field, given.cpu_mode, given.cpu_model)? {
            Cpu::Auto => None,
            chosen @ (Cpu::HostPassthrough | Cpu::HostModel | Cpu::Maximum | Cpu::Custom(_)) => {
                Some(chosen)
            }
        },
        machine: match given.machine {
            none if none.is_empty() => None,
            machine => Some(text::word(&path("machine"), machine)?),
        },
        firmware: match given.firmware {
            0 => None,
            value => Some(firmware(&path("firmware"), value)?),
        },
        accelerator: match given.accelerator {
            0 => None,
            value => Some(accelerator(&path("accelerator"), value)?),
        },
    })
}

/// Takes one field of `given` into `wish`, because an update mask names it: here
/// its zero is not "as it is" but the default that the proto names.
///
/// Returns `false` if there is no such field.
pub(super) fn take(
    wish: &mut HardwareWish,
    field: &str,
    name: &str,
    given: &wire::Hardware,
) -> Result<bool, Fault> {
    let path = format!("{field}.{name}");
    match name {
        "vcpus" if given.vcpus == 0 => return Err(invalid(&path, "must be at least 1")),
        "vcpus" => wish.vcpus = Some(given.vcpus),
        "memory_bytes" => wish.memory_bytes = Some(memory(&path, given.memory_bytes)?),
        // One can't be changed without the other.
        "cpu_mode" | "cpu_model" => {
            wish.cpu = Some(cpu(field, given.cpu_mode, given.cpu_model.clone())?);
        }
        "machine" if given.machine.is_empty() => return Err(required(&path)),
        "machine" => wish.machine = Some(text::word(&path, given.machine.clone())?),
        "firmware" => wish.firmware = Some(firmware(&path, given.firmware)?),
        "accelerator" => wish.accelerator = Some(accelerator(&path, given.accelerator)?),
        _ => return Ok(false),
    }
    Ok(true)
}

fn memory(field: &str, bytes: u64) -> Result<Bytes, Fault> {
    const MIB: u64 = 1 << 20;
    if bytes < 16 * MIB || !bytes.is_multiple_of(MIB) {
        return Err(invalid(field, "must be a multiple of 1 MiB, from 16 MiB"));
    }
    super::volume::size(field, bytes)
}

fn cpu(field: &str, mode: i32, model: String) -> Result<Cpu, Fault> {
    let path = format!("{field}.cpu_model");
    let mode = wire::CpuMode::try_from(mode)
        .map_err(|_| unknown_value(&format!("{field}.cpu_mode"), mode))?;
    let chosen = match mode {
        wire::CpuMode::Custom if model.is_empty() => return Err(required(&path)),
        wire::CpuMode::Custom => return text::word(&path, model).map(Cpu::Custom),
        wire::CpuMode::Unspecified => Cpu::Auto,
        wire::CpuMode::HostPassthrough => Cpu::HostPassthrough,
        wire::CpuMode::HostModel => Cpu::HostModel,
        wire::CpuMode::Maximum => Cpu::Maximum,
    };
    if model.is_empty() {
        Ok(chosen)
    } else {
        Err(invalid(&path, "is only for CPU_MODE_CUSTOM"))
    }
}

fn firmware(field: &str, value: i32) -> Result<Firmware, Fault> {
    match wire::Firmware::try_from(value).map_err(|_| unknown_value(field, value))? {
        wire::Firmware::Unspecified | wire::Firmware::Bios => Ok(Firmware::Bios),
        wire::Firmware::Uefi => Ok(Firmware::Uefi),
    }
}

fn accelerator(field: &str, value: i32) -> Result<Accelerator, Fault> {
    match wire::Accelerator::try_from(value).map_err(|_| unknown_value(field, value))? {
        wire::Accelerator::Unspecified => Ok(Accelerator::Auto),
        wire::Accelerator::Kvm => Ok(Accelerator::Kvm),
        wire::Accelerator::Tcg => Ok(Accelerator::Tcg),
    }
}

/// The hardware that a VM or a profile has.
pub(super) fn shown(hardware: &Hardware) -> wire::Hardware {
    let (cpu_mode, cpu_model) = match &hardware.cpu {
        Cpu::Auto => (wire::CpuMode::Unspecified, ""),
        Cpu::HostPassthrough => (wire::CpuMode::HostPassthrough, ""),
        Cpu::HostModel => (wire::CpuMode::HostModel, ""),
        Cpu::Maximum => (wire::CpuMode::Maximum, ""),
        Cpu::Custom(model) => (wire::CpuMode::Custom, model.as_str()),
    };
    wire::Hardware {
        vcpus: hardware.vcpus,
        memory_bytes: hardware.memory.get(),
        cpu_mode: cpu_mode.into(),
        cpu_model: cpu_model.to_owned(),
        machine: hardware.machine.clone(),
        firmware: match hardware.firmware {
            Firmware::Bios => wire::Firmware::Bios,
            Firmware::Uefi => wire::Firmware::Uefi,
        }
        .into(),
        accelerator: match hardware.accelerator {
            Accelerator::Auto => wire::Accelerator::Unspecified,
            Accelerator::Kvm => wire::Accelerator::Kvm,
            Accelerator::Tcg => wire::Accelerator::Tcg,
        }
        .into(),
    }
}
