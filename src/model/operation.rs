//! Operations: what one mutation does, did, or could not do.

use super::bytes::Bytes;
use super::fault::Fault;
use super::ids::{ImageId, OperationId, RequestId, VmId};
use super::image::Image;
use super::maintenance::Maintenance;
use super::orphan::Orphan;
use super::request::{HealthCheck, ImportImage, VmChanges};
use super::stop::{PowerOutcome, StopPolicy};
use super::time::Timestamp;
use super::trace::TraceParent;
use super::vm::Vm;
use super::volume::Volume;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// An operation, as it is recorded and answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Its id; time-ordered, so that newer ones sort later.
    pub id: OperationId,
    /// The VM it changes.
    pub vm_id: Option<VmId>,
    /// The image it changes.
    pub image_id: Option<ImageId>,
    /// What it does, with every choice made: enough to go on after a restart.
    pub intent: Intent,
    /// Where it stands.
    pub state: OperationState,
    /// Where its undoing stands.
    pub rollback: RollbackState,
    /// Its steps in order.
    pub steps: Vec<StepRecord>,
    /// 0 to 100; 100 only when it has succeeded.
    pub progress_percent: u8,
    /// The caller's id of the request.
    pub request_id: Option<RequestId>,
    /// The request as it was, to tell a repeat from a reuse of its id.
    pub request: serde_json::Value,
    /// Who asked.
    pub caller: String,
    /// When it was asked for.
    pub create_time: Timestamp,
    /// When the first step began.
    pub start_time: Option<Timestamp>,
    /// When it ended.
    pub end_time: Option<Timestamp>,
    /// Why it failed or was cancelled.
    pub error: Option<Fault>,
    /// What came of it.
    pub result: Option<OperationResult>,
    /// How a guest was stopped, if one was.
    pub power_outcome: Option<PowerOutcome>,
    /// Why it was asked to end early, if it was while it could.
    #[serde(default)]
    pub cancelled: Option<Fault>,
    /// The span that it was asked for in, if one was.
    #[serde(default)]
    pub trace: Option<TraceParent>,
}

impl Operation {
    /// Whether it has ended.
    pub const fn ended(&self) -> bool {
        self.state.ended()
    }

    /// The id of the trace that it belongs to, for the log.
    pub fn trace_id(&self) -> Option<String> {
        self.trace.as_ref().map(TraceParent::trace_id_text)
    }
}

/// What an operation does, with every choice made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Intent {
    /// Make the VM that is in the record.
    CreateVm {
        /// Start it when it is made.
        start: bool,
    },
    /// Change the record, and the domain with it.
    UpdateVm {
        /// What was asked for.
        changes: Box<VmChanges>,
        /// The record as it shall be.
        after: Box<Vm>,
    },
    /// Take out of use.
    DeleteVm {
        /// How to stop it first.
        stop: Option<StopPolicy>,
        /// How long to keep everything; zero: expunge now.
        retention: Duration,
        /// Whether it was PAUSED, which it is again if this is undone.
        #[serde(default)]
        was_paused: bool,
    },
    /// Bring back.
    RecoverVm,
    /// Remove for good.
    ExpungeVm,
    /// Give power.
    StartVm {
        /// Give up saved memory first.
        discard_saved_memory: bool,
        /// Whether it was SAVED: it is restored, and not booted.
        #[serde(default)]
        was_saved: bool,
    },
    /// Take power.
    StopVm {
        /// How.
        policy: StopPolicy,
        /// Only give up saved memory: the VM has no power.
        discard_saved_memory: bool,
    },
    /// Ask the guest to restart.
    RebootVm,
    /// Press the reset button.
    ResetVm,
    /// Hold the processors.
    PauseVm,
    /// Let them go on.
    ResumeVm,
    /// Memory to a file.
    SaveVm,
    /// A new root volume.
    ReplaceRootVolume {
        /// The volume to make.
        new_root: Box<Volume>,
        /// The record as it was.
        before: Box<Vm>,
        /// The record as it shall be.
        after: Box<Vm>,
        /// How to stop the VM first; only if it had power.
        stop: Option<StopPolicy>,
        /// Start it afterwards.
        start_after: bool,
        /// Switch back if it does not come up.
        health_check: Option<HealthCheck>,
    },
    /// A former root volume again.
    RevertRootVolume {
        /// The record as it was.
        before: Box<Vm>,
        /// The record as it shall be.
        after: Box<Vm>,
        /// How to stop the VM first; only if it had power.
        stop: Option<StopPolicy>,
        /// Start it afterwards.
        start_after: bool,
    },
    /// Bring an image to the host.
    ImportImage {
        /// What was asked for.
        import: Box<ImportImage>,
    },
    /// Remove an image.
    DeleteImage,
    /// Remove something that is in no record.
    DeleteOrphan {
        /// The thing, as it was when this was asked for.
        orphan: Box<Orphan>,
    },
    /// Begin or end the host's maintenance.
    SetMaintenance {
        /// What was before.
        before: Option<Maintenance>,
        /// What shall be; `None`: no maintenance.
        after: Option<Maintenance>,
        /// How to stop the VMs that have power then; `None`: they go on.
        stop: Option<StopPolicy>,
    },
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Durable, not begun.
    Pending,
    /// At work.
    Running,
    /// Ended as asked.
    Succeeded,
    /// Ended otherwise.
    Failed,
    /// Taken back.
    Cancelled,
}

