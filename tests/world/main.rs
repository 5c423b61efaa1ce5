//! The world breaks around the daemon, on libvirt's simulated driver: tools hang,
//! file systems fill up, clocks are set.

// clippy allows it in a test function, not in what it calls.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod clock;
mod full;
mod maintenance;
mod root;
mod small;
mod tools;
mod waiters;
mod watchers;
