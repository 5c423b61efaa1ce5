//! What the records account for, at one moment.

use crate::model::ids::{ImageId, VmId, VolumeId};
use crate::model::image::{Image, ImageState};
use crate::model::orphan::{Orphan, OrphanKind};
use crate::model::vm::Life;
use crate::model::volume::Volume;
use crate::service::core::Core;
use crate::service::sweeper::expired;
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

/// What the records account for, at one moment or at two.
#[derive(Debug, Default)]
pub(in super::super) struct Records {
    vms: HashSet<VmId>,
    volumes: HashMap<(String, VolumeId), (VmId, Volume)>,
    images: HashMap<ImageId, Image>,
    /// In which pools volumes need which images.
    needed: HashSet<(String, ImageId)>,
    /// What operations at work are about: volumes and images.
    at_work: HashSet<Uuid>,
    /// VMs that are deleted or half gone: nothing of them is removed on its own.
    deleted: HashSet<VmId>,
}

impl Records {
    /// Reads them as they are now.
    pub(in super::super) fn read(core: &Core) -> Self {
        let mut records = Self::default();
        for cell in core.vms.cells() {
            let view = cell.view();
            records.vms.insert(cell.id);
            let Some(vm) = &view.vm else { continue };
            if vm.life != Life::Present {
                records.deleted.insert(vm.id);
            }
            for volume in &vm.volumes {
                let pool = volume.pool.clone();
                if let Some(image) = volume.image_id {
                    records.needed.insert((pool.clone(), image));
                    if view.current.is_some() {
                        records.at_work.insert(image.0);
                    }
                }
                if view.current.is_some() {
                    records.at_work.insert(volume.id.0);
                }
                records
                    .volumes
                    .insert((pool, volume.id), (vm.id, volume.clone()));
            }
        }
        for image in core.images.list() {
            if !matches!(image.state, ImageState::Ready | ImageState::Lost) {
                records.at_work.insert(image.id.0);
            }
            records.images.insert(image.id, image);
        }
        records
    }

    /// What these account for, or the others do.
    pub(super) fn or(mut self, other: Self) -> Self {
        self.vms.extend(other.vms);
        self.volumes.extend(other.volumes);
        self.images.extend(other.images);
        self.needed.extend(other.needed);
        self.at_work.extend(other.at_work);
        self.deleted.extend(other.deleted);
        self
    }

    /// Whether a VM is, or is being made.
    pub(super) fn has_vm(&self, id: VmId) -> bool {
        self.vms.contains(&id)
    }

    /// Whether a volume is a VM's.
    pub(super) fn has_volume(&self, pool: &str, id: VolumeId) -> bool {
        self.volumes.contains_key(&(pool.to_owned(), id))
    }

    /// The record of an image.
    pub(in super::super) fn image(&self, id: ImageId) -> Option<&Image> {
        self.images.get(&id)
    }

    /// Whether a VM's volume in this pool is made from an image.
    pub(in super::super) fn needs(&self, pool: &str, id: ImageId) -> bool {
        self.needed.contains(&(pool.to_owned(), id))
    }

    /// Whether an operation is about an image, or makes a volume from it.
    pub(in super::super) fn is_at_work(&self, image: ImageId) -> bool {
        self.at_work.contains(&image.0)
    }

    /// The recorded images that no volume is made from and no operation is about.
    pub(in super::super) fn unused_images(&self) -> impl Iterator<Item = &Image> {
        self.images.values().filter(|image| {
            image.state == ImageState::Ready
                && !self.at_work.contains(&image.id.0)
                && !self.needed.iter().any(|(_, needed)| *needed == image.id)
        })
    }

    /// The former roots whose time has passed, with their VMs. Those of deleted VMs
    /// and of VMs that an operation holds are not due.
    pub(super) fn expired_roots(&self) -> impl Iterator<Item = &(VmId, Volume)> {
        self.volumes.values().filter(|(vm, volume)| {
            expired(volume) && !self.deleted.contains(vm) && !self.at_work.contains(&volume.id.0)
        })
    }

    /// Whether an operation at work makes the temporary file of this name, which
    /// has the id of what it becomes in it.
    pub(super) fn makes(&self, name: &str) -> bool {
        self.at_work
            .iter()
            .any(|id| name.contains(&id.hyphenated().to_string()))
    }

    /// Whether what an orphan in a pool was taken for is accounted for.
    pub(super) fn accounts_for_file(&self, orphan: &Orphan) -> bool {
        let pool = orphan.pool.as_str();
        match orphan.kind {
            OrphanKind::Volume => {
                file_id(&orphan.name).is_none_or(|id| self.has_volume(pool, VolumeId(id)))
            }
            OrphanKind::Image => {
                file_id(&orphan.name).is_none_or(|id| self.image(ImageId(id)).is_some())
            }
            OrphanKind::CachedImage => file_id(&orphan.name).is_none_or(|id| {
                let id = ImageId(id);
                self.needs(pool, id)
                    || self.at_work.contains(&id.0)
                    || self.image(id).is_none_or(|image| image.pool == pool)
            }),
            OrphanKind::Temporary => self.makes(&orphan.name),
            OrphanKind::UnusedImage
            | OrphanKind::Domain
            | OrphanKind::ExpiredRoot
            | OrphanKind::ConsoleLog
            | OrphanKind::ForeignDomain
            | OrphanKind::ForeignFile => false,
        }
    }
}

/// The id in the name of a volume's or image's file.
fn file_id(name: &str) -> Option<Uuid> {
    let file = name.rsplit('/').next()?;
    Uuid::try_parse(file.split('.').next()?).ok()
}
