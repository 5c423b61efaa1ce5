//! A pool that is made of Ceph pools: RBD images of one cluster.
//!
//! ```text
//! <image pool>/img-<image id>@base   an image, by its protected snapshot
//! <Ceph pool>/vol-<volume id>        a volume: a clone of that, or of its own
//! <image pool>/tmp-<node>-img-<id>   an import that is being made by this host
//! ```
//!
//! Other hosts use the same Ceph pools, so nothing is taken for garbage that
//! doesn't carry this host's own name, and nothing is removed that anybody has
//! open. What is removed goes to RBD's trash with an expiry.
//!
//! A clone costs the same whatever the size of its image. RBD makes it under its
//! name at once; where it is to be larger than the image, it is grown after that,
//! and a volume that was cut off in between is grown when it is made again.

mod answers;
mod cluster;
mod import;
mod parts;
mod trash;
mod version;
mod volume;

pub use self::cluster::{CephSecret, Keyring};
pub(crate) use self::import::{file_name, size_of};
pub use self::version::ceph_version;
use self::volume::whole;

use self::answers::{Child, Du, Info, Snapshot, Status};
use self::cluster::{Cluster, PoolsState, QUICK};
use super::durable::make_folders;
use super::error::{StorageError, StorageErrorKind};
use super::source::{self, CheckedSource};
use super::task::Task;
use super::{
    Backing, CephPoolUsage, Entry, EntryKind, ImageFile, Pool, PoolUsage, Removal, VolumeFile,
};
use crate::faultpoint;
use crate::model::bytes::Bytes;
use crate::model::ids::{ImageId, VolumeId};
use crate::model::image::ImageFormat;
use crate::model::volume::{CephMonitor, DiskSource, PoolKind, RbdSource, VolumeKind, VolumeRef};
use glob::Pattern;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// The snapshot of an image that volumes are clones of.
const BASE: &str = "base";
const IMAGE: &str = "img-";
const VOLUME: &str = "vol-";
const TEMPORARY: &str = "tmp-";
/// How old the figures of the Ceph pools may be. They are asked for twice a minute
/// anyway; asking takes Ceph's tool half a second.
const FRESH: Duration = Duration::from_secs(60);
/// How old they may be where a request names the Ceph pool.
const NAMED: Duration = Duration::from_secs(5);
/// How old they may be before a pool is said to be full.
const SURE: Duration = Duration::from_secs(1);
/// How old they may be to be shown.
const SHOWN: Duration = Duration::from_secs(3600);
/// For how long an image that was seen is taken to be there: whoever makes a volume
/// from it finds out. That saves a process for each replacement of a root.
const SEEN: Duration = Duration::from_secs(30);

/// What a pool of Ceph pools is made from.
#[derive(Debug, Clone)]
pub struct RbdPoolSpec {
    /// The cluster's configuration file.
    pub conf: PathBuf,
    /// The user, without `client.`.
    pub user: String,
    /// Where the user's key is.
    pub keyring: Keyring,
    /// The Ceph pool of the images.
    pub image_pool: String,
    /// The Ceph pool of root volumes that name none.
    pub root_pool: String,
    /// The Ceph pool of data volumes.
    pub data_pool: String,
    /// The Ceph pools that may be named for a root volume.
    pub allowed_root_pools: Vec<Pattern>,
    /// How long what is removed stays in the trash; zero: not at all.
    pub trash_expiry: Duration,
    /// The folder of this host in which imports are fetched and checked.
    pub scratch: PathBuf,
    /// This host's id: the name of what it is making.
    pub node: Uuid,
}

/// Ceph pools of one cluster.
#[derive(Debug)]
pub struct RbdPool {
    name: String,
    spec: RbdPoolSpec,
    cluster: Cluster,
    /// What is known of images, which never change, and when they were seen last.
    images: Mutex<HashMap<ImageId, (Instant, ImageFile)>>,
}

impl RbdPool {
    /// Names a pool; touches nothing.
    pub fn new(name: impl Into<String>, spec: RbdPoolSpec) -> Self {
        Self {
            name: name.into(),
            cluster: Cluster::new(spec.conf.clone(), spec.user.clone(), spec.keyring.clone()),
            spec,
            images: Mutex::default(),
        }
    }

