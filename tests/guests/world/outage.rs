//! libvirtd is killed: while nothing happens, and in the middle of every
//! operation that uses it.

use super::ask::Ask;
use super::host::{LINE, World};
use super::wire::{Cut, calls};
use crate::bench::Guest;
use crate::support::api::{Api, id};
use crate::support::refusal::{Refusal, refused};
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;
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
    (Ask::Save, calls::SAVE, Some(VmState::Saved)),
    (Ask::Discard, calls::DISCARD, Some(VmState::Stopped)),
    (Ask::Start, calls::CREATE, Some(VmState::Running)),
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
    if ask == Ask::StopForce || ask == Ask::StopGently {
        let outcome = ended.power_outcome.expect("it was stopped");
        assert_eq!(outcome.forced, ask == Ask::StopForce, "{cut:?}: {ended:?}");
        assert_eq!(outcome.signals_sent > 0, ask == Ask::StopGently, "{cut:?}");
    }
    if ended.state() == OperationState::Succeeded {
        let state = world.agrees(vm_id).await;
        // A libvirt that died after it had ended QEMU, because it was to or because the
        // guest had shut down, and before it had noted that, finds a QEMU that is gone.
        let has_ended = matches!(cut, Cut::Sent(_)) || ask == Ask::StopGently;
        let forgotten = has_ended && end == VmState::Stopped;
        let same = state == end || forgotten && state == VmState::Crashed;
        assert!(same, "{state:?} after {ask:?} {cut:?}: {ended:?}");
    } else {
        let refusal = Refusal::from(ended.error.as_ref().expect("an error"));
        assert!(may_not_know(ask), "{ask:?} {cut:?}: {refusal:?} {ended:?}");
        assert_eq!(refusal.reason, "OUTCOME_UNKNOWN", "{ask:?} {cut:?}");
        assert_eq!(world.agrees(vm_id).await, end, "{ask:?} {cut:?}");
    }
    ended
}

/// Takes a VM through its whole life with libvirtd killed in each operation.
async fn life_with(mut world: World, cut: fn(usize) -> Cut) {
    let bystander = Bystander::of(&world).await;
    let files = world.host.files();
    let mut unknown = Vec::new();
    let mut vm_id = String::new();
    let begin = Instant::now();
    for (index, row) in LIFE.iter().enumerate() {
        if row.0 == Ask::Create {
            vm_id = id();
        }
        let ended = disturbed(&mut world, &vm_id, row, cut(index)).await;
        if ended.state() != OperationState::Succeeded {
            unknown.push(row.0);
        }
        bystander.has_not_noticed(&world).await;
        if row.0 == Ask::StopGently && world.api().state(&vm_id).await == VmState::Crashed {
            // Its hardware can't be changed as it is.
            for ask in [Ask::Start, Ask::StopForce] {
                let answer = ask.send(&world.api(), &vm_id, "").await;
                world.api().done(answer).await;
            }
        }
    }
    assert_eq!(world.host.files(), files, "nothing is left over");
    assert_eq!(world.host.qemus(), [bystander.process]);
    println!(
        "libvirtd killed ({:?} …) in {} operations: {} succeeded, not known: {unknown:?}; {:.1?}",
        cut(0),
        LIFE.len(),
        LIFE.len() - unknown.len(),
        begin.elapsed()
    );
    bystander.guest.remove().await;
}

pub async fn libvirtd_is_killed_before_a_call_arrives(world: World) {
    life_with(world, |_| Cut::NotSent).await;
}

pub async fn libvirtd_is_killed_while_it_does_a_call(world: World) {
    let moments = |index| Cut::Sent(Duration::from_millis([5, 100, 220][index % 3]));
    life_with(world, moments).await;
}

pub async fn libvirtd_is_killed_while_a_call_hangs(world: World) {
    life_with(world, |_| Cut::Hanging).await;
}

pub async fn libvirtd_is_killed_before_it_answers(world: World) {
    life_with(world, |_| Cut::Done).await;
}

/// Killed when QEMU was forked and is not there yet: libvirt then waits for its
/// monitor for as long as it takes, with the domain locked.
pub async fn libvirtd_is_killed_early_in_a_start(mut world: World) {
    let bystander = Bystander::of(&world).await;
    let guest = world.guest(&world.deaf).await;
    guest.force_off().await;
    let row = (Ask::Start, calls::CREATE, Some(VmState::Running));
    disturbed(
        &mut world,
        &guest.id,
        &row,
        Cut::Sent(Duration::from_millis(30)),
    )
    .await;
    bystander.has_not_noticed(&world).await;
}

