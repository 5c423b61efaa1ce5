//! The adapter to libvirt: synchronous, blocking, and the only place that
//! knows what a *domain* is.
//!
//! A [`Host`] is one generation of connections to one hypervisor. Its calls
//! block; callers bring the threads and the deadlines. Every domain is named
//! by its [`VmId`](crate::model::ids::VmId), which is the domain's UUID, and is
//! looked up anew for each call, so that no libvirt object outlives a call. What
//! does not carry our mark is no VM's domain: a call on it says
//! [`ErrorKind::Foreign`], or finds none.
//!
//! The invariant: a [`Host`] never reconnects. When its connection is gone,
//! each call says so ([`ErrorKind::Unreachable`] when nothing was sent,
//! [`ErrorKind::Interrupted`] when the outcome is unknown), `on_close` is
//! called once, and the owner opens a new [`Host`].
//!
//! It takes no decisions: it does not retry, does not wait for a guest, and
//! does not know which changes of state are allowed.

mod addresses;
mod agent;
mod capabilities;
mod connection;
mod definition;
mod domain;
mod embed;
mod error;
mod events;
mod ffi;
mod networks;
mod owner;
mod power;
mod saved;
mod screenshot;
mod secret;
mod stats;
mod uri;
mod users;
pub mod xml;

pub use addresses::{AddressSource, GuestAddress, GuestAddresses};
pub use capabilities::{HostFacts, Version};
pub use connection::{Callbacks, Host};
pub use definition::{Definition, Differences, FormerPaths};
pub use domain::{Begin, DomainState, RebootMethod, Restore, ShutdownMethod, Sighting};
pub use error::{ErrorKind, LibvirtError};
pub use events::{CloseReason, DomainChange, DomainEvent, IoErrorAction, StartedBy, SuspendedBy};
pub use networks::NetworkState;
pub use owner::{Foreign, Owner};
pub use power::{OffReason, PauseReason, Power, RunReason};
pub use saved::SavedMemory;
pub use stats::{DiskStats, DiskUse, DomainStats, MemoryStats, NicStats, NicUse};
pub use uri::{HypervisorKind, HypervisorUri, UriError};
pub use users::DomainDisks;
pub use xml::{
    AttachedDisk, CpuMode, DiskCache, DiskSpec, DomainAccelerator, DomainSpec, Metadata, NicSpec,
    NumaCell, PanicDevice, Processor, VncSpec, XmlError, definition_size,
};
