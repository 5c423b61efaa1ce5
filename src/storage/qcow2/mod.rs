//! A pool that is a folder of qcow2 files.
//!
//! ```text
//! <pool>/images/<image id>.qcow2     cached bases, 0444, never changed
//! <pool>/volumes/<volume id>.qcow2   overlays on ../images/…, or empty disks
//! <pool>/tmp/                        what is being made
//! <pool>/.kvmlet.lock                held by the one process that uses it
//! ```
//!
//! Backing files are named relative to the volume, so a pool may be moved or
//! mounted elsewhere. The folders can be entered by the user that QEMU runs as
//! (libvirt gives it the volumes, one by one), but not listed by it.

mod chain;
mod claim;
mod copy;
mod listing;

use self::copy::verify;
use self::listing::{SUFFIX, generation, id_in, list, on_disk, read_folder};
use super::durable::{self, make_folder, make_folders, publish, temporary};
use super::error::{StorageError, StorageErrorKind};
use super::inspect::{DEFAULT_MAX_VIRTUAL_SIZE, Qcow2Header, SECTOR};
use super::source::{self, CheckedSource};
use super::task::Task;
use super::{
    Backing, CephPoolUsage, CephSecret, Entry, EntryKind, ImageFile, Pool, PoolUsage, Removal,
    VolumeFile, qemu_img, qemu_lock,
};
use crate::faultpoint;
use crate::model::bytes::Bytes;
use crate::model::ids::{ImageId, VolumeId};
use crate::model::volume::{DiskSource, PoolKind, VolumeKind, VolumeRef};
use nix::fcntl::Flock;
use nix::sys::statvfs::statvfs;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

const LOCK: &str = ".kvmlet.lock";
const IMAGES: &str = "images";
const VOLUMES: &str = "volumes";
const TEMPORARY: &str = "tmp";

/// What is told of who has a file open: QEMU's locks don't name their owner.
const HOLDER: &str = "a process of this host";

const IMAGE_MODE: u32 = 0o444;
/// libvirt gives a volume to QEMU's user before a guest starts.
const VOLUME_MODE: u32 = 0o600;

/// A folder of qcow2 files on this host.
#[derive(Debug)]
pub struct Qcow2Pool {
    name: String,
    path: PathBuf,
    images: PathBuf,
    volumes: PathBuf,
    temporary: PathBuf,
    direct_io: AtomicBool,
    lock: Mutex<Option<Flock<File>>>,
}

