//! The task that owns one VM.
//!
//! ```text
//!   requests ──▶ ┌────────┐ decide ─▶ journal ─▶ answer ─▶ plan, step by step
//!   libvirt  ──▶ │ worker │ observe ─▶ cell ─▶ readers
//!   plan     ──▶ └────────┘ settle  ─▶ journal ─▶ end of the operation
//! ```
//!
//! Invariants: one operation at a time; while one is at work the worker goes on
//! taking requests (to refuse them, or to let a forced stop overtake) and
//! observations. A request may be refused, an observation may not.

use super::admission;
use super::cell::Cell;
use super::core::Core;
use super::domains;
use super::fault::{chain, internal};
use super::gate::Lane;
use super::operations::{LiveOperation, fingerprint, first_difference, new_operation, now};
use super::plan::{self, Ended, Run};
use super::plans;
use super::{preview, sweeper};
use crate::journal::Batch;
use crate::model::fault::Fault;
use crate::model::ids::OperationId;
use crate::model::lifecycle::{Ask, Decision, Instead, Resting, StateReason, decide};
use crate::model::operation::{Intent, Operation, OperationKind, OperationResult, OperationState};
use crate::model::reason::Reason;
use crate::model::request::{CreateVm, Envelope, PowerState, StopWish, VmRequest};
use crate::model::stop::StopPolicy;
use crate::model::vm::{Life, Vm};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::Instrument;

/// What reaches a worker through its queue.
pub enum Incoming {
    /// A caller asks something.
    Asked(Box<Asked>),
    /// The sweeper has found it time to look and to remove what has had its time.
    Tidy,
}

/// A request on its way to the worker.
pub struct Asked {
    /// Who asks, and how it may be told from a repeat.
    pub envelope: Envelope,
    /// What repeats are compared by.
    pub recorded: Value,
    /// What is asked.
    pub request: VmRequest,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Arc<Operation>, Fault>>,
}

type Answer = Result<Arc<Operation>, Fault>;

struct Worker {
    core: Arc<Core>,
    cell: Arc<Cell>,
    /// The operation that holds the VM, with its plan.
    running: Option<(Arc<LiveOperation>, JoinHandle<Ended>)>,
    /// A forced stop that waits for the graceful one it overtakes to end.
    next: Option<Arc<LiveOperation>>,
}

/// Owns a VM until it is gone for good or the agent stops.
pub async fn run(
    core: Arc<Core>,
    cell: Arc<Cell>,
    mut incoming: mpsc::Receiver<Incoming>,
    unfinished: Option<Arc<LiveOperation>>,
) {
    let mut worker = Worker {
        core,
        cell,
        running: None,
        next: None,
    };
    if let Some(unfinished) = unfinished {
        worker.begin(unfinished);
    }
    loop {
        let stopping = worker.core.stopping.clone();
        tokio::select! {
            biased;
            // First, because its own look serves what events there are, too.
            ended = ended(&mut worker.running) => {
                if worker.finish(ended).await == Fate::Gone {
                    break;
                }
            }
            () = worker.cell.touched() => worker.look().await,
            arrived = incoming.recv() => match arrived {
                None => break,
                Some(Incoming::Tidy) => worker.tidy().await,
                Some(Incoming::Asked(asked)) => {
                    let answer = worker.answer(&asked).await;
                    drop(asked.reply.send(answer));
                    if worker.is_empty() {
                        break;
                    }
                }
            },
            () = stopping.cancelled(), if worker.running.is_none() => break,
        }
    }
    // Requests that still wait are told by their closed channel.
    if worker.is_empty() {
        worker.core.vms.forget(worker.cell.id);
    }
}

#[derive(PartialEq, Eq)]
enum Fate {
    Stays,
    Gone,
}

/// Resolves when the running plan ends; never while none runs.
async fn ended(running: &mut Option<(Arc<LiveOperation>, JoinHandle<Ended>)>) -> Ended {
    match running {
        Some((_, plan)) => plan
            .await
            .unwrap_or_else(|_| Ended::Failed(internal("a plan panicked"))),
        None => std::future::pending().await,
    }
}

impl Worker {
    /// Whether there is no VM here: none was made, or it is gone for good.
    fn is_empty(&self) -> bool {
        self.running.is_none() && self.cell.view().vm.is_none()
    }

