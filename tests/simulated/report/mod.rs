//! The daemon as it calls others: control planes that take its reports, and NATS.
//!
//! Every test starts a daemon of its own on libvirt's simulated driver, and its
//! receiver: one that is built on the example's own account of a fleet, or the real
//! nats-server.

mod ask;
mod bus;
mod calls;
#[path = "../../../examples/control_plane/fleet.rs"]
#[allow(dead_code, missing_docs, unreachable_pub)]
mod fleet;
mod nats;
mod outage;
mod receiver;
mod tls;
