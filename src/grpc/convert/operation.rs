//! Operations.

use super::time::{timestamp, wire as wire_duration};
use super::{image, invalid, text, unknown_value, vm};
use crate::grpc::status;
use crate::model::fault::Fault;
use crate::model::operation::{
    Intent, Operation, OperationKind, OperationResult, OperationState, Plan, PlanAction,
    RollbackState, StepState,
};
use crate::model::stop::{PowerMethod, PowerOutcome};
use crate::proto::v1 as wire;
use crate::service::operations::OperationQuery;
use uuid::Uuid;

/// Reads which operations to list.
pub(in super::super) fn query(
    given: &wire::ListOperationsRequest,
) -> Result<OperationQuery, Fault> {
    let mut states = Vec::new();
    for (index, value) in given.states.iter().enumerate() {
        let field = format!("states[{index}]");
        states.push(
            match wire::OperationState::try_from(*value)
                .map_err(|_| unknown_value(&field, *value))?
            {
                wire::OperationState::Unspecified => {
                    return Err(invalid(&field, "must name a state"));
                }
                wire::OperationState::Pending => OperationState::Pending,
                wire::OperationState::Running => OperationState::Running,
                wire::OperationState::Succeeded => OperationState::Succeeded,
                wire::OperationState::Failed => OperationState::Failed,
                wire::OperationState::Cancelled => OperationState::Cancelled,
            },
        );
    }
    // A state that is given a thousand times says no more than once.
    states.sort_by_key(|state| *state as u8);
    states.dedup();
    Ok(OperationQuery {
        vm_id: text::id("vm_id", &given.vm_id)?,
        image_id: text::id("image_id", &given.image_id)?,
        request_id: text::id("request_id", &given.request_id)?,
        states,
        before: super::page::operations_after(&given.page_token)?,
        limit: super::page::size(given.page_size)?,
    })
}

/// An operation. `host` is this node, where VMs with power are; `volumes` tells
/// how many volumes are made from an image.
pub(in super::super) fn shown(
    operation: &Operation,
    host: Uuid,
    volumes: impl Fn(crate::model::ids::ImageId) -> usize,
) -> wire::Operation {
    use wire::operation::Result as Shown;
    wire::Operation {
        // The nil id is that of an answer which is not kept.
        id: if operation.id.0.is_nil() {
            String::new()
        } else {
            operation.id.to_string()
        },
        r#type: kind(operation.intent.kind()).into(),
        vm_id: operation.vm_id.map(|id| id.to_string()).unwrap_or_default(),
        image_id: operation
            .image_id
            .map(|id| id.to_string())
            .unwrap_or_default(),
        orphan_id: match &operation.intent {
            Intent::DeleteOrphan { orphan } => orphan.id.to_string(),
            _ => String::new(),
        },
        state: match operation.state {
            OperationState::Pending => wire::OperationState::Pending,
            OperationState::Running => wire::OperationState::Running,
            OperationState::Succeeded => wire::OperationState::Succeeded,
            OperationState::Failed => wire::OperationState::Failed,
            OperationState::Cancelled => wire::OperationState::Cancelled,
        }
        .into(),
        rollback_state: match operation.rollback {
            RollbackState::None => wire::RollbackState::None,
            RollbackState::RollingBack => wire::RollbackState::RollingBack,
            RollbackState::Done => wire::RollbackState::Done,
            RollbackState::Failed => wire::RollbackState::Failed,
        }
        .into(),
        steps: operation.steps.iter().map(step).collect(),
        progress_percent: operation.progress_percent.into(),
        request_id: operation
            .request_id
            .map(|id| id.to_string())
            .unwrap_or_default(),
        caller: operation.caller.clone(),
        create_time: Some(timestamp(operation.create_time)),
        start_time: operation.start_time.map(timestamp),
        end_time: operation.end_time.map(timestamp),
        error: operation.error.as_ref().map(status::as_value),
        result: operation.result.as_ref().map(|result| match result {
            OperationResult::Vm(vm) => Shown::Vm(vm::left(vm, host)),
            OperationResult::Image(image) => Shown::Image(image::shown(image, volumes(image.id))),
            OperationResult::Plan(plan) => Shown::Plan(self::plan(plan)),
        }),
        power_outcome: operation.power_outcome.map(power_outcome),
    }
}

