//! The real daemon on a host that libvirt's test driver simulates.
//!
//! Every test starts a daemon of its own, unless it says otherwise.

// clippy allows it in a test function, not in what it calls.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod api;
mod cli_daemon;
mod doctor;
mod edge;
mod journal;
mod load;
mod metrics;
mod notify;
mod quickstart;
mod report;
mod secrets;
mod traces;
mod world;