    /// Looks at the domain and publishes what is seen.
    async fn look(&self) {
        let id = self.cell.id;
        if self.cell.view().vm.is_none() {
            return;
        }
        self.cell.untouch();
        let found = match self
            .core
            .hypervisor
            .call(Lane::Read, move |host| host.look(id))
            .await
        {
            Ok(found) => found,
            Err(fault) if fault.reason == Reason::HypervisorAway => {
                self.cell.change(|view| view.away = true);
                return;
            }
            Err(fault) => {
                // What is not known is shown as last seen; the next event or
                // the sweeper looks again.
                tracing::warn!(vm_id = %id, error = chain(&fault), "a VM could not be looked at");
                return;
            }
        };
        let changed = self.cell.observe(domains::observed(found), now());
        self.look_at_display().await;
        if changed {
            self.record_seen().await;
        }
    }

    /// Reads where the display listens, once for each time the VM has power.
    async fn look_at_display(&self) {
        let view = self.cell.view();
        let Some(vm) = &view.vm else { return };
        let on = vm.seen.resting.has_power();
        if !on && view.vnc.is_some() {
            self.cell.change(|view| view.vnc = None);
        } else if on && view.vnc.is_none() && vm.vnc && !self.core.hypervisor.is_simulated() {
            let id = self.cell.id;
            if let Ok(vnc) = self
                .core
                .hypervisor
                .call(Lane::Read, move |host| host.vnc(id))
                .await
            {
                self.cell.change(|view| view.vnc = vnc);
            }
        }
    }

    /// Makes durable what was seen; while an operation is at work, its end does.
    async fn record_seen(&self) {
        if self.running.is_some() {
            return;
        }
        if let Ok(vm) = self.cell.vm() {
            let state = vm.seen.resting.as_str();
            tracing::info!(vm_id = %vm.id, state, reason = ?vm.seen.reason, "state changed");
            // Failing is logged; what is seen can be seen again.
            drop(self.core.ledger.commit(Batch::new().put_vm(&vm)).await);
        }
    }

    /// Looks at the domain and the volumes, and removes what has had its time.
    async fn tidy(&self) {
        self.look().await;
        let Ok(vm) = self.cell.vm() else { return };
        if self.running.is_some() || vm.life != Life::Present {
            return;
        }
        if vm.kept_roots().into_iter().any(sweeper::expired) {
            self.drop_expired_roots(&vm).await;
        }
        for volume in &vm.volumes {
            let id = volume.id;
            let found = self
                .core
                .pools
                .call(&volume.pool, move |pool, _| pool.volume(id))
                .await;
            if let Ok(Some(found)) = found {
                // Only shown, so it is not worth a write of its own.
                self.cell.edit(|vm| {
                    for volume in vm.volumes.iter_mut().filter(|volume| volume.id == id) {
                        volume.actual_size = found.actual_size;
                    }
                });
            }
        }
    }

    /// Removes former roots whose time has passed: the volume first, then its
    /// place in the record, so that a volume is never forgotten before it is
    /// gone. What fails is tried again at the next sweep.
    async fn drop_expired_roots(&self, vm: &Vm) {
        for volume in vm.volumes.iter().filter(|volume| sweeper::expired(volume)) {
            let id = volume.id;
            let removed = self
                .core
                .pools
                .call(&volume.pool, move |pool, _| pool.delete_volume(id));
            if let Err(fault) = removed.await {
                tracing::warn!(vm_id = %vm.id, volume_id = %id, error = chain(&fault), "a former root stays");
                continue;
            }
            tracing::info!(vm_id = %vm.id, volume_id = %id, "a former root has had its time");
            self.cell
                .edit(|vm| vm.volumes.retain(|volume| volume.id != id));
        }
        if let Ok(vm) = self.cell.vm() {
            // Failing is logged; the next sweep finds the volume gone already.
            drop(self.core.ledger.commit(Batch::new().put_vm(&vm)).await);
        }
    }

