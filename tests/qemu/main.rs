//! The real daemon on real QEMU, over gRPC: the main path of each cell of the
//! state table, guests that obey and guests that don't, and the agent's death
//! at every moment.
//!
//! libvirt's driver runs inside the daemon (`qemu:///embed`), so only the test
//! that acts behind its back starts a libvirt daemon, which needs root. Most tests share one daemon; those that end it have their
//! own. Guests are built by `tests/guest/build`, or are boot sectors.

// Without `#[test]`, clippy can't tell that these are tests.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code)]
#[path = "../qemu_libvirt/guest.rs"]
mod sector;

#[path = "../qemu_libvirt/rfb.rs"]
mod rfb;

mod behind;
mod bench;
mod console;
mod death;
mod devices;
mod libvirtd;
mod power;
mod reaper;
mod root;
mod stop;

use bench::Bench;
use libtest_mimic::{Arguments, Trial};
use nix::unistd::Uid;
use std::process::ExitCode;
use std::sync::Arc;

/// A test's name, and the test.
type Test = (&'static str, fn(&Bench));

/// Makes the list of tests from functions that are named once.
macro_rules! tests {
    ($($module:ident::$name:ident,)*) => {
        &[$((
            stringify!($name),
            (|bench| bench.run($module::$name(bench))) as fn(&Bench),
        ),)*]
    };
}

/// The longest ones first: they run side by side.
const TESTS: &[Test] = tests![
    death::an_agent_killed_while_it_makes_a_vm_ends_the_operation_later,
    death::an_agent_killed_while_it_replaces_a_root_ends_the_operation_later,
    death::a_guest_that_runs_on_its_new_root_is_not_stopped_again,
    behind::what_is_done_behind_kvmlets_back_is_told_as_it_is,
    root::a_replaced_root_boots_the_new_image_and_a_reverted_one_the_old,
    power::a_guest_with_power_goes_through_every_state,
    devices::a_console_log_does_not_grow_without_bound,
    death::guests_outlive_the_agent_and_are_known_again,
    stop::a_deaf_guest_is_left_running_or_forced_as_the_policy_says,
    stop::a_busy_guest_is_asked_again,
    stop::a_guest_with_an_agent_is_stopped_and_rebooted_through_it,
    death::an_agent_killed_while_it_stops_a_guest_ends_the_operation_later,
    devices::volumes_and_interfaces_are_seen_by_the_guest,
    devices::a_uefi_guest_starts_and_leaves_no_variables_behind,
    stop::a_forced_stop_overtakes_a_graceful_one,
    stop::a_graceful_stop_can_be_cancelled,
    power::a_guest_that_powers_itself_off_is_stopped,
    power::a_guest_whose_qemu_is_killed_has_crashed_and_starts_again,
    power::a_deleted_vm_comes_back_and_an_expunged_one_leaves_nothing,
    power::a_vm_with_power_is_not_deleted_without_a_stop_policy,
    console::each_console_has_a_fresh_password_that_expires,
    console::a_screenshot_is_a_png_of_the_display,
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if arguments.list {
        let names = TESTS.iter().map(|(name, _)| Trial::test(*name, || Ok(())));
        return libtest_mimic::run(&arguments, names.collect()).exit_code();
    }
    reaper::start();
    let bench = Arc::new(Bench::open());
    let trials = TESTS.iter().map(|(name, test)| {
        let (bench, test) = (Arc::clone(&bench), *test);
        // A mount namespace is root's to make.
        let impossible = name.contains("behind") && !Uid::effective().is_root();
        let trial = Trial::test(*name, move || {
            test(&bench);
            Ok(())
        });
        trial.with_ignored_flag(impossible)
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    Arc::into_inner(bench).expect("the trials are gone").close();
    conclusion.exit_code()
}
