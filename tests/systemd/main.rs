//! kvmlet as an administrator meets it: the package, installed in a Debian 13 that
//! is booted with systemd, with libvirt as its unit and real guests in QEMU.
//!
//! One test is the life of an installation, from `apt install` to `apt purge`; its
//! chapters follow one another on the same host, with the same guest, which must not
//! notice anything. The other one has two hosts, joined by a cable, and one receiver.

// Without `#[test]`, clippy can't tell that these are tests.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code)]
#[path = "../../examples/control_plane/fleet.rs"]
mod fleet;

#[allow(dead_code)]
#[path = "../simulated/report/receiver.rs"]
mod receiver;

mod deaths;
mod first_steps;
mod guest;
mod host;
mod link;
mod package;
mod reboot;
mod reload;
mod remote;
mod removal;
mod sandbox;
mod upgrade;

use host::Host;
use libtest_mimic::Arguments;
use package::Packages;
use std::process::ExitCode;
use std::time::Instant;
use support::timed::trial;

/// A test's name, and the test.
type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("an_installation_lives_and_its_guest_notices_nothing", life),
    ("two_hosts_report_and_one_loses_its_link", two_hosts),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each boots a system, and there are two processors.
    arguments.test_threads = Some(1);
    let trials = TESTS.iter().map(|(name, test)| trial(*name, *test));
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap()
}

/// Says what comes, with the time since the test began.
fn chapter(since: Instant, title: &str) {
    println!("--- {:>5.1} s: {title}", since.elapsed().as_secs_f32());
}

fn life() {
    let since = Instant::now();
    chapter(since, "packages");
    let packages = Packages::build();
    chapter(since, "boot");
    let host = Host::boot("kvmlet-one");
    chapter(since, "apt install, and what it must not do");
    first_steps::install(&host, &packages.now);
    chapter(since, "the unit, as systemd judges it");
    sandbox::judged(&host);
    let runtime = runtime();
    runtime.block_on(async {
        chapter(since, "systemctl enable --now, and a first guest");
        let guest = first_steps::enable_and_provision(&host).await;
        chapter(
            since,
            "what the sandbox keeps out, and lets in by a drop-in",
        );
        sandbox::holds(&host).await;
        guest.is_untouched(&host);
        chapter(since, "restarts under calls, a kill, a runtime that hangs");
        deaths::restarts_refuse_nobody(&host).await;
        deaths::a_killed_agent_comes_back(&host).await;
        deaths::a_hung_agent_is_restarted_in_time(&host);
        guest.is_untouched(&host);
        chapter(since, "a control plane over mutual TLS");
        let remote = remote::Remote::open(&host);
        remote.provisions_and_drives_a_vm(&host, &guest).await;
        chapter(since, "reload");
        reload::a_good_file_is_in_use_at_once(&host, &remote).await;
        reload::a_bad_file_is_refused_and_the_old_one_stays(&host, &remote).await;
        reload::certificates_change_under_calls(&host, &remote).await;
        guest.is_untouched(&host);
        chapter(since, "a bad file at the start");
        reload::a_bad_file_at_the_start_does_not_loop(&host).await;
        guest.is_untouched(&host);
        chapter(since, "upgrade under load");
        upgrade::under_load(&host, &remote, &packages, &guest).await;
        chapter(since, "a journal that is newer than the program");
        upgrade::a_newer_journal_is_refused_cleanly(&host).await;
        guest.is_untouched(&host);
        chapter(since, "stop, remove, purge");
        removal::of_everything_but_the_guest(&host, &packages, &guest).await;
    });
    chapter(since, "end");
}

fn two_hosts() {
    let since = Instant::now();
    let packages = Packages::build();
    chapter(since, "boot");
    let (mut one, two) = (Host::boot("kvmlet-a"), Host::boot("kvmlet-b"));
    one.join("10.99.0.1/24", &two, "10.99.0.2/24");
    chapter(since, "apt install");
    first_steps::install(&one, &packages.now);
    first_steps::install(&two, &packages.now);
    runtime().block_on(async {
        link::lost_for_a_while(&one, &two, since).await;
        drop(two);
        chapter(since, "a host is shut down, and loses its power");
        reboot::is_told_of_its_guests(&mut one).await;
    });
    chapter(since, "end");
}
