//! The main path of each cell of the state table, guests that obey and guests that
//! don't, and the agent's death.
//!
//! Most tests share one daemon; those that end it have their own.

mod addresses;
mod behind;
mod causes;
mod change;
mod console;
mod death;
mod devices;
mod facts;
mod metrics;
mod network;
mod orphans;
mod panic;
mod power;
mod rebuild;
mod root;
mod stop;

use crate::bench::Bench;
use crate::support::timed::trial;
use libtest_mimic::Trial;
use nix::unistd::Uid;
use std::sync::{Arc, OnceLock};

/// A test's name, and the test.
type Test = (&'static str, fn(&Bench));

/// Makes the list of tests from functions that are named once.
macro_rules! tests {
    ($($module:ident::$name:ident,)*) => {
        &[$((
            concat!("qemu::", stringify!($module), "::", stringify!($name)),
            (|bench| bench.run($module::$name(bench))) as fn(&Bench),
        ),)*]
    };
}

/// The longest ones first: they run side by side.
const TESTS: &[Test] = tests![
    death::a_guest_that_runs_on_its_new_root_is_not_stopped_again,
    behind::what_is_done_behind_kvmlets_back_is_told_as_it_is,
    causes::each_end_of_a_guest_is_told_with_its_own_cause_behind_libvirt,
    orphans::an_orphan_that_runs_behind_kvmlets_back_keeps_its_power_and_its_disk,
    root::a_root_that_does_not_come_up_healthy_is_switched_back,
    root::a_replaced_root_boots_the_new_image_and_a_reverted_one_the_old,
    root::a_guest_that_ends_while_its_new_root_is_checked_is_back_on_the_old,
    panic::a_new_root_that_panics_is_switched_back_at_once,
    panic::a_guest_that_panics_has_crashed_and_can_be_started,
    power::a_guest_with_power_goes_through_every_state,
    change::a_wished_power_state_is_reached_from_every_other,
    devices::a_console_log_does_not_grow_without_bound,
    death::guests_outlive_the_agent_and_are_known_again,
    rebuild::guests_do_not_notice_that_the_journal_is_lost,
    stop::a_deaf_guest_is_left_running_or_forced_as_the_policy_says,
    stop::a_busy_guest_is_asked_again,
    addresses::a_guests_agent_tells_the_addresses_of_each_interface,
    metrics::what_a_guest_uses_is_told_by_its_metrics,
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
    root::a_root_is_replaced_without_power_and_after_a_crash,
    root::a_switch_of_the_root_changes_nothing_else_of_the_domain,
    devices::qemu_guesses_no_format_and_caches_as_the_pool_allows,
    devices::limits_on_a_volume_are_what_qemu_throttles_by_behind_libvirt,
    change::a_changed_name_is_at_once_and_changed_hardware_is_what_qemu_gets,
    change::a_vm_deleted_while_saved_goes_on_where_it_was,
    change::a_plan_for_a_guest_that_runs_changes_nothing,
    network::a_guest_on_a_bridge_with_a_vlan_has_its_port_in_that_vlan_only,
    network::a_guest_that_cannot_have_its_vlan_is_not_started_without_it,
    network::a_guest_on_a_bridge_has_its_mtu_on_both_sides,
    metrics::the_traffic_of_a_guest_on_a_bridge_is_told_by_its_interface,
    network::a_vm_on_a_bridge_that_is_not_there_is_not_made,
    console::each_console_has_a_fresh_password_that_expires,
    console::a_screenshot_is_a_png_of_the_display,
    facts::the_host_tells_what_the_kernel_says_of_it,
    facts::the_host_tells_what_qemu_can_give_to_guests,
];

/// The tests, on a bench that the first of them opens.
pub fn trials(bench: &Arc<OnceLock<Bench>>) -> Vec<Trial> {
    let trials = TESTS.iter().filter_map(|(name, test)| {
        let (bench, test) = (Arc::clone(bench), *test);
        // Not every kernel is built with bridges that know VLANs. What kvmlet does
        // there is another test's matter; this one has nothing to look at.
        if name.contains("port_in_that_vlan") && !network::kernel_filters_vlans() {
            eprintln!("not run: {name}: this kernel's bridges have no vlan_filtering");
            return None;
        }
        // A mount namespace and a bridge are root's to make.
        let of_root = name.contains("behind") || name.contains("bridge") || name.contains("vlan");
        let trial = trial(*name, move || test(bench.get_or_init(Bench::open)));
        Some(trial.with_ignored_flag(of_root && !Uid::effective().is_root()))
    });
    trials.collect()
}
