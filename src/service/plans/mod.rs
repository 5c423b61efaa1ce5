//! The plan of each operation, as a list of steps.
//!
//! Each list is made from the intent and the record alone, so that after a
//! restart the same list is made again and run from its start.

mod asked;
mod create;
mod disks;
pub(super) mod images;
pub(super) mod maintenance;
mod memory;
pub(super) mod orphans;
mod place;
mod power;
mod remove;
mod root;
mod stop;
mod update;

use self::stop::StopFirst;
use super::cell::Cell;
use super::plan::Plan;
use crate::model::fault::Fault;
use crate::model::lifecycle::Resting;
use crate::model::operation::{Intent, Operation, RollbackState, StepState};
use crate::model::time::Timestamp;
use crate::model::vm::{Life, Vm};
use crate::model::volume::{Volume, VolumeAttachment};
use std::sync::Arc;
use std::time::Duration;

pub use create::{CacheImage, MakeVolume};
pub(super) use memory::is_gone as memory_is_gone;

/// How long the root that a VM had is kept at least, if it could not be switched
/// back to: long enough for somebody to look.
const KEPT_AFTER_FAILURE: Duration = Duration::from_secs(24 * 3600);

/// The steps of an operation on a VM.
///
/// # Errors
/// `INTERNAL` if the record is not what the intent was made for.
pub fn plan(cell: &Arc<Cell>, operation: &Operation) -> Result<Plan, Fault> {
    let vm = cell.vm()?;
    let cell = cell.clone();
    Ok(match &operation.intent {
        Intent::CreateVm { start } => create::plan(cell, &vm, *start),
        Intent::UpdateVm { after, .. } => update::plan(cell, &vm, after),
        Intent::DeleteVm {
            stop,
            retention,
            was_paused,
        } => {
            let after = deleted(&vm, operation.create_time, *retention);
            let first = StopFirst::new(*stop, *was_paused);
            remove::delete(cell, &vm, after, first, *retention)
        }
        Intent::RecoverVm => remove::recover(cell, &vm, recovered(&vm, operation.create_time)),
        Intent::ExpungeVm => remove::expunge(cell, &vm),
        Intent::StartVm {
            discard_saved_memory,
            was_saved,
        } => power::start(cell, *discard_saved_memory, *was_saved),
        Intent::StopVm {
            policy,
            discard_saved_memory,
        } => {
            if *discard_saved_memory {
                memory::discard(cell)
            } else {
                stop::plan(cell, *policy)
            }
        }
        Intent::RebootVm => power::reboot(cell),
        Intent::ResetVm => power::reset(cell),
        Intent::PauseVm => power::pause(cell),
        Intent::ResumeVm => power::resume(cell),
        Intent::SaveVm => memory::save(cell),
        Intent::ReplaceRootVolume {
            new_root,
            before,
            after,
            stop,
            start_after,
            health_check,
        } => root::replace(
            cell,
            new_root,
            (before, after),
            StopFirst::new(*stop, is_paused(before)),
            *start_after,
            *health_check,
        ),
        Intent::RevertRootVolume {
            before,
            after,
            stop,
            start_after,
        } => {
            let first = StopFirst::new(*stop, is_paused(before));
            root::switch(cell, (before, after), first, *start_after)
        }
        // Images, orphans and the host have plans of their own; see `service::images`,
        // `service::orphans` and `service::maintenance`.
        Intent::ImportImage { .. }
        | Intent::DeleteImage
        | Intent::DeleteOrphan { .. }
        | Intent::SetMaintenance { .. } => Plan::new(),
    })
}

fn is_paused(vm: &Vm) -> bool {
    vm.seen.resting == Resting::Paused
}

/// What an operation takes for itself before it begins: the id of the root volume
/// that it will make, so that no other is made under it and its image stays.
pub fn claim(vm: &mut Vm, operation: &Operation) {
    if let Intent::ReplaceRootVolume { new_root, .. } = &operation.intent
        && vm.volume(new_root.id).is_none()
    {
        let attachment = VolumeAttachment::Kept {
            until: operation.create_time,
        };
        vm.volumes.push(Volume {
            attachment,
            ..(**new_root).clone()
        });
    }
}

