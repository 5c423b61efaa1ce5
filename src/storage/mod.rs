//! Storage: where images and volumes live.
//!
//! A [`Pool`] is one place that holds them. The trait is narrow on purpose: it
//! says what a VM's life needs, not how a backend does it, so that a directory
//! of qcow2 files and a Ceph pool can both be one.
//!
//! Invariant: a name in a pool's images or volumes always belongs to a whole
//! thing. What takes time to make is made under another name, synced, and renamed
//! into place, so a crash at any moment leaves either nothing or the finished
//! thing, and at most something temporary that [`Pool::sweep_temporary`] finds.
//! (A volume that RBD has cloned and not yet grown is the exception: making it
//! again finishes it.)
//!
//! Everything here blocks: the service calls it from its bounded pool of
//! threads. It keeps no record of what should exist; that is the journal's.

mod ask;
mod command;
mod durable;
mod error;
mod folder;
pub mod inspect;
mod qcow2;
mod qemu_img;
mod qemu_lock;
mod rbd;
pub mod source;
mod task;

pub use ask::{Answer, ask};
pub use error::{BadImageKind, StorageError, StorageErrorKind};
pub use folder::{FolderTrial, try_folder};
pub use qcow2::Qcow2Pool;
pub use qemu_img::qemu_img_version;
pub use rbd::{CephSecret, Keyring, RbdPool, RbdPoolSpec, ceph_version};
pub use source::{CheckedSource, ImageSource, SourcePolicy, SourceRequest, UrlPrefix};
pub use task::Task;

use crate::model::bytes::Bytes;
use crate::model::ids::{ImageId, VolumeId};
use crate::model::volume::{DiskSource, PoolKind, VolumeKind, VolumeRef};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// One place that holds images and volumes.
///
/// Calls on different ids may run at the same time. Two calls that make or
/// remove the same id are the caller's to serialise; if they meet all the same,
/// one of them wins whole and the other fails, and no file is half made.
pub trait Pool: Send + Sync {
    /// Returns the name that the configuration gives it.
    fn name(&self) -> &str;

    /// Returns what it is made of.
    fn kind(&self) -> PoolKind;

    /// Tells whether other hosts use it too, so that what is in none of this host's
    /// records may be theirs.
    fn is_shared(&self) -> bool;

    /// Tells whether the pool was made before and is in its place; not so for the
    /// empty mount point of a file system that is not mounted.
    fn is_made(&self) -> bool;

    /// Takes the pool for this process, makes what is missing in it, and proves
    /// by writing that it can be used; called once at start, repeats are free.
    ///
    /// Fails with `InUse` when another process holds the pool. Until it has
    /// succeeded, whatever measures or changes the pool fails with `Denied`; and
    /// with `Io` when its folder is no longer the one that was taken.
    fn prepare(&self) -> Result<(), StorageError>;

    /// Tells whether guests may bypass the host's page cache (`cache=none`);
    /// known after [`Pool::prepare`], false before.
    fn direct_io(&self) -> bool;

    /// Decides where a new volume goes: into the Ceph pool of this name, else into
    /// the usual one for its kind. `None` for a pool that is not made of Ceph pools.
    ///
    /// Fails with `NotCeph`, with `CephPoolNotAllowed`, or with `CephPoolMissing`
    /// when the cluster has it not.
    fn place(
        &self,
        kind: VolumeKind,
        ceph_pool: Option<&str>,
    ) -> Result<Option<String>, StorageError>;

    /// Measures how much it can hold and how much is free, where `ceph_pool` says or
    /// root volumes usually go. At most some seconds old.
    fn usage(&self, ceph_pool: Option<&str>) -> Result<PoolUsage, StorageError>;

    /// Returns the Ceph pools that it uses or may use, as last measured; none for a
    /// pool that is not made of such.
    fn ceph_pools(&self) -> Vec<CephPoolUsage>;

    /// Returns what libvirt must know to open its volumes, if anything.
    fn secret(&self) -> Result<Option<CephSecret>, StorageError>;

    /// Returns the folder on this host in which imports into this pool are
    /// fetched and checked before they become images.
    fn scratch(&self) -> &Path;

    /// Measures an image; `None` when the pool doesn't have it.
    fn image(&self, id: ImageId) -> Result<Option<ImageFile>, StorageError>;

    /// Makes an image from a source that passed its checks.
    ///
    /// The source is read under CPU and memory limits. An image that is already
    /// there is measured and returned as it is. Progress counts bytes of the
    /// virtual disk. Fails with `Full` before anything is written when the pool
    /// hasn't the space that the image could take.
    fn put_image(
        &self,
        id: ImageId,
        source: &CheckedSource,
        task: &Task,
    ) -> Result<ImageFile, StorageError>;

    /// Caches an image that another pool holds, found by that pool's
    /// [`Pool::image_source`]; already there is success.
    fn copy_image_from(
        &self,
        id: ImageId,
        source: &DiskSource,
        task: &Task,
    ) -> Result<ImageFile, StorageError>;

    /// Returns the volumes of this pool that are overlays on an image.
    fn volumes_on(&self, id: ImageId) -> Result<Vec<VolumeId>, StorageError>;

    /// Removes an image; absent is success. Fails with `InUse` while a volume
    /// of this pool is an overlay on it or a process has it open as a disk.
    fn delete_image(&self, id: ImageId) -> Result<(), StorageError>;

    /// Returns where QEMU finds an image; doesn't look whether it is there.
    fn image_source(&self, id: ImageId) -> DiskSource;

