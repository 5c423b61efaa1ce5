//! Who did it: the guest, somebody else on the host, or one of our operations.

use crate::bench::{Bench, Guest, Host, request};
use crate::libvirtd::Libvirtd;
use crate::support::watch::Watcher;
use kvmlet::proto::v1::watch_events_response::Event;
use kvmlet::proto::v1::*;
use nix::sys::signal::{Signal, kill};
use std::process::Command;

const LINE: &str = "kvmlet test guest";

/// What an administrator types.
fn virsh(libvirtd: &Libvirtd, command: &str, guest: &Guest) {
    #[allow(clippy::disallowed_methods)] // a test acts as somebody else
    let done = Command::new("virsh")
        .args(["--quiet", "--connect", &libvirtd.uri(), command, &guest.id])
        .status()
        .unwrap();
    assert!(done.success(), "virsh {command}");
}

/// The cause with which a VM comes to a state.
async fn cause(watcher: &mut Watcher, guest: &Guest, state: VmState) -> (CauseKind, CauseDetail) {
    let event = watcher.until_state(&guest.id, state).await;
    let cause = event.cause.expect("every change has one");
    assert!(cause.operation_id.is_empty(), "{cause:?}");
    (cause.kind(), cause.detail())
}

pub async fn each_end_of_a_guest_is_told_with_its_own_cause_behind_libvirt(bench: &Bench) {
    use CauseDetail::{Crash, Destroy, Pause, PowerOff, Reboot, Resume, Start};
    use CauseKind::{Guest as ByGuest, Host as ByHost, Operation as ByOperation};
    let libvirtd = Libvirtd::start(&bench.host.known());
    let host = Host::on(&libvirtd).await;
    let api = host.daemon.api();
    let mut watcher = Watcher::now(&api).await;

    // It powers itself off.
    let image = bench.import(&host, "power-off-later").await;
    let guest = host.create(request(&image)).await;
    watcher.until_state(&guest.id, VmState::Running).await;
    let told = cause(&mut watcher, &guest, VmState::Stopped).await;
    assert_eq!(told, (ByGuest, PowerOff));

    // Somebody with virsh.
    let image = bench.import(&host, "idle").await;
    let guest = host.create(request(&image)).await;
    guest.has_said(LINE, 1).await;
    watcher.until_state(&guest.id, VmState::Running).await;
    for (command, state, detail) in [
        ("suspend", VmState::Paused, Pause),
        ("resume", VmState::Running, Resume),
        ("destroy", VmState::Stopped, Destroy),
        ("start", VmState::Running, Start),
    ] {
        virsh(&libvirtd, command, &guest);
        let told = cause(&mut watcher, &guest, state).await;
        assert_eq!(told, (ByHost, detail), "virsh {command}");
    }

    // QEMU is killed.
    let [process] = host.qemus()[..] else {
        panic!("one guest, one process: {:?}", host.qemus());
    };
    kill(process, Signal::SIGKILL).unwrap();
    let told = cause(&mut watcher, &guest, VmState::Crashed).await;
    assert_eq!(told, (ByGuest, Crash));

    // We start and stop it.
    guest.start().await;
    watcher.until_state(&guest.id, VmState::Running).await;
    let from = watcher.seen.len();
    let stop = guest.stop_request(Some(crate::support::api::force()));
    let operation = api.done(api.vms().stop_vm(stop).await).await;
    watcher.until_ended(&operation.id).await;
    assert_eq!(watcher.vms[&guest.id].state(), VmState::Stopped);
    let of_it = watcher.seen[from..]
        .iter()
        .filter(|event| matches!(&event.event, Some(Event::Vm(vm)) if vm.id == guest.id));
    for event in of_it {
        let cause = event.cause.as_ref().unwrap();
        assert_eq!(cause.kind(), ByOperation, "{cause:?}");
        // What went before may still be told here.
        assert!(!cause.operation_id.is_empty());
    }

    // It restarts by itself.
    let image = bench.import(&host, "restart-later").await;
    let guest = host.create(request(&image)).await;
    loop {
        let event = watcher.until_state(&guest.id, VmState::Running).await;
        let cause = event.cause.expect("every change has one");
        if (cause.kind(), cause.detail()) == (ByGuest, Reboot) {
            break;
        }
    }
    guest.remove().await;
}
