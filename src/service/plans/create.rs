//! CreateVm: volumes, domain, and power if it was asked for.

use super::memory::{self, Memory};
use super::place::verify_place;
use super::power::StartGuest;
use crate::libvirt::DomainState;
use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::ids::ImageId;
use crate::model::reason::Reason;
use crate::model::vm::{Life, Vm};
use crate::model::volume::VolumeRef;
use crate::pace;
use crate::service::cell::Cell;
use crate::service::domains;
use crate::service::drift;
use crate::service::gate::Lane;
use crate::service::image_cache;
use crate::service::plan::{Plan, Run, Step, Undone};
use crate::service::pools::Work;
use crate::service::usage;
use crate::storage::Task;
use async_trait::async_trait;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long copying an image from one pool to another may take.
const COPY: Duration = Duration::from_secs(3600);
/// How long making a volume may take, which writes no data.
const MAKE: Duration = Duration::from_secs(60);
/// How often a volume in use is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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
            volume: volume.reference(),
            image: volume.image_id,
            size: volume.size,
            taken: AtomicBool::new(false),
        }));
    }
    plan.push(Box::new(DefineDomain {
        cell: cell.clone(),
        from: vm.clone(),
        vm: Vm {
            life: Life::Present,
            ..vm.clone()
        },
    }));
    plan.extend(verify_place(cell.clone(), vm));
    if start {
        plan.push(Box::new(StartGuest {
            cell,
            undo_stops: true,
            new_root: None,
            memory: Memory::IfSaved,
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
            .call_task(&self.pool, Work::Long, COPY, task, move |pool, task| {
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
    /// The volume.
    pub volume: VolumeRef,
    /// The image, if from one.
    pub image: Option<ImageId>,
    /// What the guest shall see.
    pub size: Bytes,
    /// Another volume was found under its id.
    pub taken: AtomicBool,
}

#[async_trait]
impl Step for MakeVolume {
    fn name(&self) -> &'static str {
        "make-volume"
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        if self.volume.ceph_pool.is_some() && !run.operation.is_resumed() {
            // A cluster makes it or says that it is there, in one.
            return Ok(false);
        }
        let volume = self.volume.clone();
        let found = run
            .core
            .pools
            .call(&self.pool, move |pool, _| pool.volume(&volume))
            .await?;
        // One that a former run made, and did not grow, is not done.
        Ok(found.is_some_and(|found| found.virtual_size == self.size))
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let (volume, image, size) = (self.volume.clone(), self.image, self.size);
        let task = Task::new(
            run.operation.cancel_flag(),
            Some(Instant::now() + MAKE),
            |_, _| (),
        );
        let made = run
            .core
            .pools
            .call_task(
                &self.pool,
                Work::Quick,
                MAKE,
                task,
                move |pool, task| match image {
                    Some(image) => pool.create_overlay(&volume, image, size, task).map(drop),
                    None => pool.create_empty(&volume, size, task).map(drop),
                },
            )
            .await;
        let taken = matches!(&made, Err(fault) if fault.reason == Reason::VolumeExists);
        self.taken.store(taken, Ordering::Relaxed);
        made
    }

    async fn undo(&self, run: &Run) -> Result<Undone, Fault> {
        if self.taken.load(Ordering::Relaxed) {
            // Another host has made it meanwhile: it is not ours to remove.
            return Ok(Undone::Nothing);
        }
        let volume = self.volume.clone();
        let found = run
            .core
            .pools
            .call(&self.pool, move |pool, _| pool.volume(&volume))
            .await;
        match found {
            // All that was in it is gone with it.
            Err(fault) if fault.reason == Reason::CephPoolNotFound => return Ok(Undone::Nothing),
            Ok(None) => return Ok(Undone::Nothing),
            Err(fault) => return Err(fault),
            Ok(Some(_)) => {}
        }
        remove_volume(run, &self.pool, &self.volume).await?;
        Ok(Undone::Something)
    }
}

/// Removes a volume. The cluster takes a client for there until half a minute after
/// its end, if that was sudden: a QEMU that was killed is waited for.
///
/// # Errors
/// `VOLUME_IN_USE`, and as any call to a pool.
pub(super) async fn remove_volume(run: &Run, pool: &str, volume: &VolumeRef) -> Result<(), Fault> {
    usage::check_volume(&run.core, pool, volume).await?;
    run.reach("remove-volume.unused").await?;
    let until = Instant::now() + pace::dead_client();
    let mut alone = false;
    loop {
        let place = volume.clone();
        let removed = run
            .core
            .pools
            .call(pool, move |pool, _| pool.delete_volume(&place))
            .await;
        match removed {
            Err(fault)
                if fault.reason == Reason::VolumeInUse
                    && volume.ceph_pool.is_some()
                    && !alone
                    && Instant::now() < until
                    && !run.core.stopping.is_cancelled() =>
            {
                run.reach("remove-volume.in-use").await?;
                let place = volume.clone();
                let holders = run
                    .core
                    .pools
                    .call(pool, move |pool, _| pool.holders(&place))
                    .await?;
                // Snapshots and clones don't go away by themselves. But a client that was in
                // the way may have gone since.
                alone = holders.is_empty();
                if !alone {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
            }
            removed => return removed,
        }
    }
}

/// Defines a VM's domain as its record says. In a definition that is there, what
/// changes is what differs between the two records; all else stays as it is.
pub(super) struct DefineDomain {
    pub(super) cell: Arc<Cell>,
    /// The record that the definition may still be made from.
    pub(super) from: Vm,
    /// The record that it shall be made from.
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
        Ok(found.is_some_and(|domain| domain.metadata == Ok(wanted)))
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let from = domains::spec(&run.core, &self.from)?;
        let next = domains::spec(&run.core, &self.vm)?;
        let Some(found) = drift::read(&run.core, &[&self.from, &self.vm]).await? else {
            if self.from.life != Life::Making {
                // The domain was removed meanwhile: a snapshot may have the newest data.
                usage::check_new_domain(&run.core, &self.vm).await?;
            }
            return run
                .core
                .hypervisor
                .call(Lane::Control, move |host| host.define(&next))
                .await;
        };
        memory::check_none(run, &self.cell).await?;
        let done = run
            .core
            .hypervisor
            .call(Lane::Control, move |host| {
                let drift::Found { definition, former } = &found;
                let of_next = definition.differences(&next, former);
                let is_next = of_next.of_data.is_empty()
                    && definition.generation == Some(next.metadata.generation);
                let of_from = definition.differences(&from, former);
                if !is_next && of_from.of_data.is_empty() {
                    return host.redefine(definition, former, &from, &next).map(Ok);
                }
                if of_next.of_data.is_empty() {
                    host.redefine(definition, former, &next, &next).map(Ok)
                } else {
                    Ok(Err(of_from))
                }
            })
            .await?;
        done.map_err(|differences| drift::refusal(&differences))
    }

    async fn undo(&self, run: &Run) -> Result<Undone, Fault> {
        let id = self.cell.id;
        let there = run
            .core
            .hypervisor
            .call(Lane::Read, move |host| host.get(id))
            .await?;
        // A domain under our id that is not ours was there before us.
        let Some(domain) = there.filter(DomainState::is_ours) else {
            return Ok(Undone::Nothing);
        };
        if domain.power.is_active() {
            // It would be gone with its guest's end, and unknown until then.
            return Err(Fault::new(
                Reason::WrongState,
                "something else on the host started the VM; its domain stays",
            )
            .with("domain", domains::domain_name(id)));
        }
        // Only the domain names a snapshot that somebody has made of its disk.
        drift::check(&run.core, &self.cell, &self.vm).await?;
        run.core
            .hypervisor
            .call(Lane::Control, move |host| host.undefine(id))
            .await?;
        Ok(Undone::Something)
    }
}
