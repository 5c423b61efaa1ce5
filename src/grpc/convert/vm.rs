//! VMs as they are shown.

use super::time::timestamp;
use super::{hardware, invalid, nic, unknown_value, volume};
use crate::model::fault::Fault;
use crate::model::lifecycle::{self, Resting, StateReason};
use crate::model::operation::OperationKind;
use crate::model::view::{Condition, Standing, View};
use crate::model::vm::{Life, Vm};
use crate::model::volume::VolumeAttachment;
use crate::proto::v1 as wire;
use crate::service::volumes::is_pending;
use std::collections::HashSet;
use uuid::Uuid;

/// A VM as it is now; `None` if it is not made yet or gone.
pub(in super::super) fn shown(view: &View, host: Uuid) -> Option<wire::Vm> {
    let vm = view.vm.as_ref()?;
    let (resting, reason) = view.resting()?;
    let mut shown = record(vm, resting, host);
    shown.state_reason = state_reason(match view.current {
        Some(_) => StateReason::Operation,
        None => reason,
    })
    .into();
    shown.state = state(view)?.into();
    shown.current_operation_id = view
        .current
        .map(|(id, _)| id.to_string())
        .unwrap_or_default();
    shown.conditions = view.conditions.iter().map(condition).collect();
    if let (Some(vnc), Some(endpoint)) = (&mut shown.vnc, &view.vnc) {
        vnc.address = endpoint.address.to_string();
        vnc.port = endpoint.port.into();
    }
    for nic in &mut shown.nics {
        let addresses = view.addresses.get(&nic.mac).into_iter().flatten();
        nic.guest_ip_addresses = addresses.map(ToString::to_string).collect();
    }
    Some(shown)
}

fn condition((condition, standing): (&Condition, &Standing)) -> wire::VmCondition {
    let kind = match condition {
        Condition::Drifted => wire::VmConditionType::Drifted,
        Condition::DomainForeign => wire::VmConditionType::DomainForeign,
        Condition::SavedMemoryUnreadable => wire::VmConditionType::SavedMemoryUnreadable,
        Condition::RunsDeleted => wire::VmConditionType::RunsDeleted,
    };
    wire::VmCondition {
        r#type: kind.into(),
        details: standing.details.clone(),
        last_transition_time: Some(timestamp(standing.since)),
    }
}

/// The id that a VM is sorted by; nil if it has no record.
pub(in super::super) fn id(view: &View) -> Uuid {
    view.vm.as_ref().map_or(Uuid::nil(), |vm| vm.id.0)
}

/// A VM as an operation left it.
pub(super) fn left(vm: &Vm, host: Uuid) -> wire::Vm {
    let (resting, reason) = lifecycle::resting(vm.life, vm.seen, false);
    wire::Vm {
        state_reason: state_reason(reason).into(),
        ..record(vm, resting, host)
    }
}

/// The state that is shown: what the current operation does, else the resting
/// state.
pub(in super::super) fn state(view: &View) -> Option<wire::VmState> {
    use wire::VmState as S;
    let (resting, _) = view.resting()?;
    let Some((_, kind)) = view.current else {
        return Some(resting_state(resting));
    };
    Some(match kind {
        OperationKind::CreateVm => S::Provisioning,
        OperationKind::UpdateVm => S::Updating,
        OperationKind::DeleteVm => S::Deleting,
        OperationKind::RecoverVm => S::Recovering,
        OperationKind::ExpungeVm => S::Expunging,
        OperationKind::StartVm => S::Starting,
        OperationKind::StopVm => S::Stopping,
        OperationKind::RebootVm | OperationKind::ResetVm => S::Rebooting,
        OperationKind::PauseVm => S::Pausing,
        OperationKind::ResumeVm => S::Resuming,
        OperationKind::SaveVm => S::Saving,
        OperationKind::ReplaceRootVolume | OperationKind::RevertRootVolume => S::ReplacingRoot,
        // These never hold VMs.
        OperationKind::ImportImage
        | OperationKind::DeleteImage
        | OperationKind::DeleteOrphan
        | OperationKind::SetMaintenance => resting_state(resting),
    })
}

const fn resting_state(resting: Resting) -> wire::VmState {
    match resting {
        Resting::Stopped => wire::VmState::Stopped,
        Resting::Running => wire::VmState::Running,
        Resting::Paused => wire::VmState::Paused,
        Resting::Saved => wire::VmState::Saved,
        Resting::Crashed => wire::VmState::Crashed,
        Resting::Deleted => wire::VmState::Deleted,
        Resting::Failed => wire::VmState::Failed,
        Resting::Lost => wire::VmState::Lost,
        Resting::Unknown => wire::VmState::Unknown,
    }
}

