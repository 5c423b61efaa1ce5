//! The world breaks around the daemon, on libvirt's simulated driver: tools hang,
//! file systems fill up, clocks are set.

mod clock;
mod full;
mod maintenance;
mod root;
mod tools;
mod waiters;
mod watchers;