    async fn answer(&mut self, asked: &Asked) -> Answer {
        if self.core.stopping.is_cancelled() {
            return Err(Fault::new(Reason::Stopping, "the agent is stopping"));
        }
        if self.running.is_none() {
            // Decide on what is, not on what the last event said.
            self.look().await;
        }
        let view = self.cell.view();
        match (&asked.request, &view.vm) {
            (VmRequest::CreateVm(wish), None) => self.create(asked, wish).await,
            (VmRequest::CreateVm(wish), Some(vm)) => self.create_again(asked, wish, vm).await,
            (_, None) => Err(super::vms::not_found(self.cell.id)),
            (request, Some(vm)) => self.change(asked, request, vm).await,
        }
    }

    async fn create(&mut self, asked: &Asked, wish: &CreateVm) -> Answer {
        let intent = Intent::CreateVm { start: wish.start };
        let mut operation = self.new_operation(asked, intent);
        let core = self.core.clone();
        let admission = core.vms.admission.lock().await;
        let vm = admission::create(
            &core,
            self.cell.id,
            operation.id,
            wish,
            operation.create_time,
        )
        .await?;
        if asked.envelope.validate_only {
            return Ok(Arc::new(preview::operation(
                operation,
                preview::create(&vm),
            )));
        }
        operation.vm_id = Some(vm.id);
        // Published before it is durable, so that the next one is compared with
        // it; taken back if it does not become durable.
        let before = self.cell.view().vm.clone();
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
        match decide(resting, ask) {
            Decision::Refuse(instead) => Err(instead.fault(ask, resting)),
            Decision::Already => self.already(asked, request, resting, vm).await,
            Decision::Go => self.go(asked, request, resting, vm, overtakes).await,
        }
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
        self.core
            .ledger
            .commit(Batch::new().put_operation(&operation))
            .await?;
        Ok(operation)
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
        // Only what is compared with other VMs needs the lock, and only until it
        // is published; the rest must not wait for another VM's pool.
        let compares = matches!(
            request,
            VmRequest::StartVm { .. }
                | VmRequest::SetVmPowerState {
                    power_state: PowerState::On,
                    ..
                }
                | VmRequest::ReplaceRootVolume(_)
                | VmRequest::RevertRootVolume {
                    start_after: true,
                    ..
                }
        );
        let admission = if compares {
            Some(core.vms.admission.lock().await)
        } else {
            None
        };
        let mut operation = self.new_operation(asked, Intent::RecoverVm);
        operation.intent = self
            .intent(request, resting, vm, operation.create_time)
            .await?;
        operation.vm_id = Some(vm.id);
        if needs_host(&operation.intent) && !resting.has_power() {
            admission::check_host(&core, vm.id, &vm.hardware)?;
        }
        if asked.envelope.validate_only {
            let plan = preview::change(vm, &operation);
            return Ok(Arc::new(preview::operation(operation, plan)));
        }
        let current = (operation.id, operation.intent.kind());
        if !overtakes {
            self.cell.change(|view| view.current = Some(current));
        }
        drop(admission);
        let live = match core.operations.begin(operation, Batch::new()).await {
            Ok(live) => live,
            Err(fault) => {
                if !overtakes {
                    self.cell.change(|view| view.current = None);
                }
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

    /// What a request comes to, with every choice made.
    async fn intent(
        &self,
        request: &VmRequest,
        resting: Resting,
        vm: &Vm,
        at: crate::model::time::Timestamp,
    ) -> Result<Intent, Fault> {
        let settings = &self.core.config.vms;
        let stop_first = |wish: &Option<StopWish>| -> Result<Option<StopPolicy>, Fault> {
            if !resting.has_power() {
                return Ok(None);
            }
            let Some(wish) = *wish else { return Ok(None) };
            let policy = admission::stop_policy(Some(wish), settings);
            if resting == Resting::Paused && policy != StopPolicy::Force {
                // A guest that stands still hears nothing.
                return Err(Instead::ResumeOrForce.fault(Ask::StopGraceful, resting));
            }
            Ok(Some(policy))
        };
        Ok(match request {
            VmRequest::CreateVm(wish) => Intent::CreateVm { start: wish.start },
            VmRequest::UpdateVm(changes) => Intent::UpdateVm {
                changes: changes.clone(),
                after: Box::new(admission::update(&self.core, vm, changes)?),
            },
            VmRequest::DeleteVm {
                stop_policy,
                retention,
            } => Intent::DeleteVm {
                stop: stop_first(stop_policy)?,
                // Of a VM that was never made there is nothing to keep.
                retention: if resting == Resting::Failed {
                    Duration::ZERO
                } else {
                    retention.unwrap_or(settings.retention)
                },
            },
            VmRequest::RecoverVm => Intent::RecoverVm,
            VmRequest::ExpungeVm => Intent::ExpungeVm,
            VmRequest::StartVm {
                discard_saved_memory,
            } => Intent::StartVm {
                discard_saved_memory: *discard_saved_memory && resting == Resting::Saved,
            },
            VmRequest::StopVm {
                stop_policy,
                discard_saved_memory,
            } => Intent::StopVm {
                policy: admission::stop_policy(*stop_policy, settings),
                discard_saved_memory: *discard_saved_memory && resting == Resting::Saved,
            },
            VmRequest::RebootVm => Intent::RebootVm,
            VmRequest::ResetVm => Intent::ResetVm,
            VmRequest::PauseVm => Intent::PauseVm,
            VmRequest::ResumeVm => Intent::ResumeVm,
            VmRequest::SaveVm => Intent::SaveVm,
            VmRequest::SetVmPowerState {
                power_state,
                graceful_shutdown,
            } => match power_state {
                PowerState::On if resting == Resting::Paused => Intent::ResumeVm,
                PowerState::On => Intent::StartVm {
                    discard_saved_memory: false,
                },
                PowerState::Paused => Intent::PauseVm,
                PowerState::Off => Intent::StopVm {
                    policy: if *graceful_shutdown {
                        admission::stop_policy(None, settings)
                    } else {
                        StopPolicy::Force
                    },
                    discard_saved_memory: false,
                },
            },
            VmRequest::ReplaceRootVolume(wish) => {
                let stop = stop_first(&wish.stop_policy)?;
                let new_root = admission::new_root(&self.core, vm, wish, at).await?;
                let keep = wish.keep_old_for.unwrap_or(settings.keep_old_root);
                let mut after = vm.clone();
                after.volumes.push(new_root.clone());
                after.switch_root(new_root.id, at.plus(keep));
                after.generation += 1;
                if !wish.user_tags.is_empty() {
                    after.user_tags.clone_from(&wish.user_tags);
                }
                if !wish.system_tags.is_empty() {
                    after.system_tags.clone_from(&wish.system_tags);
                }
                Intent::ReplaceRootVolume {
                    new_root: Box::new(new_root),
                    before: Box::new(vm.clone()),
                    after: Box::new(after),
                    stop,
                    start_after: wish.start_after,
                    health_check: wish.health_check,
                }
            }
            VmRequest::RevertRootVolume {
                stop_policy,
                start_after,
            } => {
                let stop = stop_first(stop_policy)?;
                let previous = vm.previous_root().ok_or_else(|| {
                    Fault::new(
                        Reason::NoPreviousRoot,
                        "no former root volume of the VM is kept",
                    )
                })?;
                let (id, pool) = (previous.id, previous.pool.clone());
                if self
                    .core
                    .pools
                    .call(&pool, move |pool, _| pool.volume(id))
                    .await?
                    .is_none()
                {
                    return Err(Fault::new(
                        Reason::VolumesMissing,
                        format!("the former root volume {id} is not in its pool"),
                    )
                    .with("volumes", id));
                }
                let mut after = vm.clone();
                after.switch_root(id, at.plus(settings.keep_old_root));
                after.generation += 1;
                Intent::RevertRootVolume {
                    before: Box::new(vm.clone()),
                    after: Box::new(after),
                    stop,
                    start_after: *start_after,
                }
            }
        })
    }

    fn new_operation(&self, asked: &Asked, intent: Intent) -> Operation {
        let envelope = &asked.envelope;
        new_operation(
            intent,
            asked.recorded.clone(),
            envelope.request_id,
            envelope.caller.clone(),
        )
    }

    /// Starts the plan of an operation that is durable.
    fn begin(&mut self, live: Arc<LiveOperation>) {
        let operation = live.get();
        let current = (operation.id, operation.intent.kind());
        self.cell.change(|view| view.current = Some(current));
        tracing::info!(
            vm_id = %self.cell.id,
            operation_id = %operation.id,
            kind = operation.intent.kind().as_str(),
            "operation begins"
        );
        let run = Run {
            core: self.core.clone(),
            operation: live.clone(),
        };
        let plan = plans::plan(&self.cell, &operation);
        // A task of its own, so that a plan that panics is only a failed plan.
        let span = tracing::info_span!(
            "operation",
            vm_id = %self.cell.id,
            operation_id = %operation.id,
            kind = operation.intent.kind().as_str()
        );
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

    /// Makes the end of an operation durable, then tells of it.
    async fn finish(&mut self, ended: Ended) -> Fate {
        let Some((live, _)) = self.running.take() else {
            return Fate::Stays;
        };
        let (state, error) = match ended {
            Ended::Halted => {
                tracing::info!(operation_id = %live.id(), "operation is left to the next start");
                return Fate::Stays;
            }
            Ended::Succeeded => (OperationState::Succeeded, None),
            Ended::Failed(fault) => (OperationState::Failed, Some(fault)),
            Ended::Cancelled(fault) => (OperationState::Cancelled, Some(fault)),
        };
        self.look().await;
        let succeeded = state == OperationState::Succeeded;
        let mut operation = Operation::clone(&live.get());
        operation.state = state;
        operation.error = error;
        operation.end_time = Some(now());
        if succeeded {
            operation.progress_percent = 100;
        }
        let settled = self
            .cell
            .vm()
            .ok()
            .and_then(|vm| plans::settle(vm, &operation, succeeded));
        let settled = settled.map(|mut vm| {
            if succeeded
                && let Some(expected) = leads_to(&operation.intent)
                && vm.seen.resting == expected
            {
                vm.seen.reason = StateReason::Operation;
            }
            vm.update_time = now();
            vm
        });
        let settled = self.measure_volumes(&operation, settled).await;
        operation.result = settled.clone().map(|vm| OperationResult::Vm(Box::new(vm)));
        let id = self.cell.id;
        let changes = || match &settled {
            Some(vm) => Batch::new().put_vm(vm),
            None => Batch::new().delete_vm(id),
        };
        log_end(&operation);
        let gone = settled.is_none();
        let next = self.next.take();
        // The VM is published first, so that whoever waits for the operation
        // finds the VM as it left it; its end is told once it is durable.
        let cell = self.cell.clone();
        let publish = || {
            cell.change(|view| {
                view.vm.clone_from(&settled);
                view.current = next
                    .as_ref()
                    .map(|next| (next.id(), next.get().intent.kind()));
            });
        };
        self.core
            .operations
            .end(&live, operation, changes, publish)
            .await;
        if gone {
            return Fate::Gone;
        }
        if let Some(next) = next {
            self.begin(next);
        }
        Fate::Stays
    }

    /// Notes what the volumes that an operation made take in their pools.
    async fn measure_volumes(&self, operation: &Operation, vm: Option<Vm>) -> Option<Vm> {
        let mut vm = vm?;
        let made = matches!(
            operation.intent.kind(),
            OperationKind::CreateVm | OperationKind::ReplaceRootVolume
        );
        if made {
            for volume in &mut vm.volumes {
                let id = volume.id;
                if let Ok(Some(found)) = self
                    .core
                    .pools
                    .call(&volume.pool, move |pool, _| pool.volume(id))
                    .await
                {
                    volume.actual_size = found.actual_size;
                }
            }
        }
        Some(vm)
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

/// Whether an operation gives a VM power.
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
        | Intent::DeleteImage => false,
    }
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
        | Intent::DeleteImage => None,
    }
}

fn log_end(operation: &Operation) {
    let (id, kind) = (operation.id, operation.intent.kind().as_str());
    match &operation.error {
        None => tracing::info!(operation_id = %id, kind, "operation succeeded"),
        Some(fault) if fault.reason == Reason::Internal => {
            tracing::error!(operation_id = %id, kind, reason = fault.reason.as_str(), "operation failed");
        }
        Some(fault) => tracing::warn!(
            operation_id = %id,
            kind,
            reason = fault.reason.as_str(),
            rollback = ?operation.rollback,
            "operation did not succeed"
        ),
    }
}

/// The id of the operation that holds a VM, for those who only have its cell.
pub fn holder(cell: &Cell) -> Option<OperationId> {
    cell.view().current.map(|(id, _)| id)
}