impl Qcow2Pool {
    /// Names a pool in the folder `path`, an absolute one; touches nothing.
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            name: name.into(),
            images: path.join(IMAGES),
            volumes: path.join(VOLUMES),
            temporary: path.join(TEMPORARY),
            path,
            direct_io: AtomicBool::new(false),
            lock: Mutex::new(None),
        }
    }

    fn image_path(&self, id: ImageId) -> PathBuf {
        self.images.join(format!("{id}{SUFFIX}"))
    }

    fn volume_path(&self, id: VolumeId) -> PathBuf {
        self.volumes.join(format!("{id}{SUFFIX}"))
    }

    /// Fails unless this process holds the pool, and the folder is still the one
    /// that it holds. Two that change one pool would remove what the other is
    /// making; and what can't be seen in a pool that was moved or unmounted is not
    /// gone.
    fn ours(&self) -> Result<(), StorageError> {
        let held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lock) = held.as_ref() else {
            return Err(StorageError::new(
                StorageErrorKind::Denied,
                format!("the pool {} is not held by this process", self.name),
            ));
        };
        let failed = |e| StorageError::io(format!("looking at {}", self.path.display()), e);
        let held = lock.metadata().map_err(failed)?;
        match self.path.join(LOCK).metadata() {
            Ok(there) if (there.dev(), there.ino()) == (held.dev(), held.ino()) => Ok(()),
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(e)),
            _ => Err(StorageError::new(
                StorageErrorKind::Io,
                format!("{} was moved away or unmounted", self.path.display()),
            )),
        }
    }

    /// The path of a file that the listing has named; what is not directly in one
    /// of our folders is refused.
    fn entry_path(&self, name: &str) -> Result<PathBuf, StorageError> {
        let ours = name.split_once('/').filter(|(folder, file)| {
            [IMAGES, VOLUMES, TEMPORARY].contains(folder)
                && !file.is_empty()
                && !file.contains('/')
                && !matches!(*file, "." | "..")
        });
        match ours {
            Some((folder, file)) => Ok(self.path.join(folder).join(file)),
            None => Err(StorageError::new(
                StorageErrorKind::Denied,
                format!("{name:?} is not in one of the pool's own folders"),
            )),
        }
    }

    /// Makes a volume's file, unless the same one is there.
    fn create(
        &self,
        id: VolumeId,
        size: Bytes,
        image: Option<ImageId>,
        task: &Task,
    ) -> Result<VolumeFile, StorageError> {
        self.ours()?;
        let size = size
            .round_up(SECTOR)
            .filter(|&size| size > Bytes::ZERO && size <= DEFAULT_MAX_VIRTUAL_SIZE)
            .ok_or_else(|| {
                StorageError::new(StorageErrorKind::BadSize, format!("a volume of {size}"))
            })?;
        let backing = image.map_or(Backing::Nothing, Backing::Image);
        if let Some(there) = self.look(id)? {
            return same_volume(id, there, size, &backing);
        }
        let file = temporary(&self.temporary, &format!("volume-{id}-"))?;
        let base = image.map(|image| format!("../{IMAGES}/{image}{SUFFIX}"));
        faultpoint::reach_blocking("pool.create.begun");
        qemu_img::create(&file, size, base.as_deref(), task)?;
        faultpoint::reach_blocking("pool.create.written");
        match publish(file, VOLUME_MODE, &self.volume_path(id)) {
            Err(e) if e.kind() != StorageErrorKind::Exists => return Err(e),
            // Somebody was faster, or we were: either way, look what is there.
            _ => {}
        }
        let there = self.look(id)?.ok_or_else(|| {
            StorageError::new(StorageErrorKind::Io, format!("the volume {id} vanished"))
        })?;
        same_volume(id, there, size, &backing)
    }

    /// Reads a volume's header; `None` when it isn't there.
    fn look(&self, id: VolumeId) -> Result<Option<VolumeFile>, StorageError> {
        let Some((header, _)) = read_header(&self.volume_path(id))? else {
            self.ours()?;
            return Ok(None);
        };
        let backing = match header.backing_file {
            None => Backing::Nothing,
            Some(name) => {
                let prefix = format!("../{IMAGES}/");
                match name
                    .strip_prefix(prefix.as_str())
                    .and_then(id_in::<ImageId>)
                {
                    Some(image) => Backing::Image(image),
                    None => Backing::Foreign(name),
                }
            }
        };
        Ok(Some(VolumeFile {
            virtual_size: header.virtual_size,
            backing,
        }))
    }

    /// Gives a finished image its name.
    fn publish_image(
        &self,
        id: ImageId,
        file: tempfile::TempPath,
    ) -> Result<ImageFile, StorageError> {
        match publish(file, IMAGE_MODE, &self.image_path(id)) {
            Err(e) if e.kind() != StorageErrorKind::Exists => return Err(e),
            _ => {}
        }
        self.image(id)?.ok_or_else(|| {
            StorageError::new(StorageErrorKind::Io, format!("the image {id} vanished"))
        })
    }

    /// Fails with `Full` when less than this is free.
    fn need(&self, needed: Bytes, what: &str) -> Result<(), StorageError> {
        let free = self.usage(None)?.free;
        if needed > free {
            let message = format!("{what} may take {needed}, {free} are free in {}", self.name);
            return Err(StorageError::new(StorageErrorKind::Full, message));
        }
        Ok(())
    }

    /// Removes a disk file that no QEMU has open.
    fn remove(&self, path: &Path) -> Result<(), StorageError> {
        self.ours()?;
        let failed = |e| StorageError::io(format!("removing {}", path.display()), e);
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        if qemu_lock::is_held(&file).map_err(|e| failed(e.into()))? {
            return Err(StorageError::in_use(
                &path.display().to_string(),
                vec![HOLDER.to_owned()],
            ));
        }
        durable::remove(path)
    }
}

