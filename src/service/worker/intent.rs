//! What a request comes to, with every choice made.

use super::Worker;
use crate::model::fault::Fault;
use crate::model::lifecycle::{Ask, Instead, Resting};
use crate::model::operation::Intent;
use crate::model::reason::Reason;
use crate::model::request::{PowerState, StopWish, VmRequest};
use crate::model::stop::StopPolicy;
use crate::model::tag;
use crate::model::time::Timestamp;
use crate::model::vm::{Life, Vm};
use crate::model::volume::{Volume, VolumeAttachment};
use crate::service::admission::SizeOf;
use crate::service::{admission, sweeper};
use std::time::Duration;

impl Worker {
    /// What a request comes to, with every choice made.
    pub(super) async fn intent(
        &self,
        request: &VmRequest,
        resting: Resting,
        vm: &Vm,
        at: Timestamp,
    ) -> Result<Intent, Fault> {
        let settings = &self.core.config.vms;
        let stop_first = |wish: &Option<StopWish>| -> Result<Option<StopPolicy>, Fault> {
            if !resting.has_power() {
                return Ok(None);
            }
            let Some(wish) = *wish else { return Ok(None) };
            let policy = admission::stop_policy(Some(wish), settings);
            if resting == Resting::Paused && policy != StopPolicy::Force {
                // A paused guest hears nothing.
                return Err(Instead::ResumeOrForce.fault(Ask::StopGraceful, resting));
            }
            Ok(Some(policy))
        };
        Ok(match request {
            VmRequest::CreateVm(wish) => Intent::CreateVm { start: wish.start },
            VmRequest::UpdateVm(changes) => Intent::UpdateVm {
                changes: changes.clone(),
                after: Box::new(admission::update(&self.core, vm, changes)?),
            },
            VmRequest::DeleteVm {
                stop_policy,
                retention,
            } => Intent::DeleteVm {
                stop: stop_first(stop_policy)?,
                // Of a VM that was never made there is nothing to keep; of one that
                // is half gone, neither.
                retention: if resting == Resting::Failed || vm.life == Life::Expunging {
                    Duration::ZERO
                } else {
                    retention.unwrap_or(settings.retention)
                },
                was_paused: resting == Resting::Paused,
            },
            VmRequest::RecoverVm => Intent::RecoverVm,
            VmRequest::ExpungeVm => Intent::ExpungeVm,
            VmRequest::StartVm {
                discard_saved_memory,
            } => Intent::StartVm {
                discard_saved_memory: *discard_saved_memory && resting == Resting::Saved,
                was_saved: resting == Resting::Saved,
            },
            VmRequest::StopVm {
                stop_policy,
                discard_saved_memory,
            } => Intent::StopVm {
                policy: admission::stop_policy(*stop_policy, settings),
                discard_saved_memory: *discard_saved_memory && resting == Resting::Saved,
            },
            VmRequest::RebootVm => Intent::RebootVm,
            VmRequest::ResetVm => Intent::ResetVm,
            VmRequest::PauseVm => Intent::PauseVm,
            VmRequest::ResumeVm => Intent::ResumeVm,
            VmRequest::SaveVm => Intent::SaveVm,
            VmRequest::SetVmPowerState {
                power_state,
                graceful_shutdown,
            } => match power_state {
                PowerState::On if resting == Resting::Paused => Intent::ResumeVm,
                PowerState::On => Intent::StartVm {
                    discard_saved_memory: false,
                    was_saved: resting == Resting::Saved,
                },
                PowerState::Paused => Intent::PauseVm,
                PowerState::Off => Intent::StopVm {
                    policy: if *graceful_shutdown {
                        admission::stop_policy(None, settings)
                    } else {
                        StopPolicy::Force
                    },
                    discard_saved_memory: false,
                },
            },
            VmRequest::ReplaceRootVolume(wish) => {
                let stop = stop_first(&wish.stop_policy)?;
                let new_root = admission::new_root(&self.core, vm, wish, at).await?;
                let keep = wish.keep_old_for.unwrap_or(settings.keep_old_root);
                let mut after = vm.clone();
                after.volumes.push(new_root.clone());
                after.switch_root(new_root.id, at.plus(keep));
                after.generation += 1;
                if !wish.user_tags.is_empty() {
                    after.user_tags.clone_from(&wish.user_tags);
                }
                if !wish.system_tags.is_empty() {
                    after.system_tags.clone_from(&wish.system_tags);
                }
                admission::check_size(&self.core, &after, SizeOf::NewRoot)?;
                Intent::ReplaceRootVolume {
                    new_root: Box::new(new_root),
                    before: Box::new(vm.clone()),
                    after: Box::new(after),
                    stop,
                    start_after: wish.start_after,
                    health_check: wish.health_check,
                }
            }
            VmRequest::RevertRootVolume {
                volume_id,
                stop_policy,
                start_after,
            } => {
                let stop = stop_first(stop_policy)?;
                let kept = vm.kept_roots().into_iter();
                let wanted = |volume: &&Volume| {
                    !sweeper::expired(volume) && volume_id.is_none_or(|id| volume.id == id)
                };
                let previous = kept.rev().find(wanted).ok_or_else(|| match volume_id {
                    None => Fault::new(
                        Reason::NoPreviousRoot,
                        "no former root volume of the VM is kept",
                    ),
                    Some(_) => Fault::field(
                        Reason::NoPreviousRoot,
                        "volume_id",
                        "names no former root volume of the VM that is kept",
                    ),
                })?;
                let (id, pool) = (previous.id, previous.pool.clone());
                let volume = previous.reference();
                // The window in which the VM can be switched back and forth stays the
                // one of the replacement: neither shorter nor longer by it.
                let until = match previous.attachment {
                    VolumeAttachment::Kept { until } => until,
                    VolumeAttachment::Attached { .. } => at,
                };
                if self
                    .core
                    .pools
                    .call(&pool, move |pool, _| pool.volume(&volume))
                    .await?
                    .is_none()
                {
                    return Err(Fault::new(
                        Reason::VolumesMissing,
                        format!("the former root volume {id} is not in its pool"),
                    )
                    .with("volumes", id));
                }
                let mut after = vm.clone();
                after.system_tags = tag::of_root_in(&vm.system_tags, previous);
                after.switch_root(id, until);
                after.generation += 1;
                Intent::RevertRootVolume {
                    before: Box::new(vm.clone()),
                    after: Box::new(after),
                    stop,
                    start_after: *start_after,
                }
            }
        })
    }
}
