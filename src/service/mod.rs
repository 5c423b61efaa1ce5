//! The use cases: what kvmlet does with VMs, images, volumes and operations.
//!
//! One task owns each VM ([`worker`]); it takes requests one at a time, asks
//! [`crate::model::lifecycle`] what each comes to, makes the intent durable,
//! answers, and runs a [`plan`] step by step. Reads take what the worker has
//! published and never ask libvirt.
//!
//! Deliberately not here: wire types (that is `grpc`), libvirt's and the tools'
//! own details (that is the adapters).

pub mod addresses;
pub mod admission;
pub mod capacity;
pub mod cell;
pub mod clock;
pub mod consoles;
pub mod core;
pub mod current;
pub mod domains;
mod drift;
mod ending;
pub mod entrance;
pub mod fault;
pub mod feed;
pub mod figures;
pub mod gate;
pub mod host;
pub mod host_run;
pub mod hypervisor;
pub mod image_cache;
pub mod images;
pub mod ledger;
pub mod maintenance;
pub mod node;
pub mod operations;
pub mod orphans;
pub mod plan;
pub mod plans;
pub mod pools;
pub mod preview;
pub mod rebuild;
pub mod reconcile;
pub mod repeat;
mod restarts;
pub mod secrets;
pub mod sinks;
pub mod stats;
pub mod status_line;
pub mod sweeper;
mod usage;
pub mod vms;
pub mod volumes;
pub mod worker;

pub use core::Core;
