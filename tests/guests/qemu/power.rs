//! Power, as the state table says, and what the guest does by itself.

use crate::bench::{Bench, Guest, request};
use crate::support::api::{force, graceful, id};
use crate::support::refusal::refused;
use kvmlet::proto::v1::*;
use nix::sys::signal::{Signal, kill};

const BY_OPERATION: StateReason = StateReason::Operation;

/// Sends one of the requests that name a VM and nothing else.
macro_rules! ask {
    ($bench:expr, $method:ident, $request:ident, $guest:expr) => {
        $bench
            .host
            .daemon
            .api()
            .vms()
            .$method($request {
                vm_id: $guest.id.clone(),
                ..Default::default()
            })
            .await
    };
}

/// One that must succeed.
macro_rules! done {
    ($bench:expr, $method:ident, $request:ident, $guest:expr) => {{
        let answer = ask!($bench, $method, $request, $guest);
        $bench.host.daemon.api().done(answer).await
    }};
}

/// One that the state forbids.
macro_rules! forbidden {
    ($bench:expr, $method:ident, $request:ident, $guest:expr) => {
        assert_eq!(
            refused(ask!($bench, $method, $request, $guest)).code,
            tonic::Code::FailedPrecondition
        )
    };
}

const UP: &str = "version 1 kind acpi up";

pub async fn a_guest_with_power_goes_through_every_state(bench: &Bench) {
    let guest = bench.guest("acpi-1").await;
    guest.is(VmState::Running, BY_OPERATION).await;
    guest.has_said(UP, 1).await;
    let process = guest.qemu();
    done!(bench, start_vm, StartVmRequest, guest);
    done!(bench, resume_vm, ResumeVmRequest, guest);
    forbidden!(bench, recover_vm, RecoverVmRequest, guest);
    forbidden!(bench, expunge_vm, ExpungeVmRequest, guest);

    done!(bench, pause_vm, PauseVmRequest, guest);
    guest.is(VmState::Paused, BY_OPERATION).await;
    done!(bench, pause_vm, PauseVmRequest, guest);
    forbidden!(bench, start_vm, StartVmRequest, guest);
    forbidden!(bench, stop_vm, StopVmRequest, guest);
    forbidden!(bench, reboot_vm, RebootVmRequest, guest);
    done!(bench, resume_vm, ResumeVmRequest, guest);
    guest.is(VmState::Running, BY_OPERATION).await;
    assert_eq!(guest.qemu(), process);

    done!(bench, save_vm, SaveVmRequest, guest);
    guest.is(VmState::Saved, BY_OPERATION).await;
    done!(bench, save_vm, SaveVmRequest, guest);
    forbidden!(bench, resume_vm, ResumeVmRequest, guest);
    forbidden!(bench, reset_vm, ResetVmRequest, guest);
    done!(bench, start_vm, StartVmRequest, guest);
    guest.is(VmState::Running, BY_OPERATION).await;

    // Saved while it was paused, it runs when it is started.
    done!(bench, pause_vm, PauseVmRequest, guest);
    done!(bench, save_vm, SaveVmRequest, guest);
    done!(bench, start_vm, StartVmRequest, guest);
    guest.is(VmState::Running, BY_OPERATION).await;
    assert_eq!(guest.says(UP), 1, "it went on, it did not boot again");

    done!(bench, reset_vm, ResetVmRequest, guest);
    guest.has_said(UP, 2).await;
    assert_eq!(guest.says("power button"), 0, "it was not asked");
    done!(bench, reboot_vm, RebootVmRequest, guest);
    guest.has_said(UP, 3).await;
    assert_eq!(guest.says("power button"), 1, "it was asked");
    guest.is(VmState::Running, BY_OPERATION).await;

    done!(bench, pause_vm, PauseVmRequest, guest);
    guest.force_off().await;
    guest.is(VmState::Stopped, BY_OPERATION).await;
    guest.force_off().await;
    forbidden!(bench, pause_vm, PauseVmRequest, guest);
    forbidden!(bench, resume_vm, ResumeVmRequest, guest);
    forbidden!(bench, save_vm, SaveVmRequest, guest);
    forbidden!(bench, reset_vm, ResetVmRequest, guest);
    forbidden!(bench, reboot_vm, RebootVmRequest, guest);

    done!(bench, start_vm, StartVmRequest, guest);
    guest.has_said(UP, 4).await;
    let api = bench.host.daemon.api();
    let request = guest.stop_request(Some(graceful()));
    let stopped = api.done(api.vms().stop_vm(request).await).await;
    let outcome = stopped.power_outcome.expect("it was stopped");
    assert_eq!(outcome.method(), PowerMethod::Acpi);
    assert!(!outcome.forced && outcome.signals_sent >= 1, "{outcome:?}");
    guest.is(VmState::Stopped, BY_OPERATION).await;
    guest.remove().await;
}