const fn state_reason(reason: StateReason) -> wire::StateReason {
    match reason {
        StateReason::None => wire::StateReason::Unspecified,
        StateReason::Operation => wire::StateReason::Operation,
        StateReason::GuestShutdown => wire::StateReason::GuestShutdown,
        StateReason::Destroyed => wire::StateReason::Destroyed,
        StateReason::Crashed => wire::StateReason::Crashed,
        StateReason::StartFailed => wire::StateReason::StartFailed,
        StateReason::PausedOnHost => wire::StateReason::PausedOnHost,
        StateReason::IoError => wire::StateReason::IoError,
        StateReason::NoSpace => wire::StateReason::NoSpace,
        StateReason::HypervisorBusy => wire::StateReason::HypervisorBusy,
        StateReason::DomainMissing => wire::StateReason::DomainMissing,
        StateReason::HypervisorAway => wire::StateReason::HypervisorAway,
        StateReason::CreateFailed => wire::StateReason::CreateFailed,
        StateReason::Deleted => wire::StateReason::Deleted,
        StateReason::StartedOnHost => wire::StateReason::StartedOnHost,
        StateReason::JournalLost => wire::StateReason::JournalLost,
        StateReason::HostShutdown => wire::StateReason::HostShutdown,
        StateReason::HostPowerLoss => wire::StateReason::HostPowerLoss,
        StateReason::HostRestarted => wire::StateReason::HostRestarted,
    }
}

/// The record, in the given resting state; its reason is the caller's to set.
fn record(vm: &Vm, resting: Resting, host: Uuid) -> wire::Vm {
    let (delete_time, expunge_time) = match vm.life {
        Life::Deleted {
            delete_time,
            expunge_time,
        } => (Some(delete_time), Some(expunge_time)),
        Life::Making | Life::Present | Life::Failed | Life::Expunging => (None, None),
    };
    wire::Vm {
        conditions: Vec::new(),
        id: vm.id.to_string(),
        name: vm.name.clone(),
        description: vm.description.clone(),
        labels: vm.labels.clone().into_iter().collect(),
        annotations: vm.annotations.clone().into_iter().collect(),
        state: resting_state(resting).into(),
        state_reason: wire::StateReason::Unspecified.into(),
        generation: vm.generation,
        create_time: Some(timestamp(vm.create_time)),
        update_time: Some(timestamp(vm.update_time)),
        delete_time: delete_time.map(timestamp),
        expunge_time: expunge_time.map(timestamp),
        host_id: if resting.has_power() {
            host.to_string()
        } else {
            String::new()
        },
        last_host_id: vm.last_host_id.map(|id| id.to_string()).unwrap_or_default(),
        image_id: vm.image_id.to_string(),
        root_volume_id: vm
            .root()
            .map(|root| root.id.to_string())
            .unwrap_or_default(),
        platform: vm.platform.clone(),
        os: vm.os.clone(),
        hypervisor_type: vm.hypervisor.as_str().to_owned(),
        package: vm.package.clone(),
        hardware_profile_id: vm.hardware_profile_id.clone().unwrap_or_default(),
        hardware: Some(hardware::shown(&vm.hardware)),
        volumes: volumes(vm),
        nics: nics(vm),
        vnc: Some(wire::Vnc {
            enabled: vm.vnc,
            address: String::new(),
            port: 0,
        }),
        system_tags: vm.system_tags.clone(),
        user_tags: vm.user_tags.clone(),
        current_operation_id: String::new(),
    }
}

fn volumes(vm: &Vm) -> Vec<wire::Volume> {
    let pending = is_pending(vm.life);
    let mut volumes: Vec<_> = vm.volumes.iter().collect();
    volumes.sort_by_key(|volume| match volume.attachment {
        VolumeAttachment::Attached { device_index } => (false, device_index),
        VolumeAttachment::Kept { .. } => (true, 0),
    });
    volumes
        .into_iter()
        .map(|volume| volume::shown(vm.id, volume, pending))
        .collect()
}

fn nics(vm: &Vm) -> Vec<wire::Nic> {
    let mut nics: Vec<_> = vm.nics.iter().collect();
    nics.sort_by_key(|nic| nic.device_index);
    nics.into_iter().map(|nic| nic::shown(vm.id, nic)).collect()
}

/// Which states to list.
#[derive(Debug)]
pub(in super::super) struct States {
    wished: HashSet<wire::VmState>,
    deleted: bool,
}

impl States {
    /// Reads which states to list.
    pub(in super::super) fn read(states: &[i32], show_deleted: bool) -> Result<Self, Fault> {
        let mut wished = HashSet::new();
        for (index, value) in states.iter().enumerate() {
            let field = format!("states[{index}]");
            match wire::VmState::try_from(*value).map_err(|_| unknown_value(&field, *value))? {
                wire::VmState::Unspecified => return Err(invalid(&field, "must name a state")),
                state => wished.insert(state),
            };
        }
        Ok(Self {
            wished,
            deleted: show_deleted,
        })
    }

    /// Whether a VM that is shown in this state is listed.
    pub(in super::super) fn take(&self, state: wire::VmState) -> bool {
        if self.wished.is_empty() {
            self.deleted || state != wire::VmState::Deleted
        } else {
            self.wished.contains(&state) || (self.deleted && state == wire::VmState::Deleted)
        }
    }
}
