//! Power, and the ends of a VM's life.

use super::{Asked, envelope, invalid, required, text, time, unknown_value};
use crate::model::fault::Fault;
use crate::model::request::{Caller, PowerState, StopWish, VmRequest};
use crate::model::stop::OnTimeout;
use crate::proto::v1 as wire;

/// Reads requests that only name a VM.
macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident $wire:ident $model:ident;)*) => { $(
        $(#[$doc])*
        pub(in super::super) fn $name(given: wire::$wire, caller: Caller) -> Result<Asked, Fault> {
            Ok(Asked {
                envelope: envelope(&given.request_id, given.expected_generation, false, caller)?,
                vm_id: Some(text::required_id("vm_id", &given.vm_id)?),
                request: VmRequest::$model,
            })
        }
    )* };
}

plain! {
    /// Reads a RecoverVm request.
    recover_vm RecoverVmRequest RecoverVm;
    /// Reads a RebootVm request.
    reboot_vm RebootVmRequest RebootVm;
    /// Reads a ResetVm request.
    reset_vm ResetVmRequest ResetVm;
    /// Reads a PauseVm request.
    pause_vm PauseVmRequest PauseVm;
    /// Reads a ResumeVm request.
    resume_vm ResumeVmRequest ResumeVm;
    /// Reads a SaveVm request.
    save_vm SaveVmRequest SaveVm;
}

/// Reads a StartVm request.
pub(in super::super) fn start_vm(
    given: wire::StartVmRequest,
    caller: Caller,
) -> Result<Asked, Fault> {
    Ok(Asked {
        envelope: envelope(&given.request_id, given.expected_generation, false, caller)?,
        vm_id: Some(text::required_id("vm_id", &given.vm_id)?),
        request: VmRequest::StartVm {
            discard_saved_memory: given.discard_saved_memory,
        },
    })
}

/// Reads a StopVm request.
pub(in super::super) fn stop_vm(
    given: wire::StopVmRequest,
    caller: Caller,
) -> Result<Asked, Fault> {
    Ok(Asked {
        envelope: envelope(&given.request_id, given.expected_generation, false, caller)?,
        vm_id: Some(text::required_id("vm_id", &given.vm_id)?),
        request: VmRequest::StopVm {
            stop_policy: stop_policy(given.stop_policy)?,
            discard_saved_memory: given.discard_saved_memory,
        },
    })
}

/// Reads a SetVmPowerState request.
pub(in super::super) fn set_vm_power_state(
    given: wire::SetVmPowerStateRequest,
    caller: Caller,
) -> Result<Asked, Fault> {
    let field = "power_state";
    let power_state = match wire::PowerState::try_from(given.power_state)
        .map_err(|_| unknown_value(field, given.power_state))?
    {
        wire::PowerState::Unspecified => return Err(required(field)),
        wire::PowerState::On => PowerState::On,
        wire::PowerState::Off => PowerState::Off,
        wire::PowerState::Paused => PowerState::Paused,
    };
    Ok(Asked {
        envelope: envelope(&given.request_id, given.expected_generation, false, caller)?,
        vm_id: Some(text::required_id("vm_id", &given.vm_id)?),
        request: VmRequest::SetVmPowerState {
            power_state,
            graceful_shutdown: given.graceful_shutdown,
        },
    })
}

/// Reads a DeleteVm request.
pub(in super::super) fn delete_vm(
    given: wire::DeleteVmRequest,
    caller: Caller,
) -> Result<Asked, Fault> {
    let (generation, validate_only) = (given.expected_generation, given.validate_only);
    Ok(Asked {
        envelope: envelope(&given.request_id, generation, validate_only, caller)?,
        vm_id: Some(text::required_id("vm_id", &given.vm_id)?),
        request: VmRequest::DeleteVm {
            stop_policy: stop_policy(given.stop_policy)?,
            retention: time::duration("retention", given.retention, &time::KEPT)?,
        },
    })
}

/// Reads an ExpungeVm request.
pub(in super::super) fn expunge_vm(
    given: wire::ExpungeVmRequest,
    caller: Caller,
) -> Result<Asked, Fault> {
    let (generation, validate_only) = (given.expected_generation, given.validate_only);
    Ok(Asked {
        envelope: envelope(&given.request_id, generation, validate_only, caller)?,
        vm_id: Some(text::required_id("vm_id", &given.vm_id)?),
        request: VmRequest::ExpungeVm,
    })
}

/// Reads a stop policy.
pub(super) fn stop_policy(given: Option<wire::StopPolicy>) -> Result<Option<StopWish>, Fault> {
    let Some(given) = given else { return Ok(None) };
    let on_timeout = {
        let (field, value) = ("stop_policy.on_timeout", given.on_timeout);
        match wire::OnTimeout::try_from(value).map_err(|_| unknown_value(field, value))? {
            wire::OnTimeout::Unspecified | wire::OnTimeout::Fail => OnTimeout::Fail,
            wire::OnTimeout::Force => OnTimeout::Force,
        }
    };
    let (field, value) = ("stop_policy.mode", given.mode);
    match wire::StopMode::try_from(value).map_err(|_| unknown_value(field, value))? {
        wire::StopMode::Unspecified => Err(required(field)),
        wire::StopMode::Graceful => Ok(Some(StopWish::Graceful {
            timeout: time::duration("stop_policy.timeout", given.timeout, &time::WAITED)?,
            resend_interval: time::duration(
                "stop_policy.resend_interval",
                given.resend_interval,
                &time::WAITED,
            )?,
            on_timeout,
        })),
        // A time to wait and a cut of the power are two different wishes.
        wire::StopMode::Force => {
            let only = "is only for STOP_MODE_GRACEFUL";
            if given.timeout.is_some() {
                return Err(invalid("stop_policy.timeout", only));
            }
            if given.resend_interval.is_some() {
                return Err(invalid("stop_policy.resend_interval", only));
            }
            Ok(Some(StopWish::Force))
        }
    }
}