pub async fn a_libvirtd_that_comes_back_is_found_and_heard(mut world: World) {
    let api = world.api();
    let bystander = Bystander::of(&world).await;
    let ending = world.guest(&world.deaf).await;
    for _ in 0..2 {
        world.libvirtd.kill9();
        let unknown = (VmState::Unknown, StateReason::HypervisorAway);
        bystander.guest.is(unknown.0, unknown.1).await;
        assert!(!api.serving("").await.unwrap());
        assert!(!condition(&api).await);
        let refusal = refused(Ask::Pause.send(&api, &bystander.guest.id, "").await);
        assert_eq!(refusal.reason, "HYPERVISOR_AWAY");
        // Something happens that nobody sees.
        if let Some(process) = world.qemu(&ending.id) {
            kill(process, Signal::SIGKILL).unwrap();
        }
        world.libvirtd.restart();
        world.host.daemon.wait_until_serving().await;
        assert!(condition(&api).await);
        assert_eq!(api.state(&ending.id).await, VmState::Crashed);
        assert_eq!(api.state(&bystander.guest.id).await, VmState::Running);
        // Events come in over the new connection: nothing else tells of this.
        let id = &bystander.guest.id;
        world
            .libvirtd
            .by_hand(id, |domain| domain.suspend().unwrap());
        bystander
            .guest
            .is(VmState::Paused, StateReason::PausedOnHost)
            .await;
        world
            .libvirtd
            .by_hand(id, |domain| domain.resume().unwrap());
        bystander.has_not_noticed(&world).await;
    }
    ending.remove().await;
    bystander.guest.remove().await;
}

