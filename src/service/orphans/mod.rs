//! Orphans: what is on the host and no VM or image accounts for, shown with why,
//! and removed one by one when asked for.
//!
//! Invariants: what is foreign is listed and never touched; nothing is removed
//! that a record names or that something on the host uses. What is in a record
//! is read before the host and after it, so that what comes or goes meanwhile is
//! in one of them. It deliberately removes nothing by itself.

mod delete;
mod list;
mod records;

pub(super) use delete::stale;
pub use delete::{begin, delete};
pub use list::{age, list};
pub(super) use list::{console_folder, domain_orphan, log_generation};
pub(super) use records::Records;

use super::core::Core;
use super::gate::Lane;
use super::operations::LiveOperation;
use super::usage::{Thing, Users};
use crate::model::fault::Fault;
use crate::model::ids::{ImageId, OrphanId};
use crate::model::orphan::{Orphan, OrphanKind};
use crate::model::reason::Reason;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// The removals at work.
pub struct Orphans {
    live: Mutex<HashMap<OrphanId, Arc<LiveOperation>>>,
    /// Images on their way out of a pool's cache.
    leaving: watch::Sender<HashSet<(String, ImageId)>>,
}

impl Default for Orphans {
    fn default() -> Self {
        Self {
            live: Mutex::default(),
            leaving: watch::Sender::new(HashSet::new()),
        }
    }
}

impl Orphans {
    /// Waits until an image is not on its way out of a pool: who needs it there
    /// then finds it, or finds that it is gone, and neither changes any more.
    pub async fn settled(&self, pool: &str, image: ImageId) {
        let place = (pool.to_owned(), image);
        // Ends with an error only when the agent does.
        drop(
            self.leaving
                .subscribe()
                .wait_for(|leaving| !leaving.contains(&place))
                .await,
        );
    }

    /// Says that an image is on its way out of a pool, until the guard is dropped.
    /// To be said before the records are looked at for who needs it there.
    pub(super) fn leave(&self, pool: &str, image: ImageId) -> Leaving<'_> {
        let place = (pool.to_owned(), image);
        self.leaving.send_modify(|leaving| {
            leaving.insert(place.clone());
        });
        Leaving {
            orphans: self,
            place,
        }
    }

    fn live(&self) -> std::sync::MutexGuard<'_, HashMap<OrphanId, Arc<LiveOperation>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps an image from being used in a pool while it is removed there.
pub(super) struct Leaving<'a> {
    orphans: &'a Orphans,
    place: (String, ImageId),
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.orphans.leaving.send_modify(|leaving| {
            leaving.remove(&self.place);
        });
    }
}

/// Refuses to remove what is not kvmlet's, what is recorded, and what something
/// on the host uses, as it all is now.
///
/// # Errors
/// `ORPHAN_FOREIGN`, `ORPHAN_RECORDED`, `ORPHAN_IN_USE`; why it can't be known.
pub(super) async fn prove(core: &Core, orphan: &Orphan) -> Result<(), Fault> {
    let recorded = |why: &str, instead: &str| {
        Err(Fault::new(Reason::OrphanRecorded, why)
            .with("orphan_id", orphan.id)
            .with("instead", instead))
    };
    let records = Records::read(core);
    match orphan.kind {
        OrphanKind::ForeignDomain | OrphanKind::ForeignFile => Err(Fault::new(
            Reason::OrphanForeign,
            "it is not kvmlet's, and never touched",
        )
        .with("orphan_id", orphan.id)),
        OrphanKind::UnusedImage => recorded(
            "the image is recorded: DeleteImage removes it",
            "DeleteImage",
        ),
        OrphanKind::ExpiredRoot => recorded(
            "the volume is a VM's: kvmlet goes on trying to remove it, and ExpungeVm removes it with its VM",
            "ExpungeVm",
        ),
        OrphanKind::Volume
        | OrphanKind::Image
        | OrphanKind::CachedImage
        | OrphanKind::Temporary => {
            if records.accounts_for_file(orphan) {
                return recorded(
                    "a VM, an image or an operation needs it by now",
                    "ListOrphans",
                );
            }
            no_disk_stands_on(core, orphan).await
        }
        OrphanKind::Domain => {
            let Some(id) = orphan.vm_id else {
                return Ok(());
            };
            if records.has_vm(id) {
                return recorded("the domain is a VM's by now", "DeleteVm,ExpungeVm");
            }
            let seen = core
                .hypervisor
                .call(Lane::Read, move |host| host.look(id))
                .await?;
            if seen.is_some_and(|seen| seen.power.is_active()) {
                return Err(in_use(
                    orphan,
                    "the domain has power: what is not known is not stopped; stop it by hand first",
                ));
            }
            Ok(())
        }
        OrphanKind::ConsoleLog => {
            let Some(id) = orphan.vm_id else {
                return Ok(());
            };
            if records.has_vm(id) {
                return recorded("the console's log is a VM's by now", "DeleteVm,ExpungeVm");
            }
            let there = core
                .hypervisor
                .call(Lane::Read, move |host| host.look(id))
                .await?;
            if there.is_some() {
                return Err(in_use(orphan, "a domain of this id is on the host"));
            }
            Ok(())
        }
    }
}

/// Refuses to remove a file that a disk of any domain, ours or not, or any file of the
/// pools is or stands on.
async fn no_disk_stands_on(core: &Core, orphan: &Orphan) -> Result<(), Fault> {
    let users = Users::read(core, None).await?;
    let thing = Thing::Entry(orphan.name.clone());
    match users.of(core, &orphan.pool, &thing).await? {
        Some(owner) => Err(in_use(orphan, &format!("{owner} uses it"))),
        None => Ok(()),
    }
}

pub(super) fn in_use(orphan: &Orphan, why: &str) -> Fault {
    Fault::new(Reason::OrphanInUse, why).with("orphan_id", orphan.id)
}
