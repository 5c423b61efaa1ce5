//! What needs no host: the sources, the documentation, the contract, the
//! configuration, and a command line that talks to no daemon.

// clippy allows it in a test function, not in what it calls.
#![allow(clippy::unwrap_used)]

mod architecture;
mod cli;
mod config;
mod docs;
mod known;
mod proto;
