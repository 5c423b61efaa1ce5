//! What a VM's virtual machine is made of: processors, memory, board, firmware.

use super::bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The virtual hardware of one VM, with every choice made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// Number of virtual processors.
    pub vcpus: u32,
    /// Memory of the guest.
    pub memory: Bytes,
    /// What the guest sees as its processor.
    pub cpu: Cpu,
    /// The board: a QEMU machine type such as `q35`, `pc` or `pc-q35-9.2`.
    pub machine: String,
    /// What the guest starts from.
    pub firmware: Firmware,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
}

/// What the guest sees as its processor.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cpu {
    /// The host's own with KVM, QEMU's fullest with TCG.
    #[default]
    Auto,
    /// The host's own processor, unchanged. Needs KVM.
    HostPassthrough,
    /// The nearest model that QEMU knows. Needs KVM.
    HostModel,
    /// All that the accelerator can offer.
    Maximum,
    /// A model of QEMU's by name, such as `qemu64` or `EPYC-Milan`.
    Custom(String),
}

/// What a guest starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    Bios,
    /// OVMF, chosen by libvirt; each VM has its own variable store.
    Uefi,
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// KVM where the host truly has it, else TCG.
    #[default]
    Auto,
    /// KVM, or refuse.
    Kvm,
    /// QEMU's own translator: slow, but works anywhere.
    Tcg,
}
