//! Real guests on Ceph RBD: the real daemon, a real libvirt daemon with real QEMU,
//! and a real cluster, all three of the tests' own.
//!
//! All tests share them. Those that take something away from all guests (the OSD,
//! libvirt, the key) run alone. That needs root.

// Without `#[test]`, clippy can't tell that these are tests.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code)]
#[path = "../qemu_libvirt/guest.rs"]
mod sector;

#[path = "../ceph/planted.rs"]
mod planted;

mod bench;
mod header;
mod key;
mod libvirtd;
mod outage;
mod power;
#[path = "../ceph/receivers.rs"]
mod receivers;
mod root;
#[path = "../ceph/spill.rs"]
mod spill;

use bench::Bench;
use libtest_mimic::Arguments;
use nix::unistd::Uid;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use support::timed::trial;

/// Whether a test bears others beside it.
#[derive(Clone, Copy)]
enum Company {
    Beside,
    Alone,
}

/// A test's name, the test, and its company.
type Test = (&'static str, fn(&Bench), Company);

/// Makes the list of tests from functions that are named once.
macro_rules! tests {
    ($($company:ident $module:ident::$name:ident,)*) => {
        &[$((
            stringify!($name),
            (|bench| bench.run($module::$name(bench))) as fn(&Bench),
            Company::$company,
        ),)*]
    };
}

/// Those that are alone come last.
const TESTS: &[Test] = tests![
    Beside power::a_guest_whose_qemu_is_killed_starts_again_at_once,
    Beside root::a_root_goes_to_another_ceph_pool_by_its_tag_and_comes_back_with_its_bytes,
    Beside power::a_guest_is_not_started_while_another_client_has_its_root_open,
    Beside root::a_new_root_that_does_not_stay_up_is_switched_back_to_the_old_ceph_pool,
    Beside power::a_guest_starts_and_is_restored_by_the_monitors_that_there_are_now,
    Beside key::no_secret_is_in_what_is_written_told_or_started,
    Beside header::a_qcow2_header_that_a_guest_wrote_opens_no_other_file,
    Alone outage::guests_go_on_without_libvirt_and_start_again_after_it,
    Alone outage::a_guest_is_stopped_by_force_while_its_storage_hangs_and_starts_after_it,
    Alone key::a_key_that_was_changed_is_what_the_next_start_uses,
];

/// Most of the time of most of them, they wait.
const SIDE_BY_SIDE: usize = 5;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(SIDE_BY_SIDE));
    // Started by the first test, so that those that are only listed need none.
    let bench: Arc<OnceLock<Bench>> = Arc::default();
    let company = Arc::new(RwLock::new(()));
    let trials = TESTS.iter().map(|(name, test, bears)| {
        let (bench, test) = (Arc::clone(&bench), *test);
        let (company, bears) = (Arc::clone(&company), *bears);
        let trial = trial(*name, move || {
            let bench = bench.get_or_init(Bench::open);
            match bears {
                Company::Beside => {
                    let _others = company.read().unwrap_or_else(PoisonError::into_inner);
                    test(bench);
                }
                Company::Alone => {
                    let _alone = company.write().unwrap_or_else(PoisonError::into_inner);
                    test(bench);
                }
            }
        });
        // A mount namespace is root's to make.
        trial.with_ignored_flag(!Uid::effective().is_root())
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if let Some(bench) = Arc::into_inner(bench).expect("the trials are gone").take() {
        bench.close();
    }
    conclusion.exit_code()
}
