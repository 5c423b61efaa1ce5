//! RBD's trash: where what is removed waits for its end.
//!
//! What was put there with a time that is over is removed for ever, by whichever
//! host comes first; what was put there by hand without a time is left alone.

use super::super::CephPoolState;
use super::super::error::{StorageError, StorageErrorKind};
use super::super::task::Task;
use super::answers::Trashed;
use super::{BASE, FRESH, IMAGE, RbdPool, SURE, VOLUME, id_in};
use crate::faultpoint;
use crate::model::ids::{ImageId, VolumeId};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Removing data goes object by object.
const REMOVAL: Duration = Duration::from_secs(1800);

impl RbdPool {
    /// Moves something to the trash; without an expiry, removes it at once.
    pub(super) fn trash(&self, spec: &str) -> Result<(), StorageError> {
        faultpoint::reach_blocking("pool.remove.begun");
        let removed = if self.spec.trash_expiry.is_zero() {
            self.remove_now(spec)
        } else {
            let end = SystemTime::now() + self.spec.trash_expiry;
            let end = end.duration_since(UNIX_EPOCH).unwrap_or_default();
            // It is read by date(1): seconds since 1970.
            let end = format!("@{}", end.as_secs());
            let (pool, _) = spec.split_once('/').unwrap_or_default();
            // To move it is to write, which in a full pool waits; to remove it there
            // and then is not what was configured.
            let is_full = |age| matches!(self.usage_of(pool, age), Ok((_, CephPoolState::Full)));
            if is_full(FRESH) && is_full(SURE) {
                let message = format!("the Ceph pool {pool} is full: {spec} can't be moved");
                return Err(StorageError::new(StorageErrorKind::Full, message));
            }
            let moved = self.rbd(&["trash", "mv", "--expires-at", &end, spec]);
            moved.map(drop).map_err(|error| self.explain(pool, error))
        };
        match removed {
            // Somebody else was faster.
            Err(error) if error.kind() == StorageErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn remove_now(&self, spec: &str) -> Result<(), StorageError> {
        let task = Task::within(REMOVAL);
        if spec.contains(&format!("/{IMAGE}")) {
            let base = format!("{spec}@{BASE}");
            self.cluster.rbd(&["snap", "unprotect", &base], &task)?;
            self.cluster
                .rbd(&["snap", "rm", "--no-progress", &base], &task)?;
        }
        self.cluster
            .rbd(&["rm", "--no-progress", spec], &task)
            .map(drop)
    }

    /// Removes what has had its time in these pools' trash.
    pub(super) fn empty(&self, pools: &[String]) -> Result<Vec<String>, StorageError> {
        let mut removed = Vec::new();
        for pool in pools {
            let trashed: Option<Vec<Trashed>> = self
                .cluster
                .rbd_json(pool, &["trash", "ls", "--all", "--long", pool])?;
            for entry in trashed.unwrap_or_default() {
                let image = id_in::<ImageId>(IMAGE, &entry.name).is_some();
                let ours = image || id_in::<VolumeId>(VOLUME, &entry.name).is_some();
                if !ours || entry.source != "USER" || !entry.has_had_its_time() {
                    continue;
                }
                match self.remove_for_ever(pool, &entry.id, image) {
                    Ok(()) => removed.push(format!("{pool}/{}", entry.name)),
                    // Another host is at it, or something still is a clone of it.
                    Err(error)
                        if matches!(
                            error.kind(),
                            StorageErrorKind::InUse | StorageErrorKind::NotFound
                        ) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(removed)
    }

    fn remove_for_ever(&self, pool: &str, id: &str, image: bool) -> Result<(), StorageError> {
        let task = Task::within(REMOVAL);
        if image {
            let which = ["--pool", pool, "--image-id", id, "--snap", BASE];
            match self
                .cluster
                .rbd(&[&["snap", "unprotect"], &which[..]].concat(), &task)
            {
                // A former try came this far: EINVAL, ENOENT.
                Err(error)
                    if !matches!(
                        error.kind(),
                        StorageErrorKind::ToolFailed | StorageErrorKind::NotFound
                    ) =>
                {
                    return Err(error);
                }
                _ => {}
            }
            match self.cluster.rbd(
                &[&["snap", "rm", "--no-progress"], &which[..]].concat(),
                &task,
            ) {
                Err(error) if error.kind() != StorageErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let spec = format!("{pool}/{id}");
        let removed = self
            .cluster
            .rbd(&["trash", "rm", "--no-progress", &spec], &task);
        match removed {
            // EPERM: it is shown as expired a part of a second before it is.
            Err(error) if error.kind() == StorageErrorKind::Forbidden => {
                Err(StorageError::in_use(&spec, vec!["its expiry".to_owned()]))
            }
            removed => removed.map(drop),
        }
    }
}
