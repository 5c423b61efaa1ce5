//! The adapter against real QEMU, through the driver that runs in this process.
//!
//! A process can have one embedded driver, so all tests share it: `main` opens
//! it in a directory of its own, and removes every domain and the directory
//! when the tests are done. Guests are translated (TCG): no KVM is needed.

// Without `#[test]`, clippy can't tell that these are tests.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // the daemon's tests boot more of them
mod guest;
mod host;
mod rfb;

#[path = "../support/timed.rs"]
#[allow(missing_docs, unreachable_pub)]
mod timed;

use guest::{BootSector, until};
use host::Bench;
use kvmlet::libvirt::{
    Begin, DiskCache, DiskSpec, DomainChange, ErrorKind, NicSpec, OffReason, PauseReason, Power,
    Restore, RunReason, StartedBy, SuspendedBy,
};
use kvmlet::model::hardware::{Cpu, Firmware};
use kvmlet::model::nic::NicModel;
use kvmlet::model::time::Timestamp;
use kvmlet::model::volume::{DiskSource, VolumeFormat, VolumeQos};
use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::{Signal, kill};
use rfb::Login;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use timed::trial;

/// A test's name, and the test.
type Test = (&'static str, fn(&Bench));

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let tests: &[Test] = &[
        (
            "a_guest_starts_pauses_resumes_and_is_forced_off",
            a_guest_starts_pauses_resumes_and_is_forced_off,
        ),
        (
            "a_display_is_locked_until_a_password_is_set_and_after_it_expires",
            a_display_is_locked_until_a_password_is_set_and_after_it_expires,
        ),
        ("a_screenshot_is_a_png", a_screenshot_is_a_png),
        (
            "saved_memory_is_restored_and_the_guest_runs_on",
            saved_memory_is_restored_and_the_guest_runs_on,
        ),
        (
            "a_killed_qemu_is_told_as_a_crash",
            a_killed_qemu_is_told_as_a_crash,
        ),
        (
            "a_guest_that_powers_itself_off_is_told_as_shut_down",
            a_guest_that_powers_itself_off_is_told_as_shut_down,
        ),
        (
            "the_console_log_is_appended_to_and_may_be_cut_at_any_time",
            the_console_log_is_appended_to_and_may_be_cut_at_any_time,
        ),
        (
            "metadata_is_written_to_a_running_domain_and_its_definition",
            metadata_is_written_to_a_running_domain_and_its_definition,
        ),
        (
            "a_uefi_guest_with_a_network_starts_and_leaves_no_variables_behind",
            a_uefi_guest_with_a_network_starts_and_leaves_no_variables_behind,
        ),
        (
            "a_guest_with_every_kind_of_device_starts_on_the_older_board",
            a_guest_with_every_kind_of_device_starts_on_the_older_board,
        ),
        (
            "the_facts_of_this_host_are_read",
            the_facts_of_this_host_are_read,
        ),
    ];
    if arguments.list {
        let names = tests.iter().map(|(name, _)| Trial::test(*name, || Ok(())));
        return libtest_mimic::run(&arguments, names.collect()).exit_code();
    }
    let bench = Arc::new(Bench::open());
    let trials = tests.iter().map(|(name, test)| {
        let (bench, test) = (Arc::clone(&bench), *test);
        trial(*name, move || test(&bench))
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    Arc::into_inner(bench).expect("the trials are gone").close();
    conclusion.exit_code()
}

fn a_guest_starts_pauses_resumes_and_is_forced_off(bench: &Bench) {
    let vm = bench.define(BootSector::Idle);
    let host = &bench.host;
    assert!(matches!(vm.power(), Power::Off(_)));

    host.start(vm.id, Begin::Running, Restore::IfSaved).unwrap();
    vm.expect(&DomainChange::Started(StartedBy::Boot));
    assert_eq!(vm.power(), Power::Running(RunReason::Booted));
    assert_eq!(
        host.start(vm.id, Begin::Running, Restore::IfSaved)
            .unwrap_err()
            .kind,
        ErrorKind::InvalidState
    );
    assert_eq!(
        host.undefine(vm.id).unwrap_err().kind,
        ErrorKind::InvalidState
    );
    assert_eq!(host.agent_connected(vm.id), Ok(false));

    host.suspend(vm.id).unwrap();
    vm.expect(&DomainChange::Suspended(SuspendedBy::Request));
    assert_eq!(vm.power(), Power::Paused(PauseReason::Request));

    host.resume(vm.id).unwrap();
    vm.expect(&DomainChange::Resumed);
    assert_eq!(vm.power(), Power::Running(RunReason::Unpaused));

    host.destroy(vm.id).unwrap();
    vm.expect(&DomainChange::Stopped(OffReason::Destroyed));
    assert_eq!(vm.power(), Power::Off(OffReason::Destroyed));
    host.destroy(vm.id).expect("already off is success");
}

fn a_display_is_locked_until_a_password_is_set_and_after_it_expires(bench: &Bench) {
    let vm = bench.define(BootSector::Idle);
    let host = &bench.host;
    assert_eq!(host.vnc(vm.id), Ok(None), "a domain that is off");
    assert_eq!(
        host.set_vnc_password(vm.id, "secret", None)
            .unwrap_err()
            .kind,
        ErrorKind::InvalidState
    );
    host.start(vm.id, Begin::Running, Restore::IfSaved).unwrap();
    let display = host.vnc(vm.id).unwrap().expect("an open display");
    assert!(display.address.is_loopback());
    for password in ["", "secret"] {
        assert_eq!(
            rfb::login((display.address, display.port), password),
            Login::Refused,
            "locked"
        );
    }

    let now = Timestamp::from_system(SystemTime::now());
    let hour = Duration::from_secs(3600);
    host.set_vnc_password(vm.id, "a&<\"'>1", Some(now.plus(hour)))
        .unwrap();
    assert_eq!(
        rfb::login((display.address, display.port), "a&<\"'>1"),
        Login::Accepted
    );
    assert_eq!(
        rfb::login((display.address, display.port), "secret"),
        Login::Refused
    );

    host.set_vnc_password(vm.id, "other-pw", Some(Timestamp(0)))
        .unwrap();
    assert_eq!(
        rfb::login((display.address, display.port), "other-pw"),
        Login::Refused,
        "expired"
    );
    assert_eq!(
        rfb::login((display.address, display.port), "a&<\"'>1"),
        Login::Refused,
        "replaced"
    );

    for bad in ["", "nine_char", "blank ", "nul\0", "ümlaut"] {
        let error = host.set_vnc_password(vm.id, bad, None).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{bad:?}");
    }
    assert!(
        !bench.definition(vm.id).contains("other-pw"),
        "the password went into the definition"
    );
}

fn a_screenshot_is_a_png(bench: &Bench) {
    let vm = bench.define(BootSector::Idle);
    bench
        .host
        .start(vm.id, Begin::Running, Restore::IfSaved)
        .unwrap();
    let picture = bench.host.screenshot(vm.id).unwrap();
    let reader = png::Decoder::new(std::io::Cursor::new(picture))
        .read_info()
        .unwrap();
    let size = reader.info().size();
    assert!(size.0 >= 320 && size.1 >= 200, "{size:?}");
    bench.host.destroy(vm.id).unwrap();
    assert_eq!(
        bench.host.screenshot(vm.id).unwrap_err().kind,
        ErrorKind::InvalidState
    );
}

fn saved_memory_is_restored_and_the_guest_runs_on(bench: &Bench) {
    let vm = bench.define(BootSector::Idle);
    let host = &bench.host;
    host.start(vm.id, Begin::Running, Restore::IfSaved).unwrap();
    vm.wait_for_console(1);
    host.suspend(vm.id).unwrap();
    host.managed_save(vm.id).unwrap();
    vm.expect(&DomainChange::Stopped(OffReason::Saved));
    let state = vm.state();
    assert!(state.managed_save);
    assert_eq!(state.power, Power::Off(OffReason::Saved));
    assert!(host.list().unwrap().contains(&state));

    host.start(vm.id, Begin::Running, Restore::IfSaved).unwrap();
    vm.expect(&DomainChange::Started(StartedBy::Restore));
    let state = vm.state();
    assert!(!state.managed_save);
    assert!(
        matches!(state.power, Power::Running(_)),
        "also if it was paused: {state:?}"
    );
    assert_eq!(vm.console_lines(), 1, "it went on, it did not boot again");

    host.managed_save(vm.id).unwrap();
    host.discard_managed_save(vm.id).unwrap();
    host.discard_managed_save(vm.id).expect("none is success");
    host.start(vm.id, Begin::Running, Restore::IfSaved).unwrap();
    vm.wait_for_console(2);
}

fn a_killed_qemu_is_told_as_a_crash(bench: &Bench) {
    let vm = bench.define(BootSector::Idle);
    bench
        .host
        .start(vm.id, Begin::Running, Restore::IfSaved)
        .unwrap();
    kill(bench.qemu(vm.id), Signal::SIGKILL).unwrap();
    // libvirt's event says less than the state that is read after it.
    vm.expect(&DomainChange::Stopped(OffReason::Failed));
    assert_eq!(vm.power(), Power::Off(OffReason::Crashed));
}

fn a_guest_that_powers_itself_off_is_told_as_shut_down(bench: &Bench) {
    let vm = bench.define(BootSector::PowerOff);
    bench
        .host
        .start(vm.id, Begin::Running, Restore::IfSaved)
        .unwrap();
    vm.expect(&DomainChange::Stopped(OffReason::Shutdown));
    assert_eq!(vm.power(), Power::Off(OffReason::Shutdown));
}

fn the_console_log_is_appended_to_and_may_be_cut_at_any_time(bench: &Bench) {
    let vm = bench.define(BootSector::Idle);
    let host = &bench.host;
    host.start(vm.id, Begin::Running, Restore::IfSaved).unwrap();
    vm.wait_for_console(1);
    host.destroy(vm.id).unwrap();
    host.start(vm.id, Begin::Running, Restore::IfSaved).unwrap();
    vm.wait_for_console(2);

    std::fs::File::options()
        .write(true)
        .open(&vm.console)
        .unwrap()
        .set_len(0)
        .unwrap();
    host.reset(vm.id).unwrap();
    vm.expect(&DomainChange::Rebooted);
    vm.wait_for_console(1);
    let log = std::fs::read(&vm.console).unwrap();
    assert!(!log.contains(&0), "QEMU wrote where it had been before");
}

fn metadata_is_written_to_a_running_domain_and_its_definition(bench: &Bench) {
    let vm = bench.define(BootSector::Idle);
    let host = &bench.host;
    let mut metadata = vm.state().metadata.expect("what it was defined with");
    assert_eq!(metadata, vm.spec.metadata);
    host.start(vm.id, Begin::Running, Restore::IfSaved).unwrap();
    metadata.generation += 1;
    metadata.record = "{\"a\":\"<&>'\\\" \r\n\t ü\"}".to_owned();
    host.set_metadata(vm.id, &metadata, "title", "description")
        .unwrap();
    assert_eq!(vm.state().metadata.as_ref(), Ok(&metadata));
    host.destroy(vm.id).unwrap();
    assert_eq!(vm.state().metadata.as_ref(), Ok(&metadata));

    let disks = host.disks(vm.id).unwrap();
    assert_eq!(disks.len(), 1);
    assert_eq!(disks[0].target, "vda");
    assert_eq!(disks[0].serial, Some(vm.spec.disks[0].serial.clone()));
}

fn a_uefi_guest_with_a_network_starts_and_leaves_no_variables_behind(bench: &Bench) {
    let vm = bench.define_as(BootSector::Idle, |spec| {
        spec.firmware = Firmware::Uefi;
        spec.nics = vec![guest::user_nic(spec.id)];
    });
    let host = &bench.host;
    host.start(vm.id, Begin::Running, Restore::IfSaved).unwrap();
    assert!(vm.power().is_active());
    assert_eq!(bench.nvram_files(vm.id), 1);
    host.destroy(vm.id).unwrap();
    host.undefine(vm.id).unwrap();
    assert_eq!(bench.nvram_files(vm.id), 0);
    assert_eq!(host.get(vm.id), Ok(None));
}

fn a_guest_with_every_kind_of_device_starts_on_the_older_board(bench: &Bench) {
    let vm = bench.define_as(BootSector::Idle, |spec| {
        spec.machine = "pc".to_owned();
        spec.vcpus = 2;
        spec.cpu = Cpu::Custom("qemu64".to_owned());
        let root = spec.disks[0].clone();
        let DiskSource::File(base) = &root.source else {
            panic!("its disks are files");
        };
        let overlay = base.with_extension("overlay");
        guest::write_overlay(&overlay, base);
        let [shared, fixed] = ["shared", "fixed"].map(|name| base.with_extension(name));
        for raw in [&shared, &fixed] {
            std::fs::write(raw, [0; 4096]).unwrap();
        }
        let data = |index, source: PathBuf| DiskSpec {
            index,
            source: DiskSource::File(source),
            serial: format!("data-{index}"),
            ..root.clone()
        };
        spec.disks = vec![
            DiskSpec {
                backing: Some((root.source.clone(), VolumeFormat::Qcow2)),
                ..data(0, overlay)
            },
            DiskSpec {
                format: VolumeFormat::Raw,
                cache: DiskCache::None,
                shareable: true,
                qos: VolumeQos::default(),
                ..data(1, shared)
            },
            DiskSpec {
                format: VolumeFormat::Raw,
                read_only: true,
                ..data(2, fixed)
            },
        ];
        let models = [NicModel::Virtio, NicModel::E1000, NicModel::Rtl8139];
        spec.nics = models
            .map(|model| NicSpec {
                model,
                ..guest::user_nic(spec.id)
            })
            .to_vec();
    });
    bench
        .host
        .start(vm.id, Begin::Running, Restore::IfSaved)
        .unwrap();
    // It boots what lies below the overlay.
    vm.wait_for_console(1);
    let targets: Vec<_> = bench
        .host
        .disks(vm.id)
        .unwrap()
        .into_iter()
        .map(|disk| disk.target)
        .collect();
    assert_eq!(targets, ["vda", "vdb", "vdc"]);
}

fn the_facts_of_this_host_are_read(bench: &Bench) {
    let facts = bench.host.facts().unwrap();
    assert_eq!(facts.hypervisor, "QEMU");
    assert!(facts.emulator.is_some_and(|path| path.exists()));
    assert!(facts.machines.iter().any(|machine| machine == "q35"));
    assert!(facts.hypervisor_version.major >= 5);
    let kvm = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    assert!(!facts.kvm || kvm.is_ok());
    until("the host is alive", || bench.host.is_alive());
}
