//! What callers may ask for, after its form has been checked and before any
//! default is filled in.
//!
//! These values are compared with one another ("the same request again?"), so
//! they hold just what the caller said.

use super::access::Role;
use super::bytes::Bytes;
use super::hardware::{Accelerator, Cpu, Firmware};
use super::ids::{ImageId, NicId, RequestId, VmId, VolumeId};
use super::image::ImageFormat;
use super::nic::{Attachment, MacAddress, NicModel};
use super::stop::OnTimeout;
use super::trace::TraceParent;
use super::volume::VolumeQos;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// His name, for the record.
    pub name: String,
    /// What he may do.
    pub role: Role,
    /// His span that this is asked in, if he has one.
    pub trace: Option<TraceParent>,
}

impl Caller {
    /// kvmlet itself, by the name of the part that asks. It may do all, and traces
    /// nothing.
    pub fn own(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            role: Role::Admin,
            trace: None,
        }
    }
}

/// Who asks, and how it may be told from a repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The caller's id of the request.
    pub request_id: Option<RequestId>,
    /// The generation that the caller has seen.
    pub expected_generation: Option<u64>,
    /// Who asks.
    pub caller: Caller,
    /// Check everything, change nothing.
    pub validate_only: bool,
}

/// What is asked of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub enum VmRequest {
    /// CreateVm.
    CreateVm(Box<CreateVm>),
    /// UpdateVm.
    UpdateVm(Box<VmChanges>),
    /// DeleteVm.
    DeleteVm {
        /// How to stop it first.
        stop_policy: Option<StopWish>,
        /// How long to keep everything.
        retention: Option<Duration>,
    },
    /// RecoverVm.
    RecoverVm,
    /// ExpungeVm.
    ExpungeVm,
    /// StartVm.
    StartVm {
        /// Give up the saved memory of a SAVED VM.
        discard_saved_memory: bool,
    },
    /// StopVm.
    StopVm {
        /// How.
        stop_policy: Option<StopWish>,
        /// Give up the saved memory of a SAVED VM.
        discard_saved_memory: bool,
    },
    /// RebootVm.
    RebootVm,
    /// ResetVm.
    ResetVm,
    /// PauseVm.
    PauseVm,
    /// ResumeVm.
    ResumeVm,
    /// SaveVm.
    SaveVm,
    /// SetVmPowerState.
    SetVmPowerState {
        /// What it shall be.
        power_state: PowerState,
        /// OFF: ask the guest instead of cutting its power.
        graceful_shutdown: bool,
    },
    /// ReplaceRootVolume.
    ReplaceRootVolume(Box<ReplaceRoot>),
    /// RevertRootVolume.
    RevertRootVolume {
        /// The former root; `None` is the one that was replaced last.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volume_id: Option<VolumeId>,
        /// How to stop it first.
        stop_policy: Option<StopWish>,
        /// Start it afterwards.
        start_after: bool,
    },
}

/// Whether the host shall be in maintenance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename = "set_maintenance", rename_all = "snake_case")]
pub struct SetMaintenance {
    /// The message of the maintenance; `None`: there shall be none.
    pub message: Option<String>,
    /// How to stop the VMs that have power; `None`: they go on.
    pub stop_policy: Option<StopWish>,
}

/// A wished power state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerState {
    /// With power, running.
    On,
    /// Without power.
    Off,
    /// With power, standing still.
    Paused,
}

/// How to stop a guest, as far as the caller said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopWish {
    /// Cut its power.
    Force,
    /// Ask it.
    Graceful {
        /// How long to wait in all.
        timeout: Option<Duration>,
        /// How long to wait before asking again.
        resend_interval: Option<Duration>,
        /// What to do when the time is up.
        on_timeout: OnTimeout,
    },
}

/// The VM to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateVm {
    /// Its id; else a new one.
    pub vm_id: Option<VmId>,
    /// Its name.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Values to select by.
    pub labels: BTreeMap<String, String>,
    /// Carried.
    pub annotations: BTreeMap<String, String>,
    /// Carried.
    pub package: String,
    /// Hardware by the id of a configured profile.
    pub hardware_profile_id: Option<String>,
    /// Hardware given in the request.
    pub hardware: HardwareWish,
    /// The image that the root volume is made from.
    pub image_id: ImageId,
    /// The root volume.
    pub root_volume: NewVolume,
    /// Further volumes.
    pub data_volumes: Vec<NewVolume>,
    /// Network interfaces.
    pub nics: Vec<NewNic>,
    /// Whether to have a display.
    pub vnc: bool,
    /// Tags with a meaning, as given.
    pub system_tags: Vec<String>,
    /// Tags that are carried.
    pub user_tags: Vec<String>,
    /// Carried.
    pub platform: String,
    /// Carried.
    pub os: String,
    /// Start it when it is made.
    pub start: bool,
}