impl OperationState {
    /// Whether it is an end.
    pub const fn ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// Where the undoing of an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RollbackState {
    /// Nothing was undone.
    None,
    /// Being undone.
    RollingBack,
    /// All is as it was before.
    Done,
    /// Not all could be undone.
    Failed,
}

/// One step of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Its stable name.
    pub name: String,
    /// Where it stands.
    pub state: StepState,
    /// When it began.
    pub start_time: Option<Timestamp>,
    /// When it ended.
    pub end_time: Option<Timestamp>,
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Not begun.
    Pending,
    /// At work.
    Running,
    /// Done.
    Done,
    /// Found to be done already.
    Skipped,
    /// Failed.
    Failed,
    /// Being undone.
    Undoing,
    /// Done, then undone.
    Undone,
    /// Could not be undone.
    UndoFailed,
}

/// What came of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationResult {
    /// The VM as it left it.
    Vm(Box<Vm>),
    /// The image as it left it.
    Image(Box<Image>),
    /// What would be done.
    Plan(Plan),
}

/// What a request would do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Each thing that would be made, changed or deleted, in order.
    pub items: Vec<PlanItem>,
    /// What the caller should know.
    pub notes: Vec<String>,
}

/// One thing that would be made, changed or deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanItem {
    /// What would happen to it.
    pub action: PlanAction,
    /// What it is: `vm`, `domain`, `volume`, `image`, `saved-memory`.
    pub kind: String,
    /// Its id.
    pub id: String,
    /// The pool it is in.
    pub pool: String,
    /// The Ceph pool of a volume, if its pool is made of such.
    #[serde(default)]
    pub ceph_pool: Option<String>,
    /// Its size.
    pub size: Bytes,
    /// When, if not by the operation itself.
    pub time: Option<Timestamp>,
    /// In words.
    pub description: String,
}

/// What would happen to a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanAction {
    /// It would be made.
    Make,
    /// It would be changed.
    Change,
    /// It would be deleted.
    Delete,
    /// It would be kept for a time.
    Keep,
}

/// What an operation does, without its particulars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// CreateVm.
    CreateVm,
    /// UpdateVm.
    UpdateVm,
    /// DeleteVm.
    DeleteVm,
    /// RecoverVm.
    RecoverVm,
    /// ExpungeVm.
    ExpungeVm,
    /// StartVm.
    StartVm,
    /// StopVm.
    StopVm,
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
    /// ReplaceRootVolume.
    ReplaceRootVolume,
    /// RevertRootVolume.
    RevertRootVolume,
    /// ImportImage.
    ImportImage,
    /// DeleteImage.
    DeleteImage,
    /// DeleteOrphan.
    DeleteOrphan,
    /// SetMaintenance.
    SetMaintenance,
}