impl Pool for Qcow2Pool {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> PoolKind {
        PoolKind::Qcow2
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn is_made(&self) -> bool {
        self.volumes.is_dir()
    }

    fn prepare(&self) -> Result<(), StorageError> {
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            // QEMU's user must be able to enter every folder above, too.
            make_folders(&self.path, 0o711)?;
            let lock = claim::lock(&self.path.join(LOCK))?;
            make_folder(&self.images, 0o755)?;
            make_folder(&self.volumes, 0o711)?;
            make_folder(&self.temporary, 0o700)?;
            let device = |path: &Path| {
                let found = path.metadata().map(|found| found.dev());
                found.map_err(|e| StorageError::io(format!("looking at {}", path.display()), e))
            };
            let home = device(&self.temporary)?;
            if device(&self.images)? != home || device(&self.volumes)? != home {
                return Err(StorageError::new(
                    StorageErrorKind::Io,
                    format!("{} spans several file systems", self.path.display()),
                ));
            }
            self.direct_io
                .store(claim::probe(&self.temporary)?, Ordering::Relaxed);
            *held = Some(lock);
        }
        Ok(())
    }

    fn direct_io(&self) -> bool {
        self.direct_io.load(Ordering::Relaxed)
    }

    fn place(
        &self,
        _: VolumeKind,
        ceph_pool: Option<&str>,
    ) -> Result<Option<String>, StorageError> {
        match ceph_pool {
            None => Ok(None),
            Some(_) => Err(StorageError::new(
                StorageErrorKind::NotCeph,
                format!("the pool {} is made of qcow2 files", self.name),
            )),
        }
    }

    fn ceph_pools(&self) -> Vec<CephPoolUsage> {
        Vec::new()
    }

    fn secret(&self) -> Result<Option<CephSecret>, StorageError> {
        Ok(None)
    }

    fn usage(&self, _: Option<&str>) -> Result<PoolUsage, StorageError> {
        self.ours()?;
        let found = statvfs(&self.path).map_err(|e| {
            StorageError::io(format!("measuring {}", self.path.display()), e.into())
        })?;
        let bytes = |blocks: u64| Bytes(blocks.saturating_mul(found.fragment_size()));
        Ok(PoolUsage {
            capacity: bytes(found.blocks()),
            free: bytes(found.blocks_available()),
            near_full: false,
        })
    }

    fn scratch(&self) -> &Path {
        &self.temporary
    }

    fn image(&self, id: ImageId) -> Result<Option<ImageFile>, StorageError> {
        let Some((header, found)) = read_header(&self.image_path(id))? else {
            self.ours()?;
            return Ok(None);
        };
        Ok(Some(ImageFile {
            virtual_size: header.virtual_size,
            actual_size: on_disk(&found),
        }))
    }

    fn put_image(
        &self,
        id: ImageId,
        source: &CheckedSource,
        task: &Task,
    ) -> Result<ImageFile, StorageError> {
        self.ours()?;
        if let Some(there) = self.image(id)? {
            return Ok(there);
        }
        let size = source.virtual_size();
        self.need(qemu_img::file_bound(size, source.data_size()), "the image")?;
        let file = temporary(&self.temporary, &format!("image-{id}-"))?;
        let data = source.data_size();
        faultpoint::reach_blocking("pool.put-image.begun");
        qemu_img::convert(
            source.path().as_os_str(),
            source.format(),
            &file,
            size,
            data,
            task,
        )?;
        verify(&file, size, task)?;
        faultpoint::reach_blocking("pool.put-image.written");
        self.publish_image(id, file)
    }

