//! What a worker answers a request: refused, already there, or begun.

use super::{Answer, Asked, Worker};
use crate::faultpoint;
use crate::journal::Batch;
use crate::model::access::Role;
use crate::model::fault::Fault;
use crate::model::image::Image;
use crate::model::lifecycle::{Ask, Decision, Resting, decide_for};
use crate::model::operation::{Intent, Operation, OperationKind, OperationResult, OperationState};
use crate::model::reason::Reason;
use crate::model::request::{CreateVm, PowerState, StopWish, VmRequest};
use crate::model::stop::StopPolicy;
use crate::model::view::View;
use crate::model::vm::{Life, Vm};
use crate::service::fault::internal;
use crate::service::operations::{OperationQuery, new_operation, now};
use crate::service::repeat::{fingerprint, first_difference};
use crate::service::{admission, capacity, drift, plans, preview, usage, vms};
use std::sync::Arc;

impl Worker {
    pub(super) async fn answer(&mut self, asked: &Asked) -> Answer {
        if self.core.stopping.is_cancelled() {
            return Err(Fault::new(Reason::Stopping, "the agent is stopping"));
        }
        let shown = self.cell.view();
        if self.running.is_none() {
            // Decide on what is, not on what the last event said.
            self.look().await;
        }
        let view = self.cell.view();
        check_restores(&asked.request, &shown, &view)?;
        match (&asked.request, &view.vm) {
            (VmRequest::CreateVm(wish), None) => self.create(asked, wish).await,
            (VmRequest::CreateVm(wish), Some(vm)) => self.create_again(asked, wish, vm).await,
            (_, None) => Err(vms::not_found(self.cell.id)),
            (request, Some(vm)) => self.change(asked, request, vm).await,
        }
    }

    async fn create(&mut self, asked: &Asked, wish: &CreateVm) -> Answer {
        self.core.node.check_takes_guests()?;
        let intent = Intent::CreateVm { start: wish.start };
        let mut operation = self.new_operation(asked, intent);
        let core = self.core.clone();
        let before = self.cell.view().vm.clone();
        let vm = admission::create(
            &core,
            self.cell.id,
            operation.id,
            wish,
            before.as_ref(),
            operation.create_time,
        )
        .await?;
        // Only what is compared with other VMs needs the lock, and only until it
        // is published: nothing here waits for a pool.
        let admission = core.vms.admission.lock().await;
        admission::compare(&core, &vm, wish.start)?;
        if asked.envelope.validate_only {
            return Ok(Arc::new(preview::operation(
                operation,
                preview::create(&vm),
            )));
        }
        operation.vm_id = Some(vm.id);
        faultpoint::reach("admission.create").await;
        // Published before it is durable, so that the next one is compared with
        // it; taken back if it does not become durable.
        self.cell.change(|view| {
            view.current = Some((operation.id, OperationKind::CreateVm));
            view.vm = Some(vm.clone());
        });
        drop(admission);
        match core
            .operations
            .begin(operation, Batch::new().put_vm(&vm))
            .await
        {
            Ok(live) => {
                let answer = live.get();
                self.begin(live);
                Ok(answer)
            }
            Err(fault) => {
                self.cell.change(|view| {
                    view.current = None;
                    view.vm = before;
                });
                Err(fault)
            }
        }
    }

    async fn create_again(&mut self, asked: &Asked, wish: &CreateVm, vm: &Vm) -> Answer {
        let known = fingerprint(&CreateVm {
            vm_id: None,
            ..vm.created_as.clone()
        })?;
        let wished = fingerprint(&CreateVm {
            vm_id: None,
            ..wish.clone()
        })?;
        if let Some(field) = first_difference(&known, &wished) {
            return Err(Fault::new(
                Reason::VmExists,
                format!("VM {} exists and was made with another {field}", vm.id),
            )
            .with("vm_id", vm.id)
            .with("field", field));
        }
        if self.running.is_none() && vm.life == Life::Failed {
            return self.create(asked, wish).await;
        }
        self.core.operations.get(vm.created_by).await
    }