impl Intent {
    /// What it does, without its particulars.
    pub const fn kind(&self) -> OperationKind {
        match self {
            Self::CreateVm { .. } => OperationKind::CreateVm,
            Self::UpdateVm { .. } => OperationKind::UpdateVm,
            Self::DeleteVm { .. } => OperationKind::DeleteVm,
            Self::RecoverVm => OperationKind::RecoverVm,
            Self::ExpungeVm => OperationKind::ExpungeVm,
            Self::StartVm { .. } => OperationKind::StartVm,
            Self::StopVm { .. } => OperationKind::StopVm,
            Self::RebootVm => OperationKind::RebootVm,
            Self::ResetVm => OperationKind::ResetVm,
            Self::PauseVm => OperationKind::PauseVm,
            Self::ResumeVm => OperationKind::ResumeVm,
            Self::SaveVm => OperationKind::SaveVm,
            Self::ReplaceRootVolume { .. } => OperationKind::ReplaceRootVolume,
            Self::RevertRootVolume { .. } => OperationKind::RevertRootVolume,
            Self::ImportImage { .. } => OperationKind::ImportImage,
            Self::DeleteImage => OperationKind::DeleteImage,
            Self::DeleteOrphan { .. } => OperationKind::DeleteOrphan,
            Self::SetMaintenance { .. } => OperationKind::SetMaintenance,
        }
    }

    /// Whether it cuts a guest's power without asking it.
    pub const fn cuts_power(&self) -> bool {
        match self {
            Self::StopVm {
                policy,
                discard_saved_memory,
            } => matches!(policy, StopPolicy::Force) && !*discard_saved_memory,
            Self::DeleteVm { stop, .. }
            | Self::ReplaceRootVolume { stop, .. }
            | Self::RevertRootVolume { stop, .. } => {
                matches!(stop, Some(StopPolicy::Force))
            }
            Self::CreateVm { .. }
            | Self::UpdateVm { .. }
            | Self::RecoverVm
            | Self::ExpungeVm
            | Self::StartVm { .. }
            | Self::RebootVm
            | Self::ResetVm
            | Self::PauseVm
            | Self::ResumeVm
            | Self::SaveVm
            | Self::ImportImage { .. }
            | Self::DeleteImage
            | Self::DeleteOrphan { .. }
            | Self::SetMaintenance { .. } => false,
        }
    }
}

impl OperationKind {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::CreateVm,
        Self::UpdateVm,
        Self::DeleteVm,
        Self::RecoverVm,
        Self::ExpungeVm,
        Self::StartVm,
        Self::StopVm,
        Self::RebootVm,
        Self::ResetVm,
        Self::PauseVm,
        Self::ResumeVm,
        Self::SaveVm,
        Self::ReplaceRootVolume,
        Self::RevertRootVolume,
        Self::ImportImage,
        Self::DeleteImage,
        Self::DeleteOrphan,
    ];

    /// Whether it is for nothing but another power state.
    pub const fn is_power(self) -> bool {
        match self {
            Self::StartVm
            | Self::StopVm
            | Self::RebootVm
            | Self::ResetVm
            | Self::PauseVm
            | Self::ResumeVm
            | Self::SaveVm => true,
            Self::CreateVm
            | Self::UpdateVm
            | Self::DeleteVm
            | Self::RecoverVm
            | Self::ExpungeVm
            | Self::ReplaceRootVolume
            | Self::RevertRootVolume
            | Self::ImportImage
            | Self::DeleteImage
            | Self::DeleteOrphan
            | Self::SetMaintenance => false,
        }
    }

    /// Its name in the log and in the names of fault points.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CreateVm => "create-vm",
            Self::UpdateVm => "update-vm",
            Self::DeleteVm => "delete-vm",
            Self::RecoverVm => "recover-vm",
            Self::ExpungeVm => "expunge-vm",
            Self::StartVm => "start-vm",
            Self::StopVm => "stop-vm",
            Self::RebootVm => "reboot-vm",
            Self::ResetVm => "reset-vm",
            Self::PauseVm => "pause-vm",
            Self::ResumeVm => "resume-vm",
            Self::SaveVm => "save-vm",
            Self::ReplaceRootVolume => "replace-root-volume",
            Self::RevertRootVolume => "revert-root-volume",
            Self::ImportImage => "import-image",
            Self::DeleteImage => "delete-image",
            Self::DeleteOrphan => "delete-orphan",
            Self::SetMaintenance => "set-maintenance",
        }
    }
}
