//! The real daemon on real QEMU, over gRPC.
//!
//! libvirt's driver runs inside the daemon (`qemu:///embed`), so only the tests
//! that go behind its back start a libvirt daemon, which needs root, as bridges
//! do. Guests are built by `tests/guest/build`, or are boot sectors.

// Without `#[test]`, clippy can't tell that these are tests.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code)]
#[path = "../qemu_libvirt/guest.rs"]
mod sector;

#[path = "../qemu_libvirt/rfb.rs"]
mod rfb;

mod bench;
mod libvirtd;
mod qemu;
mod world;

use libtest_mimic::Arguments;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

/// Most of the time of most of them, they wait.
const SIDE_BY_SIDE: usize = 4;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(SIDE_BY_SIDE));
    support::reaper::start();
    let bench = Arc::new(OnceLock::new());
    let mut trials = qemu::trials(&bench);
    trials.extend(world::trials());
    let conclusion = libtest_mimic::run(&arguments, trials);
    let bench = Arc::into_inner(bench).expect("the trials are gone");
    if let Some(bench) = bench.into_inner() {
        bench.close();
    }
    conclusion.exit_code()
}
