//! UpdateVm: the domain follows the record.

use super::create::DefineDomain;
use crate::model::fault::Fault;
use crate::model::vm::Vm;
use crate::service::cell::Cell;
use crate::service::domains;
use crate::service::gate::Lane;
use crate::service::plan::{Plan, Run, Step, Undone};
use async_trait::async_trait;
use std::sync::Arc;

pub(super) fn plan(cell: Arc<Cell>, before: &Vm, after: &Vm) -> Plan {
    if before.hardware == after.hardware {
        return vec![Box::new(DescribeDomain {
            cell,
            before: before.clone(),
            after: after.clone(),
        })];
    }
    vec![Box::new(RedefineDomain {
        cell,
        before: before.clone(),
        after: after.clone(),
    })]
}

/// Writes what is only described (name, description, record) into the domain,
/// which may have power.
pub(super) struct DescribeDomain {
    pub(super) cell: Arc<Cell>,
    pub(super) before: Vm,
    pub(super) after: Vm,
}

impl DescribeDomain {
    async fn describe(&self, run: &Run, vm: &Vm) -> Result<(), Fault> {
        let (id, metadata) = (vm.id, domains::metadata(vm)?);
        let (title, description) = (vm.name.clone(), vm.description.clone());
        run.core
            .hypervisor
            .call(Lane::Control, move |host| {
                host.set_metadata(id, &metadata, &title, &description)
            })
            .await
    }

    async fn carries(&self, run: &Run, vm: &Vm) -> Result<bool, Fault> {
        let (id, metadata) = (vm.id, domains::metadata(vm)?);
        let (title, description) = (vm.name.clone(), vm.description.clone());
        run.core
            .hypervisor
            .call(Lane::Read, move |host| {
                host.has_metadata(id, &metadata, &title, &description)
            })
            .await
    }
}

#[async_trait]
impl Step for DescribeDomain {
    fn name(&self) -> &'static str {
        "describe-domain"
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        self.carries(run, &self.after).await
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        self.describe(run, &self.after).await
    }

    async fn undo(&self, run: &Run) -> Result<Undone, Fault> {
        if self.carries(run, &self.before).await? {
            return Ok(Undone::Nothing);
        }
        self.describe(run, &self.before).await?;
        Ok(Undone::Something)
    }
}

/// Defines the domain anew with other hardware.
struct RedefineDomain {
    cell: Arc<Cell>,
    before: Vm,
    after: Vm,
}

impl RedefineDomain {
    fn define(&self, from: &Vm, vm: &Vm) -> DefineDomain {
        DefineDomain {
            cell: self.cell.clone(),
            from: from.clone(),
            vm: vm.clone(),
        }
    }
}

#[async_trait]
impl Step for RedefineDomain {
    fn name(&self) -> &'static str {
        "redefine-domain"
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        self.define(&self.before, &self.after).is_done(run).await
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        self.define(&self.before, &self.after).run(run).await
    }

    async fn undo(&self, run: &Run) -> Result<Undone, Fault> {
        if self.define(&self.after, &self.before).is_done(run).await? {
            return Ok(Undone::Nothing);
        }
        self.define(&self.after, &self.before).run(run).await?;
        Ok(Undone::Something)
    }
}
