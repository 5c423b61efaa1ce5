//! Load: the real daemon on libvirt's simulated driver, behind mutual TLS, with
//! callers who mean well and callers who don't.
//!
//! Each limit is tried alone, with a small value.

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
