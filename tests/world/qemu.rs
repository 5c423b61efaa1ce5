//! The world breaks around the daemon, with real QEMU: libvirtd is killed in the
//! middle of every operation, QEMU is killed, disks fill up.
//!
//! Guests are boot sectors. Each test has a libvirt daemon of its own, in a mount
//! namespace, which needs root.

// Without `#[test]`, clippy can't tell that these are tests.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code)]
#[path = "../qemu_libvirt/guest.rs"]
mod sector;

#[allow(dead_code)]
#[path = "../qemu/bench.rs"]
mod bench;

#[path = "../qemu/libvirtd.rs"]
mod libvirtd;

#[path = "../qemu/reaper.rs"]
mod reaper;

mod ask;
mod death;
mod host;
mod outage;
mod qemu_frozen;
mod room;
#[allow(dead_code)]
mod small;
mod stop;
mod wire;

use host::World;
use libtest_mimic::{Arguments, Trial};
use nix::unistd::Uid;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::runtime::Runtime;

type Running = Pin<Box<dyn Future<Output = ()>>>;
/// A test's name, and the test.
type Test = (&'static str, fn(World) -> Running);

/// Makes the list of tests from functions that are named once.
macro_rules! tests {
    ($($module:ident::$name:ident,)*) => {
        &[$((
            stringify!($name),
            (|world| Box::pin($module::$name(world))) as fn(World) -> Running,
        ),)*]
    };
}

const TESTS: &[Test] = tests![
    outage::a_libvirtd_that_stays_away_fails_what_was_not_sent,
    outage::libvirtd_is_killed_early_in_a_start,
    outage::a_libvirtd_that_hangs_is_away_until_it_answers,
    outage::libvirtd_is_killed_while_a_call_hangs,
    outage::libvirtd_is_killed_while_it_does_a_call,
    outage::libvirtd_is_killed_before_a_call_arrives,
    outage::libvirtd_is_killed_before_it_answers,
    stop::a_stop_goes_on_with_the_time_that_is_left_after_a_restart,
    stop::a_guest_is_asked_once_more_before_it_is_forced_after_a_restart,
    stop::a_guest_that_needs_two_signals_gets_them_from_two_runs_of_the_agent,
    outage::a_libvirtd_that_comes_back_is_found_and_heard,
    room::a_guest_whose_memory_finds_no_room_goes_on,
    room::a_guest_whose_disk_finds_no_room_is_paused_and_goes_on_later,
    death::qemu_is_killed_while_it_starts,
    death::qemu_is_killed_while_it_is_saved,
    death::qemu_is_killed_while_it_is_asked_to_stop,
    qemu_frozen::qemu_is_killed_before_it_has_answered_to_a_stop,
    death::qemu_is_killed_while_its_root_is_replaced,
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if arguments.list {
        let names = TESTS.iter().map(|(name, _)| Trial::test(*name, || Ok(())));
        return libtest_mimic::run(&arguments, names.collect()).exit_code();
    }
    reaper::start();
    let runtime = Arc::new(Runtime::new().unwrap());
    // What one libvirt daemon has learnt of QEMU, the others needn't find out.
    let first = libvirtd::Libvirtd::start_with(None);
    first.learn();
    let known = Arc::new(first);
    let trials = TESTS.iter().map(|(name, test)| {
        let (runtime, test, known) = (Arc::clone(&runtime), *test, Arc::clone(&known));
        let trial = Trial::test(*name, move || {
            runtime.block_on(async {
                test(World::start(Some(&known.known())).await).await;
            });
            Ok(())
        });
        trial.with_ignored_flag(!Uid::effective().is_root())
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
