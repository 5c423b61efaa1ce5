//! libvirtd is killed: while nothing happens, and in the middle of every
//! operation that uses it.

use super::ask::Ask;
use super::bench::Guest;
use super::host::{LINE, World};
use super::support::refusal::Refusal;
use super::wire::{Cut, calls};
use kvmlet::proto::v1::*;
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// A row: what is asked, at which of its calls libvirtd dies, and what an
/// undisturbed run leaves (nothing: the VM is gone).
type Row = (Ask, &'static [u32], Option<VmState>);

/// The life of one VM; it obeys its power button.
const LIFE: &[Row] = &[
    (Ask::Create, calls::DEFINE, Some(VmState::Running)),
    (Ask::StopForce, calls::DESTROY, Some(VmState::Stopped)),
    (Ask::Start, calls::CREATE, Some(VmState::Running)),
    (Ask::Pause, calls::SUSPEND, Some(VmState::Paused)),
    (Ask::Resume, calls::RESUME, Some(VmState::Running)),
    (Ask::Save, calls::SAVE, Some(VmState::Saved)),
    (Ask::Start, calls::CREATE, Some(VmState::Running)),
    (Ask::Reset, calls::RESET, Some(VmState::Running)),
    (Ask::Describe, calls::METADATA, Some(VmState::Running)),
    (Ask::StopGently, calls::SHUTDOWN, Some(VmState::Stopped)),
    (Ask::Redefine, calls::DEFINE, Some(VmState::Stopped)),
    (Ask::Replace, calls::DEFINE, Some(VmState::Running)),
    (Ask::Replace, calls::CREATE, Some(VmState::Running)),
    (Ask::Replace, calls::DESTROY, Some(VmState::Running)),
    (Ask::Revert, calls::DEFINE, Some(VmState::Running)),
    (Ask::Delete, calls::DESTROY, Some(VmState::Deleted)),
    (Ask::Recover, calls::METADATA, Some(VmState::Stopped)),
    (Ask::Delete, calls::METADATA, Some(VmState::Deleted)),
    (Ask::Expunge, calls::UNDEFINE, None),
    (Ask::Create, calls::CREATE, Some(VmState::Running)),
    (Ask::Reboot, calls::REBOOT, Some(VmState::Running)),
    (Ask::DeleteForGood, calls::UNDEFINE, None),
];

/// A guest that runs and is not the object of anything.
struct Bystander {
    guest: Guest,
    process: Pid,
}

impl Bystander {
    async fn of(world: &World) -> Self {
        let guest = world.guest(&world.deaf).await;
        let process = world.qemu(&guest.id).expect("it runs");
        Self { guest, process }
    }

    async fn has_not_noticed(&self, world: &World) {
        self.guest.has_state(VmState::Running).await;
        assert_eq!(world.qemu(&self.guest.id), Some(self.process));
        assert_eq!(self.guest.says(LINE), 1);
    }
}

/// Whether an operation may say that it does not know: what it did can't be
/// repeated, and can't be seen.
fn may_not_know(ask: Ask) -> bool {
    matches!(ask, Ask::Reset | Ask::Reboot)
}

/// Sends a request, has libvirtd killed at its call, starts it again, and looks
/// at what came of it. Returns how the operation ended.
async fn disturbed(world: &mut World, vm_id: &str, row: &Row, cut: Cut) -> Operation {
    let (ask, procedures, end) = *row;
    let api = world.api();
    // A guest that does not listen is not rebooted while it is looked at.
    let image = if end.is_some() && ask == Ask::Create && procedures == calls::CREATE {
        world.deaf.clone()
    } else {
        world.obedient.clone()
    };
    let trap = world.cut(procedures, cut);
    let answer = ask.send(&api, vm_id, &image).await;
    let operation = answer.unwrap_or_else(|status| panic!("{ask:?}: {status:?}"));
    world.sprung(&trap).await;
    world.libvirtd.kill9();
    world.libvirtd.restart();
    let ended = api.ended(&operation.get_ref().id).await;
    let Some(end) = end else {
        assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
        assert_eq!(world.truth(vm_id), None, "{ask:?} {cut:?}");
        api.vm(vm_id).await.unwrap_err();
        return ended;
    };
    if ended.state() == OperationState::Succeeded {
        let state = world.agrees(vm_id).await;
        assert_eq!(state, end, "{ask:?} {cut:?}: {ended:?}");
    } else {
        let refusal = Refusal::from(ended.error.as_ref().expect("an error"));
        assert!(may_not_know(ask), "{ask:?} {cut:?}: {refusal:?} {ended:?}");
        assert_eq!(refusal.reason, "OUTCOME_UNKNOWN", "{ask:?} {cut:?}");
        assert_eq!(world.agrees(vm_id).await, end, "{ask:?} {cut:?}");
    }
    ended
}

/// Takes a VM through its whole life with libvirtd killed in each operation.
pub async fn life_with(mut world: World, cut: Cut) {
    let bystander = Bystander::of(&world).await;
    let files = world.host.files();
    let mut unknown = Vec::new();
    let mut vm_id = String::new();
    let begin = Instant::now();
    for row in LIFE {
        if row.0 == Ask::Create {
            vm_id = super::support::api::id();
        }
        let ended = disturbed(&mut world, &vm_id, row, cut).await;
        if ended.state() != OperationState::Succeeded {
            unknown.push(row.0);
        }
        bystander.has_not_noticed(&world).await;
    }
    assert_eq!(world.host.files(), files, "nothing is left over");
    assert_eq!(world.host.qemus(), [bystander.process]);
    println!(
        "libvirtd killed ({cut:?}) in {} operations: {} succeeded, not known: {unknown:?}; {:.1?}",
        LIFE.len(),
        LIFE.len() - unknown.len(),
        begin.elapsed()
    );
    bystander.guest.remove().await;
}

pub async fn killed_before_the_call_arrives(world: World) {
    life_with(world, Cut::NotSent).await;
}

pub async fn killed_while_it_does_the_call(world: World) {
    life_with(world, Cut::Sent(Duration::from_millis(30))).await;
}

pub async fn killed_while_the_call_hangs(world: World) {
    life_with(world, Cut::Hanging).await;
}

pub async fn killed_before_it_answers(world: World) {
    life_with(world, Cut::Done).await;
}
