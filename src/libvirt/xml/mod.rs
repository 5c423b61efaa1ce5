//! Domains as XML: what we write, and what we read back.
//!
//! XML is only ever made by the writer, from values: no text is pasted into
//! it. What XML 1.0 can't carry (control characters) is refused, because there
//! is no way to escape it.

pub(super) mod edit;
mod element;
pub(super) mod host;
pub(super) mod places;
pub(super) mod read;
mod spec;
#[cfg(test)]
mod tests;
pub(super) mod write;

pub use element::{check_text, check_title};
pub use host::{CpuMode, NumaCell, Processor};
pub use read::AttachedDisk;
pub use spec::{
    DiskCache, DiskSpec, DomainAccelerator, DomainSpec, Metadata, NicSpec, PanicDevice, VncSpec,
    XmlError,
};
pub use write::size as definition_size;

/// The namespace of our element in a domain's metadata.
pub const METADATA_NAMESPACE: &str = "urn:kvmlet:domain:1";
/// The prefix that goes with it.
pub(super) const METADATA_PREFIX: &str = "kvmlet";
/// The channel of QEMU's guest agent.
const AGENT_CHANNEL: &str = "org.qemu.guest_agent.0";
