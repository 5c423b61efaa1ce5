//! Events: what changed, when, and why.
//!
//! Each has a revision, which the journal gives out: one more than the one before,
//! without holes, and never twice in one epoch. An event has its thing whole, as it
//! is after the change, so that a reader needs nothing else.

use super::ids::{ImageId, OperationId, VmId};
use super::image::Image;
use super::lifecycle::{Resting, Seen, StateReason};
use super::operation::{Operation, OperationKind};
use super::time::Timestamp;
use super::view::View;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

/// Labels, shared by the events of one VM.
pub type Labels = Arc<BTreeMap<String, String>>;

/// A point in the sequence of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Which sequence: a new journal begins a new one.
    pub epoch: Uuid,
    /// Everything up to this is known.
    pub revision: u64,
}

/// A change with its place in the sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place.
    pub revision: u64,
    /// The change.
    pub change: Arc<Change>,
}

/// What changed, when, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When it was noticed.
    pub time: Timestamp,
    /// Why; `None` for the members of a snapshot.
    pub cause: Option<Cause>,
    /// Who asked for it, where an operation did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<Arc<str>>,
    /// What, as it is now.
    pub what: What,
    /// The labels of the VM that it is about.
    #[serde(default)]
    pub labels: Labels,
    /// The labels before, where they changed: who selects by them is told that a
    /// VM is no longer selected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former_labels: Option<Labels>,
}

/// What changed, as it is after the change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A VM.
    Vm(Arc<View>),
    /// A VM is gone for good.
    VmExpunged(VmId),
    /// An operation.
    Operation(Arc<Operation>),
    /// An image.
    Image(Arc<Image>),
    /// An image is gone for good.
    ImageDeleted(ImageId),
}

/// A kind of things that events are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// VMs.
    Vm,
    /// Operations.
    Operation,
    /// Images.
    Image,
}

impl What {
    /// What kind of thing it is.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Vm(_) | Self::VmExpunged(_) => Kind::Vm,
            Self::Operation(_) => Kind::Operation,
            Self::Image(_) | Self::ImageDeleted(_) => Kind::Image,
        }
    }

    /// The VM that it is about.
    pub fn vm_id(&self) -> Option<VmId> {
        match self {
            Self::Vm(view) => view.vm.as_ref().map(|vm| vm.id),
            Self::VmExpunged(id) => Some(*id),
            Self::Operation(operation) => operation.vm_id,
            Self::Image(_) | Self::ImageDeleted(_) => None,
        }
    }
}

/// Who made a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Who.
    pub source: Source,
    /// Which of kvmlet's operations, if one did and that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
    /// What was done, where it was not an operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Detail>,
}

/// Who can make a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// One of kvmlet's operations.
    Operation,
    /// The guest, or its QEMU.
    Guest,
    /// Something else on the host: another program, libvirt, a full disk.
    Host,
    /// kvmlet itself, without an operation: housekeeping.
    Agent,
}

/// What was done to a VM, as far as libvirt tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detail {
    /// The guest shut itself down.
    PowerOff,
    /// The guest restarted.
    Reboot,
    /// QEMU died, or the guest panicked.
    Crash,
    /// Given power.
    Start,
    /// A start failed.
    StartFailed,
    /// Power was cut.
    Destroy,
    /// Its processors were halted.
    Pause,
    /// Its processors go on.
    Resume,
    /// Its memory was saved.
    Save,
    /// Its domain was undefined.
    Undefine,
    /// QEMU paused it: a read or write failed.
    IoError,
    /// QEMU paused it: a pool is full.
    NoSpace,
    /// libvirt is away.
    HypervisorAway,
    /// libvirt is back.
    HypervisorBack,
    /// Its domain or saved memory was changed beside kvmlet, or is as it should be
    /// again.
    Drift,
    /// Its host was shut down.
    HostShutdown,
    /// Its host ended without a shutdown.
    HostPowerLoss,
    /// Its host was started anew.
    HostRestarted,
}

impl Cause {
    /// One of kvmlet's operations.
    pub const fn operation(id: OperationId) -> Self {
        Self {
            source: Source::Operation,
            operation: Some(id),
            detail: None,
        }
    }

    /// kvmlet itself.
    pub const AGENT: Self = Self {
        source: Source::Agent,
        operation: None,
        detail: None,
    };

    /// The guest restarted. libvirt does not tell a restart from inside from a
    /// reset by another program.
    pub const REBOOT: Self = Self::of(Source::Guest, Detail::Reboot);

    const fn of(source: Source, detail: Detail) -> Self {
        Self {
            source,
            operation: None,
            detail: Some(detail),
        }
    }
}

