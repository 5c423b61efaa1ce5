//! CreateVm: volumes, domain, and power if it was asked for.

use super::power::StartGuest;
use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::ids::{ImageId, VolumeId};
use crate::model::reason::Reason;
use crate::model::vm::{Life, Vm};
use crate::service::cell::Cell;
use crate::service::domains;
use crate::service::gate::Lane;
use crate::service::image_cache;
use crate::service::plan::{Plan, Run, Step, Undone};
use crate::storage::Task;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long copying an image from one pool to another may take.
const COPY: Duration = Duration::from_secs(3600);
/// How long making a volume may take, which writes no data.
const MAKE: Duration = Duration::from_secs(60);

pub(super) fn plan(cell: Arc<Cell>, vm: &Vm, start: bool) -> Plan {
    let mut plan = Plan::new();
    for volume in &vm.volumes {
        if let Some(image) = volume.image_id {
            plan.push(Box::new(CacheImage {
                pool: volume.pool.clone(),
                image,
            }));
        }
        plan.push(Box::new(MakeVolume {
            pool: volume.pool.clone(),
            id: volume.id,
            image: volume.image_id,
            size: volume.size,
        }));
    }
    plan.push(Box::new(DefineDomain {
        cell: cell.clone(),
        vm: Vm {
            life: Life::Present,
            ..vm.clone()
        },
    }));
    if start {
        plan.push(Box::new(StartGuest {
            cell,
            undo_stops: true,
            new_root: None,
        }));
    }
    plan
}

/// Brings an image into the cache of the pool that needs it.
pub struct CacheImage {
    /// The pool that needs it.
    pub pool: String,
    /// The image.
    pub image: ImageId,
}

#[async_trait]
impl Step for CacheImage {
    fn name(&self) -> &'static str {
        "cache-image"
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        let image = self.image;
        run.core.orphans.settled(&self.pool, image).await;
        let found = run
            .core
            .pools
            .call(&self.pool, move |pool, _| pool.image(image))
            .await?;
        image_cache::note_use(&run.core, image);
        Ok(found.is_some())
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let image = run.core.images.ready(self.image, "image_id")?;
        let from = run
            .core
            .pools
            .named(&image.pool, "pool")?
            .pool
            .image_source(self.image);
        image_cache::make_room(&run.core, &self.pool, image.actual_size).await?;
        let id = self.image;
        let task = Task::new(
            run.operation.cancel_flag(),
            Some(Instant::now() + COPY),
            |_, _| (),
        );
        run.core
            .pools
            .call_task(&self.pool, Lane::Import, COPY, task, move |pool, task| {
                pool.copy_image_from(id, &from, task).map(drop)
            })
            .await
    }

    /// A cache keeps what it has: the next VM needs it too.
    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }
}

/// Makes a volume, from an image or empty.
pub struct MakeVolume {
    /// The pool to make it in.
    pub pool: String,
    /// Its id.
    pub id: VolumeId,
    /// The image, if from one.
    pub image: Option<ImageId>,
    /// What the guest shall see.
    pub size: Bytes,
}

#[async_trait]
impl Step for MakeVolume {
    fn name(&self) -> &'static str {
        "make-volume"
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        let id = self.id;
        let found = run
            .core
            .pools
            .call(&self.pool, move |pool, _| pool.volume(id))
            .await?;
        Ok(found.is_some())
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let (id, image, size) = (self.id, self.image, self.size);
        let task = Task::new(
            run.operation.cancel_flag(),
            Some(Instant::now() + MAKE),
            |_, _| (),
        );
        run.core
            .pools
            .call_task(
                &self.pool,
                Lane::Storage,
                MAKE,
                task,
                move |pool, task| match image {
                    Some(image) => pool.create_overlay(id, image, size, task).map(drop),
                    None => pool.create_empty(id, size, task).map(drop),
                },
            )
            .await
    }

    async fn undo(&self, run: &Run) -> Result<Undone, Fault> {
        let id = self.id;
        run.core
            .pools
            .call(&self.pool, move |pool, _| {
                let there = pool.volume(id)?.is_some();
                pool.delete_volume(id)?;
                Ok(if there {
                    Undone::Something
                } else {
                    Undone::Nothing
                })
            })
            .await
    }
}

/// Defines a VM's domain as its record says.
pub(super) struct DefineDomain {
    pub(super) cell: Arc<Cell>,
    pub(super) vm: Vm,
}

#[async_trait]
impl Step for DefineDomain {
    fn name(&self) -> &'static str {
        "define-domain"
    }

    fn holds_earlier(&self) -> bool {
        true
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        let (id, wanted) = (self.cell.id, domains::metadata(&self.vm)?);
        let found = run
            .core
            .hypervisor
            .call(Lane::Read, move |host| host.get(id))
            .await?;
        Ok(found.is_some_and(|domain| domain.metadata == Some(wanted)))
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let spec = domains::spec(&run.core, &self.vm)?;
        run.core
            .hypervisor
            .call(Lane::Control, move |host| host.define(&spec))
            .await
    }

    async fn undo(&self, run: &Run) -> Result<Undone, Fault> {
        let id = self.cell.id;
        let there = run
            .core
            .hypervisor
            .call(Lane::Read, move |host| host.get(id))
            .await?;
        // A domain under our id that is not ours was there before us.
        let Some(domain) = there.filter(|domain| domain.metadata.is_some()) else {
            return Ok(Undone::Nothing);
        };
        if domain.power.is_active() {
            // It would be gone with its guest's end, and unknown until then.
            return Err(Fault::new(
                Reason::WrongState,
                "something else on the host gave the VM power; its domain stays",
            )
            .with("domain", domains::domain_name(id)));
        }
        run.core
            .hypervisor
            .call(Lane::Control, move |host| host.undefine(id))
            .await?;
        Ok(Undone::Something)
    }
}