    /// Makes a volume that starts as a copy of an image of this pool, at a cost
    /// that doesn't depend on the image's size.
    ///
    /// `size` is rounded up to whole sectors of 512 bytes; `BadSize` when that
    /// is less than the image. `NotFound` when the pool hasn't the image. The
    /// same volume already there is success, another one is `Exists`.
    fn create_overlay(
        &self,
        volume: &VolumeRef,
        image: ImageId,
        size: Bytes,
        task: &Task,
    ) -> Result<VolumeFile, StorageError>;

    /// Makes a volume of zeroes; sizes and repeats as in
    /// [`Pool::create_overlay`].
    fn create_empty(
        &self,
        volume: &VolumeRef,
        size: Bytes,
        task: &Task,
    ) -> Result<VolumeFile, StorageError>;

    /// Looks at a volume; `None` when the pool doesn't have it. A running guest is
    /// not disturbed.
    fn volume(&self, volume: &VolumeRef) -> Result<Option<VolumeFile>, StorageError>;

    /// Measures the space that a volume takes in the pool; `None` when the pool
    /// doesn't have it.
    fn actual_size(&self, volume: &VolumeRef) -> Result<Option<Bytes>, StorageError>;

    /// Returns who has a volume open as a disk, in words such as a client's address;
    /// nobody if the pool doesn't have it.
    fn holders(&self, volume: &VolumeRef) -> Result<Vec<String>, StorageError>;

    /// Removes a volume; absent is success. Its data is gone for ever, or, in a pool
    /// with a trash, when its time there is over. Fails with `InUse`, and names the
    /// users, while someone has it open as a disk or something stands on it.
    fn delete_volume(&self, volume: &VolumeRef) -> Result<(), StorageError>;

    /// Returns where QEMU finds a volume; doesn't look whether it is there.
    fn volume_source(&self, volume: &VolumeRef) -> DiskSource;

    /// Lists everything in the pool, also what isn't ours, in no order. Of a shared
    /// pool only what is this host's own by its name, and finished images.
    fn entries(&self) -> Result<Vec<Entry>, StorageError>;

    /// Removes a finished or half-made file by the name that [`Pool::entries`] gave
    /// it, if it is still the same by its generation. Fails with `InUse` while a
    /// process has it open as a disk; what stands on it is the caller's to ask.
    fn remove_entry(&self, name: &str, generation: u64) -> Result<Removal, StorageError>;

    /// Returns where the entry of this name is; `None` in a pool that keeps no files.
    fn entry_source(&self, name: &str) -> Result<Option<DiskSource>, StorageError>;

    /// Lists the files of the pool with their paths, whatever they are; none in a pool
    /// that keeps no files.
    fn files(&self) -> Result<Vec<(PathBuf, EntryKind)>, StorageError>;

    /// Tells which of these disks, given as QEMU is, is `what` or stands on it through
    /// its backing files. A disk that can't be read counts only for itself. What in a
    /// Ceph cluster stands on an image the cluster knows.
    fn stands_on(
        &self,
        what: &DiskSource,
        disks: &[String],
    ) -> Result<Option<String>, StorageError>;

    /// Tells whether `path` is where a volume that is in its place now was before, so
    /// that a definition which names the path means the volume: nothing is there any
    /// more, or the same file. False in a pool that keeps no files.
    fn was_at(&self, volume: &VolumeRef, path: &Path) -> Result<bool, StorageError>;

    /// Removes what a former process left half made, and returns the names.
    ///
    /// Downloads of the imports in `keep` stay, to be resumed. To be called
    /// before the first image or volume is made, because work in progress looks
    /// the same.
    fn sweep_temporary(&self, keep: &[ImageId]) -> Result<Vec<String>, StorageError>;

    /// Removes for ever what has had its time in the trash, and returns the names.
    fn empty_trash(&self) -> Result<Vec<String>, StorageError>;
}

/// How much a pool can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolUsage {
    /// All of it.
    pub capacity: Bytes,
    /// What can still be written by this process.
    pub free: Bytes,
    /// It is so close to its end that nothing new should be made in it.
    pub near_full: bool,
}

/// A Ceph pool, as last measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CephPoolUsage {
    /// Its name.
    pub name: String,
    /// Its space.
    pub usage: PoolUsage,
    /// Whether the cluster has it and it takes data.
    pub state: CephPoolState,
}

/// Whether a Ceph pool takes data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CephPoolState {
    /// It does.
    Ready,
    /// It does, and is close to where it won't.
    NearFull,
    /// It is full, or at its quota.
    Full,
    /// The cluster has no such pool.
    Missing,
}

/// An image as its pool holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageFile {
    /// What a guest would see.
    pub virtual_size: Bytes,
    /// Space that it takes in the pool.
    pub actual_size: Bytes,
}

/// A volume as its pool holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeFile {
    /// What the guest sees.
    pub virtual_size: Bytes,
    /// What it reads where it has no data of its own.
    pub backing: Backing,
}

/// What a volume reads where it has no data of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// Zeroes.
    Nothing,
    /// An image of the same pool.
    Image(ImageId),
    /// Something that this pool didn't make, as its header names it.
    Foreign(String),
}

/// One thing in a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is, as far as its name tells.
    pub kind: EntryKind,
    /// Its name inside the pool.
    pub name: String,
    /// Space that it takes in the pool; for a folder, without what is in it.
    pub actual_size: Bytes,
    /// When it was last written, if the pool tells.
    pub modified: Option<SystemTime>,
    /// Another number for another thing under this name, and when it was changed.
    pub generation: u64,
}

/// What came of removing an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is gone.
    Removed,
    /// It was gone already.
    Absent,
    /// Under its name is something else now, which was left.
    Changed,
}

/// What a thing in a pool is, as far as its name tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A volume, finished.
    Volume(VolumeId),
    /// An image, finished.
    Image(ImageId),
    /// Something being made, or left half made by a former process.
    Temporary,
    /// Not ours.
    Unknown,
}
