//! ReplaceRootVolume and RevertRootVolume: the new root beside the old one, then
//! a switch, then power if it was asked for.
//!
//! Nothing of the old root is touched, so all of it can be undone until the end:
//! if the new root can't be started or does not come up healthy, the domain is
//! switched back, and a guest that ran before is started again.

use super::create::{CacheImage, DefineDomain, MakeVolume};
use super::memory::Memory;
use super::place::verify_place;
use super::power::{StartGuest, domain};
use super::stop::StopFirst;
use crate::journal::Batch;
use crate::libvirt::{OffReason, PauseReason, Power};
use crate::model::fault::Fault;
use crate::model::reason::{Code, Reason};
use crate::model::request::{HealthCheck, HealthSign};
use crate::model::vm::Vm;
use crate::model::volume::Volume;
use crate::service::cell::Cell;
use crate::service::fault::chain;
use crate::service::gate::Lane;
use crate::service::plan::{Plan, Run, Step, Undone};
use async_trait::async_trait;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::time::Instant;

/// How often a guest that is checked is looked at, beside each change that is seen.
const LOOK: Duration = Duration::from_secs(1);
/// How long libvirt's word of a panic may take beside the state that comes of it.
const WORD: Duration = Duration::from_secs(1);

/// The plan of ReplaceRootVolume, as its intent says.
pub(super) fn replace(
    cell: Arc<Cell>,
    new_root: &Volume,
    (before, after): (&Vm, &Vm),
    stop: Option<StopFirst>,
    start_after: bool,
    health_check: Option<HealthCheck>,
) -> Plan {
    let mut plan = Plan::new();
    if let Some(image) = new_root.image_id {
        plan.push(Box::new(CacheImage {
            pool: new_root.pool.clone(),
            image,
        }));
    }
    plan.push(Box::new(MakeVolume {
        pool: new_root.pool.clone(),
        volume: new_root.reference(),
        image: new_root.image_id,
        size: new_root.size,
        taken: AtomicBool::new(false),
    }));
    plan.extend(switch(cell.clone(), (before, after), stop, start_after));
    if let Some(check) = health_check {
        plan.push(Box::new(CheckHealth { cell, check }));
    }
    plan
}

/// The plan of RevertRootVolume, and the end of that of ReplaceRootVolume.
pub(super) fn switch(
    cell: Arc<Cell>,
    (before, after): (&Vm, &Vm),
    stop: Option<StopFirst>,
    start_after: bool,
) -> Plan {
    let mut plan = Plan::new();
    let new_root = after.root().map(|root| root.id);
    if let Some(first) = stop {
        plan.push(Box::new(first.step(cell.clone(), new_root)));
    }
    plan.push(Box::new(SwitchRoot {
        cell: cell.clone(),
        before: before.clone(),
        after: after.clone(),
    }));
    plan.extend(verify_place(cell.clone(), after));
    if start_after {
        plan.push(Box::new(StartGuest {
            cell,
            undo_stops: true,
            new_root,
            memory: Memory::IfSaved,
        }));
    }
    plan
}

/// Switches the domain and the record to another root volume.
struct SwitchRoot {
    cell: Arc<Cell>,
    before: Vm,
    after: Vm,
}

impl SwitchRoot {
    async fn switch(&self, run: &Run, from: &Vm, to: &Vm) -> Result<(), Fault> {
        let define = DefineDomain {
            cell: self.cell.clone(),
            from: from.clone(),
            vm: to.clone(),
        };
        if !define.is_done(run).await? {
            define.run(run).await?;
        }
        run.reach("switch-root.defined").await?;
        self.cell.edit(|vm| {
            *vm = Vm {
                seen: vm.seen,
                last_host_id: vm.last_host_id,
                ..to.clone()
            };
        });
        run.core
            .ledger
            .commit(Batch::new().put_vm(&self.cell.vm()?))
            .await
    }
}

#[async_trait]
impl Step for SwitchRoot {
    fn name(&self) -> &'static str {
        "switch-root"
    }

    fn holds_earlier(&self) -> bool {
        true
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        let switched =
            self.cell.vm()?.root().map(|root| root.id) == self.after.root().map(|root| root.id);
        let define = DefineDomain {
            cell: self.cell.clone(),
            from: self.before.clone(),
            vm: self.after.clone(),
        };
        Ok(switched && define.is_done(run).await?)
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        if domain(run, &self.cell).await?.power.is_active() {
            // Someone else started it since: its disk can't be changed under it.
            return Err(Fault::new(
                Reason::WrongState,
                "the VM has power again; stop it and try again",
            )
            .with("instead", "StopVm"));
        }
        self.switch(run, &self.before, &self.after).await
    }

    async fn undo(&self, run: &Run) -> Result<Undone, Fault> {
        let define = DefineDomain {
            cell: self.cell.clone(),
            from: self.after.clone(),
            vm: self.before.clone(),
        };
        let same_record =
            self.cell.vm()?.root().map(|root| root.id) == self.before.root().map(|root| root.id);
        if same_record && define.is_done(run).await? {
            return Ok(Undone::Nothing);
        }
        self.switch(run, &self.after, &self.before).await?;
        Ok(Undone::Something)
    }
}