/// Why a VM changed, from what was shown of it before and is shown now.
pub fn cause(before: &View, after: &View) -> Cause {
    let seen = |view: &View| view.vm.as_ref().map(|vm| vm.seen);
    let (was, is) = (seen(before), seen(after));
    let moved = is.filter(|_| was.is_some() && was != is);
    if let Some((id, kind)) = after.current.or(before.current)
        && (moved.is_none() || moves(kind))
    {
        return Cause::operation(id);
    }
    if let Some(is) = moved {
        return observed(was.map(|seen| seen.resting), is);
    }
    match (before.away, after.away) {
        (false, true) => Cause::of(Source::Host, Detail::HypervisorAway),
        (true, false) => Cause::of(Source::Host, Detail::HypervisorBack),
        (false, false) | (true, true) if before.conditions != after.conditions => {
            Cause::of(Source::Host, Detail::Drift)
        }
        (false, false) | (true, true) => Cause::AGENT,
    }
}

/// Why a VM is as it is, where what was shown before is not known.
pub fn cause_of_state(now: &View) -> Cause {
    match (now.current, &now.vm) {
        (Some((id, _)), _) => Cause::operation(id),
        (None, _) if now.away => Cause::of(Source::Host, Detail::HypervisorAway),
        (None, Some(vm)) => observed(None, vm.seen),
        (None, None) => Cause::AGENT,
    }
}

/// Who brings a VM to what is seen of it, by the reason.
fn observed(was: Option<Resting>, seen: Seen) -> Cause {
    let host = |detail| Cause::of(Source::Host, detail);
    match seen.reason {
        StateReason::Operation | StateReason::CreateFailed | StateReason::Deleted => Cause {
            source: Source::Operation,
            operation: None,
            detail: None,
        },
        StateReason::GuestShutdown => Cause::of(Source::Guest, Detail::PowerOff),
        StateReason::Crashed => Cause::of(Source::Guest, Detail::Crash),
        StateReason::Destroyed => host(Detail::Destroy),
        StateReason::StartFailed => host(Detail::StartFailed),
        StateReason::StartedOnHost => host(Detail::Start),
        StateReason::PausedOnHost => host(Detail::Pause),
        StateReason::IoError => host(Detail::IoError),
        StateReason::NoSpace => host(Detail::NoSpace),
        StateReason::DomainMissing => host(Detail::Undefine),
        StateReason::HypervisorAway => host(Detail::HypervisorAway),
        StateReason::HostShutdown => host(Detail::HostShutdown),
        StateReason::HostPowerLoss => host(Detail::HostPowerLoss),
        StateReason::HostRestarted => host(Detail::HostRestarted),
        StateReason::JournalLost => Cause::AGENT,
        StateReason::None | StateReason::HypervisorBusy => match (was, seen.resting) {
            (Some(Resting::Paused), Resting::Running) => host(Detail::Resume),
            (_, Resting::Paused) => host(Detail::Pause),
            (_, Resting::Saved) => host(Detail::Save),
            (
                _,
                Resting::Running
                | Resting::Stopped
                | Resting::Crashed
                | Resting::Deleted
                | Resting::Failed
                | Resting::Lost
                | Resting::Unknown,
            ) => Cause {
                source: Source::Host,
                operation: None,
                detail: None,
            },
        },
    }
}

/// Whether an operation of this kind gives, takes or halts power, so that what is
/// seen while it is at work is its doing.
const fn moves(kind: OperationKind) -> bool {
    match kind {
        OperationKind::CreateVm
        | OperationKind::DeleteVm
        | OperationKind::RecoverVm
        | OperationKind::ExpungeVm
        | OperationKind::StartVm
        | OperationKind::StopVm
        | OperationKind::RebootVm
        | OperationKind::ResetVm
        | OperationKind::PauseVm
        | OperationKind::ResumeVm
        | OperationKind::SaveVm
        | OperationKind::ReplaceRootVolume
        | OperationKind::RevertRootVolume => true,
        OperationKind::UpdateVm
        | OperationKind::ImportImage
        | OperationKind::DeleteImage
        | OperationKind::DeleteOrphan
        | OperationKind::SetMaintenance => false,
    }
}

/// Which events a reader wants; what is empty takes all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// About these VMs.
    pub vm_ids: BTreeSet<VmId>,
    /// About VMs with all of these labels.
    pub labels: BTreeMap<String, String>,
    /// Of these kinds.
    pub kinds: BTreeSet<Kind>,
}

impl Filter {
    /// Whether an event is wanted. One that is about no VM is not, where VMs are
    /// selected. A VM whose labels change is told once more to those that its
    /// former labels selected it for.
    pub fn wants(&self, change: &Change) -> bool {
        let of_kind = self.kinds.is_empty() || self.kinds.contains(&change.what.kind());
        let of_vm = self.vm_ids.is_empty()
            || change
                .what
                .vm_id()
                .is_some_and(|id| self.vm_ids.contains(&id));
        let labelled = self.labels.is_empty()
            || self.selects(&change.labels)
            || change
                .former_labels
                .as_ref()
                .is_some_and(|former| self.selects(former));
        of_kind && of_vm && labelled
    }

    fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    }
}

#[cfg(test)]
mod tests;
