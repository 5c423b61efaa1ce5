//! Volumes: what a VM's disks are stored in.

use super::bytes::Bytes;
use super::ids::{ImageId, VolumeId};
use super::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use uuid::Uuid;

/// A volume of a VM: attached to it, or an old root that is still kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id; also the name of its file or RBD image.
    pub id: VolumeId,
    /// A name for people.
    pub name: String,
    /// The pool that holds it.
    pub pool: String,
    /// The Ceph pool that it is in, for pools of kind RBD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceph_pool: Option<String>,
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

impl Volume {
    /// How its pool finds it.
    pub fn reference(&self) -> VolumeRef {
        VolumeRef {
            id: self.id,
            ceph_pool: self.ceph_pool.clone(),
        }
    }
}

/// What finds a volume in its pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VolumeRef {
    /// Its id.
    pub id: VolumeId,
    /// The Ceph pool that it is in, for pools of kind RBD.
    pub ceph_pool: Option<String>,
}

impl From<VolumeId> for VolumeRef {
    /// A volume of a pool that has no parts.
    fn from(id: VolumeId) -> Self {
        Self {
            id,
            ceph_pool: None,
        }
    }
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
    /// An RBD image.
    Rbd(Box<RbdSource>),
}

impl DiskSource {
    /// Its name, as libvirt and QEMU give it: a path, or `pool/image`.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Rbd(image) => format!("{}/{}", image.pool, image.image),
        }
    }
}

/// An RBD image, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RbdSource {
    /// The Ceph pool.
    pub pool: String,
    /// The image in it.
    pub image: String,
    /// The snapshot of it, for what is only read.
    pub snapshot: Option<String>,
    /// The cluster.
    pub access: CephAccess,
}

/// How a Ceph cluster is reached; without the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CephAccess {
    /// The cluster's configuration file.
    pub conf: PathBuf,
    /// The user, without `client.`.
    pub user: String,
    /// The file that holds the user's key.
    pub keyring: PathBuf,
    /// The monitors, as the configuration file names them.
    pub monitors: Vec<CephMonitor>,
    /// The id under which libvirt knows the user's key.
    pub secret: Uuid,
}

/// Where a Ceph monitor listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CephMonitor {
    /// Its name or address; IPv6 without brackets.
    pub host: String,
    /// Its port, unless one of the usual ones.
    pub port: Option<u16>,
}