/// Whether kvmlet says that libvirt is there.
async fn condition(api: &Api) -> bool {
    let node = api.node().await;
    let ready = node.conditions.iter().find(|c| c.r#type == "LibvirtReady");
    ready.unwrap().status
}

/// A call finds the connection broken before the agent has heard that it is: it waits
/// for the next connection, and is not tried again over the broken one.
pub async fn who_finds_libvirt_gone_first_waits_for_it(mut world: World) {
    let api = world.api();
    let guest = world.guest(&world.deaf).await;
    let hold = |name: &str| world.host.daemon.home().join(name);
    let (step, word) = (hold("step"), hold("word"));
    let points = format!(
        "stop-vm.stop-guest.before=1*return(hold:{})\nlibvirt.lost=1*return(hold:{})\n",
        step.display(),
        word.display()
    );
    fs::write(world.points(), points).unwrap();
    let held = async |path: &Path| {
        until("the point to be held", PATIENCE, async || {
            path.exists().then_some(())
        })
        .await;
    };
    let stop = Ask::StopForce.send(&api, &guest.id, "").await.unwrap();
    held(&step).await;
    world.libvirtd.kill9();
    held(&word).await;
    fs::remove_file(&step).unwrap();
    until("the call to find it gone", PATIENCE, async || {
        (!condition(&api).await).then_some(())
    })
    .await;
    fs::remove_file(&word).unwrap();
    world.libvirtd.restart();
    let ended = api.ended(&stop.get_ref().id).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    assert_eq!(world.agrees(&guest.id).await, VmState::Stopped);
    guest.remove().await;
}

/// What is asked, of a VM in which state, and the point before its first step.
const HELD: &[(Ask, VmState, &str)] = &[
    (Ask::Create, VmState::Unspecified, "create-vm.define-domain"),
    (Ask::Start, VmState::Stopped, "start-vm.start-guest"),
    (Ask::StopForce, VmState::Running, "stop-vm.stop-guest"),
    (Ask::Pause, VmState::Running, "pause-vm.pause-guest"),
    (Ask::Resume, VmState::Paused, "resume-vm.resume-guest"),
    (Ask::Save, VmState::Running, "save-vm.save-memory"),
    (Ask::Describe, VmState::Running, "update-vm.describe-domain"),
    (
        Ask::Replace,
        VmState::Running,
        "replace-root-volume.stop-guest",
    ),
    (Ask::Delete, VmState::Stopped, "delete-vm.mark-deleted"),
    (
        Ask::Recover,
        VmState::Deleted,
        "recover-vm.bring-back-domain",
    ),
    (Ask::Expunge, VmState::Deleted, "expunge-vm.check-power-off"),
];

/// Every operation is at its first call, and libvirt is away longer than they
/// wait.
pub async fn a_libvirtd_that_stays_away_fails_what_was_not_sent(mut world: World) {
    let api = world.api();
    let bystander = Bystander::of(&world).await;
    let image = world.obedient.clone();
    let mut vms = Vec::new();
    for (_, state, _) in HELD {
        let vm_id = id();
        let preparations: &[Ask] = match state {
            VmState::Unspecified => &[],
            VmState::Running => &[Ask::Create],
            VmState::Stopped => &[Ask::Create, Ask::StopForce],
            VmState::Paused => &[Ask::Create, Ask::Pause],
            _ => &[Ask::Create, Ask::Delete],
        };
        for ask in preparations {
            api.done(ask.send(&api, &vm_id, &image).await).await;
        }
        vms.push(vm_id);
    }
    let held: Vec<_> = (0..HELD.len())
        .map(|index| world.host.daemon.home().join(format!("held-{index}")))
        .collect();
    let points = HELD
        .iter()
        .zip(&held)
        .map(|((_, _, point), path)| format!("{point}.before=1*return(hold:{})\n", path.display()));
    fs::write(world.points(), points.collect::<String>()).unwrap();
    let processes: Vec<_> = vms.iter().map(|vm_id| world.qemu(vm_id)).collect();
    let mut operations = Vec::new();
    for ((ask, ..), vm_id) in HELD.iter().zip(&vms) {
        let answer = ask.send(&api, vm_id, &image).await.unwrap();
        operations.push(answer.into_inner().id);
    }
    for path in &held {
        until("the step to be held", PATIENCE, async || {
            path.exists().then_some(())
        })
        .await;
    }
    world.libvirtd.kill9();
    for path in &held {
        fs::remove_file(path).unwrap();
    }
    // They wait for it, and give up.
    for (operation, (ask, ..)) in operations.iter().zip(HELD) {
        let undone = [
            Ask::Create,
            Ask::Describe,
            Ask::Replace,
            Ask::Delete,
            Ask::Recover,
        ];
        if undone.contains(ask) {
            // Undoing waits for libvirt as long as it takes.
            continue;
        }
        let ended = ended_at_last(&api, operation).await;
        assert_eq!(ended.state(), OperationState::Failed, "{ended:?}");
        let refusal = Refusal::from(ended.error.as_ref().unwrap());
        assert_eq!(refusal.reason, "HYPERVISOR_AWAY", "{ask:?}");
    }
    world.libvirtd.restart();
    world.host.daemon.wait_until_serving().await;
    for (index, (ask, state, _)) in HELD.iter().enumerate() {
        let ended = ended_at_last(&api, &operations[index]).await;
        assert_eq!(ended.state(), OperationState::Failed, "{ended:?}");
        assert_eq!(world.qemu(&vms[index]), processes[index], "{ask:?}");
        let vm_id = &vms[index];
        if *ask == Ask::Create {
            assert_eq!(world.truth(vm_id), None);
            assert_eq!(api.state(vm_id).await, VmState::Failed);
        } else if *ask == Ask::Expunge || *ask == Ask::Recover {
            assert_eq!(api.state(vm_id).await, VmState::Deleted);
        } else {
            assert_eq!(world.agrees(vm_id).await, *state, "{ask:?}");
        }
        // Asked again, it is done.
        let answer = ask.send(&api, vm_id, &image).await;
        api.done(answer).await;
    }
    bystander.has_not_noticed(&world).await;
}

/// The operation when it has ended, though that may take longer than one wait.
async fn ended_at_last(api: &Api, operation_id: &str) -> Operation {
    let request = WaitOperationRequest {
        operation_id: operation_id.to_owned(),
        timeout: Some(prost_types::Duration {
            seconds: 90,
            nanos: 0,
        }),
    };
    let answer = api.operations().wait_operation(request).await;
    answer.unwrap().into_inner()
}

/// It takes calls and answers none; then it goes on, or is killed.
pub async fn a_libvirtd_that_hangs_is_away_until_it_answers(mut world: World) {
    let api = world.api();
    let bystander = Bystander::of(&world).await;
    let guest = &bystander.guest;
    let libvirtd = world.libvirtd.pid();
    kill(libvirtd, Signal::SIGSTOP).unwrap();
    guest
        .is(VmState::Unknown, StateReason::HypervisorAway)
        .await;
    assert!(!api.serving("").await.unwrap());
    kill(libvirtd, Signal::SIGCONT).unwrap();
    world.host.daemon.wait_until_serving().await;
    world
        .libvirtd
        .by_hand(&guest.id, |domain| domain.suspend().unwrap());
    guest.has_state(VmState::Paused).await;
    world
        .libvirtd
        .by_hand(&guest.id, |domain| domain.resume().unwrap());
    bystander.has_not_noticed(&world).await;
    assert_eq!(world.agrees(&guest.id).await, VmState::Running);

    kill(world.libvirtd.pid(), Signal::SIGSTOP).unwrap();
    guest
        .is(VmState::Unknown, StateReason::HypervisorAway)
        .await;
    world.libvirtd.kill9();
    world.libvirtd.restart();
    world.host.daemon.wait_until_serving().await;
    bystander.has_not_noticed(&world).await;
}
