//! Who may do what: the real daemon on libvirt's simulated driver, over mutual TLS
//! and the Unix socket, with callers of every kind.
//!
//! Callers of another local user need root, and say so without it.

mod audit;
mod by_request;
mod rotation;
mod silent;
mod stand;
mod table;
mod trust;
