//! `kvmlet vm replace-root|revert-root`.

use crate::cli::connect::Session;
use crate::cli::fault::Fault;
use crate::cli::parse::{self, wire_duration};
use crate::cli::resolve::{self, Gone};
use crate::cli::vm::{VmChange, change};
use crate::cli::vm_power::StopFirstArgs;
use crate::proto::v1::{
    HealthCheck, HealthSign, ReplaceRootVolumeRequest, RevertRootVolumeRequest, SizePolicy,
};
use clap::Args;
use std::time::Duration;
use uuid::Uuid;

/// Which root volume to make.
#[derive(Debug, Args)]
pub(crate) struct ReplaceRootArgs {
    #[command(flatten)]
    change: VmChange,
    /// The image that the new root volume is made from
    #[arg(long)]
    image: String,
    /// UUID of the new volume [default: a new one]
    #[arg(long, value_name = "UUID")]
    resource_id: Option<Uuid>,
    /// keep-larger (of the old root and the image), image, or a size
    #[arg(long, value_name = "SIZE", default_value = "keep-larger", value_parser = root_size)]
    size: RootSize,
    /// Tag with a meaning, such as ceph::rootPoolName::fast (may be repeated)
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Tag that is carried (may be repeated) [default: the VM's stay]
    #[arg(long = "user-tag", value_name = "TAG")]
    user_tags: Vec<String>,
    /// Start it afterwards
    #[arg(long)]
    start: bool,
    /// How long to keep the old root; 0s: not at all [default: the configured time]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    keep_old_for: Option<Duration>,
    /// Switch back if the start is no good: still-running=30s or guest-agent=90s
    #[arg(long, value_name = "SIGN=DURATION", value_parser = health, requires = "start")]
    health: Option<HealthCheck>,
    /// Check everything, change nothing, print the plan
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    stop: StopFirstArgs,
}

/// How to switch back.
#[derive(Debug, Args)]
pub(crate) struct RevertRootArgs {
    #[command(flatten)]
    change: VmChange,
    /// The former root to switch back to [default: the one that was replaced last]
    #[arg(long, value_name = "UUID")]
    volume: Option<Uuid>,
    /// Start it afterwards
    #[arg(long)]
    start: bool,
    /// Check everything, change nothing, print the plan
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    stop: StopFirstArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RootSize {
    policy: SizePolicy,
    bytes: u64,
}

fn root_size(text: &str) -> Result<RootSize, String> {
    let (policy, bytes) = match text {
        "keep-larger" => (SizePolicy::KeepLarger, 0),
        "image" => (SizePolicy::Image, 0),
        size => (SizePolicy::Exact, parse::size(size)?),
    };
    Ok(RootSize { policy, bytes })
}

fn health(text: &str) -> Result<HealthCheck, String> {
    let (sign, timeout) = parse::pair(text)?;
    let sign = match sign.as_str() {
        "still-running" => HealthSign::StillRunning,
        "guest-agent" => HealthSign::GuestAgent,
        _ => return Err("expected still-running=DURATION or guest-agent=DURATION".into()),
    };
    Ok(HealthCheck {
        sign: sign.into(),
        timeout: Some(wire_duration(parse::duration(&timeout)?)),
    })
}

/// ReplaceRootVolume.
pub(crate) async fn replace(session: &Session, args: &ReplaceRootArgs) -> Result<(), Fault> {
    let image_id = resolve::image(session, &args.image).await?;
    change!(
        session,
        &args.change,
        Gone::Yields,
        replace_root_volume(ReplaceRootVolumeRequest {
            image_id: image_id.clone(),
            resource_id: args
                .resource_id
                .map(|id| id.to_string())
                .unwrap_or_default(),
            system_tags: args.tags.clone(),
            user_tags: args.user_tags.clone(),
            size_policy: args.size.policy.into(),
            size_bytes: args.size.bytes,
            stop_policy: args.stop.policy(),
            start_after: args.start,
            keep_old_for: args.keep_old_for.map(wire_duration),
            health_check: args.health,
            validate_only: args.dry_run,
        })
    )
}

/// RevertRootVolume.
pub(crate) async fn revert(session: &Session, args: &RevertRootArgs) -> Result<(), Fault> {
    change!(
        session,
        &args.change,
        Gone::Yields,
        revert_root_volume(RevertRootVolumeRequest {
            stop_policy: args.stop.policy(),
            start_after: args.start,
            volume_id: args.volume.map(|id| id.to_string()).unwrap_or_default(),
            validate_only: args.dry_run,
        })
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_new_root_is_a_policy_or_exact() {
        let exact = root_size("20GiB").expect("a size");
        assert_eq!(exact.policy, SizePolicy::Exact);
        assert_eq!(exact.bytes, 20 << 30);
        assert_eq!(
            root_size("image").map(|size| size.policy),
            Ok(SizePolicy::Image)
        );
        assert!(root_size("larger").is_err());
    }

    #[test]
    fn a_health_check_has_a_sign_and_a_time() {
        let check = health("guest-agent=90s").expect("both are there");
        assert_eq!(check.sign(), HealthSign::GuestAgent);
        assert_eq!(check.timeout.map(|time| time.seconds), Some(90));
        assert!(health("guest-agent").is_err());
        assert!(health("ping=5s").is_err());
    }
}
