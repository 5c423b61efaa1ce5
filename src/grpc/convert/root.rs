//! ReplaceRootVolume and RevertRootVolume.

use super::power::stop_policy;
use super::{Asked, envelope, invalid, required, text, time, unknown_value, volume};
use crate::model::fault::Fault;
use crate::model::request::{Caller, HealthCheck, HealthSign, ReplaceRoot, SizePolicy, VmRequest};
use crate::model::tag;
use crate::proto::v1 as wire;

/// Reads a ReplaceRootVolume request.
pub(in super::super) fn replace_root(
    given: wire::ReplaceRootVolumeRequest,
    caller: Caller,
) -> Result<Asked, Fault> {
    let (generation, validate_only) = (given.expected_generation, given.validate_only);
    let envelope = envelope(&given.request_id, generation, validate_only, caller)?;
    let vm_id = Some(text::required_id("vm_id", &given.vm_id)?);
    let replace = ReplaceRoot {
        image_id: text::required_id("image_id", &given.image_id)?,
        resource_id: text::id("resource_id", &given.resource_id)?,
        system_tags: text::list("system_tags", given.system_tags)?,
        user_tags: text::list("user_tags", given.user_tags)?,
        size_policy: size_policy(given.size_policy, given.size_bytes)?,
        stop_policy: stop_policy(given.stop_policy)?,
        start_after: given.start_after,
        keep_old_for: time::duration("keep_old_for", given.keep_old_for, &time::KEPT)?,
        health_check: given.health_check.map(health_check).transpose()?,
    };
    tag::parse(&replace.system_tags)?;
    if replace.health_check.is_some() && !replace.start_after {
        return Err(invalid("health_check", "needs start_after"));
    }
    Ok(Asked {
        vm_id,
        envelope,
        request: VmRequest::ReplaceRootVolume(Box::new(replace)),
    })
}

/// Reads a RevertRootVolume request.
pub(in super::super) fn revert_root(
    given: wire::RevertRootVolumeRequest,
    caller: Caller,
) -> Result<Asked, Fault> {
    let (generation, validate_only) = (given.expected_generation, given.validate_only);
    Ok(Asked {
        envelope: envelope(&given.request_id, generation, validate_only, caller)?,
        vm_id: Some(text::required_id("vm_id", &given.vm_id)?),
        request: VmRequest::RevertRootVolume {
            volume_id: text::id("volume_id", &given.volume_id)?,
            stop_policy: stop_policy(given.stop_policy)?,
            start_after: given.start_after,
        },
    })
}

fn size_policy(value: i32, size_bytes: u64) -> Result<SizePolicy, Fault> {
    let size = "size_bytes";
    let policy = match wire::SizePolicy::try_from(value)
        .map_err(|_| unknown_value("size_policy", value))?
    {
        wire::SizePolicy::Exact if size_bytes == 0 => return Err(required(size)),
        wire::SizePolicy::Exact => return volume::size(size, size_bytes).map(SizePolicy::Exact),
        wire::SizePolicy::Unspecified | wire::SizePolicy::KeepLarger => SizePolicy::KeepLarger,
        wire::SizePolicy::Image => SizePolicy::Image,
    };
    if size_bytes == 0 {
        Ok(policy)
    } else {
        Err(invalid(size, "is only for SIZE_POLICY_EXACT"))
    }
}

fn health_check(given: wire::HealthCheck) -> Result<HealthCheck, Fault> {
    let field = "health_check.sign";
    Ok(HealthCheck {
        sign: match wire::HealthSign::try_from(given.sign)
            .map_err(|_| unknown_value(field, given.sign))?
        {
            wire::HealthSign::Unspecified => return Err(required(field)),
            wire::HealthSign::StillRunning => HealthSign::StillRunning,
            wire::HealthSign::GuestAgent => HealthSign::GuestAgent,
        },
        timeout: time::required_duration("health_check.timeout", given.timeout, &time::WAITED)?,
    })
}