    fn copy_image_from(
        &self,
        id: ImageId,
        source: &DiskSource,
        task: &Task,
    ) -> Result<ImageFile, StorageError> {
        self.ours()?;
        if let Some(there) = self.image(id)? {
            return Ok(there);
        }
        let (file, size) = match source {
            DiskSource::File(path) => self.copy_file(id, path, task)?,
            DiskSource::Rbd(image) => self.copy_rbd(id, image, task)?,
        };
        verify(&file, size, task)?;
        faultpoint::reach_blocking("pool.copy-image.written");
        self.publish_image(id, file)
    }

    fn volumes_on(&self, id: ImageId) -> Result<Vec<VolumeId>, StorageError> {
        let mut overlays = Vec::new();
        for (entry, _) in read_folder(&self.volumes)? {
            let Some(volume) = entry.file_name().to_str().and_then(id_in::<VolumeId>) else {
                continue;
            };
            if self
                .look(volume)?
                .is_some_and(|found| found.backing == Backing::Image(id))
            {
                overlays.push(volume);
            }
        }
        Ok(overlays)
    }

    fn delete_image(&self, id: ImageId) -> Result<(), StorageError> {
        let overlays = self.volumes_on(id)?;
        if !overlays.is_empty() {
            let users = overlays.iter().map(ToString::to_string).collect();
            return Err(StorageError::in_use(&format!("the image {id}"), users));
        }
        self.remove(&self.image_path(id))
    }

    fn image_source(&self, id: ImageId) -> DiskSource {
        DiskSource::File(self.image_path(id))
    }

    fn create_overlay(
        &self,
        volume: &VolumeRef,
        image: ImageId,
        size: Bytes,
        task: &Task,
    ) -> Result<VolumeFile, StorageError> {
        let base = self.image(image)?.ok_or_else(|| {
            let message = format!("the pool {} has no image {image}", self.name);
            StorageError::new(StorageErrorKind::NotFound, message)
        })?;
        if size < base.virtual_size {
            let message = format!("{size} for an image of {}", base.virtual_size);
            return Err(StorageError::new(StorageErrorKind::BadSize, message));
        }
        self.create(volume.id, size, Some(image), task)
    }

    fn create_empty(
        &self,
        volume: &VolumeRef,
        size: Bytes,
        task: &Task,
    ) -> Result<VolumeFile, StorageError> {
        self.create(volume.id, size, None, task)
    }

    fn volume(&self, volume: &VolumeRef) -> Result<Option<VolumeFile>, StorageError> {
        self.look(volume.id)
    }

