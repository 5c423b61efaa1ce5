//! Who uses a volume, an image or a file of a pool: the one question before anything is
//! removed, wherever the removal comes from.
//!
//! Users are the domains of the host, ours or not, as they run and as they are defined,
//! and the files of the pools, in both cases through all backing files. What a process
//! has open without that, and what in a Ceph cluster stands on an image or watches it,
//! the pool itself finds when it removes.

use super::core::Core;
use super::gate::Lane;
use crate::model::fault::Fault;
use crate::model::ids::{ImageId, VolumeId};
use crate::model::reason::Reason;
use crate::model::vm::Vm;
use crate::model::volume::{VolumeAttachment, VolumeRef};
use crate::storage::EntryKind;
use std::collections::HashMap;

/// Something in a pool.
#[derive(Debug, Clone)]
pub(super) enum Thing {
    /// A volume.
    Volume(VolumeRef),
    /// An image.
    Image(ImageId),
    /// A file by the name that the pool lists it under.
    Entry(String),
}

/// Those who may use something: what each has as a disk, and who it is in words.
pub(super) struct Users {
    domains: HashMap<String, String>,
    files: HashMap<String, String>,
}

impl Users {
    /// Reads all of the host, but for what a VM has that is to be removed whole.
    ///
    /// # Errors
    /// As any call; a pool that can't be read is left out if it is known to be away.
    pub(super) async fn read(core: &Core, but: Option<&Vm>) -> Result<Self, Fault> {
        let (mut domains, mut files) = (HashMap::new(), HashMap::new());
        let all = core
            .hypervisor
            .call(Lane::Read, |host| host.all_disks())
            .await?;
        for domain in all {
            if but.is_some_and(|vm| vm.id == domain.id && domain.ours) {
                continue;
            }
            for source in domain.sources {
                domains.insert(source, format!("the domain {}", domain.name));
            }
        }
        let gone = |id: VolumeId| but.is_some_and(|vm| vm.volume(id).is_some());
        for entry in core.pools.all() {
            if entry.pool.is_shared() || entry.measured().trouble.is_some() {
                continue;
            }
            let found = core
                .pools
                .call(entry.pool.name(), |pool, _| pool.files())
                .await?;
            for (path, kind) in found {
                let words = match kind {
                    EntryKind::Volume(id) if gone(id) => continue,
                    EntryKind::Volume(id) => format!("the volume {id}"),
                    EntryKind::Unknown => format!(
                        "the file {} in pool {}",
                        path.file_name().unwrap_or_default().display(),
                        entry.pool.name()
                    ),
                    EntryKind::Image(_) | EntryKind::Temporary => continue,
                };
                files.insert(path.display().to_string(), words);
            }
        }
        Ok(Self { domains, files })
    }

    /// Who uses a thing, in words, if anybody does.
    ///
    /// # Errors
    /// As any call to a pool.
    pub(super) async fn of(
        &self,
        core: &Core,
        pool: &str,
        thing: &Thing,
    ) -> Result<Option<String>, Fault> {
        let thing = thing.clone();
        let mut disks: Vec<String> = self.domains.keys().cloned().collect();
        let files: Vec<String> = self.files.keys().cloned().collect();
        let user = core
            .pools
            .call(pool, move |pool, _| {
                let source = match &thing {
                    Thing::Volume(volume) => Some(pool.volume_source(volume)),
                    Thing::Image(image) => Some(pool.image_source(*image)),
                    Thing::Entry(name) => pool.entry_source(name)?,
                };
                let Some(source) = source else {
                    return Ok(None);
                };
                // It is itself among the pool's files.
                let itself = source.name();
                disks.extend(files.into_iter().filter(|file| *file != itself));
                pool.stands_on(&source, &disks)
            })
            .await?;
        Ok(user.map(|disk| {
            let owner = self.domains.get(&disk).or_else(|| self.files.get(&disk));
            owner.cloned().unwrap_or(disk)
        }))
    }
}

/// Refuses to remove a volume that somebody uses.
///
/// # Errors
/// `VOLUME_IN_USE`, naming the user; as any call.
pub(super) async fn check_volume(core: &Core, pool: &str, volume: &VolumeRef) -> Result<(), Fault> {
    let users = Users::read(core, None).await?;
    in_use(core, &users, pool, volume, "removed").await
}

/// Refuses to remove a VM's volumes while somebody else uses one.
///
/// # Errors
/// `VOLUME_IN_USE`, naming the volume and its user; as any call.
pub(super) async fn check_vm(core: &Core, vm: &Vm) -> Result<(), Fault> {
    let users = Users::read(core, Some(vm)).await?;
    for volume in &vm.volumes {
        let kept = matches!(volume.attachment, VolumeAttachment::Kept { .. });
        if volume.delete_with_vm || kept {
            in_use(core, &users, &volume.pool, &volume.reference(), "removed").await?;
        }
    }
    Ok(())
}

/// Refuses to define a domain anew on the volumes of a VM whose domain is gone, while
/// something else uses one or stands on it: a snapshot has what the guest wrote last.
///
/// # Errors
/// As [`check_vm`].
pub(super) async fn check_new_domain(core: &Core, vm: &Vm) -> Result<(), Fault> {
    let users = Users::read(core, Some(vm)).await?;
    for volume in vm.disks().into_iter().filter(|volume| !volume.shareable) {
        let place = volume.reference();
        in_use(core, &users, &volume.pool, &place, "given to a new domain").await?;
    }
    Ok(())
}

/// `done` is what is not done with a volume that is in use.
async fn in_use(
    core: &Core,
    users: &Users,
    pool: &str,
    volume: &VolumeRef,
    done: &str,
) -> Result<(), Fault> {
    match users.of(core, pool, &Thing::Volume(volume.clone())).await {
        // What is in a Ceph pool that is gone is gone with it.
        Err(fault) if fault.reason == Reason::CephPoolNotFound => Ok(()),
        Ok(None) => Ok(()),
        Err(fault) => Err(fault),
        Ok(Some(user)) => Err(Fault::new(
            Reason::VolumeInUse,
            format!("the volume {} is not {done}: {user} uses it", volume.id),
        )
        .with("volume_id", volume.id)
        .with("used_by", user)),
    }
}

/// Refuses to remove an image that something uses that is no record's: a foreign domain,
/// or a file.
///
/// # Errors
/// `IMAGE_IN_USE`, naming the user; as any call.
pub(super) async fn check_image(core: &Core, pool: &str, image: ImageId) -> Result<(), Fault> {
    let users = Users::read(core, None).await?;
    match users.of(core, pool, &Thing::Image(image)).await? {
        None => Ok(()),
        Some(user) => Err(Fault::new(
            Reason::ImageInUse,
            format!("the image is not removed: {user} uses it"),
        )
        .with("image_id", image)
        .with("used_by", user)),
    }
}
