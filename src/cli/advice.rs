//! What to do about a reason: the model's remedy with the values of this case in
//! it, and the command that does it or shows more.
//!
//! A reason of a later daemon, which this build doesn't know, has no advice.

use crate::model::reason::Reason;
use tonic_types::ErrorInfo;

/// The advice about an error, a line each.
pub(crate) fn lines(error: &ErrorInfo) -> Vec<String> {
    let known = Reason::ALL
        .iter()
        .find(|reason| reason.as_str() == error.reason);
    let Some(&reason) = known else {
        return Vec::new();
    };
    let mut lines = vec![reason.remedy().to_owned()];
    lines.extend(command(reason).map(str::to_owned));
    // The longest key first, lest one key be the beginning of another.
    let mut metadata: Vec<_> = error.metadata.iter().collect();
    metadata.sort_by_key(|(key, _)| std::cmp::Reverse(key.len()));
    for line in &mut lines {
        for (key, value) in &metadata {
            *line = line.replace(&format!("metadata.{key}"), value);
        }
        *line = line.replace("metadata.", "");
    }
    lines
}

/// The command or the option of this client that helps.
fn command(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::VmNotFound => "kvmlet vm list --all",
        Reason::ImageNotFound | Reason::ImageNotReady => "kvmlet image list",
        Reason::VolumeNotFound => "kvmlet volume list",
        Reason::OperationNotFound => "kvmlet op list",
        Reason::PoolNotFound | Reason::PoolNotCeph | Reason::PoolFull | Reason::PoolAway => {
            "kvmlet pool list"
        }
        Reason::ProfileNotFound
        | Reason::NetworkNotFound
        | Reason::HostMemory
        | Reason::HostVcpus
        | Reason::HypervisorAway
        | Reason::JournalUnavailable => "kvmlet node",
        Reason::StopPolicyRequired => "--stop graceful, or --stop force",
        Reason::GuestDidNotStop => "kvmlet vm stop VM --force",
        Reason::VmBusy | Reason::ImageBusy | Reason::Overtaken => {
            "kvmlet op wait metadata.operation_id"
        }
        Reason::KvmUnavailable => "--accelerator tcg",
        Reason::StaleGeneration | Reason::OutcomeUnknown | Reason::NoPreviousRoot => {
            "kvmlet vm show VM"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(reason: &str, metadata: &[(&str, &str)]) -> ErrorInfo {
        let metadata = metadata
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()));
        ErrorInfo::new(
            reason,
            "kvmlet",
            metadata.collect::<std::collections::HashMap<_, _>>(),
        )
    }

    #[test]
    fn the_values_of_the_case_are_in_the_advice() {
        assert_eq!(
            lines(&error("VM_BUSY", &[("operation_id", "0b0e")])),
            ["Wait for 0b0e, then try again.", "kvmlet op wait 0b0e"]
        );
        assert_eq!(
            lines(&error("VM_BUSY", &[])),
            [
                "Wait for operation_id, then try again.",
                "kvmlet op wait operation_id"
            ]
        );
    }

    #[test]
    fn every_reason_of_the_model_has_advice_and_others_have_none() {
        for reason in Reason::ALL {
            assert!(
                !lines(&error(reason.as_str(), &[])).is_empty(),
                "{reason:?}"
            );
        }
        assert!(lines(&error("OF_A_LATER_VERSION", &[])).is_empty());
    }
}