/// Waits for the sign of a good start.
struct CheckHealth {
    cell: Arc<Cell>,
    check: HealthCheck,
}

#[async_trait]
impl Step for CheckHealth {
    fn name(&self) -> &'static str {
        "check-health"
    }

    async fn is_done(&self, _: &Run) -> Result<bool, Fault> {
        Ok(false)
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let until = Instant::now() + self.check.timeout;
        let mut view = self.cell.watch();
        loop {
            let power = domain(run, &self.cell).await?.power;
            match power {
                Power::Off(OffReason::Crashed) if self.has_panicked().await => {
                    return Err(panicked());
                }
                Power::Off(why) => return Err(ended(why)),
                Power::Crashed | Power::Paused(PauseReason::Crashed) => return Err(panicked()),
                Power::Running(_)
                | Power::Paused(_)
                | Power::ShuttingDown
                | Power::Asleep
                | Power::Unknown => {}
            }
            let runs = matches!(power, Power::Running(_) | Power::Asleep);
            if runs && self.check.sign == HealthSign::GuestAgent {
                // However long the agent takes, the check ends in time.
                let answers = tokio::select! {
                    answers = self.agent_answers(run) => answers?,
                    () = tokio::time::sleep_until(until) => false,
                    fault = told_to_end(run) => return Err(fault),
                };
                if answers {
                    return Ok(());
                }
            }
            let now = Instant::now();
            if now >= until {
                return match self.check.sign {
                    _ if !runs => Err(stands_still(power)),
                    HealthSign::StillRunning => Ok(()),
                    HealthSign::GuestAgent => Err(unhealthy(
                        "guest_agent_silent",
                        format!(
                            "the guest runs on the new root, and its agent has not answered within {} s",
                            self.check.timeout.as_secs()
                        ),
                    )),
                };
            }
            let look = (now + LOOK).min(until);
            tokio::select! {
                _ = view.changed() => {}
                () = tokio::time::sleep_until(look) => {}
                fault = told_to_end(run) => return Err(fault),
            }
        }
    }

    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }
}

impl CheckHealth {
    /// Whether a guest that has crashed has panicked. libvirt's word of it may be on its
    /// way still.
    async fn has_panicked(&self) -> bool {
        let until = Instant::now() + WORD;
        while !self.cell.has_panicked() && Instant::now() < until {
            tokio::time::sleep(WORD / 20).await;
        }
        self.cell.has_panicked()
    }

    /// Whether the guest's agent has answered. That it can't be told is no answer:
    /// the next look finds the guest off, or libvirt away.
    async fn agent_answers(&self, run: &Run) -> Result<bool, Fault> {
        let id = self.cell.id;
        let answer = run
            .core
            .hypervisor
            .try_call(Lane::Agent, move |host| host.agent_answers(id))
            .await;
        match answer {
            Ok(Ok(answers)) => Ok(answers),
            Ok(Err(error)) => {
                tracing::info!(error = chain(&error), "the guest agent could not be asked");
                Ok(false)
            }
            Err(fault) if fault.code() == Code::Unknown => Ok(false),
            // The agents of other guests hang.
            Err(_) if run.core.hypervisor.is_up() => Ok(false),
            Err(fault) => Err(fault),
        }
    }
}

/// Resolves when the check is cancelled or the agent stops.
async fn told_to_end(run: &Run) -> Fault {
    tokio::select! {
        () = run.operation.cancellation() => {
            Fault::new(Reason::CancelledByCaller, "the check was cancelled")
        }
        () = run.core.stopping.cancelled() => {
            Fault::new(Reason::Stopping, "the agent is stopping")
        }
    }
}

/// Why a guest is not taken for healthy: one reason, and a word for programs.
fn unhealthy(problem: &'static str, words: impl Into<String>) -> Fault {
    Fault::new(Reason::StartFailed, words).with("problem", problem)
}

/// What the end of a guest's power says of its start.
fn ended(why: OffReason) -> Fault {
    match why {
        OffReason::Shutdown => unhealthy(
            "guest_shut_down",
            "the guest started on the new root and shut itself down",
        ),
        OffReason::Crashed | OffReason::Failed | OffReason::Daemon => unhealthy(
            "qemu_died",
            "the guest started on the new root, and its QEMU died",
        ),
        OffReason::Destroyed => unhealthy(
            "power_cut",
            "the guest started on the new root, and something else on the host cut its power",
        ),
        OffReason::Unknown | OffReason::Migrated | OffReason::Saved | OffReason::FromSnapshot => {
            unhealthy(
                "not_running",
                "the guest started on the new root and did not stay running",
            )
        }
    }
}

/// What a panic says of a guest's start.
fn panicked() -> Fault {
    unhealthy(
        "guest_panicked",
        "the guest started on the new root, and its kernel panicked",
    )
}

/// What a guest that has power and does not run says of its start.
fn stands_still(power: Power) -> Fault {
    if power == Power::ShuttingDown {
        return ended(OffReason::Shutdown);
    }
    unhealthy(
        "guest_stands_still",
        "the guest started on the new root and is paused: its volume failed, or somebody paused it",
    )
}
