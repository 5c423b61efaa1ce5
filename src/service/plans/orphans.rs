//! DeleteOrphan: one step, which proves again that nothing uses the orphan, and
//! removes it.

use crate::model::fault::Fault;
use crate::model::orphan::{Orphan, OrphanKind};
use crate::model::reason::Reason;
use crate::service::fault::{chain, internal};
use crate::service::gate::Lane;
use crate::service::orphans::{self, Records};
use crate::service::plan::{Plan, Run, Step, Undone};
use crate::storage::{Removal, StorageErrorKind};
use async_trait::async_trait;
use std::io::ErrorKind;

pub(in super::super) fn delete(orphan: &Orphan) -> Plan {
    vec![Box::new(RemoveOrphan {
        orphan: orphan.clone(),
    })]
}

/// Removes an orphan that is as it was listed.
struct RemoveOrphan {
    orphan: Orphan,
}

#[async_trait]
impl Step for RemoveOrphan {
    fn name(&self) -> &'static str {
        "remove-orphan"
    }

    async fn is_done(&self, run: &Run) -> Result<bool, Fault> {
        let orphan = &self.orphan;
        match orphan.kind {
            OrphanKind::Volume
            | OrphanKind::Image
            | OrphanKind::CachedImage
            | OrphanKind::Temporary => {
                let name = orphan.name.clone();
                let there = run.core.pools.call(&orphan.pool, move |pool, _| {
                    let entries = pool.entries()?;
                    Ok(entries.iter().any(|entry| entry.name == name))
                });
                Ok(!there.await?)
            }
            OrphanKind::Domain => {
                let id = orphan.vm_id.ok_or_else(|| internal("a domain has no id"))?;
                let found = run
                    .core
                    .hypervisor
                    .call(Lane::Read, move |host| host.look(id));
                Ok(found.await?.is_none())
            }
            OrphanKind::ConsoleLog => {
                let path = orphans::console_folder(&run.core).join(&orphan.name);
                match tokio::fs::symlink_metadata(path).await {
                    Ok(_) => Ok(false),
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
                    Err(error) => Err(unreadable(&error)),
                }
            }
            // Refused before there is an operation, and again when it runs.
            OrphanKind::UnusedImage
            | OrphanKind::ExpiredRoot
            | OrphanKind::ForeignDomain
            | OrphanKind::ForeignFile => Ok(false),
        }
    }

    async fn run(&self, run: &Run) -> Result<(), Fault> {
        let (core, orphan) = (&run.core, &self.orphan);
        // Whoever needs the image in this pool waits from here on; who was there
        // before is in the records.
        let _leaving = match orphan.kind {
            OrphanKind::CachedImage => orphan
                .image_id
                .map(|image| core.orphans.leave(&orphan.pool, image)),
            _ => None,
        };
        orphans::prove(core, orphan).await?;
        match orphan.kind {
            OrphanKind::Volume
            | OrphanKind::Image
            | OrphanKind::CachedImage
            | OrphanKind::Temporary => self.remove_file(run).await,
            OrphanKind::Domain => self.undefine(run).await,
            OrphanKind::ConsoleLog => self.remove_log(run).await,
            OrphanKind::UnusedImage
            | OrphanKind::ExpiredRoot
            | OrphanKind::ForeignDomain
            | OrphanKind::ForeignFile => Err(internal("what is no orphan would be removed")),
        }
    }

    /// What was removed had no owner who could want it back.
    async fn undo(&self, _: &Run) -> Result<Undone, Fault> {
        Ok(Undone::Nothing)
    }

    fn is_point_of_no_return(&self) -> bool {
        true
    }
}

impl RemoveOrphan {
    /// CreateVm and ReplaceRootVolume refuse the id of a volume that exists, so
    /// that as long as this file is there no other has its name; and another one
    /// would have another generation.
    async fn remove_file(&self, run: &Run) -> Result<(), Fault> {
        let orphan = &self.orphan;
        let (name, generation) = (orphan.name.clone(), orphan.generation);
        let removed = run
            .core
            .pools
            .call(&orphan.pool, move |pool, _| {
                match pool.remove_entry(&name, generation) {
                    Err(error) if error.kind() == StorageErrorKind::InUse => Ok(None),
                    removed => removed.map(Some),
                }
            })
            .await?;
        match removed {
            Some(Removal::Removed | Removal::Absent) => Ok(()),
            Some(Removal::Changed) => Err(orphans::stale(orphan)),
            None => Err(orphans::in_use(
                orphan,
                "a process of the host has it open as a disk",
            )),
        }
    }

    /// CreateVm refuses the id of a domain that is there, so that none of ours is
    /// defined under it meanwhile. libvirt refuses one that was started since.
    async fn undefine(&self, run: &Run) -> Result<(), Fault> {
        let orphan = &self.orphan;
        let id = orphan.vm_id.ok_or_else(|| internal("a domain has no id"))?;
        let found = run
            .core
            .hypervisor
            .call(Lane::Read, move |host| host.get(id))
            .await?;
        let Some(found) = found else { return Ok(()) };
        if !found.is_ours() {
            return Err(orphans::stale(orphan));
        }
        let now = orphans::domain_orphan(&Records::read(&run.core), &found);
        if now.is_none_or(|now| now.generation != orphan.generation) {
            return Err(orphans::stale(orphan));
        }
        run.core
            .hypervisor
            .call(Lane::Control, move |host| host.undefine(id))
            .await
    }

    async fn remove_log(&self, run: &Run) -> Result<(), Fault> {
        let path = orphans::console_folder(&run.core).join(&self.orphan.name);
        match orphans::log_generation(&path).await {
            Some(generation) if generation == self.orphan.generation => {}
            _ => return Err(orphans::stale(&self.orphan)),
        }
        match tokio::fs::remove_file(&path).await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(unreadable(&error)),
            _ => Ok(()),
        }
    }
}

fn unreadable(error: &std::io::Error) -> Fault {
    tracing::warn!(error = chain(error), "a console's log can't be removed");
    Fault::new(
        Reason::HypervisorRefused,
        "the console's log can't be read or removed",
    )
}
