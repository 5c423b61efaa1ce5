//! QEMU is killed in the middle of what is done to its guest.

use super::ask::Ask;
use super::host::{LINE, World};
use super::wire::{Cut, calls};
use crate::support::api::graceful;
use crate::support::refusal::Refusal;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Kills the QEMU of a VM as soon as there is one other than `former`.
async fn kill_next(world: &World, vm_id: &str, former: Option<Pid>) {
    until("a QEMU", PATIENCE, async || {
        let process = world.qemu(vm_id).filter(|found| Some(*found) != former)?;
        kill(process, Signal::SIGKILL).unwrap();
        Some(())
    })
    .await;
}

fn reason(operation: &Operation) -> String {
    assert_eq!(operation.state(), OperationState::Failed, "{operation:?}");
    Refusal::from(operation.error.as_ref().unwrap()).reason
}

pub async fn qemu_is_killed_while_it_starts(world: World) {
    let api = world.api();
    let guest = world.guest(&world.deaf).await;
    guest.force_off().await;
    let begun = Ask::Start.send(&api, &guest.id, "").await.unwrap();
    kill_next(&world, &guest.id, None).await;
    let ended = api.ended(&begun.get_ref().id).await;
    assert_eq!(reason(&ended), "START_FAILED");
    let state = world.agrees(&guest.id).await;
    assert!(
        [VmState::Stopped, VmState::Crashed].contains(&state),
        "{state:?}"
    );
    guest.start().await;
    guest.has_said(LINE, 2).await;
    guest.remove().await;
    assert!(world.host.qemus().is_empty());
}

pub async fn qemu_is_killed_while_it_is_saved(world: World) {
    let api = world.api();
    let guest = world.guest(&world.deaf).await;
    let process = world.qemu(&guest.id).unwrap();
    // It can't write its memory as long as it is paused.
    kill(process, Signal::SIGSTOP).unwrap();
    let trap = world.cut(calls::SAVE, Cut::Never);
    let begun = Ask::Save.send(&api, &guest.id, "").await.unwrap();
    world.sprung(&trap).await;
    kill(process, Signal::SIGKILL).unwrap();
    let ended = api.ended(&begun.get_ref().id).await;
    assert_eq!(reason(&ended), "SAVE_FAILED");
    assert_eq!(world.truth(&guest.id), Some(VmState::Stopped), "not saved");
    guest.is(VmState::Crashed, StateReason::Crashed).await;
    guest.start().await;
    guest.has_said(LINE, 2).await;
    guest.remove().await;
}

pub async fn qemu_is_killed_while_it_is_asked_to_stop(world: World) {
    let api = world.api();
    let guest = world.guest(&world.deaf).await;
    let request = guest.stop_request(Some(graceful()));
    let trap = world.cut(calls::SHUTDOWN, Cut::Never);
    let begun = api.vms().stop_vm(request).await.unwrap();
    world.sprung(&trap).await;
    kill(world.qemu(&guest.id).unwrap(), Signal::SIGKILL).unwrap();
    let ended = api.ended(&begun.get_ref().id).await;
    // It is off, as was asked, and it says how.
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    let outcome = ended.power_outcome.unwrap();
    assert_eq!(outcome.method(), PowerMethod::Crashed);
    assert!(!outcome.forced);
    guest.is(VmState::Crashed, StateReason::Crashed).await;
    guest.remove().await;
}

pub async fn qemu_is_killed_while_its_root_is_replaced(world: World) {
    let api = world.api();
    let guest = world.guest(&world.deaf).await;
    let old = guest.vm().await.root_volume_id;
    let former = world.qemu(&guest.id);
    let files = world.host.files();
    let replace = |stop_policy| ReplaceRootVolumeRequest {
        vm_id: guest.id.clone(),
        image_id: world.obedient.clone(),
        stop_policy: Some(stop_policy),
        start_after: true,
        ..Default::default()
    };
    // The new QEMU dies as it starts: the guest is back on its old root.
    let force = replace(crate::support::api::force());
    let begun = api.vms().replace_root_volume(force).await.unwrap();
    kill_next(&world, &guest.id, former).await;
    let ended = api.ended(&begun.get_ref().id).await;
    assert_eq!(reason(&ended), "START_FAILED");
    assert_eq!(ended.rollback_state(), RollbackState::Done);
    assert_eq!(guest.vm().await.root_volume_id, old);
    assert_eq!(world.agrees(&guest.id).await, VmState::Running);
    guest.has_said(LINE, 2).await;
    assert_eq!(world.host.files(), files, "the new root is gone");

    // The old one dies while it is asked to stop: that is as good.
    let trap = world.cut(calls::SHUTDOWN, Cut::Never);
    let begun = api.vms().replace_root_volume(replace(graceful())).await;
    world.sprung(&trap).await;
    kill(world.qemu(&guest.id).unwrap(), Signal::SIGKILL).unwrap();
    let ended = api.ended(&begun.unwrap().get_ref().id).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    assert_ne!(guest.vm().await.root_volume_id, old);
    assert_eq!(world.agrees(&guest.id).await, VmState::Running);
    guest.remove().await;
}