/// Hardware, as far as the caller said.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HardwareWish {
    /// Number of virtual processors.
    pub vcpus: Option<u32>,
    /// Memory of the guest.
    pub memory_bytes: Option<Bytes>,
    /// What the guest sees as its processor.
    pub cpu: Option<Cpu>,
    /// QEMU machine type.
    pub machine: Option<String>,
    /// What the guest starts from.
    pub firmware: Option<Firmware>,
    /// What executes the guest's instructions.
    pub accelerator: Option<Accelerator>,
}

/// A volume to make.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NewVolume {
    /// Its id; else a new one.
    pub volume_id: Option<VolumeId>,
    /// Its name; empty: by its place.
    pub name: String,
    /// Its pool; else the default one.
    pub pool: Option<String>,
    /// What the guest shall see; zero: as large as its image.
    pub size_bytes: Bytes,
    /// The image to make it from; else empty.
    pub image_id: Option<ImageId>,
    /// Several VMs may write to it at once.
    pub shareable: bool,
    /// Limits on the guest.
    pub qos: VolumeQos,
    /// Remove it with the VM.
    pub delete_with_vm: bool,
    /// Free text.
    #[serde(default)]
    pub description: String,
    /// Carried.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// A network interface to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewNic {
    /// Its id; else a new one.
    pub nic_id: Option<NicId>,
    /// A configured network.
    pub network_id: Option<String>,
    /// Its address; else derived.
    pub mac: Option<MacAddress>,
    /// What the guest shall see.
    pub model: NicModel,
    /// Largest frame payload in bytes.
    pub mtu: Option<u32>,
    /// Carried.
    pub ip_addresses: Vec<String>,
    /// Carried.
    pub metadata: BTreeMap<String, String>,
    /// Where it shall plug in, if not by `network_id`.
    pub attachment: Option<Attachment>,
}

/// What UpdateVm shall change; absent fields stay.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct VmChanges {
    /// A new name.
    pub name: Option<String>,
    /// A new description.
    pub description: Option<String>,
    /// New labels, all of them.
    pub labels: Option<BTreeMap<String, String>>,
    /// New annotations, all of them.
    pub annotations: Option<BTreeMap<String, String>>,
    /// A new package.
    pub package: Option<String>,
    /// A new platform.
    pub platform: Option<String>,
    /// A new operating system inside.
    pub os: Option<String>,
    /// New user tags, all of them.
    pub user_tags: Option<Vec<String>>,
    /// A new hardware profile.
    pub hardware_profile_id: Option<String>,
    /// New hardware.
    pub hardware: Option<HardwareWish>,
}

impl VmChanges {
    /// Whether the virtual machine itself would change.
    pub const fn changes_hardware(&self) -> bool {
        self.hardware_profile_id.is_some() || self.hardware.is_some()
    }
}

/// The root volume to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplaceRoot {
    /// The image to make it from.
    pub image_id: ImageId,
    /// Its id; else a new one.
    pub resource_id: Option<VolumeId>,
    /// Tags with a meaning, as given.
    pub system_tags: Vec<String>,
    /// Tags that are carried; empty: the VM's stay.
    pub user_tags: Vec<String>,
    /// How large it shall be.
    pub size_policy: SizePolicy,
    /// How to stop the VM first.
    pub stop_policy: Option<StopWish>,
    /// Start it afterwards.
    pub start_after: bool,
    /// How long to keep the old root.
    pub keep_old_for: Option<Duration>,
    /// Switch back if the new root does not come up.
    pub health_check: Option<HealthCheck>,
}

/// How large a new root volume shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SizePolicy {
    /// The larger of the old root and the image.
    KeepLarger,
    /// As large as the image.
    Image,
    /// This large.
    Exact(Bytes),
}

/// What a good start is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Which sign to wait for.
    pub sign: HealthSign,
    /// Within this time.
    pub timeout: Duration,
}

/// A sign of a good start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthSign {
    /// Still running when the time is up.
    StillRunning,
    /// The guest agent is connected before the time is up.
    GuestAgent,
}

/// The image to import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportImage {
    /// Its id; else a new one.
    pub image_id: Option<ImageId>,
    /// Its name; empty: its id.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Values to select by.
    pub labels: BTreeMap<String, String>,
    /// A path or URL.
    pub source: String,
    /// The format of the source.
    pub format: ImageFormat,
    /// The expected SHA-256, lower-case hexadecimal.
    pub sha256: Option<String>,
    /// Its pool; else the default one.
    pub pool: Option<String>,
    /// Carried.
    pub os: String,
    /// Carried.
    pub platform: String,
}
