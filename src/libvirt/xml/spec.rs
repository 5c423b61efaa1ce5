//! What a domain is made of, with every choice made.

use super::super::capabilities::Version;
use crate::model::bytes::Bytes;
use crate::model::hardware::{Cpu, Firmware};
use crate::model::ids::VmId;
use crate::model::nic::{Attachment, MacAddress, Nic, NicModel};
use crate::model::volume::{DiskSource, VolumeFormat, VolumeQos};
use std::net::IpAddr;
use std::path::PathBuf;

/// A domain to be defined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainSpec {
    /// Its UUID.
    pub id: VmId,
    /// Its name in libvirt: unique on the host, without `/`.
    pub name: String,
    /// A name for people: one line. Empty for none.
    pub title: String,
    /// Free text. Empty for none.
    pub description: String,
    /// What we want to find again.
    pub metadata: Metadata,
    /// What executes the guest's instructions.
    pub accelerator: DomainAccelerator,
    /// The guest's architecture, such as `x86_64`. Not used for simulated ones.
    pub arch: String,
    /// The program to run; `None` is libvirt's choice for the architecture.
    pub emulator: Option<PathBuf>,
    /// The board: a QEMU machine type. Not used for simulated ones.
    pub machine: String,
    /// What the guest starts from.
    pub firmware: Firmware,
    /// Number of virtual processors.
    pub vcpus: u32,
    /// Memory of the guest.
    pub memory: Bytes,
    /// What the guest sees as its processor.
    pub cpu: Cpu,
    /// Its disks. It starts from the one with index 0.
    pub disks: Vec<DiskSpec>,
    /// Its network interfaces, in the order the guest finds them.
    pub nics: Vec<NicSpec>,
    /// Its display, if it has one.
    pub vnc: Option<VncSpec>,
    /// The device that it tells of its kernel's panic by, if there is one for its board.
    pub panic: Option<PanicDevice>,
    /// The file that its serial console is written to. It is appended to and
    /// never cut by QEMU. With a libvirt daemon, virtlogd rotates it; with the
    /// embedded driver, QEMU itself holds it open for appending, so that its
    /// owner may copy and truncate it at any time.
    pub console_log: PathBuf,
}

/// What a guest's kernel tells of its panic by, before it halts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PanicDevice {
    /// An I/O port of x86 boards.
    Isa,
    /// A PCI device.
    Pci,
}

impl PanicDevice {
    /// The one for a board of an architecture, with this libvirt.
    pub fn of(arch: &str, machine: &str, libvirt: Version) -> Option<Self> {
        /// The first libvirt that knows it as a PCI device.
        const KNOWS_PCI: Version = Version {
            major: 9,
            minor: 1,
            patch: 0,
        };
        let is = |board: &str| {
            let rest = machine.strip_prefix(board);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        match arch {
            "x86_64" | "i686" if is("pc") || is("q35") => Some(Self::Isa),
            "aarch64" if is("virt") && libvirt >= KNOWS_PCI => Some(Self::Pci),
            _ => None,
        }
    }
}

/// What executes a domain's instructions, decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DomainAccelerator {
    /// The host's processors.
    Kvm,
    /// QEMU's translator.
    Tcg,
    /// Nothing: libvirt's simulated driver.
    Test,
}

/// Our element in a domain's metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// The VM; the same as the domain's UUID, unless somebody copied it.
    pub id: VmId,
    /// Counts changes of the VM's spec.
    pub generation: u64,
    /// The VM's spec in a form that libvirt does not look into.
    pub record: String,
}

/// A disk of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// Its place from 0 on: `vda`, `vdb`.
    pub index: u32,
    /// Where its bytes are.
    pub source: DiskSource,
    /// How they are laid out.
    pub format: VolumeFormat,
    /// What it is laid over, if anything. What that is laid over itself is not
    /// looked at: it must be nothing.
    pub backing: Option<(DiskSource, VolumeFormat)>,
    /// The serial number. virtio shows the guest the first 20 bytes.
    pub serial: String,
    /// How the host caches it.
    pub cache: DiskCache,
    /// Several domains may write to it at once.
    pub shareable: bool,
    /// The guest can't write to it.
    pub read_only: bool,
    /// Limits on the guest's use of it.
    pub qos: VolumeQos,
}

/// How the host caches a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskCache {
    /// Past the host's page cache (needs O_DIRECT).
    None,
    /// Through it; flushed when the guest flushes.
    Writeback,
}

/// A network interface of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicSpec {
    /// Its hardware address.
    pub mac: MacAddress,
    /// What the guest sees.
    pub model: NicModel,
    /// Largest frame payload in bytes; not for [`Attachment::User`].
    pub mtu: Option<u32>,
    /// Where it plugs in.
    pub attachment: Attachment,
}

impl From<&Nic> for NicSpec {
    fn from(nic: &Nic) -> Self {
        Self {
            mac: nic.mac,
            model: nic.model,
            mtu: nic.mtu,
            attachment: nic.attachment.clone(),
        }
    }
}

/// A domain's display. It is locked until a password is set on the live domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VncSpec {
    /// The address to listen on; libvirt chooses the port.
    pub listen: IpAddr,
}

/// Why a spec can't be written as XML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// XML has no way to carry the character.
    #[error("the character U+{:04X} can't be stored", u32::from(*.0))]
    Character(char),
    /// A title has one line.
    #[error("a title can't contain line breaks")]
    TitleLines,
    /// A path that is not UTF-8.
    #[error("the path {0:?} is not UTF-8")]
    Path(PathBuf),
    /// Only bridges and libvirt's networks have a settable MTU.
    #[error("an interface of QEMU's own network can't have an MTU")]
    UserMtu,
    /// RFB carries 8 bytes.
    #[error("a display's password has 1 to 8 printable ASCII characters")]
    Password,
}
