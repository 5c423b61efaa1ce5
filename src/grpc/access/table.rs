//! Which role each call needs: the one table. A call that is not in it is refused.
//!
//! Two calls need more by what they ask for: DeleteVm with a shorter retention than
//! the configured one needs an admin, and CancelOperation the role that the
//! operation's own call needs.

use crate::model::access::Role;
use std::collections::HashMap;
use std::sync::LazyLock;

/// What kind of call it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::grpc) enum Kind {
    /// It reads.
    Read,
    /// It reads as long as the caller likes.
    Stream,
    /// It changes something, which is recorded.
    Change,
    /// It shows what a guest shows, or how to get at it, which is recorded.
    Console,
}

impl Kind {
    /// Whether it is recorded who did it.
    pub(in crate::grpc) const fn is_audited(self) -> bool {
        matches!(self, Self::Change | Self::Console)
    }
}

/// What is known of a call before it is looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::grpc) struct Rule {
    /// Its name.
    pub(in crate::grpc) rpc: &'static str,
    /// Who may.
    pub(in crate::grpc) needs: Role,
    /// What kind of call it is.
    pub(in crate::grpc) kind: Kind,
    /// Whether it is one of kvmlet's: health and reflection have words of their own.
    pub(in crate::grpc) ours: bool,
}

use Kind::{Change, Console, Read, Stream};
use Role::{Admin, Operator, Viewer};

type Calls = &'static [(&'static str, Role, Kind)];

const TABLE: &[(&str, Calls)] = &[
    (
        "kvmlet.v1.VmService",
        &[
            ("GetVm", Viewer, Read),
            ("ListVms", Viewer, Read),
            ("CreateVm", Operator, Change),
            ("UpdateVm", Operator, Change),
            ("DeleteVm", Operator, Change),
            ("RecoverVm", Operator, Change),
            ("ExpungeVm", Admin, Change),
            ("StartVm", Operator, Change),
            ("StopVm", Operator, Change),
            ("RebootVm", Operator, Change),
            ("ResetVm", Operator, Change),
            ("PauseVm", Operator, Change),
            ("ResumeVm", Operator, Change),
            ("SaveVm", Operator, Change),
            ("SetVmPowerState", Operator, Change),
            ("ReplaceRootVolume", Operator, Change),
            ("RevertRootVolume", Operator, Change),
        ],
    ),
    (
        "kvmlet.v1.ImageService",
        &[
            ("GetImage", Viewer, Read),
            ("ListImages", Viewer, Read),
            ("ImportImage", Admin, Change),
            ("DeleteImage", Admin, Change),
        ],
    ),
    (
        "kvmlet.v1.VolumeService",
        &[
            ("GetVolume", Viewer, Read),
            ("ListVolumes", Viewer, Read),
            ("ListPools", Viewer, Read),
        ],
    ),
    (
        "kvmlet.v1.ConsoleService",
        &[
            ("GetVncConsole", Operator, Console),
            ("CaptureScreenshot", Operator, Console),
        ],
    ),
    (
        "kvmlet.v1.OperationService",
        &[
            ("GetOperation", Viewer, Read),
            ("ListOperations", Viewer, Read),
            ("WaitOperation", Viewer, Read),
            ("CancelOperation", Operator, Change),
        ],
    ),
    (
        "kvmlet.v1.NodeService",
        &[
            ("GetNode", Viewer, Read),
            ("WatchEvents", Viewer, Stream),
            ("ListOrphans", Viewer, Read),
            ("DeleteOrphan", Admin, Change),
            ("SetMaintenance", Admin, Change),
        ],
    ),
    (
        "grpc.health.v1.Health",
        &[("Check", Viewer, Read), ("Watch", Viewer, Stream)],
    ),
    (
        "grpc.reflection.v1.ServerReflection",
        &[("ServerReflectionInfo", Viewer, Stream)],
    ),
    (
        "grpc.reflection.v1alpha.ServerReflection",
        &[("ServerReflectionInfo", Viewer, Stream)],
    ),
];

static RULES: LazyLock<HashMap<String, Rule>> = LazyLock::new(|| {
    let mut rules = HashMap::new();
    for (service, calls) in TABLE {
        for &(rpc, needs, kind) in *calls {
            let rule = Rule {
                rpc,
                needs,
                kind,
                ours: service.starts_with("kvmlet."),
            };
            rules.insert(format!("/{service}/{rpc}"), rule);
        }
    }
    rules
});

/// The rule for a call, by the path of its request; `None`: nobody may.
pub(in crate::grpc) fn rule(path: &str) -> Option<Rule> {
    RULES.get(path).copied()
}

/// Who may make a call of kvmlet's own, by its name.
pub(in crate::grpc) fn needs(rpc: &str) -> Role {
    let mut calls = TABLE.iter().flat_map(|(_, calls)| calls.iter());
    calls
        .find(|(name, ..)| *name == rpc)
        .map_or(Admin, |(_, needs, _)| *needs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::operation::OperationKind;
    use crate::proto::v1::DESCRIPTORS;
    use prost::Message;
    use prost_types::FileDescriptorSet;
    use std::collections::BTreeSet;

    /// Every call that is served, with whether its answer is a stream.
    fn served() -> BTreeSet<(String, bool)> {
        let mut served = BTreeSet::new();
        for set in [
            DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ] {
            for file in FileDescriptorSet::decode(set).unwrap().file {
                // What the agent calls at others, it does not serve.
                if file.package() == "kvmlet.report.v1" {
                    continue;
                }
                for service in &file.service {
                    for method in &service.method {
                        let path =
                            format!("/{}.{}/{}", file.package(), service.name(), method.name());
                        served.insert((path, method.server_streaming()));
                    }
                }
            }
        }
        served
    }

    #[test]
    fn every_call_that_is_served_has_a_rule_and_no_other() {
        let served = served();
        assert!(served.len() > 35, "{served:?}");
        for (path, streams) in &served {
            if path.ends_with("/List") {
                // Of health; the server does not have it yet.
                continue;
            }
            let rule = rule(path).unwrap_or_else(|| panic!("{path} has no rule"));
            assert_eq!(rule.kind == Stream, *streams, "{path}");
        }
        for path in RULES.keys() {
            let known = |streams| served.contains(&(path.clone(), streams));
            assert!(known(true) || known(false), "{path} is not served");
        }
        assert_eq!(rule("/kvmlet.v1.VmService/Nothing"), None);
    }

    #[test]
    fn viewers_change_nothing_and_see_no_secret() {
        for (path, rule) in &*RULES {
            let name = rule.rpc;
            let reads = ["Get", "List", "Wait", "Watch", "Check", "ServerReflection"];
            let by_name =
                reads.iter().any(|read| name.starts_with(read)) && name != "GetVncConsole";
            assert_eq!(by_name, rule.needs == Viewer, "{path}");
            assert_eq!(by_name, !rule.kind.is_audited(), "{path}");
        }
    }

    #[test]
    fn every_kind_of_operation_is_a_call_with_a_rule_of_its_own() {
        for kind in OperationKind::ALL {
            let rpc = super::super::rpc_of(kind);
            let found = TABLE.iter().flat_map(|(_, calls)| calls.iter());
            assert_eq!(found.filter(|(name, ..)| *name == rpc).count(), 1, "{rpc}");
        }
        assert_eq!(needs("NoSuchCall"), Admin);
    }
}
