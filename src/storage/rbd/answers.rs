//! What Ceph's tools print as JSON, as far as it is read.

use crate::model::bytes::Bytes;
use serde::Deserialize;

/// `rbd info`.
#[derive(Debug, Deserialize)]
pub(super) struct Info {
    pub(super) size: Bytes,
    #[serde(default)]
    pub(super) snapshot_count: u32,
    pub(super) parent: Option<Parent>,
}

/// What an image is a clone of.
#[derive(Debug, Deserialize)]
pub(super) struct Parent {
    pub(super) pool: String,
    pub(super) image: String,
    pub(super) snapshot: String,
}

/// `rbd du`.
#[derive(Debug, Deserialize)]
pub(super) struct Du {
    pub(super) images: Vec<DuImage>,
}

impl Du {
    /// What all of it takes.
    pub(super) fn used(&self) -> Bytes {
        self.images.iter().fold(Bytes::ZERO, |sum, image| {
            sum.saturating_add(image.used_size)
        })
    }
}

/// One line of `rbd du`: the image, or a snapshot of it.
#[derive(Debug, Deserialize)]
pub(super) struct DuImage {
    pub(super) used_size: Bytes,
}

/// `rbd status`.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    #[serde(default)]
    pub(super) watchers: Vec<Watcher>,
}

/// A client that has an image open.
#[derive(Debug, Deserialize)]
pub(super) struct Watcher {
    pub(super) address: String,
    pub(super) client: u64,
}

/// One of `rbd snap ls`.
#[derive(Debug, Deserialize)]
pub(super) struct Snapshot {
    pub(super) name: String,
}

/// One of `rbd children --all`.
#[derive(Debug, Deserialize)]
pub(super) struct Child {
    pub(super) pool: String,
    pub(super) image: String,
    #[serde(default)]
    pub(super) trash: bool,
}

/// One of `rbd trash ls --all --long`.
#[derive(Debug, Deserialize)]
pub(super) struct Trashed {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) source: String,
    pub(super) deleted_at: String,
    pub(super) status: String,
}

impl Trashed {
    /// Whether it was given a time, and that is over. Who moves something there by
    /// hand and names no time gets one that is over at once: that is not meant.
    pub(super) fn has_had_its_time(&self) -> bool {
        self.status
            .strip_prefix("expired at ")
            .is_some_and(|end| end != self.deleted_at)
    }
}

/// `ceph df detail`.
#[derive(Debug, Deserialize)]
pub(super) struct Df {
    pub(super) pools: Vec<DfPool>,
}

/// A pool of `ceph df detail`.
#[derive(Debug, Deserialize)]
pub(super) struct DfPool {
    pub(super) name: String,
    pub(super) stats: DfStats,
}

/// The figures of a pool; bytes.
#[derive(Debug, Deserialize)]
pub(super) struct DfStats {
    pub(super) stored: u64,
    pub(super) max_avail: u64,
}

/// One of `ceph osd pool ls detail`.
#[derive(Debug, Deserialize)]
pub(super) struct PoolFlags {
    pub(super) pool_name: String,
    #[serde(default)]
    pub(super) quota_max_bytes: u64,
    flags_names: String,
}

impl PoolFlags {
    /// Whether a flag is set.
    pub(super) fn has(&self, flag: &str) -> bool {
        self.flags_names.split(',').any(|name| name == flag)
    }
}
