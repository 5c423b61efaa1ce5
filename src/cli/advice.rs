//! What to do about a reason: the model's remedy, put into this client's words
//! where it speaks of the API, and the command that does it or shows more.
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
    let value = |key| error.metadata.get(key).map(String::as_str);
    if reason == Reason::WrongState {
        let paused = value("state") == Some("PAUSED");
        let calls = value("instead").unwrap_or_default();
        return calls
            .split(',')
            .filter_map(|call| instead(call, paused))
            .map(str::to_owned)
            .collect();
    }
    if reason == Reason::KvmUnavailable && value("field") == Some("hardware.cpu_mode") {
        let words = "Without KVM, a guest can have the fullest CPU that QEMU gives.";
        return vec![words.to_owned(), "--cpu-mode maximum".to_owned()];
    }
    if let (Reason::NetworkNotFound, Some(network)) = (reason, value("network")) {
        let words = "Define it on the host, then try again: virsh net-define FILE";
        return vec![words.to_owned(), format!("virsh net-info {network}")];
    }
    if reason == Reason::FieldInvalid
        && (value("machine").is_some() || value("cpu_model").is_some())
    {
        let words = "Use one of those that this shows:";
        return vec![words.to_owned(), "kvmlet node".to_owned()];
    }
    let mut lines = vec![words(reason).to_owned()];
    lines.extend(
        command(reason).map(|command| {
            command.replace("OPERATION", value("operation_id").unwrap_or("OPERATION"))
        }),
    );
    lines
}

/// The remedy; the model's own may speak of metadata, which is printed above.
fn words(reason: Reason) -> &'static str {
    match reason {
        Reason::ImageRefused => {
            "See the problem above; convert the image into a plain qcow2 or raw first."
        }
        Reason::VmExists => "Compare the field above; use another id for another VM.",
        Reason::ImageExists => "Compare the field above; use another id for another image.",
        Reason::RequestIdReused => {
            "Compare the field above; use a new request id for a new request."
        }
        Reason::MacInUse => "Use another; the VM above has it.",
        Reason::ImageInUse => {
            "Expunge the VMs that use it first, or end what else does; it is named above."
        }
        Reason::DomainDrifted => {
            "Take the differences above back by hand (docs/operations.md, beside virsh); then try again."
        }
        Reason::VolumesMissing => "Bring them back; they are named above.",
        Reason::VmBusy | Reason::ImageBusy | Reason::NodeBusy => {
            "Wait for the operation above, then try again."
        }
        Reason::NodeInMaintenance => "Use another host, or end the maintenance.",
        Reason::OrphanBusy => "Wait for the operation above.",
        Reason::OrphanInUse => "Remove what uses it first; it is named above.",
        Reason::OrphanRecorded => "A call for what it is removes it.",
        Reason::Overtaken => "Follow the operation above.",
        Reason::StartFailed => "See the problem above, if it is there, and the host's log.",
        Reason::VolumeInUse => "End what uses it, then try again; it is named above.",
        Reason::StopPolicyRequired => "Say how to stop the VM, or stop it first.",
        Reason::NetworkNotFound | Reason::ProfileNotFound | Reason::PoolNotFound => {
            "Use one of those that this shows:"
        }
        reason => reason.remedy(),
    }
}

/// The command for a call that a refusal names.
fn instead(call: &str, paused: bool) -> Option<&'static str> {
    Some(match call {
        "StartVm" => "kvmlet vm start VM",
        // A paused guest hears nothing.
        "StopVm" if paused => "kvmlet vm stop VM --force",
        "StopVm" => "kvmlet vm stop VM",
        "ResumeVm" => "kvmlet vm resume VM",
        "RecoverVm" => "kvmlet vm recover VM",
        "ExpungeVm" => "kvmlet vm expunge VM",
        "DeleteVm" => "kvmlet vm delete VM",
        "CreateVm" => "kvmlet vm create NAME --id VM …",
        _ => return None,
    })
}

/// The command or the option of this client that helps.
fn command(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::VmNotFound => "kvmlet vm list --all",
        Reason::ImageNotFound | Reason::ImageNotReady => "kvmlet image list",
        Reason::VolumeNotFound => "kvmlet volume list",
        Reason::OperationNotFound => "kvmlet op list",
        Reason::OrphanNotFound | Reason::OrphanForeign | Reason::OrphanRecorded => {
            "kvmlet orphan list"
        }
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
        Reason::VmBusy
        | Reason::ImageBusy
        | Reason::OrphanBusy
        | Reason::NodeBusy
        | Reason::Overtaken => "kvmlet op wait OPERATION",
        Reason::NodeInMaintenance => "kvmlet node maintenance off",
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
            [
                "Wait for the operation above, then try again.",
                "kvmlet op wait 0b0e"
            ]
        );
        assert_eq!(
            lines(&error("VM_BUSY", &[])),
            [
                "Wait for the operation above, then try again.",
                "kvmlet op wait OPERATION"
            ]
        );
    }

    #[test]
    fn a_state_that_forbids_it_names_the_commands_that_help() {
        let refused = |state, calls| {
            lines(&error(
                "WRONG_STATE",
                &[("state", state), ("instead", calls)],
            ))
        };
        assert_eq!(
            refused("PAUSED", "ResumeVm,StopVm"),
            ["kvmlet vm resume VM", "kvmlet vm stop VM --force"]
        );
        assert_eq!(refused("RUNNING", "StopVm"), ["kvmlet vm stop VM"]);
        assert!(refused("STOPPED", "").is_empty());
    }

    #[test]
    fn advice_does_not_repeat_the_refusal() {
        let of = |field| lines(&error("KVM_UNAVAILABLE", &[("field", field)]));
        assert!(of("hardware.accelerator").contains(&"--accelerator tcg".to_owned()));
        let mode = of("hardware.cpu_mode");
        assert!(mode.contains(&"--cpu-mode maximum".to_owned()), "{mode:?}");
        assert!(!mode.iter().any(|line| line.contains("accelerator")));
        let network = lines(&error("NETWORK_NOT_FOUND", &[("network", "lab")]));
        assert_eq!(network[1], "virsh net-info lab");
        let machine = lines(&error("FIELD_INVALID", &[("machine", "microvm")]));
        assert_eq!(machine[1], "kvmlet node");
    }

    #[test]
    fn advice_does_not_speak_of_the_wire() {
        for reason in Reason::ALL {
            for line in lines(&error(reason.as_str(), &[])) {
                assert!(!line.contains("metadata"), "{reason:?}: {line}");
            }
        }
    }

    #[test]
    fn every_reason_of_the_model_has_advice_and_others_have_none() {
        for reason in Reason::ALL {
            if *reason == Reason::WrongState {
                // It depends on the state.
                continue;
            }
            assert!(
                !lines(&error(reason.as_str(), &[])).is_empty(),
                "{reason:?}"
            );
        }
        assert!(lines(&error("OF_A_LATER_VERSION", &[])).is_empty());
    }
}
