//! Making a volume: one command of the cluster's, and one more where it is to be
//! larger than its image.

use super::super::error::{StorageError, StorageErrorKind};
use super::super::inspect::{DEFAULT_MAX_VIRTUAL_SIZE, SECTOR};
use super::super::task::Task;
use super::super::{Backing, CephPoolState, Pool, VolumeFile};
use super::{RbdPool, SURE};
use crate::faultpoint;
use crate::model::bytes::Bytes;
use crate::model::volume::VolumeRef;

impl RbdPool {
    /// Compares a volume that is there with the one that was asked for. One that is
    /// what RBD cloned and nobody has grown yet is grown.
    fn same_volume(
        &self,
        volume: &VolumeRef,
        size: Bytes,
        backing: &Backing,
    ) -> Result<VolumeFile, StorageError> {
        let there = self.volume(volume)?.ok_or_else(|| {
            let message = format!("{} vanished", self.volume_spec(volume));
            StorageError::new(StorageErrorKind::Io, message)
        })?;
        if there.backing == *backing {
            if there.virtual_size == size {
                return Ok(there);
            }
            if let Backing::Image(image) = backing
                && there.virtual_size == self.virtual_size(*image)?
                && there.virtual_size < size
            {
                return self.grow(volume, size, backing);
            }
        }
        let message = format!(
            "{} exists with {}, {:?}",
            self.volume_spec(volume),
            there.virtual_size,
            there.backing
        );
        Err(StorageError::new(StorageErrorKind::Exists, message))
    }

    fn grow(
        &self,
        volume: &VolumeRef,
        size: Bytes,
        backing: &Backing,
    ) -> Result<VolumeFile, StorageError> {
        let (spec, bytes) = (self.volume_spec(volume), format!("{}B", size.get()));
        match self.rbd(&["resize", "--no-progress", "--size", &bytes, &spec]) {
            // EINVAL: somebody who makes the same volume has grown it meanwhile.
            Err(error) if error.kind() == StorageErrorKind::ToolFailed => {
                let there = self.volume(volume)?;
                if there.is_none_or(|there| there.virtual_size != size) {
                    return Err(error);
                }
            }
            Err(error) => return Err(self.explain(self.pool_of(volume), error)),
            Ok(_) => {}
        }
        Ok(VolumeFile {
            virtual_size: size,
            backing: backing.clone(),
        })
    }

    /// After a tool gave up: a full pool doesn't refuse what is written to it, it
    /// lets it wait.
    pub(super) fn explain(&self, pool: &str, error: StorageError) -> StorageError {
        if !matches!(
            error.kind(),
            StorageErrorKind::Away | StorageErrorKind::DeadlinePassed
        ) {
            return error;
        }
        match self.cluster.pools(SURE) {
            Ok(state) => match state.0.get(pool) {
                Some((_, CephPoolState::Full)) => {
                    let message = format!("the Ceph pool {pool} is full, or at its quota");
                    StorageError::caused(StorageErrorKind::Full, message, error)
                }
                _ => error,
            },
            Err(_) => error,
        }
    }

    /// Makes a volume by this command, unless the same one is there.
    pub(super) fn create(
        &self,
        volume: &VolumeRef,
        size: Bytes,
        backing: Backing,
        command: &[&str],
        made: Bytes,
        task: &Task,
    ) -> Result<VolumeFile, StorageError> {
        let pool = self.pool_of(volume);
        faultpoint::reach_blocking("pool.create.begun");
        match self.cluster.rbd(command, task) {
            Ok(_) => {}
            Err(error) if error.kind() == StorageErrorKind::Exists => {
                return self.same_volume(volume, size, &backing);
            }
            Err(error) if error.kind() == StorageErrorKind::NotFound => {
                self.cluster.needs_pool(pool)?;
                return Err(error);
            }
            Err(error) => return Err(self.explain(pool, error)),
        }
        faultpoint::reach_blocking("pool.create.written");
        if made < size {
            return self.grow(volume, size, &backing);
        }
        Ok(VolumeFile {
            virtual_size: size,
            backing,
        })
    }
}

/// A size in whole sectors.
pub(super) fn whole(size: Bytes) -> Result<Bytes, StorageError> {
    size.round_up(SECTOR)
        .filter(|&size| size > Bytes::ZERO && size <= DEFAULT_MAX_VIRTUAL_SIZE)
        .ok_or_else(|| StorageError::new(StorageErrorKind::BadSize, format!("a volume of {size}")))
}