    fn actual_size(&self, volume: &VolumeRef) -> Result<Option<Bytes>, StorageError> {
        let path = self.volume_path(volume.id);
        match path.metadata() {
            Ok(found) => Ok(Some(on_disk(&found))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.ours().map(|()| None),
            Err(e) => Err(StorageError::io(
                format!("looking at {}", path.display()),
                e,
            )),
        }
    }

    fn holders(&self, volume: &VolumeRef) -> Result<Vec<String>, StorageError> {
        let path = self.volume_path(volume.id);
        let failed = |e| StorageError::io(format!("looking at {}", path.display()), e);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        Ok(
            if qemu_lock::is_held(&file).map_err(|e| failed(e.into()))? {
                vec![HOLDER.to_owned()]
            } else {
                Vec::new()
            },
        )
    }

    fn delete_volume(&self, volume: &VolumeRef) -> Result<(), StorageError> {
        self.remove(&self.volume_path(volume.id))
    }

    fn volume_source(&self, volume: &VolumeRef) -> DiskSource {
        DiskSource::File(self.volume_path(volume.id))
    }

    fn entries(&self) -> Result<Vec<Entry>, StorageError> {
        let mut entries = Vec::new();
        let ours = [LOCK, IMAGES, VOLUMES, TEMPORARY, "lost+found"];
        list(&self.path, &self.path, &mut entries, |name| {
            (!ours.contains(&name)).then_some(EntryKind::Unknown)
        })?;
        list(&self.path, &self.images, &mut entries, |name| {
            Some(id_in(name).map_or(EntryKind::Unknown, EntryKind::Image))
        })?;
        list(&self.path, &self.volumes, &mut entries, |name| {
            Some(id_in(name).map_or(EntryKind::Unknown, EntryKind::Volume))
        })?;
        list(&self.path, &self.temporary, &mut entries, |_| {
            Some(EntryKind::Temporary)
        })?;
        Ok(entries)
    }

    fn remove_entry(&self, name: &str, expected: u64) -> Result<Removal, StorageError> {
        self.ours()?;
        let path = self.entry_path(name)?;
        let found = match path.symlink_metadata() {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Removal::Absent),
            Err(e) => {
                return Err(StorageError::io(
                    format!("looking at {}", path.display()),
                    e,
                ));
            }
        };
        if !found.is_file() || generation(&found) != expected {
            return Ok(Removal::Changed);
        }
        self.remove(&path)?;
        Ok(Removal::Removed)
    }

    fn entry_source(&self, name: &str) -> Result<Option<DiskSource>, StorageError> {
        self.entry_path(name).map(DiskSource::File).map(Some)
    }

    fn files(&self) -> Result<Vec<(PathBuf, EntryKind)>, StorageError> {
        self.ours()?;
        let entries = self.entries()?.into_iter();
        Ok(entries
            .map(|entry| (self.path.join(entry.name), entry.kind))
            .collect())
    }

    fn stands_on(
        &self,
        what: &DiskSource,
        disks: &[String],
    ) -> Result<Option<String>, StorageError> {
        self.ours()?;
        match what {
            DiskSource::File(path) => chain::stands_on(path, disks),
            DiskSource::Rbd(_) => Ok(None),
        }
    }

    fn was_at(&self, volume: &VolumeRef, path: &Path) -> Result<bool, StorageError> {
        self.ours()?;
        let now = self.volume_path(volume.id);
        let failed = |path: &Path, e| StorageError::io(format!("looking at {}", path.display()), e);
        let now = match now.metadata() {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(failed(&now, e)),
        };
        match path.metadata() {
            Ok(found) => Ok((found.dev(), found.ino()) == (now.dev(), now.ino())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(e) => Err(failed(path, e)),
        }
    }

    fn sweep_temporary(&self, keep: &[ImageId]) -> Result<Vec<String>, StorageError> {
        self.ours()?;
        source::sweep(&self.temporary, keep)
    }

    fn empty_trash(&self) -> Result<Vec<String>, StorageError> {
        Ok(Vec::new())
    }
}

/// Compares a volume that is there with the one that was asked for.
fn same_volume(
    id: VolumeId,
    there: VolumeFile,
    size: Bytes,
    backing: &Backing,
) -> Result<VolumeFile, StorageError> {
    if there.virtual_size == size && there.backing == *backing {
        return Ok(there);
    }
    let message = format!(
        "the volume {id} exists with {}, {:?}",
        there.virtual_size, there.backing
    );
    Err(StorageError::new(StorageErrorKind::Exists, message))
}

/// Reads the header of a file of ours; `None` when it isn't there.
fn read_header(path: &Path) -> Result<Option<(Qcow2Header, Metadata)>, StorageError> {
    let failed = |e| StorageError::io(format!("reading {}", path.display()), e);
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let found = file.metadata().map_err(failed)?;
    Ok(Some((Qcow2Header::read(&mut file)?, found)))
}