const fn kind(kind: OperationKind) -> wire::OperationType {
    match kind {
        OperationKind::CreateVm => wire::OperationType::CreateVm,
        OperationKind::UpdateVm => wire::OperationType::UpdateVm,
        OperationKind::DeleteVm => wire::OperationType::DeleteVm,
        OperationKind::RecoverVm => wire::OperationType::RecoverVm,
        OperationKind::ExpungeVm => wire::OperationType::ExpungeVm,
        OperationKind::StartVm => wire::OperationType::StartVm,
        OperationKind::StopVm => wire::OperationType::StopVm,
        OperationKind::RebootVm => wire::OperationType::RebootVm,
        OperationKind::ResetVm => wire::OperationType::ResetVm,
        OperationKind::PauseVm => wire::OperationType::PauseVm,
        OperationKind::ResumeVm => wire::OperationType::ResumeVm,
        OperationKind::SaveVm => wire::OperationType::SaveVm,
        OperationKind::ReplaceRootVolume => wire::OperationType::ReplaceRootVolume,
        OperationKind::RevertRootVolume => wire::OperationType::RevertRootVolume,
        OperationKind::ImportImage => wire::OperationType::ImportImage,
        OperationKind::DeleteImage => wire::OperationType::DeleteImage,
        OperationKind::DeleteOrphan => wire::OperationType::DeleteOrphan,
        OperationKind::SetMaintenance => wire::OperationType::SetMaintenance,
    }
}

fn step(step: &crate::model::operation::StepRecord) -> wire::OperationStep {
    wire::OperationStep {
        name: step.name.clone(),
        state: match step.state {
            StepState::Pending => wire::StepState::Pending,
            StepState::Running => wire::StepState::Running,
            StepState::Done => wire::StepState::Done,
            StepState::Skipped => wire::StepState::Skipped,
            StepState::Failed => wire::StepState::Failed,
            StepState::Undoing => wire::StepState::Undoing,
            StepState::Undone => wire::StepState::Undone,
            StepState::UndoFailed => wire::StepState::UndoFailed,
        }
        .into(),
        start_time: step.start_time.map(timestamp),
        end_time: step.end_time.map(timestamp),
    }
}

fn plan(plan: &Plan) -> wire::Plan {
    wire::Plan {
        items: plan
            .items
            .iter()
            .map(|item| wire::PlanItem {
                action: match item.action {
                    PlanAction::Make => wire::PlanAction::Make,
                    PlanAction::Change => wire::PlanAction::Change,
                    PlanAction::Delete => wire::PlanAction::Delete,
                    PlanAction::Keep => wire::PlanAction::Keep,
                }
                .into(),
                kind: item.kind.clone(),
                id: item.id.clone(),
                pool: item.pool.clone(),
                ceph_pool: item.ceph_pool.clone().unwrap_or_default(),
                size_bytes: item.size.get(),
                time: item.time.map(timestamp),
                description: item.description.clone(),
            })
            .collect(),
        notes: plan.notes.clone(),
    }
}

fn power_outcome(outcome: PowerOutcome) -> wire::PowerOutcome {
    wire::PowerOutcome {
        method: match outcome.method {
            PowerMethod::GuestAgent => wire::PowerMethod::GuestAgent,
            PowerMethod::Acpi => wire::PowerMethod::Acpi,
            PowerMethod::Force => wire::PowerMethod::Force,
            PowerMethod::Guest => wire::PowerMethod::Guest,
            PowerMethod::Destroyed => wire::PowerMethod::Destroyed,
            PowerMethod::Crashed => wire::PowerMethod::Crashed,
            PowerMethod::Host => wire::PowerMethod::Host,
        }
        .into(),
        signals_sent: outcome.signals_sent,
        waited: Some(wire_duration(outcome.waited)),
        forced: outcome.forced,
    }
}
