//! SetMaintenance: the host takes no new guests, or takes them again; and those that
//! are there are stopped, if that was asked for.

use crate::journal::Batch;
use crate::model::fault::Fault;
use crate::model::ids::{OperationId, VmId};
use crate::model::maintenance::Maintenance;
use crate::model::operation::Operation;
use crate::model::reason::{Code, Reason};
use crate::model::request::{Caller, Envelope, StopWish, VmRequest};
use crate::model::stop::{OnTimeout, StopPolicy};
use crate::service::core::Core;
use crate::service::fault::internal;
use crate::service::plan::{self, Plan, Run, Step, Undone};
use crate::service::{node, vms};
use async_trait::async_trait;
use futures_util::future::join_all;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How long to wait before a request is made again that found a queue full.
const PAUSE: Duration = Duration::from_millis(200);
/// How long one wait for another operation lasts; it is waited for again.
const LOOK: Duration = Duration::from_secs(60);

pub(in super::super) fn set(
    before: Option<Maintenance>,
    after: Option<Maintenance>,
    stop: Option<StopPolicy>,
) -> Plan {
    let mut plan: Plan = vec![Box::new(Set { before, after })];
    if let Some(policy) = stop {
        plan.push(Box::new(StopVms { policy }));
    }
    plan
}

/// Records whether the host is in maintenance, and has it so from then on.
struct Set {
    before: Option<Maintenance>,
    after: Option<Maintenance>,
}

#[async_trait]
impl Step for Set {
    fn name(&self) -> &'static str {
        "set-maintenance"
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        Ok(run.core.node.maintenance() == self.after)
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        put(&run.core, self.after.as_ref()).await
    }

    async fn undo(&self, run: &Run) -> Result<Undone, Fault> {
        let changed = run.core.node.maintenance() != self.before;
        // Also where nothing seems to have changed: a write without an answer may
        // have been made.
        put(&run.core, self.before.as_ref()).await?;
        Ok(if changed {
            Undone::Something
        } else {
            Undone::Nothing
        })
    }
}

async fn put(core: &Arc<Core>, maintenance: Option<&Maintenance>) -> Result<(), Fault> {
    core.ledger
        .commit(Batch::new().put_maintenance(maintenance))
        .await?;
    // Who was admitted before is published by now.
    let admission = core.vms.admission.lock().await;
    core.node.set_maintenance(maintenance.cloned());
    drop(admission);
    node::refresh_conditions(core);
    Ok(())
}

/// Asks every VM that has power to stop, as any caller would, and waits for all.
struct StopVms {
    policy: StopPolicy,
}

#[async_trait]
impl Step for StopVms {
    fn name(&self) -> &'static str {
        "stop-vms"
    }

    /// Who was asked to stop can't be asked not to.
    fn is_point_of_no_return(&self) -> bool {
        true
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        Ok(with_power(&run.core)?.is_empty())
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let all = with_power(&run.core)?;
        let done = AtomicUsize::new(0);
        let stops = all.iter().map(|id| {
            let (done, count) = (&done, all.len());
            async move {
                let stopped = stop(run, self.policy, *id).await;
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                #[allow(clippy::cast_precision_loss)] // a share of a few thousand at most
                plan::progress(run, 1, done as f64 / count as f64);
                stopped.map(|stopped| (*id, stopped))
            }
        });
        let ended: Vec<(VmId, Stopped)> = join_all(stops)
            .await
            .into_iter()
            .collect::<Result<_, Fault>>()?;
        let left: Vec<String> = ended
            .into_iter()
            .filter(|(_, stopped)| *stopped == Stopped::No)
            .map(|(id, _)| id.to_string())
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        Err(Fault::new(
            Reason::GuestDidNotStop,
            format!(
                "{} of the VMs did not stop; the host stays in maintenance",
                left.len()
            ),
        )
        .with("vm_ids", left.join(",")))
    }

    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }
}

/// Whether a VM has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    Yes,
    No,
}

/// The VMs that have power or are about to get it.
fn with_power(core: &Core) -> Result<Vec<VmId>, Fault> {
    if !core.hypervisor.is_up() {
        return Err(Fault::new(
            Reason::HypervisorAway,
            "which VMs have power is not known while libvirt is away",
        ));
    }
    let views = core.vms.list();
    let powered = views.iter().filter(|view| view.claims_host());
    Ok(powered
        .filter_map(|view| view.vm.as_ref().map(|vm| vm.id))
        .collect())
}

/// Stops one VM, after what holds it now.
async fn stop(run: &Run, policy: StopPolicy, id: VmId) -> Result<Stopped, Fault> {
    let core = &run.core;
    let (mut wish, forces) = match policy {
        StopPolicy::Force => (StopWish::Force, false),
        StopPolicy::Graceful {
            timeout,
            resend_interval,
            on_timeout,
        } => (
            StopWish::Graceful {
                timeout: Some(timeout),
                resend_interval: Some(resend_interval),
                on_timeout,
            },
            on_timeout == OnTimeout::Force,
        ),
    };
    loop {
        if !core.vms.get(id).is_ok_and(|view| view.claims_host()) {
            return Ok(Stopped::Yes);
        }
        let operation = run.operation.get();
        let envelope = Envelope {
            request_id: None,
            expected_generation: None,
            caller: Caller {
                trace: operation.trace.clone(),
                ..Caller::own(operation.caller.clone())
            },
            validate_only: false,
        };
        let request = VmRequest::StopVm {
            stop_policy: Some(wish),
            discard_saved_memory: false,
        };
        match vms::request(core, Some(id), envelope, request).await {
            Ok(asked) => {
                run.reach("stop-vms.asked").await?;
                let ended = until_ended(core, asked.id).await?;
                match &ended.error {
                    None => return Ok(Stopped::Yes),
                    // Whoever overtook it is waited for in the next turn.
                    Some(why) if why.reason == Reason::Overtaken => {}
                    Some(why) if matches!(why.code(), Code::Unknown | Code::Unavailable) => {
                        return Err(why.clone());
                    }
                    Some(_) => return Ok(Stopped::No),
                }
            }
            Err(busy) if busy.reason == Reason::VmBusy => {
                let holder = busy.metadata.get("operation_id");
                let holder = holder.and_then(|id| id.parse().ok());
                let holder = holder.ok_or_else(|| internal("a VM is held by nobody"))?;
                until_ended(core, holder).await?;
            }
            // A paused guest hears nothing.
            Err(deaf) if deaf.reason == Reason::WrongState => {
                if !forces || wish == StopWish::Force {
                    return Ok(Stopped::No);
                }
                wish = StopWish::Force;
            }
            Err(full) if full.reason == Reason::QueueFull => tokio::time::sleep(PAUSE).await,
            Err(gone) if gone.reason == Reason::VmNotFound => return Ok(Stopped::Yes),
            Err(fault) => return Err(fault),
        }
    }
}

async fn until_ended(core: &Core, id: OperationId) -> Result<Arc<Operation>, Fault> {
    loop {
        let operation = core.operations.wait(id, LOOK).await?;
        if operation.ended() {
            return Ok(operation);
        }
        if core.stopping.is_cancelled() {
            return Err(Fault::new(Reason::Stopping, "the agent is stopping"));
        }
    }
}
