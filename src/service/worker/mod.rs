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

mod end;
mod intent;
mod requests;

use super::cell::Cell;
use super::core::Core;
use super::domains;
use super::drift;
use super::fault::{chain, internal};
use super::gate::Lane;
use super::operations::{LiveOperation, now};
use super::plan::Ended;
use super::sweeper;
use super::usage;
use crate::faultpoint;
use crate::journal::Batch;
use crate::model::fault::Fault;
use crate::model::operation::Operation;
use crate::model::reason::Reason;
use crate::model::request::{Envelope, VmRequest};
use crate::model::vm::{Life, Vm};
use crate::pace;
use serde_json::Value;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

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

    /// Looks at the domain, publishes what is seen, and makes it durable.
    async fn look(&self) {
        if self.see().await {
            self.record_seen().await;
        }
        // What an operation is at work on is not as the record says.
        if self.running.is_none() && !self.cell.view().away && self.cell.is_to_be_examined() {
            drift::examine(&self.core, &self.cell).await;
        }
    }

    /// Looks at the domain and publishes what is seen. Returns whether the VM's
    /// state has changed.
    async fn see(&self) -> bool {
        let id = self.cell.id;
        if self.cell.view().vm.is_none() {
            return false;
        }
        self.cell.untouch();
        let found = match self
            .core
            .hypervisor
            .call(Lane::Read, move |host| host.look(id))
            .await
        {
            Ok(found) => found,
            Err(_) if !self.core.hypervisor.is_up() => {
                self.cell.change(|view| view.away = true);
                return false;
            }
            Err(fault) => {
                // What is not known is shown as last seen, and looked at again.
                let cell = self.cell.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(pace::unseen_vm()).await;
                    cell.touch();
                });
                tracing::warn!(vm_id = %id, error = chain(&fault), "a VM could not be looked at");
                return false;
            }
        };
        let changed = self.cell.observe(domains::observed(found), now());
        self.look_at_display().await;
        self.cell.note_look();
        changed
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
        if let Some(vm) = self.cell.record() {
            let state = vm.seen.resting.as_str();
            tracing::info!(vm_id = %vm.id, state, reason = ?vm.seen.reason, "state changed");
            // Failing is logged; what is seen can be seen again.
            drop(self.core.ledger.commit(Batch::new().put_vm(&vm)).await);
        }
    }

    /// Looks at the domain and the volumes, and removes what has had its time.
    async fn tidy(&self) {
        self.cell.touch_definition();
        self.look().await;
        let Some(vm) = self.cell.record() else { return };
        if self.running.is_some() || vm.life != Life::Present {
            return;
        }
        if vm.kept_roots().into_iter().any(sweeper::expired) {
            self.drop_expired_roots(&vm).await;
        }
        for volume in &vm.volumes {
            let id = volume.id;
            let place = volume.reference();
            let Some(size) = self.core.pools.glance(&volume.pool, place).await else {
                continue;
            };
            // Only shown, so it is not worth a write of its own.
            self.cell.edit(|vm| {
                for volume in vm.volumes.iter_mut().filter(|volume| volume.id == id) {
                    volume.actual_size = size;
                }
            });
        }
    }

    /// Removes former roots whose time has passed: the volume first, then its
    /// place in the record, so that a volume is never forgotten before it is
    /// gone. What fails is tried again at the next sweep.
    async fn drop_expired_roots(&self, vm: &Vm) {
        for volume in vm.volumes.iter().filter(|volume| sweeper::expired(volume)) {
            let (id, place) = (volume.id, volume.reference());
            let removed = async {
                // A guest may have been put back on it, and its domain be gone since.
                if !drift::check(&self.core, &self.cell, vm).await? {
                    return Err(Fault::new(
                        Reason::WrongState,
                        "the VM has no domain that would tell which root it has",
                    ));
                }
                usage::check_volume(&self.core, &volume.pool, &place).await?;
                faultpoint::reach("sweep.old-root.unused").await;
                let pools = &self.core.pools;
                pools
                    .call(&volume.pool, move |pool, _| pool.delete_volume(&place))
                    .await
            };
            if let Err(fault) = removed.await {
                tracing::warn!(vm_id = %vm.id, volume_id = %id, error = chain(&fault), "a former root stays");
                continue;
            }
            faultpoint::reach("sweep.old-root.removed").await;
            tracing::info!(vm_id = %vm.id, volume_id = %id, "a former root has had its time");
            self.cell
                .edit(|vm| vm.volumes.retain(|volume| volume.id != id));
        }
        if let Some(vm) = self.cell.record() {
            // Failing is logged; the next sweep finds the volume gone already.
            drop(self.core.ledger.commit(Batch::new().put_vm(&vm)).await);
        }
    }
}
