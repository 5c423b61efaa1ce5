//! The world breaks around the daemon: libvirtd is killed in the middle of every
//! operation, QEMU is killed, disks fill up.
//!
//! Each test has a libvirt daemon of its own, in a mount namespace, which needs root.

mod acts;
mod admin;
mod ask;
mod beside;
mod between;
mod death;
mod deeds;
mod heedless;
mod host;
mod many;
mod moved;
mod outage;
mod outcome;
mod power_cut;
mod qemu_frozen;
mod reboot;
mod refusals;
mod room;
mod stop;
mod storm;
mod subject;
mod undo;
mod wire;

use crate::libvirtd::Libvirtd;
use crate::support::timed::trial;
use host::World;
use libtest_mimic::Trial;
use nix::unistd::Uid;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use tokio::runtime::Runtime;

type Running = Pin<Box<dyn Future<Output = ()>>>;
/// A test's name, and the test.
type Test = (&'static str, fn(World) -> Running);

/// Makes the list of tests from functions that are named once.
macro_rules! tests {
    ($($module:ident::$name:ident,)*) => {
        &[$((
            concat!("world::", stringify!($module), "::", stringify!($name)),
            (|world| Box::pin($module::$name(world))) as fn(World) -> Running,
        ),)*]
    };
}

const TESTS: &[Test] = tests![
    many::libvirtd_is_killed_under_many_vms_and_many_operations,
    storm::whatever_an_administrator_does_meanwhile_nothing_is_lost,
    between::a_domain_that_has_a_vms_uuid_meanwhile_stays_as_it_is,
    between::what_a_guest_writes_in_a_snapshot_meanwhile_is_kept,
    between::a_definition_that_is_put_back_meanwhile_keeps_its_disk,
    between::a_volume_that_somebody_stands_on_meanwhile_stays,
    between::memory_that_is_spoilt_meanwhile_is_not_told_as_saved_or_restored,
    between::memory_that_is_saved_meanwhile_is_restored_on_its_own_root,
    between::a_stop_tells_what_has_ended_the_guest_meanwhile,
    heedless::agents_that_do_nothing_bend_no_time_and_hold_up_no_other_vm,
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
    reboot::a_guest_that_powers_off_after_it_ignored_a_reboot_is_started_for_it,
    reboot::a_stop_after_an_ignored_reboot_stops_the_guest,
    outcome::a_stop_says_what_has_really_ended_the_guest,
    outcome::an_end_that_came_while_the_agent_was_away_is_told_as_what_it_was,
    outage::a_libvirtd_that_comes_back_is_found_and_heard,
    outage::who_finds_libvirt_gone_first_waits_for_it,
    beside::what_is_foreign_is_never_taken_and_never_removed,
    beside::a_copy_and_a_second_agent_are_told_from_what_is_ours,
    beside::a_disk_that_was_changed_beside_it_is_never_switched_back,
    beside::a_file_that_something_uses_is_not_removed,
    beside::a_former_root_of_a_vm_that_lost_its_domain_stays,
    beside::a_deleted_vm_does_not_come_back_with_the_host,
    power_cut::guests_that_ended_with_their_host_say_so,
    undo::a_snapshot_of_a_root_that_fails_its_health_check_is_left_as_it_is,
    refusals::what_cant_work_here_is_refused_by_its_field,
    undo::a_root_that_was_put_back_meanwhile_is_not_told_as_replaced,
    moved::guests_start_with_the_hosts_present_settings_and_saved_ones_go_on,
    beside::memory_that_cant_be_restored_is_said_and_not_booted_over,
    room::a_guest_whose_memory_finds_no_room_goes_on,
    room::a_guest_whose_disk_finds_no_room_is_paused_and_goes_on_later,
    death::qemu_is_killed_while_it_starts,
    death::qemu_is_killed_while_it_is_saved,
    death::qemu_is_killed_while_it_is_asked_to_stop,
    qemu_frozen::qemu_is_killed_before_it_has_answered_to_a_stop,
    death::qemu_is_killed_while_its_root_is_replaced,
];

/// What all tests share.
struct Known {
    runtime: Runtime,
    /// What one libvirt daemon has learnt of QEMU, the others needn't find out.
    first: Libvirtd,
}

impl Known {
    fn new() -> Self {
        let first = Libvirtd::start_with(None);
        first.learn();
        Self {
            runtime: Runtime::new().unwrap(),
            first,
        }
    }
}

/// The tests.
pub fn trials() -> Vec<Trial> {
    let known: Arc<OnceLock<Known>> = Arc::default();
    let trials = TESTS.iter().map(|(name, test)| {
        let (test, known) = (*test, Arc::clone(&known));
        let trial = trial(*name, move || {
            let known = known.get_or_init(Known::new);
            known.runtime.block_on(async {
                test(World::start(Some(&known.first.known())).await).await;
            });
        });
        trial.with_ignored_flag(!Uid::effective().is_root())
    });
    trials.collect()
}
