//! DeleteVm, RecoverVm and ExpungeVm.
//!
//! A deleted VM keeps its domain (with its firmware variables and saved memory)
//! and all its volumes; only the record says that it is deleted, in the journal
//! and in the domain. What is expunged goes in this order: domain, volumes,
//! record.

use super::create::{DefineDomain, remove_volume};
use super::power::has_power;
use super::stop::StopFirst;
use super::update::DescribeDomain;
use crate::journal::Batch;
use crate::model::fault::Fault;
use crate::model::reason::Reason;
use crate::model::vm::{Life, Vm};
use crate::model::volume::{VolumeAttachment, VolumeRef};
use crate::service::cell::Cell;
use crate::service::domains;
use crate::service::drift;
use crate::service::gate::Lane;
use crate::service::plan::{Plan, Run, Step, Undone};
use crate::service::usage;
use async_trait::async_trait;
use std::io;
use std::sync::Arc;
use std::time::Duration;

pub(super) fn delete(
    cell: Arc<Cell>,
    before: &Vm,
    after: Vm,
    stop: Option<StopFirst>,
    retention: Duration,
) -> Plan {
    let mut plan = Plan::new();
    if let Some(first) = stop {
        plan.push(Box::new(first.step(cell.clone(), None)));
    }
    if retention.is_zero() {
        plan.extend(expunge(cell, before));
    } else {
        plan.push(Box::new(MarkDomain(DescribeDomain {
            cell,
            before: before.clone(),
            after,
        })));
    }
    plan
}

pub(super) fn recover(cell: Arc<Cell>, before: &Vm, after: Vm) -> Plan {
    vec![
        Box::new(CheckVolumes { vm: before.clone() }),
        Box::new(BringBackDomain {
            cell,
            before: before.clone(),
            after,
        }),
    ]
}

pub(super) fn expunge(cell: Arc<Cell>, vm: &Vm) -> Plan {
    let mut plan: Plan = vec![
        Box::new(CheckPowerOff { cell: cell.clone() }),
        Box::new(CheckUnused {
            cell: cell.clone(),
            vm: vm.clone(),
        }),
        Box::new(MarkExpunging { cell: cell.clone() }),
        Box::new(RemoveDomain { cell: cell.clone() }),
    ];
    for volume in &vm.volumes {
        let kept = matches!(volume.attachment, VolumeAttachment::Kept { .. });
        if volume.delete_with_vm || kept {
            plan.push(Box::new(RemoveVolume {
                pool: volume.pool.clone(),
                volume: volume.reference(),
            }));
        }
    }
    plan.push(Box::new(RemoveConsoleLog { cell }));
    plan
}

/// Whether the VM's domain is defined.
async fn has_domain(run: &Run, cell: &Cell) -> Result<bool, Fault> {
    let id = cell.id;
    let found = run
        .core
        .hypervisor
        .call(Lane::Read, move |host| host.look(id))
        .await?;
    Ok(found.is_some())
}

/// Writes into the domain that its VM is deleted, if there is a domain.
struct MarkDomain(DescribeDomain);

#[async_trait]
impl Step for MarkDomain {
    fn name(&self) -> &'static str {
        "mark-deleted"
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        Ok(!has_domain(run, &self.0.cell).await? || self.0.is_done(run).await?)
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        // Somebody has set it by hand; a VM that is deleted does not come back with the
        // host. Before the mark, so that a run that was cut off does it again.
        let id = self.0.cell.id;
        let cleared = run
            .core
            .hypervisor
            .call(Lane::Control, move |host| host.clear_autostart(id))
            .await?;
        if cleared {
            tracing::info!(vm_id = %id, "libvirt no longer starts the deleted VM with the host");
        }
        self.0.run(run).await
    }

    async fn undo(&self, run: &Run) -> Result<Undone, Fault> {
        if has_domain(run, &self.0.cell).await? {
            self.0.undo(run).await
        } else {
            Ok(Undone::Nothing)
        }
    }
}

/// Looks for every volume that the VM needs.
struct CheckVolumes {
    vm: Vm,
}

#[async_trait]
impl Step for CheckVolumes {
    fn name(&self) -> &'static str {
        "check-volumes"
    }

    async fn is_done(&self, _: &Run) -> Result<bool, Fault> {
        Ok(false)
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let mut missing = Vec::new();
        for volume in self.vm.disks() {
            let (id, place) = (volume.id, volume.reference());
            if run
                .core
                .pools
                .call(&volume.pool, move |pool, _| pool.volume(&place))
                .await?
                .is_none()
            {
                missing.push(id.to_string());
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let missing = missing.join(",");
        Err(Fault::new(
            Reason::VolumesMissing,
            format!("volumes of the VM are not in their pools: {missing}"),
        )
        .with("volumes", missing))
    }

    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }
}

/// Defines the domain again if it is gone; else takes back that it is deleted.
struct BringBackDomain {
    cell: Arc<Cell>,
    before: Vm,
    after: Vm,
}