    /// Where the cluster's configuration says that its monitors are. Asks nobody.
    ///
    /// # Errors
    /// The file can't be read, or names none.
    pub fn monitors(&self) -> Result<Vec<CephMonitor>, StorageError> {
        self.cluster.read_monitors()
    }

    /// Proves that the cluster lets the user in, has the pools that are needed, and
    /// that these answer; changes nothing. Blocks for as long as Ceph's tools wait.
    ///
    /// # Errors
    /// Why it can't be used.
    pub fn examine(&self) -> Result<(), StorageError> {
        self.cluster.prepare()?;
        let state = self.cluster.pools(FRESH)?;
        let needed = BTreeSet::from([
            &self.spec.image_pool,
            &self.spec.root_pool,
            &self.spec.data_pool,
        ]);
        for name in needed {
            if !state.0.contains_key(name) {
                return Err(StorageError::new(
                    StorageErrorKind::CephPoolMissing,
                    format!("the cluster has no pool {name}"),
                ));
            }
            // The monitors answer for OSDs that hang.
            self.cluster.needs_pool(name)?;
        }
        Ok(())
    }

    /// The Ceph pool that a volume is in.
    fn pool_of<'a>(&'a self, volume: &'a VolumeRef) -> &'a str {
        volume.ceph_pool.as_deref().unwrap_or(&self.spec.root_pool)
    }

    fn volume_spec(&self, volume: &VolumeRef) -> String {
        format!("{}/{VOLUME}{}", self.pool_of(volume), volume.id)
    }

    fn image_spec(&self, id: ImageId) -> String {
        format!("{}/{IMAGE}{id}", self.spec.image_pool)
    }

    fn base_spec(&self, id: ImageId) -> String {
        format!("{}@{BASE}", self.image_spec(id))
    }

    /// The name of an import that this host is making.
    fn temporary_spec(&self, id: ImageId) -> String {
        format!("{}/{}img-{id}", self.spec.image_pool, self.temporary())
    }

    /// How the names of what this host is making begin.
    fn temporary(&self) -> String {
        format!("{TEMPORARY}{}-", self.spec.node.simple())
    }

    fn allows(&self, ceph_pool: &str) -> bool {
        ceph_pool == self.spec.root_pool
            || (self.spec.allowed_root_pools.iter()).any(|allowed| allowed.matches(ceph_pool))
    }

    /// Runs `rbd` for something quick.
    fn rbd(&self, arguments: &[&str]) -> Result<Vec<u8>, StorageError> {
        self.cluster.rbd(arguments, &Task::within(QUICK))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<ImageId, (Instant, ImageFile)>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a guest of an image would see.
    fn virtual_size(&self, id: ImageId) -> Result<Bytes, StorageError> {
        if let Some((_, known)) = self.known().get(&id) {
            return Ok(known.virtual_size);
        }
        let image = self.image(id)?.ok_or_else(|| self.no_image(id))?;
        Ok(image.virtual_size)
    }

    fn no_image(&self, id: ImageId) -> StorageError {
        let message = format!("the pool {} has no image {id}", self.name);
        StorageError::new(StorageErrorKind::NotFound, message)
    }

    /// The space that something takes; none if it is gone.
    fn used(&self, pool: &str, spec: &str) -> Result<Bytes, StorageError> {
        let du: Option<Du> = self.cluster.rbd_json(pool, &["du", spec])?;
        Ok(du.map_or(Bytes::ZERO, |du| du.used()))
    }

    /// The clients that have something open.
    fn watchers(&self, pool: &str, spec: &str) -> Result<Vec<String>, StorageError> {
        let status: Option<Status> = self.cluster.rbd_json(pool, &["status", spec])?;
        let watchers = status.map(|status| status.watchers).unwrap_or_default();
        Ok(watchers
            .into_iter()
            .map(|watcher| format!("client.{} at {}", watcher.client, watcher.address))
            .collect())
    }

    /// The volumes and others that are clones of an image, those in the trash included.
    fn children(&self, id: ImageId) -> Result<Vec<Child>, StorageError> {
        let base = self.base_spec(id);
        let pool = &self.spec.image_pool;
        let children = self.cluster.rbd_json(pool, &["children", "--all", &base])?;
        Ok(children.unwrap_or_default())
    }
}

impl Pool for RbdPool {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> PoolKind {
        PoolKind::Rbd
    }