    async fn change(&mut self, asked: &Asked, request: &VmRequest, vm: &Vm) -> Answer {
        if let Some(known) = self.made_already(asked, request, vm).await? {
            return Ok(known);
        }
        if let Some(expected) = asked.envelope.expected_generation
            && expected != vm.generation
        {
            return Err(Fault::new(
                Reason::StaleGeneration,
                format!("the VM's generation is {}, not {expected}", vm.generation),
            )
            .with("generation", vm.generation));
        }
        let overtakes = self.overtakes(request);
        if let Some((holder, _)) = &self.running
            && !overtakes
        {
            let holder = holder.get();
            return Err(Fault::new(
                Reason::VmBusy,
                format!(
                    "operation {} ({}) holds the VM",
                    holder.id,
                    holder.intent.kind().as_str()
                ),
            )
            .with("operation_id", holder.id));
        }
        let (resting, _) = self
            .cell
            .view()
            .resting()
            .ok_or_else(|| internal("a VM has no state"))?;
        let ask = ask(request, resting);
        match decide_for(vm.life, resting, vm.seen, ask) {
            Decision::Refuse(instead) => Err(instead.fault(ask, resting)),
            Decision::Already => self.already(asked, request, resting, vm).await,
            Decision::Go => self.go(asked, request, resting, vm, overtakes).await,
        }
    }

    /// The operation that makes or made the root volume with the asked id, if it
    /// was asked for in the same words: `resource_id` makes repeats safe, too.
    async fn made_already(
        &self,
        asked: &Asked,
        request: &VmRequest,
        vm: &Vm,
    ) -> Result<Option<Arc<Operation>>, Fault> {
        let VmRequest::ReplaceRootVolume(wish) = request else {
            return Ok(None);
        };
        let Some(id) = wish.resource_id.filter(|_| !asked.envelope.validate_only) else {
            return Ok(None);
        };
        let same = |operation: &Operation| {
            matches!(&operation.intent, Intent::ReplaceRootVolume { new_root, .. } if new_root.id == id)
                && first_difference(&operation.request, &asked.recorded).is_none()
        };
        if let Some((live, _)) = &self.running
            && same(&live.get())
        {
            return Ok(Some(live.get()));
        }
        // One that failed has left no volume, and is tried again.
        if vm.volume(id).is_none() {
            return Ok(None);
        }
        let listed = self
            .core
            .operations
            .list(OperationQuery {
                vm_id: Some(vm.id),
                limit: 1000,
                ..Default::default()
            })
            .await?;
        Ok(listed.operations.into_iter().find(|known| same(known)))
    }

    /// A forced stop overtakes a graceful one that still waits.
    fn overtakes(&self, request: &VmRequest) -> bool {
        let forced = matches!(
            request,
            VmRequest::StopVm {
                stop_policy: Some(StopWish::Force),
                ..
            } | VmRequest::SetVmPowerState {
                power_state: PowerState::Off,
                graceful_shutdown: false
            }
        );
        let waits = self.running.as_ref().is_some_and(|(live, _)| {
            matches!(
                live.get().intent,
                Intent::StopVm {
                    policy: StopPolicy::Graceful { .. },
                    ..
                }
            )
        });
        forced && waits && self.next.is_none()
    }

    /// Records a success without having done anything: the VM is there already.
    async fn already(
        &self,
        asked: &Asked,
        request: &VmRequest,
        resting: Resting,
        vm: &Vm,
    ) -> Answer {
        let intent = self.intent(request, resting, vm, now()).await?;
        if asked.envelope.validate_only {
            let operation = self.new_operation(asked, intent);
            return Ok(Arc::new(preview::operation(operation, preview::nothing())));
        }
        let mut operation = self.new_operation(asked, intent);
        operation.vm_id = Some(vm.id);
        operation.state = OperationState::Succeeded;
        operation.progress_percent = 100;
        operation.start_time = Some(operation.create_time);
        operation.end_time = Some(operation.create_time);
        operation.result = Some(OperationResult::Vm(Box::new(vm.clone())));
        let operation = Arc::new(operation);
        self.core.operations.record_ended(&operation).await?;
        self.core.operations.figures.note_already(&operation);
        Ok(operation)
    }

    /// Who removes sooner than the host is configured to must be an admin. Of a VM
    /// that has nothing to keep, nothing is removed too soon.
    fn check_retention(
        &self,
        asked: &Asked,
        intent: &Intent,
        resting: Resting,
        vm: &Vm,
    ) -> Result<(), Fault> {
        let Intent::DeleteVm { retention, .. } = intent else {
            return Ok(());
        };
        let nothing_to_keep = resting == Resting::Failed || vm.life == Life::Expunging;
        let configured = self.core.config.vms.retention;
        let short = retention.is_zero() || *retention < configured;
        let role = asked.envelope.caller.role;
        if nothing_to_keep || !short || role >= Role::Admin {
            return Ok(());
        }
        Err(Fault::new(
            Reason::NotAllowed,
            "DeleteVm with less retention than is configured needs the role admin",
        )
        .with("needs", Role::Admin.as_str())
        .with("role", role.as_str()))
    }

