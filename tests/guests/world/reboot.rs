//! Restarts by the power button that a guest ignores: libvirt remembers them.

use super::host::{LINE, World, image};
use super::stop::seconds;
use crate::bench::Guest;
use crate::sector::BootSector;
use crate::support::api::graceful;
use crate::support::watch::Watcher;
use kvmlet::proto::v1::watch_events_response::Event;
use kvmlet::proto::v1::*;

async fn reboot(world: &World, guest: &Guest) -> Operation {
    let api = world.api();
    let request = RebootVmRequest {
        vm_id: guest.id.clone(),
        ..Default::default()
    };
    api.done(api.vms().reboot_vm(request).await).await
}

pub async fn a_stop_after_an_ignored_reboot_stops_the_guest(world: World) {
    // It hears the second press only.
    let slow = image(&world.host, BootSector::Button(2)).await;
    let guest = world.guest(&slow).await;
    reboot(&world, &guest).await;
    // Two presses in one moment are one to it.
    let request = guest.stop_request(Some(StopPolicy {
        resend_interval: seconds(2),
        ..graceful()
    }));
    let api = world.api();
    api.done(api.vms().stop_vm(request).await).await;
    guest.is(VmState::Stopped, StateReason::Operation).await;
    assert_eq!(world.truth(&guest.id), Some(VmState::Stopped));
    assert_eq!(guest.says(LINE), 1);
    guest.remove().await;
}

pub async fn a_guest_that_powers_off_after_it_ignored_a_reboot_is_started_for_it(world: World) {
    let api = world.api();
    // It hears no button, and powers off six seconds after it was started.
    let fleeting = image(&world.host, BootSector::PowerOffLater).await;
    let guest = world.guest(&fleeting).await;
    let operation = reboot(&world, &guest).await;
    let mut watcher = Watcher::now(&api).await;
    guest.has_said(LINE, 3).await;
    let event = watcher
        .until(|event| matches!(event, Event::Vm(vm) if vm.id == guest.id))
        .await;
    let cause = event.cause.unwrap();
    assert_eq!(cause.kind(), CauseKind::Operation, "{cause:?}");
    assert_eq!(cause.operation_id, operation.id);
    // That was the one restart.
    guest.is(VmState::Stopped, StateReason::GuestShutdown).await;

    // A reset takes libvirt's note of it away.
    let lines = guest.says(LINE);
    guest.start().await;
    guest.has_said(LINE, lines + 1).await;
    reboot(&world, &guest).await;
    let reset = ResetVmRequest {
        vm_id: guest.id.clone(),
        ..Default::default()
    };
    api.done(api.vms().reset_vm(reset).await).await;
    guest.is(VmState::Stopped, StateReason::GuestShutdown).await;
    // One of the start, and two of a whole run after the reset.
    assert_eq!(guest.says(LINE), lines + 3);
    guest.remove().await;
}
