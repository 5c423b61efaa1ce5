//! Load: the real daemon on libvirt's simulated driver, behind mutual TLS, with
//! callers who mean well and callers who don't.
//!
//! Each limit is tried alone, with a small value.

// clippy allows it in a test function, not in what it calls.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod abuse;
mod callers;
mod counts;
mod fair;
mod figures;
mod held;
mod place;
mod raw;
mod sizes;
mod times;
