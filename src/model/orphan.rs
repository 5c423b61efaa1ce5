//! Orphans: what lies on the host and is in no record, or should be gone.

use super::bytes::Bytes;
use super::ids::{ImageId, VmId};
use super::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Something on the host that no VM or image accounts for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    /// Its id: made from its kind, pool and name, so that it stays the same.
    pub id: super::ids::OrphanId,
    /// Changes when the thing does.
    pub generation: u64,
    /// What it is.
    pub kind: OrphanKind,
    /// The pool it is in; empty if in none.
    pub pool: String,
    /// Its name in its pool, in the folder of console logs, or in libvirt.
    pub name: String,
    /// Space that it takes.
    pub size: Bytes,
    /// When it was last written; `None` where nobody knows.
    pub modify_time: Option<Timestamp>,
    /// Why it is thought to be what it is.
    pub evidence: String,
    /// The image that it is, or that it is an overlay on.
    pub image_id: Option<ImageId>,
    /// The VM whose it is, or was.
    pub vm_id: Option<VmId>,
    /// Until when it was to be kept.
    pub expire_time: Option<Timestamp>,
}

/// What an orphan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrphanKind {
    /// A volume that no VM has.
    Volume,
    /// An image's file without a record.
    Image,
    /// A copy of a recorded image, in a pool where no volume needs it.
    CachedImage,
    /// A recorded image that no volume is made from.
    UnusedImage,
    /// Something that was being made and no operation makes any more.
    Temporary,
    /// A domain with kvmlet's metadata that is no VM's.
    Domain,
    /// A former root volume whose time has passed.
    ExpiredRoot,
    /// The console's log of a VM that is gone.
    ConsoleLog,
    /// Somebody else's domain.
    ForeignDomain,
    /// Somebody else's file in a pool.
    ForeignFile,
}

impl OrphanKind {
    /// Its stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Volume => "volume",
            Self::Image => "image",
            Self::CachedImage => "cached-image",
            Self::UnusedImage => "unused-image",
            Self::Temporary => "temporary",
            Self::Domain => "domain",
            Self::ExpiredRoot => "expired-root",
            Self::ConsoleLog => "console-log",
            Self::ForeignDomain => "foreign-domain",
            Self::ForeignFile => "foreign-file",
        }
    }

    /// Whether it is somebody else's, and never touched.
    pub const fn is_foreign(self) -> bool {
        matches!(self, Self::ForeignDomain | Self::ForeignFile)
    }
}

/// A number that differs when any of the parts does, the same in every version.
pub fn fingerprint(parts: &[&[u8]]) -> u64 {
    // FNV-1a; each part ends with a byte of its own, so that parts don't run
    // into one another.
    let bytes = parts.iter().flat_map(|part| part.iter().chain(&[0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
