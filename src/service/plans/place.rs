//! Whether a root volume really is where a tag puts it.

use crate::model::fault::Fault;
use crate::model::reason::Reason;
use crate::model::tag;
use crate::model::vm::Vm;
use crate::model::volume::{DiskSource, Volume};
use crate::service::cell::Cell;
use crate::service::gate::Lane;
use crate::service::plan::{Run, Step, Undone};
use async_trait::async_trait;
use std::sync::Arc;

/// The step that compares the Ceph pool of a VM's root volume with the VM's tag: in
/// the cluster, and in the domain. None for a VM without one.
pub(super) fn verify_place(cell: Arc<Cell>, vm: &Vm) -> Option<Box<dyn Step>> {
    let wanted = tag::parse(&vm.system_tags).ok()?.ceph_root_pool?;
    let root = vm.root()?.clone();
    Some(Box::new(VerifyPlace { cell, root, wanted }))
}

struct VerifyPlace {
    cell: Arc<Cell>,
    root: Volume,
    wanted: String,
}

#[async_trait]
impl Step for VerifyPlace {
    fn name(&self) -> &'static str {
        "verify-root-pool"
    }

    async fn is_done(&self, _: &Run) -> Result<bool, Fault> {
        Ok(false)
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let wrong = |what: &str| {
            let problem = format!("{what} is not in the Ceph pool {}", self.wanted);
            Err(Fault::new(Reason::VolumesMissing, problem)
                .with("volumes", self.root.id)
                .with("ceph_pool", &self.wanted))
        };
        let mut place = self.root.reference();
        place.ceph_pool = Some(self.wanted.clone());
        let found = run
            .core
            .pools
            .call(&self.root.pool, {
                let place = place.clone();
                move |pool, _| pool.volume(&place)
            })
            .await?;
        if found.is_none() {
            return wrong("the root volume");
        }
        let entry = run.core.pools.named(&self.root.pool, "pool")?;
        let DiskSource::Rbd(source) = entry.pool.volume_source(&place) else {
            return wrong("the root volume");
        };
        let name = format!("{}/{}", source.pool, source.image);
        let id = self.cell.id;
        let disks = run
            .core
            .hypervisor
            .call(Lane::Read, move |host| host.disks(id))
            .await?;
        if disks.first().and_then(|disk| disk.source.as_ref()) == Some(&name) {
            Ok(())
        } else {
            wrong("the disk that the VM starts from")
        }
    }

    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }
}
