//! The adapters alone, without a daemon: libvirt's simulated driver, and a pool of
//! files.

// clippy allows it in a test function, not in what it calls.
#![allow(clippy::unwrap_used)]

mod libvirt;
mod storage;