    async fn go(
        &mut self,
        asked: &Asked,
        request: &VmRequest,
        resting: Resting,
        vm: &Vm,
        overtakes: bool,
    ) -> Answer {
        let core = self.core.clone();
        let mut operation = self.new_operation(asked, Intent::RecoverVm);
        operation.intent = self
            .intent(request, resting, vm, operation.create_time)
            .await?;
        self.check_retention(asked, &operation.intent, resting, vm)?;
        if relies_on_definition(vm, &operation.intent) {
            let is_defined = drift::check(&core, &self.cell, vm).await?;
            if !is_defined && matches!(operation.intent, Intent::RecoverVm) {
                usage::check_new_domain(&core, vm).await?;
            }
        }
        if removes_volumes(vm, &operation.intent) {
            usage::check_vm(&core, vm).await?;
        }
        operation.vm_id = Some(vm.id);
        // Only what is compared with other VMs needs the lock, and only until it
        // is published: nothing here waits for a pool.
        let starts = needs_host(&operation.intent);
        let gives_power = starts && !resting.has_power();
        if gives_power {
            admission::check_networks(&core, &vm.nics, false).await?;
        }
        let compares = starts || matches!(operation.intent, Intent::ReplaceRootVolume { .. });
        let admission = if compares {
            Some(core.vms.admission.lock().await)
        } else {
            None
        };
        if let Intent::ReplaceRootVolume { new_root, .. } = &operation.intent {
            admission::compare_root(&core, vm, new_root)?;
        }
        if starts {
            core.node.check_takes_guests()?;
        }
        if gives_power {
            capacity::check_room(&core, vm.id, &vm.hardware)?;
        }
        if asked.envelope.validate_only {
            drop(admission);
            let copied = self.to_be_copied(&operation.intent).await?;
            let beyond = preview::Beyond {
                copied: copied.as_ref(),
                id_given: matches!(request, VmRequest::ReplaceRootVolume(wish) if wish.resource_id.is_some()),
            };
            let plan = preview::change(vm, &operation, beyond);
            return Ok(Arc::new(preview::operation(operation, plan)));
        }
        let current = (operation.id, operation.intent.kind());
        if compares {
            faultpoint::reach("admission.change").await;
        }
        // Published before it is durable, so that the next one is compared with
        // it; taken back if it does not become durable.
        let before = self.cell.view();
        if !overtakes {
            self.cell.change(|view| {
                view.current = Some(current);
                if let Some(vm) = &mut view.vm {
                    plans::claim(vm, &operation);
                }
            });
        }
        drop(admission);
        let live = match core.operations.begin(operation, Batch::new()).await {
            Ok(live) => live,
            Err(fault) => {
                self.cell.change(|view| {
                    view.current = before.current;
                    view.vm.clone_from(&before.vm);
                });
                return Err(fault);
            }
        };
        let answer = live.get();
        match &self.running {
            Some((graceful, _)) => {
                let why = Fault::new(
                    Reason::Overtaken,
                    "a forced stop took the place of this one",
                )
                .with("operation_id", live.id());
                // Too late to cancel is as good: it is ending by itself.
                drop(graceful.cancel(why));
                self.next = Some(live);
            }
            None => self.begin(live),
        }
        Ok(answer)
    }

    /// The image that a new root is made from, if its pool does not have it yet.
    async fn to_be_copied(&self, intent: &Intent) -> Result<Option<Image>, Fault> {
        let Intent::ReplaceRootVolume { new_root, .. } = intent else {
            return Ok(None);
        };
        let Some(id) = new_root.image_id else {
            return Ok(None);
        };
        let found = self
            .core
            .pools
            .call(&new_root.pool, move |pool, _| pool.image(id))
            .await?;
        if found.is_some() {
            return Ok(None);
        }
        self.core.images.ready(id, "image_id").map(Some)
    }

    fn new_operation(&self, asked: &Asked, intent: Intent) -> Operation {
        let envelope = &asked.envelope;
        let operation = new_operation(
            intent,
            asked.recorded.clone(),
            envelope.request_id,
            envelope.caller.clone(),
        );
        self.core.feed.note_caller(&operation);
        operation
    }
}