    fn is_shared(&self) -> bool {
        true
    }

    /// The administrator makes Ceph pools.
    fn is_made(&self) -> bool {
        true
    }

    fn prepare(&self) -> Result<(), StorageError> {
        make_folders(&self.spec.scratch, 0o700)?;
        self.examine()
    }

    /// librbd has a cache of its own, which keeps what the guest flushes.
    fn direct_io(&self) -> bool {
        false
    }

    fn place(
        &self,
        kind: VolumeKind,
        ceph_pool: Option<&str>,
    ) -> Result<Option<String>, StorageError> {
        let Some(wanted) = ceph_pool else {
            return Ok(Some(match kind {
                VolumeKind::Root => self.spec.root_pool.clone(),
                VolumeKind::Data => self.spec.data_pool.clone(),
            }));
        };
        if !self.allows(wanted) {
            return Err(StorageError::new(
                StorageErrorKind::CephPoolNotAllowed,
                format!(
                    "{wanted} is not among the allowed root pools of {}",
                    self.name
                ),
            ));
        }
        self.usage_of(wanted, NAMED)?;
        Ok(Some(wanted.to_owned()))
    }

    fn usage(&self, ceph_pool: Option<&str>) -> Result<PoolUsage, StorageError> {
        let pool = ceph_pool.unwrap_or(&self.spec.root_pool);
        self.usage_of(pool, FRESH).map(|(usage, _)| usage)
    }

    fn ceph_pools(&self) -> Vec<CephPoolUsage> {
        self.shown_pools()
    }

    fn secret(&self) -> Result<Option<CephSecret>, StorageError> {
        self.cluster.secret().map(Some)
    }

    fn scratch(&self) -> &Path {
        &self.spec.scratch
    }

    fn image(&self, id: ImageId) -> Result<Option<ImageFile>, StorageError> {
        let known = self.known().get(&id).copied();
        if let Some((seen, file)) = known
            && seen.elapsed() < SEEN
        {
            return Ok(Some(file));
        }
        let (pool, base) = (&self.spec.image_pool, self.base_spec(id));
        let Some(info) = self.cluster.rbd_json::<Info>(pool, &["info", &base])? else {
            self.known().remove(&id);
            return Ok(None);
        };
        if let Some((_, file)) = known {
            self.known().insert(id, (Instant::now(), file));
            return Ok(Some(file));
        }
        let found = ImageFile {
            virtual_size: info.size,
            actual_size: self.used(pool, &base)?,
        };
        self.known().insert(id, (Instant::now(), found));
        Ok(Some(found))
    }

    fn put_image(
        &self,
        id: ImageId,
        source: &CheckedSource,
        task: &Task,
    ) -> Result<ImageFile, StorageError> {
        if let Some(there) = self.image(id)? {
            return Ok(there);
        }
        faultpoint::reach_blocking("pool.put-image.begun");
        let from = source.path().as_os_str();
        let (size, data) = (source.virtual_size(), source.data_size());
        self.import(id, (from, source.format()), size, data, task)
    }

    fn copy_image_from(
        &self,
        id: ImageId,
        source: &DiskSource,
        task: &Task,
    ) -> Result<ImageFile, StorageError> {
        if let Some(there) = self.image(id)? {
            return Ok(there);
        }
        match source {
            DiskSource::File(path) => {
                let found = import::look_at_file(path)?;
                let from: (&OsStr, _) = (path.as_os_str(), ImageFormat::Qcow2);
                self.import(id, from, found.virtual_size, found.actual_size, task)
            }
            DiskSource::Rbd(image) => {
                let (size, data) = size_of(image, task)?;
                let from = file_name(image);
                self.import(id, (&from, ImageFormat::Raw), size, data, task)
            }
        }
    }

    fn volumes_on(&self, id: ImageId) -> Result<Vec<VolumeId>, StorageError> {
        Ok(self
            .children(id)?
            .iter()
            .filter(|child| !child.trash)
            .filter_map(|child| id_in(VOLUME, &child.image))
            .collect())
    }

