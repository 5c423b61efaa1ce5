//! The host itself.

use super::time::timestamp;
use super::{hardware, nic, volume};
use crate::proto::v1 as wire;
use crate::service::node::NodeView;

/// The host with its agent.
pub(crate) fn shown(node: NodeView) -> wire::Node {
    wire::Node {
        id: node.id.to_string(),
        hostname: node.hostname,
        labels: node.labels.into_iter().collect(),
        kvmlet_version: node.kvmlet_version,
        libvirt_version: node.libvirt_version,
        hypervisor_version: node.hypervisor_version,
        kernel_version: node.kernel_version,
        hypervisor_uri: node.hypervisor_uri,
        accelerator: node.accelerator,
        architecture: node.architecture,
        cpus: node.cpus,
        memory_bytes: node.memory.get(),
        promised_vcpus: node.promised_vcpus,
        promised_memory_bytes: node.promised_memory.get(),
        pools: node.pools.iter().map(volume::shown_pool).collect(),
        vm_counts: node.vm_counts.into_iter().collect(),
        conditions: node
            .conditions
            .into_iter()
            .map(|condition| wire::Condition {
                r#type: condition.kind,
                status: condition.status,
                reason: condition.reason,
                message: condition.message,
                last_transition_time: Some(timestamp(condition.since)),
            })
            .collect(),
        start_time: Some(timestamp(node.start_time)),
        libvirt_calls: node.libvirt_calls,
        journal_commits: node.journal_commits,
        journal_batches: node.journal_batches,
        foreign_domains: node.foreign_domains,
        hardware_profiles: node
            .hardware_profiles
            .iter()
            .map(|(id, profile)| wire::HardwareProfile {
                id: id.clone(),
                hardware: Some(hardware::shown(profile)),
            })
            .collect(),
        networks: node
            .networks
            .iter()
            .map(|(id, attachment)| nic::shown_network(id, attachment))
            .collect(),
    }
}