pub async fn a_guest_that_powers_itself_off_is_stopped(bench: &Bench) {
    let guest = bench.guest("power-off").await;
    guest.is(VmState::Stopped, StateReason::GuestShutdown).await;
    let operations = bench.host.daemon.api().all_operations().await;
    let own = operations.iter().filter(|o| o.vm_id == guest.id).count();
    assert_eq!(own, 1, "none but the one that made it");
    guest.remove().await;
}

pub async fn a_guest_whose_qemu_is_killed_has_crashed_and_starts_again(bench: &Bench) {
    let guest = bench.guest("idle").await;
    kill(guest.qemu(), Signal::SIGKILL).unwrap();
    guest.is(VmState::Crashed, StateReason::Crashed).await;
    forbidden!(bench, pause_vm, PauseVmRequest, guest);
    guest.force_off().await;
    done!(bench, start_vm, StartVmRequest, guest);
    guest.is(VmState::Running, BY_OPERATION).await;
    guest.remove().await;
}

pub async fn a_deleted_vm_comes_back_and_an_expunged_one_leaves_nothing(bench: &Bench) {
    let host = bench.another().await;
    let api = host.daemon.api();
    let image = bench.import(&host, "idle").await;
    let mut wanted = request(&image);
    wanted.data_volumes = vec![NewVolume {
        volume_id: id(),
        size_bytes: 1 << 20,
        ..Default::default()
    }];
    let guest = host.create(wanted).await;
    let before = guest.vm().await;
    let delete = |retention| DeleteVmRequest {
        vm_id: guest.id.clone(),
        stop_policy: Some(force()),
        retention,
        ..Default::default()
    };
    let files = host.files();
    api.done(api.vms().delete_vm(delete(None)).await).await;
    assert_eq!(guest.state().await, VmState::Deleted);
    assert_eq!(host.files(), files, "everything of it is kept");
    assert!(host.qemus().is_empty());

    let recover = RecoverVmRequest {
        vm_id: guest.id.clone(),
        ..Default::default()
    };
    api.done(api.vms().recover_vm(recover).await).await;
    let after = guest.vm().await;
    assert_eq!(after.state(), VmState::Stopped);
    let ids = |vm: &Vm| vm.volumes.iter().map(|v| v.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&after), ids(&before));
    let start = StartVmRequest {
        vm_id: guest.id.clone(),
        ..Default::default()
    };
    api.done(api.vms().start_vm(start).await).await;
    guest.has_said("kvmlet test guest", 1).await;

    api.done(api.vms().delete_vm(delete(None)).await).await;
    let expunge = ExpungeVmRequest {
        vm_id: guest.id.clone(),
        ..Default::default()
    };
    api.done(api.vms().expunge_vm(expunge).await).await;
    assert_eq!(refused(api.vm(&guest.id).await).reason, "VM_NOT_FOUND");
    let delete_image = DeleteImageRequest {
        image_id: image,
        ..Default::default()
    };
    api.done(api.images().delete_image(delete_image).await)
        .await;
    assert_eq!(host.files(), Vec::<String>::new());
    assert_eq!(guest.console_bytes(), 0);
    assert!(host.qemus().is_empty());
}

pub async fn a_vm_with_power_is_not_deleted_without_a_stop_policy(bench: &Bench) {
    let guest: Guest = bench.guest("idle").await;
    forbidden!(bench, delete_vm, DeleteVmRequest, guest);
    assert_eq!(guest.state().await, VmState::Running);
    guest.remove().await;
}