/// What an operation that has ended leaves of the record. `None` is a VM that
/// is gone for good.
pub fn settle(vm: Vm, operation: &Operation, succeeded: bool) -> Option<Vm> {
    let mut vm = vm;
    keep_what_ran(&mut vm, operation);
    match &operation.intent {
        Intent::CreateVm { .. } => {
            vm.life = if succeeded { Life::Present } else { Life::Failed };
        }
        Intent::UpdateVm { after, .. } if succeeded => {
            vm = Vm { seen: vm.seen, last_host_id: vm.last_host_id, ..(**after).clone() };
        }
        Intent::DeleteVm { retention, .. } if succeeded => {
            if retention.is_zero() {
                return None;
            }
            vm = deleted(&vm, operation.create_time, *retention);
        }
        Intent::RecoverVm if succeeded => vm = recovered(&vm, operation.create_time),
        Intent::ExpungeVm if succeeded => return None,
        Intent::ReplaceRootVolume { new_root, .. } if !succeeded => {
            let removed = operation
                .steps
                .iter()
                .any(|step| step.name == "make-volume" && step.state == StepState::Undone);
            if operation.rollback == RollbackState::Failed && !removed {
                // What may be left of it stays known; the sweeper removes it, if it
                // is not the root.
                claim(&mut vm, operation);
            } else {
                vm.volumes.retain(|volume| volume.id != new_root.id);
            }
        }
        Intent::UpdateVm { .. }
        | Intent::DeleteVm { .. }
        | Intent::RecoverVm
        | Intent::ExpungeVm
        | Intent::StartVm { .. }
        | Intent::StopVm { .. }
        | Intent::RebootVm
        | Intent::ResetVm
        | Intent::PauseVm
        | Intent::ResumeVm
        | Intent::SaveVm
        // The switch itself records the new root, at its moment.
        | Intent::ReplaceRootVolume { .. }
        | Intent::RevertRootVolume { .. }
        | Intent::ImportImage { .. }
        | Intent::DeleteImage
        | Intent::DeleteOrphan { .. }
        | Intent::SetMaintenance { .. } => {}
    }
    Some(vm)
}

/// Keeps the root that a VM had before a switch that has failed and could not be
/// taken back, however short it was to be kept after one that succeeded.
fn keep_what_ran(vm: &mut Vm, operation: &Operation) {
    let (Intent::ReplaceRootVolume { before, .. } | Intent::RevertRootVolume { before, .. }) =
        &operation.intent
    else {
        return;
    };
    if operation.rollback != RollbackState::Failed {
        return;
    }
    let ended = operation.end_time.unwrap_or(operation.create_time);
    let ran = before.root().map(|root| root.id);
    for volume in &mut vm.volumes {
        if let VolumeAttachment::Kept { until } = &mut volume.attachment
            && Some(volume.id) == ran
        {
            *until = (*until).max(ended.plus(KEPT_AFTER_FAILURE));
        }
    }
}

/// The record of a VM that is recovered then. Its former roots have the time left
/// that they had when it was deleted: nothing is removed of a VM that is DELETED.
fn recovered(vm: &Vm, when: Timestamp) -> Vm {
    let mut after = Vm {
        life: Life::Present,
        ..vm.clone()
    };
    if let Life::Deleted {
        delete_time,
        expunge_time,
    } = vm.life
    {
        // At most the retention, whatever the clock says.
        let away = when.min(expunge_time).since(delete_time);
        for volume in &mut after.volumes {
            if let VolumeAttachment::Kept { until } = &mut volume.attachment {
                *until = until.plus(away);
            }
        }
    }
    after
}

/// The record of a VM that was deleted then.
fn deleted(vm: &Vm, when: Timestamp, retention: Duration) -> Vm {
    Vm {
        life: Life::Deleted {
            delete_time: when,
            expunge_time: when.plus(retention),
        },
        ..vm.clone()
    }
}
