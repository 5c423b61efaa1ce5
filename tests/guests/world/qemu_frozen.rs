//! A QEMU that does not answer, and dies before it does.

use super::host::World;
use super::wire::{Cut, calls};
use crate::support::api::graceful;
use kvmlet::proto::v1::*;
use nix::sys::signal::{Signal, kill};

pub async fn qemu_is_killed_before_it_has_answered_to_a_stop(world: World) {
    let api = world.api();
    let guest = world.guest(&world.deaf).await;
    let process = world.qemu(&guest.id).unwrap();
    // It can't answer as long as it stands still, so libvirt's call waits for it,
    // and fails with its death.
    kill(process, Signal::SIGSTOP).unwrap();
    let request = guest.stop_request(Some(graceful()));
    let trap = world.cut(calls::SHUTDOWN, Cut::Never);
    let begun = api.vms().stop_vm(request).await.unwrap();
    world.sprung(&trap).await;
    kill(process, Signal::SIGKILL).unwrap();
    let ended = api.ended(&begun.get_ref().id).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    assert!(!ended.power_outcome.unwrap().forced);
    guest.is(VmState::Crashed, StateReason::Crashed).await;
    guest.remove().await;
}