/// The row of the lifecycle table that a request is.
fn ask(request: &VmRequest, resting: Resting) -> Ask {
    match request {
        VmRequest::CreateVm(_) => Ask::CreateAgain,
        VmRequest::UpdateVm(changes) if changes.changes_hardware() => Ask::ChangeHardware,
        VmRequest::UpdateVm(_) => Ask::Describe,
        VmRequest::DeleteVm { stop_policy, .. } => Ask::Delete {
            stop_policy: stop_policy.is_some(),
        },
        VmRequest::RecoverVm => Ask::Recover,
        VmRequest::ExpungeVm => Ask::Expunge,
        VmRequest::StartVm { .. } => Ask::Start,
        VmRequest::StopVm {
            discard_saved_memory: true,
            ..
        } if resting == Resting::Saved => Ask::DiscardSaved,
        VmRequest::StopVm {
            stop_policy: Some(StopWish::Force),
            ..
        } => Ask::StopForce,
        VmRequest::StopVm { .. } => Ask::StopGraceful,
        VmRequest::RebootVm => Ask::Reboot,
        VmRequest::ResetVm => Ask::Reset,
        VmRequest::PauseVm => Ask::Pause,
        VmRequest::ResumeVm => Ask::Resume,
        VmRequest::SaveVm => Ask::Save,
        VmRequest::SetVmPowerState {
            power_state,
            graceful_shutdown,
        } => match power_state {
            PowerState::On if resting == Resting::Paused => Ask::Resume,
            PowerState::On => Ask::Start,
            PowerState::Off if *graceful_shutdown => Ask::StopGraceful,
            PowerState::Off => Ask::StopForce,
            PowerState::Paused => Ask::Pause,
        },
        VmRequest::ReplaceRootVolume(wish) => Ask::ReplaceRoot {
            stop_policy: wish.stop_policy.is_some(),
        },
        VmRequest::RevertRootVolume { stop_policy, .. } => Ask::ReplaceRoot {
            stop_policy: stop_policy.is_some(),
        },
    }
}

/// Refuses to start a VM that was shown SAVED, and is found to be STOPPED only now: who
/// asked expects its memory.
///
/// # Errors
/// `SAVED_MEMORY_UNREADABLE`.
fn check_restores(request: &VmRequest, shown: &View, now: &View) -> Result<(), Fault> {
    let restores = match request {
        VmRequest::StartVm {
            discard_saved_memory,
        } => !discard_saved_memory,
        VmRequest::SetVmPowerState { power_state, .. } => *power_state == PowerState::On,
        _ => false,
    };
    let resting = |view: &View| view.resting().map(|(resting, _)| resting);
    if restores && resting(shown) == Some(Resting::Saved) && resting(now) == Some(Resting::Stopped)
    {
        return Err(plans::memory_is_gone());
    }
    Ok(())
}

/// Whether an operation changes the VM's definition or removes its volumes, so that the
/// guest could lose what the definition does not say.
fn relies_on_definition(vm: &Vm, intent: &Intent) -> bool {
    match intent {
        Intent::UpdateVm { after, .. } => after.hardware != vm.hardware,
        Intent::DeleteVm { retention, .. } => retention.is_zero() && vm.life == Life::Present,
        Intent::ExpungeVm => vm.life != Life::Expunging,
        Intent::RecoverVm | Intent::ReplaceRootVolume { .. } | Intent::RevertRootVolume { .. } => {
            true
        }
        Intent::CreateVm { .. }
        | Intent::StartVm { .. }
        | Intent::StopVm { .. }
        | Intent::RebootVm
        | Intent::ResetVm
        | Intent::PauseVm
        | Intent::ResumeVm
        | Intent::SaveVm
        | Intent::ImportImage { .. }
        | Intent::DeleteImage
        | Intent::DeleteOrphan { .. }
        | Intent::SetMaintenance { .. } => false,
    }
}

/// Whether an operation removes the VM with its volumes.
fn removes_volumes(vm: &Vm, intent: &Intent) -> bool {
    let begun = vm.life == Life::Expunging;
    match intent {
        Intent::DeleteVm { retention, .. } => retention.is_zero() && !begun,
        Intent::ExpungeVm => !begun,
        _ => false,
    }
}

/// Whether an operation starts a VM.
const fn needs_host(intent: &Intent) -> bool {
    match intent {
        Intent::StartVm { .. } => true,
        Intent::CreateVm { start } => *start,
        Intent::ReplaceRootVolume { start_after, .. }
        | Intent::RevertRootVolume { start_after, .. } => *start_after,
        Intent::UpdateVm { .. }
        | Intent::DeleteVm { .. }
        | Intent::RecoverVm
        | Intent::ExpungeVm
        | Intent::StopVm { .. }
        | Intent::RebootVm
        | Intent::ResetVm
        | Intent::PauseVm
        | Intent::ResumeVm
        | Intent::SaveVm
        | Intent::ImportImage { .. }
        | Intent::DeleteImage
        | Intent::DeleteOrphan { .. }
        | Intent::SetMaintenance { .. } => false,
    }
}