impl BringBackDomain {
    fn define(&self) -> DefineDomain {
        DefineDomain {
            cell: self.cell.clone(),
            from: self.before.clone(),
            vm: self.after.clone(),
        }
    }

    fn describe(&self) -> DescribeDomain {
        DescribeDomain {
            cell: self.cell.clone(),
            before: self.before.clone(),
            after: self.after.clone(),
        }
    }
}

#[async_trait]
impl Step for BringBackDomain {
    fn name(&self) -> &'static str {
        "bring-back-domain"
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        self.define().is_done(run).await
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        if has_domain(run, &self.cell).await? {
            self.describe().run(run).await
        } else {
            self.define().run(run).await
        }
    }

    /// Of a VM that is deleted the domain may stay, marked. One that was lost had
    /// none.
    async fn undo(&self, run: &Run) -> Result<Undone, Fault> {
        if !has_domain(run, &self.cell).await? {
            return Ok(Undone::Nothing);
        }
        if self.before.life == Life::Present {
            self.define().undo(run).await
        } else {
            self.describe().undo(run).await
        }
    }
}

/// Makes sure that nobody has started a VM that is to be removed.
struct CheckPowerOff {
    cell: Arc<Cell>,
}

#[async_trait]
impl Step for CheckPowerOff {
    fn name(&self) -> &'static str {
        "check-power-off"
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        Ok(!has_power(run, &self.cell).await?)
    }

    async fn run(&self, _: &Run) -> Result<(), Fault> {
        Err(Fault::new(
            Reason::WrongState,
            "something else on the host started the VM; it is not removed while it runs",
        )
        .with("domain", domains::domain_name(self.cell.id)))
    }

    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }
}

/// Makes sure that the VM has its own disks and that nobody else uses one of them, while
/// there is a way back.
struct CheckUnused {
    cell: Arc<Cell>,
    vm: Vm,
}

#[async_trait]
impl Step for CheckUnused {
    fn name(&self) -> &'static str {
        "check-unused"
    }

    async fn is_done(&self, _: &Run) -> Result<bool, Fault> {
        Ok(self.vm.life == Life::Expunging)
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        drift::check(&run.core, &self.cell, &self.vm).await?;
        usage::check_vm(&run.core, &self.vm).await
    }

    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }
}

/// Records that there is no way back.
struct MarkExpunging {
    cell: Arc<Cell>,
}

#[async_trait]
impl Step for MarkExpunging {
    fn name(&self) -> &'static str {
        "mark-expunging"
    }

    async fn is_done(&self, _: &Run) -> Result<bool, Fault> {
        Ok(self.cell.vm()?.life == Life::Expunging)
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let vm = Vm {
            life: Life::Expunging,
            ..self.cell.vm()?
        };
        run.core.ledger.commit(Batch::new().put_vm(&vm)).await?;
        self.cell.edit(|record| *record = vm);
        Ok(())
    }

    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }

    fn is_point_of_no_return(&self) -> bool {
        true
    }
}

/// Removes the domain with its firmware variables and saved memory.
struct RemoveDomain {
    cell: Arc<Cell>,
}

#[async_trait]
impl Step for RemoveDomain {
    fn name(&self) -> &'static str {
        "remove-domain"
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        Ok(!has_domain(run, &self.cell).await?)
    }

    /// Only the domain names a snapshot that somebody has made of a disk since, and the
    /// snapshot has what the guest wrote last.
    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let id = self.cell.id;
        drift::check(&run.core, &self.cell, &self.cell.vm()?).await?;
        run.core
            .hypervisor
            .call(Lane::Control, move |host| host.undefine(id))
            .await
    }

    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }
}

/// Removes a volume and its data.
struct RemoveVolume {
    pool: String,
    volume: VolumeRef,
}

#[async_trait]
impl Step for RemoveVolume {
    fn name(&self) -> &'static str {
        "remove-volume"
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        let volume = self.volume.clone();
        let found = run
            .core
            .pools
            .call(&self.pool, move |pool, _| pool.volume(&volume))
            .await;
        match found {
            // All that was in it is gone with it.
            Err(fault) if fault.reason == Reason::CephPoolNotFound => Ok(true),
            found => Ok(found?.is_none()),
        }
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        remove_volume(run, &self.pool, &self.volume).await
    }

    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }
}

/// Removes the file of the serial console.
struct RemoveConsoleLog {
    cell: Arc<Cell>,
}

#[async_trait]
impl Step for RemoveConsoleLog {
    fn name(&self) -> &'static str {
        "remove-console-log"
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        let path = domains::console_log(&run.core, self.cell.id);
        Ok(!tokio::fs::try_exists(&path).await.unwrap_or(true))
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let path = domains::console_log(&run.core, self.cell.id);
        match tokio::fs::remove_file(&path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // A log is not worth a VM that can't be removed.
                tracing::warn!(%error, "a console log can't be removed");
            }
            Ok(()) | Err(_) => {}
        }
        Ok(())
    }

    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }
}
