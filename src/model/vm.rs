//! A VM as kvmlet records it.

use super::bytes::Bytes;
use super::hardware::Hardware;
use super::ids::{ImageId, OperationId, VmId, VolumeId};
use super::lifecycle::Seen;
use super::nic::Nic;
use super::request::CreateVm;
use super::time::Timestamp;
use super::volume::{Volume, VolumeAttachment};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// What is recorded of a VM: all that was asked for, and what was last seen.
///
/// The same record is in the journal and, without secrets (it has none), in the
/// metadata of the VM's domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its id; also the UUID of its domain.
    pub id: VmId,
    /// A name for people.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Values to select by.
    pub labels: BTreeMap<String, String>,
    /// Carried.
    pub annotations: BTreeMap<String, String>,
    /// Carried.
    pub package: String,
    /// Carried.
    pub platform: String,
    /// Carried.
    pub os: String,
    /// The image that its root volume was made from.
    pub image_id: ImageId,
    /// The profile that its hardware came from.
    pub hardware_profile_id: Option<String>,
    /// Its hardware, with every choice made.
    pub hardware: Hardware,
    /// What runs it.
    pub hypervisor: Hypervisor,
    /// Its volumes: attached ones, and former roots that are kept.
    pub volumes: Vec<Volume>,
    /// Its network interfaces.
    pub nics: Vec<Nic>,
    /// Whether it has a display.
    pub vnc: bool,
    /// Tags with a meaning, as given.
    pub system_tags: Vec<String>,
    /// Tags that are carried.
    pub user_tags: Vec<String>,
    /// Counts changes of what was asked for, from 1.
    pub generation: u64,
    /// When it was asked for.
    pub create_time: Timestamp,
    /// When it last changed, or was seen to have changed.
    pub update_time: Timestamp,
    /// How far its life has come.
    pub life: Life,
    /// What was last seen of its domain.
    pub seen: Seen,
    /// The host it last had power on.
    pub last_host_id: Option<Uuid>,
    /// The operation that made it.
    pub created_by: OperationId,
    /// What was asked for then, to know a repeat.
    pub created_as: CreateVm,
}

/// How far a VM's life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// CreateVm is at work.
    Making,
    /// It has a domain, or should have one.
    Present,
    /// CreateVm failed and was undone.
    Failed,
    /// Deleted; everything is kept.
    Deleted {
        /// When it was deleted.
        delete_time: Timestamp,
        /// When the sweeper may expunge it.
        expunge_time: Timestamp,
    },
    /// ExpungeVm is past its point of no return.
    Expunging,
}

/// What runs a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hypervisor {
    /// QEMU with KVM.
    Kvm,
    /// QEMU with its own translator.
    Qemu,
    /// libvirt's simulated host.
    Test,
}

impl Hypervisor {
    /// The name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Qemu => "QEMU",
            Self::Test => "TEST",
        }
    }
}

impl Vm {
    /// The volumes that are its disks, by device index.
    pub fn disks(&self) -> Vec<&Volume> {
        let mut disks: Vec<(u32, &Volume)> = self
            .volumes
            .iter()
            .filter_map(|volume| match volume.attachment {
                VolumeAttachment::Attached { device_index } => Some((device_index, volume)),
                VolumeAttachment::Kept { .. } => None,
            })
            .collect();
        disks.sort_by_key(|(index, _)| *index);
        disks.into_iter().map(|(_, volume)| volume).collect()
    }

    /// Its root volume; `None` only of a VM whose record is incomplete.
    pub fn root(&self) -> Option<&Volume> {
        self.disks().into_iter().next()
    }

    /// One of its volumes.
    pub fn volume(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.id == id)
    }

    /// The former roots that are kept, the last replaced one last.
    pub fn kept_roots(&self) -> Vec<&Volume> {
        // Replacing pushes the old root to the end of the list.
        self.volumes
            .iter()
            .filter(|volume| matches!(volume.attachment, VolumeAttachment::Kept { .. }))
            .collect()
    }

    /// Makes `next` (already among the volumes) the root, and keeps the present
    /// root until `until`. Does nothing if `next` is the root already.
    pub fn switch_root(&mut self, next: VolumeId, until: Timestamp) {
        let Some(old) = self.root().map(|root| root.id) else {
            return;
        };
        if old == next {
            return;
        }
        if let Some(at) = self.volumes.iter().position(|volume| volume.id == old) {
            let mut volume = self.volumes.remove(at);
            volume.attachment = VolumeAttachment::Kept { until };
            self.volumes.push(volume);
        }
        if let Some(volume) = self.volumes.iter_mut().find(|volume| volume.id == next) {
            volume.attachment = VolumeAttachment::Attached { device_index: 0 };
            if let Some(image) = volume.image_id {
                self.image_id = image;
            }
        }
    }

    /// Memory that it takes of the host while it has power.
    pub const fn memory(&self) -> Bytes {
        self.hardware.memory
    }
}
