//! The daemon over gRPC, on libvirt's simulated driver: the contract as a
//! control plane sees it.
//!
//! Every test starts a daemon of its own.

mod addresses;
mod bad_input;
mod behind;
mod capacity;
mod create;
mod events;
mod fuzz;
mod host;
mod image_cache;
mod maintenance;
mod missing;
mod operations;
mod orphans;
mod process;
mod python;
mod races;
mod reads;
mod rebuild;
mod root;
mod root_health;
mod root_window;
mod storm;
mod table;
