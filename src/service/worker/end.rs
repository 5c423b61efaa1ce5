//! How an operation begins and ends on its VM's worker.

use super::{Fate, Worker};
use crate::journal::Batch;
use crate::model::fault::Fault;
use crate::model::lifecycle::{Resting, Seen, StateReason};
use crate::model::operation::{
    Intent, Operation, OperationKind, OperationResult, OperationState, RollbackState, StepState,
};
use crate::model::reason::Reason;
use crate::model::vm::{Life, Vm};
use crate::service::ending;
use crate::service::operations::{LiveOperation, now};
use crate::service::plan::{self, Ended, Plan, Run};
use crate::service::plans;
use crate::spans;
use std::sync::Arc;
use std::time::Duration;
use tracing::Instrument;

/// How long to wait before the end of an operation is written again, if the
/// journal could not be written.
const PAUSE: Duration = Duration::from_secs(1);

impl Worker {
    /// Starts the plan of an operation that is durable.
    pub(super) fn begin(&mut self, live: Arc<LiveOperation>) {
        let operation = live.get();
        let current = (operation.id, operation.intent.kind());
        self.cell.change(|view| view.current = Some(current));
        tracing::info!(
            vm_id = %self.cell.id,
            operation_id = %operation.id,
            kind = operation.intent.kind().as_str(),
            trace_id = operation.trace_id(),
            "operation begins"
        );
        let run = Run {
            core: self.core.clone(),
            operation: live.clone(),
        };
        let plan = plans::plan(&self.cell, &operation);
        if live.is_resumed() && self.may_have_passed(&plan) {
            drop(live.pass_point_of_no_return());
        }
        // A task of its own, so that a plan that panics is only a failed plan.
        let span = spans::operation(&operation);
        let work = async move {
            match plan {
                // Of an operation of a former run: nothing can be measured yet.
                Ok(_) if !plan::until_libvirt_is_there(&run).await => Ended::Halted,
                Ok(plan) => plan::execute(&run, &plan).await,
                Err(fault) => Ended::Failed(fault),
            }
        };
        let running = self.core.tasks.spawn(work.instrument(span));
        self.running = Some((live, running));
    }

    /// Whether a former run may have passed the plan's point of no return.
    fn may_have_passed(&self, plan: &Result<Plan, Fault>) -> bool {
        let expunging = self
            .cell
            .record()
            .is_some_and(|vm| vm.life == Life::Expunging);
        let first = plan.as_ref().is_ok_and(|plan| {
            plan.first()
                .is_some_and(|step| step.is_point_of_no_return())
        });
        expunging || first
    }

    /// Makes the end of an operation durable, then tells of it. While the journal
    /// can't be written, the operation goes on holding the VM, and this is tried
    /// again; the worker goes on refusing and observing meanwhile.
    pub(super) async fn finish(&mut self, ended: Ended) -> Fate {
        let Some((live, _)) = self.running.take() else {
            return Fate::Stays;
        };
        let Some(mut operation) = ending::ended(&live, &ended) else {
            tracing::info!(operation_id = %live.id(), "operation is left to the next start");
            return Fate::Stays;
        };
        // What is seen is recorded with the operation's end.
        self.see().await;
        let succeeded = operation.state == OperationState::Succeeded;
        let record = self.cell.record();
        let settled = record.and_then(|vm| plans::settle(vm, &operation, succeeded));
        let settled = match settled {
            Some(vm) => Some(self.describe_end(vm, &operation, succeeded).await),
            None => None,
        };
        operation.result = settled.clone().map(|vm| OperationResult::Vm(Box::new(vm)));
        let changes = match &settled {
            Some(vm) => Batch::new().put_vm(vm),
            None => Batch::new().delete_vm(self.cell.id),
        };
        let next = self.next.clone();
        let current = next
            .as_ref()
            .map(|next| (next.id(), next.get().intent.kind()));
        let cell = self.cell.clone();
        let gone = settled.is_none();
        let publish = || {
            log_end(&operation);
            cell.change(|view| {
                view.vm = settled;
                view.current = current;
            });
        };
        let told = self
            .core
            .operations
            .end(&live, operation.clone(), changes, publish)
            .await;
        if told.is_err() {
            let stopping = self.core.stopping.clone();
            let again = async move {
                tokio::select! {
                    // The plan is run again at the next start, and finds all done.
                    () = stopping.cancelled() => Ended::Halted,
                    () = tokio::time::sleep(PAUSE) => ended,
                }
            };
            self.running = Some((live, self.core.tasks.spawn(again)));
            return Fate::Stays;
        }
        if gone {
            return Fate::Gone;
        }
        if !succeeded {
            // What stood in its way is shown.
            self.cell.touch_definition();
        }
        if let Some(next) = self.next.take() {
            self.begin(next);
        }
        Fate::Stays
    }

