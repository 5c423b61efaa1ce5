//! The Ceph pools that a pool is made of: which, and how they fare.

use super::super::error::{StorageError, StorageErrorKind};
use super::super::{CephPoolState, CephPoolUsage, PoolUsage};
use super::cluster::PoolsState;
use super::{RbdPool, SHOWN};
use crate::model::bytes::Bytes;
use std::time::Duration;

impl RbdPool {
    /// The Ceph pools in which volumes of this pool may be.
    pub(super) fn volume_pools(&self, state: &PoolsState) -> Vec<String> {
        let all = state.0.keys();
        let used = all.filter(|name| self.allows(name) || **name == self.spec.data_pool);
        used.cloned().collect()
    }

    /// The figures of one Ceph pool, at most so old.
    pub(super) fn usage_of(
        &self,
        name: &str,
        age: Duration,
    ) -> Result<(PoolUsage, CephPoolState), StorageError> {
        if let Some(found) = self.cluster.pools(age)?.0.get(name) {
            return Ok(*found);
        }
        // It may have been made a moment ago: that is quickly asked.
        self.cluster.needs_pool(name)?;
        let found = self.cluster.pools(Duration::ZERO)?.0.get(name).copied();
        found.ok_or_else(|| {
            StorageError::new(
                StorageErrorKind::CephPoolMissing,
                format!("the cluster has no pool {name} any more"),
            )
        })
    }

    /// Those that are used or may be, as last measured.
    pub(super) fn shown_pools(&self) -> Vec<CephPoolUsage> {
        let Some(state) = self.cluster.known_pools(SHOWN) else {
            return Vec::new();
        };
        let mut names = self.volume_pools(&state);
        names.extend([
            self.spec.image_pool.clone(),
            self.spec.root_pool.clone(),
            self.spec.data_pool.clone(),
        ]);
        names.sort_unstable();
        names.dedup();
        let missing = PoolUsage {
            capacity: Bytes::ZERO,
            free: Bytes::ZERO,
            near_full: false,
        };
        names
            .into_iter()
            .map(|name| {
                let found = state.0.get(&name).copied();
                let (usage, state) = found.unwrap_or((missing, CephPoolState::Missing));
                CephPoolUsage { name, usage, state }
            })
            .collect()
    }
}
