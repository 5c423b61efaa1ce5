//! Volumes: what a VM's disks are stored in.

use super::bytes::Bytes;
use super::ids::{ImageId, VolumeId};
use super::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A volume of a VM: attached to it, or an old root that is still kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id; also the name of its file or RBD image.
    pub id: VolumeId,
    /// A name for people.
    pub name: String,
    /// The pool that holds it.
    pub pool: String,
    /// Root or data.
    pub kind: VolumeKind,
    /// How its bytes are laid out.
    pub format: VolumeFormat,
    /// The image it was made from.
    pub image_id: Option<ImageId>,
    /// What the guest sees.
    pub size: Bytes,
    /// Space it took in its pool when last measured.
    pub actual_size: Bytes,
    /// Whether and where it is attached.
    pub attachment: VolumeAttachment,
    /// Several VMs may write to it at once.
    pub shareable: bool,
    /// Limits on the guest's use of it.
    pub qos: VolumeQos,
    /// Removed with the VM when that is expunged; else left in its pool.
    pub delete_with_vm: bool,
    /// When it was made.
    pub create_time: Timestamp,
    /// Free text.
    #[serde(default)]
    pub description: String,
    /// Carried.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// Whether and where a volume is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeAttachment {
    /// A disk of the VM, at this place from 0 (the root) on.
    Attached {
        /// Place among the VM's disks.
        device_index: u32,
    },
    /// A former root, kept for RevertRootVolume until this time.
    Kept {
        /// When the sweeper may remove it.
        until: Timestamp,
    },
}

/// What a volume is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeKind {
    /// The disk that the VM starts from.
    Root,
    /// Any other.
    Data,
}

/// How a volume's bytes are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeFormat {
    /// A qcow2 file.
    Qcow2,
    /// Plain bytes (RBD).
    Raw,
}

/// Limits on the guest's use of a volume; zero is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeQos {
    /// Read and written bytes a second.
    pub bytes_per_second: u64,
    /// Reads and writes a second.
    pub iops: u64,
    /// Read bytes a second; not with `bytes_per_second`.
    pub read_bytes_per_second: u64,
    /// Written bytes a second; not with `bytes_per_second`.
    pub write_bytes_per_second: u64,
    /// Reads a second; not with `iops`.
    pub read_iops: u64,
    /// Writes a second; not with `iops`.
    pub write_iops: u64,
}

/// What a pool is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolKind {
    /// A directory of qcow2 files.
    Qcow2,
    /// A Ceph RBD pool.
    Rbd,
}

/// Where QEMU finds a volume's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// A file on this host, by its absolute path.
    File(PathBuf),
}