    /// The record as the operation leaves it: why the VM is in its state, and
    /// what its volumes take.
    async fn describe_end(&self, vm: Vm, operation: &Operation, succeeded: bool) -> Vm {
        let mut vm = vm;
        let forced = operation
            .power_outcome
            .is_some_and(|outcome| outcome.forced);
        let discarded = matches!(
            operation.intent,
            Intent::StopVm {
                discard_saved_memory: true,
                ..
            }
        );
        let off = succeeded && (forced || discarded);
        if off && vm.seen.resting == Resting::Crashed {
            // To a libvirt that was just finding its domains again, a QEMU that was
            // killed, or that ended because all its memory was saved, has died.
            vm.seen = Seen {
                resting: Resting::Stopped,
                reason: StateReason::Operation,
            };
        }
        let there = leads_to(&operation.intent) == Some(vm.seen.resting);
        // One that only gives or takes power begins elsewhere: that the VM is there
        // is its doing, also if it could not be told that it succeeded.
        let reached = there && (succeeded || operation.intent.kind().is_power());
        // What looks like somebody else's doing was the undoing.
        let rolled_back = matches!(
            operation.rollback,
            RollbackState::Done | RollbackState::Failed
        );
        let undone = rolled_back
            && matches!(
                vm.seen.reason,
                StateReason::StartedOnHost | StateReason::Destroyed | StateReason::PausedOnHost
            );
        if reached || undone {
            vm.seen.reason = StateReason::Operation;
        }
        if let Some(seen) = off_after_undoing(&vm, operation) {
            vm.seen = seen;
        }
        vm.update_time = now();
        let made = matches!(
            operation.intent.kind(),
            OperationKind::CreateVm | OperationKind::ReplaceRootVolume
        );
        if made {
            for volume in &mut vm.volumes {
                if volume.ceph_pool.is_some() {
                    // A cluster is asked by a process of its own; the sweeper does.
                    continue;
                }
                let place = volume.reference();
                let Some(size) = self.core.pools.glance(&volume.pool, place).await else {
                    break;
                };
                volume.actual_size = size;
            }
        }
        vm
    }
}

/// What a VM without power is, once a switch of its root was undone. How the guest
/// ended on the new root says nothing of it.
fn off_after_undoing(vm: &Vm, operation: &Operation) -> Option<Seen> {
    let (Intent::ReplaceRootVolume { before, .. } | Intent::RevertRootVolume { before, .. }) =
        &operation.intent
    else {
        return None;
    };
    if !matches!(vm.seen.resting, Resting::Stopped | Resting::Crashed) {
        return None;
    }
    let not_started_again = operation
        .steps
        .iter()
        .any(|step| step.name == "stop-guest" && step.state == StepState::UndoFailed);
    let reason = if not_started_again {
        StateReason::StartFailed
    } else if operation.rollback == RollbackState::Done && !before.seen.resting.has_power() {
        StateReason::Operation
    } else {
        return None;
    };
    Some(Seen {
        resting: Resting::Stopped,
        reason,
    })
}

/// The state that an operation brings a VM to, if to a certain one.
const fn leads_to(intent: &Intent) -> Option<Resting> {
    match intent {
        Intent::StartVm { .. } | Intent::ResumeVm => Some(Resting::Running),
        Intent::CreateVm { start }
        | Intent::ReplaceRootVolume {
            start_after: start, ..
        }
        | Intent::RevertRootVolume {
            start_after: start, ..
        } => Some(if *start {
            Resting::Running
        } else {
            Resting::Stopped
        }),
        Intent::StopVm { .. } => Some(Resting::Stopped),
        Intent::PauseVm => Some(Resting::Paused),
        Intent::SaveVm => Some(Resting::Saved),
        Intent::UpdateVm { .. }
        | Intent::DeleteVm { .. }
        | Intent::RecoverVm
        | Intent::ExpungeVm
        | Intent::RebootVm
        | Intent::ResetVm
        | Intent::ImportImage { .. }
        | Intent::DeleteImage
        | Intent::DeleteOrphan { .. }
        | Intent::SetMaintenance { .. } => None,
    }
}

fn log_end(operation: &Operation) {
    let (id, kind) = (operation.id, operation.intent.kind().as_str());
    let trace_id = operation.trace_id();
    match &operation.error {
        None => tracing::info!(operation_id = %id, kind, trace_id, "operation succeeded"),
        Some(fault) if fault.reason == Reason::Internal => {
            tracing::error!(operation_id = %id, kind, trace_id, reason = fault.reason.as_str(), "operation failed");
        }
        Some(fault) => tracing::warn!(
            operation_id = %id,
            kind,
            trace_id,
            reason = fault.reason.as_str(),
            rollback = ?operation.rollback,
            "operation did not succeed"
        ),
    }
}
