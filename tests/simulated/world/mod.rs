//! The world breaks around the daemon, on libvirt's simulated driver: tools hang,
//! file systems fill up or hang, clocks are set.

mod clock;
mod full;
mod hung_pool;
mod maintenance;
mod root;
mod tools;
mod undo;
mod waiters;
mod watchers;