    fn delete_image(&self, id: ImageId) -> Result<(), StorageError> {
        let (pool, spec) = (self.spec.image_pool.clone(), self.image_spec(id));
        let Some(_) = self.cluster.rbd_json::<Info>(&pool, &["info", &spec])? else {
            return Ok(());
        };
        let mut users: Vec<String> = self
            .children(id)?
            .into_iter()
            .filter(|child| !child.trash)
            .map(|child| format!("{}/{}", child.pool, child.image))
            .collect();
        users.extend(self.watchers(&pool, &spec)?);
        if !users.is_empty() {
            return Err(StorageError::in_use(&spec, users));
        }
        self.known().remove(&id);
        // With its snapshot: volumes in the trash may still be clones of it.
        self.trash(&spec)
    }

    fn image_source(&self, id: ImageId) -> DiskSource {
        DiskSource::Rbd(Box::new(RbdSource {
            pool: self.spec.image_pool.clone(),
            image: format!("{IMAGE}{id}"),
            snapshot: Some(BASE.to_owned()),
            access: self.cluster.access(),
        }))
    }

    fn create_overlay(
        &self,
        volume: &VolumeRef,
        image: ImageId,
        size: Bytes,
        task: &Task,
    ) -> Result<VolumeFile, StorageError> {
        let size = whole(size)?;
        let least = self.virtual_size(image)?;
        if size < least {
            let message = format!("{size} for an image of {least}");
            return Err(StorageError::new(StorageErrorKind::BadSize, message));
        }
        let (base, spec) = (self.base_spec(image), self.volume_spec(volume));
        let command = ["clone", &base, &spec];
        let made = self.create(volume, size, Backing::Image(image), &command, least, task);
        if matches!(&made, Err(error) if error.kind() == StorageErrorKind::NotFound) {
            // It was there when it was last looked at.
            self.known().remove(&image);
        }
        made
    }

    fn create_empty(
        &self,
        volume: &VolumeRef,
        size: Bytes,
        task: &Task,
    ) -> Result<VolumeFile, StorageError> {
        let size = whole(size)?;
        let (spec, bytes) = (self.volume_spec(volume), format!("{}B", size.get()));
        let command = ["create", "--size", &bytes, &spec];
        self.create(volume, size, Backing::Nothing, &command, size, task)
    }

    fn volume(&self, volume: &VolumeRef) -> Result<Option<VolumeFile>, StorageError> {
        let (pool, spec) = (self.pool_of(volume), self.volume_spec(volume));
        let found: Option<Info> = self.cluster.rbd_json(pool, &["info", &spec])?;
        Ok(found.map(|info| VolumeFile {
            virtual_size: info.size,
            backing: match info.parent {
                None => Backing::Nothing,
                Some(parent) => {
                    let ours = parent.pool == self.spec.image_pool && parent.snapshot == BASE;
                    match id_in(IMAGE, &parent.image).filter(|_| ours) {
                        Some(image) => Backing::Image(image),
                        None => Backing::Foreign(format!(
                            "{}/{}@{}",
                            parent.pool, parent.image, parent.snapshot
                        )),
                    }
                }
            },
        }))
    }

    fn actual_size(&self, volume: &VolumeRef) -> Result<Option<Bytes>, StorageError> {
        let (pool, spec) = (self.pool_of(volume), self.volume_spec(volume));
        let du: Option<Du> = self.cluster.rbd_json(pool, &["du", &spec])?;
        Ok(du.map(|du| du.used()))
    }

    fn holders(&self, volume: &VolumeRef) -> Result<Vec<String>, StorageError> {
        self.watchers(self.pool_of(volume), &self.volume_spec(volume))
    }

    fn delete_volume(&self, volume: &VolumeRef) -> Result<(), StorageError> {
        let (pool, spec) = (self.pool_of(volume), self.volume_spec(volume));
        let found = match self.cluster.rbd_json::<Info>(pool, &["info", &spec]) {
            // All that was in it is gone with it.
            Err(error) if error.kind() == StorageErrorKind::CephPoolMissing => return Ok(()),
            found => found?,
        };
        let Some(info) = found else {
            return Ok(());
        };
        let mut users = Vec::new();
        if info.snapshot_count > 0 {
            let snapshots = self
                .cluster
                .rbd_json::<Vec<Snapshot>>(pool, &["snap", "ls", &spec])?;
            for Snapshot { name } in snapshots.unwrap_or_default() {
                let of = format!("{spec}@{name}");
                let children: Option<Vec<Child>> =
                    self.cluster.rbd_json(pool, &["children", "--all", &of])?;
                for child in children.unwrap_or_default() {
                    users.push(format!("the clone {}/{}", child.pool, child.image));
                }
                users.push(format!("the snapshot {name}"));
            }
        }
        users.extend(self.watchers(pool, &spec)?);
        if !users.is_empty() {
            return Err(StorageError::in_use(&spec, users));
        }
        self.trash(&spec)
    }

    fn volume_source(&self, volume: &VolumeRef) -> DiskSource {
        DiskSource::Rbd(Box::new(RbdSource {
            pool: self.pool_of(volume).to_owned(),
            image: format!("{VOLUME}{}", volume.id),
            snapshot: None,
            access: self.cluster.access(),
        }))
    }

    fn entries(&self) -> Result<Vec<Entry>, StorageError> {
        let pool = &self.spec.image_pool;
        let listed: Option<Vec<String>> = self.cluster.rbd_json(pool, &["ls", pool])?;
        let ours = self.temporary();
        let mut entries = Vec::new();
        for image in listed.unwrap_or_default() {
            let name = format!("{pool}/{image}");
            let (kind, actual_size) = match id_in(IMAGE, &image) {
                // Of those there may be many, and nobody asks what they take.
                Some(id) => (EntryKind::Image(id), Bytes::ZERO),
                None if image.starts_with(&ours) => (EntryKind::Temporary, self.used(pool, &name)?),
                None => continue,
            };
            entries.push(Entry {
                kind,
                name,
                actual_size,
                modified: None,
                generation: 0,
            });
        }
        Ok(entries)
    }

    /// Only what this host is making itself is ever listed as nobody's.
    fn remove_entry(&self, name: &str, _: u64) -> Result<Removal, StorageError> {
        let prefix = format!("{}/{}", self.spec.image_pool, self.temporary());
        if !name.starts_with(&prefix) {
            let message = format!("{name:?} is not something that this host was making");
            return Err(StorageError::new(StorageErrorKind::Denied, message));
        }
        Ok(match self.discard_former(name, &Task::within(QUICK))? {
            true => Removal::Removed,
            false => Removal::Absent,
        })
    }

    /// Nothing is made from what is not finished.
    fn entry_source(&self, _: &str) -> Result<Option<DiskSource>, StorageError> {
        Ok(None)
    }

    fn files(&self) -> Result<Vec<(PathBuf, EntryKind)>, StorageError> {
        Ok(Vec::new())
    }

    fn stands_on(
        &self,
        what: &DiskSource,
        disks: &[String],
    ) -> Result<Option<String>, StorageError> {
        let name = what.name();
        Ok(disks.iter().find(|disk| **disk == name).cloned())
    }

    fn was_at(&self, _: &VolumeRef, _: &Path) -> Result<bool, StorageError> {
        Ok(false)
    }

    fn sweep_temporary(&self, keep: &[ImageId]) -> Result<Vec<String>, StorageError> {
        let mut removed = source::sweep(&self.spec.scratch, keep)?;
        for entry in self.entries()? {
            if entry.kind == EntryKind::Temporary && self.sweep_one(&entry.name)? {
                removed.push(entry.name);
            }
        }
        Ok(removed)
    }

    fn empty_trash(&self) -> Result<Vec<String>, StorageError> {
        let state: Arc<PoolsState> = self.cluster.pools(FRESH)?;
        let mut pools = self.volume_pools(&state);
        // Images last: volumes in the trash are clones of them.
        pools.retain(|pool| *pool != self.spec.image_pool);
        pools.push(self.spec.image_pool.clone());
        self.empty(&pools)
    }
}

/// The id in a name of ours.
fn id_in<T: std::str::FromStr>(prefix: &str, name: &str) -> Option<T> {
    let id = name.strip_prefix(prefix)?;
    // Ids have more than one spelling, names have one.
    (id.len() == 36).then(|| id.parse().ok()).flatten()
}
