//! The host itself.

use super::time::timestamp;
use super::{hardware, host, nic, vm, volume};
use crate::proto::v1 as wire;
use crate::service::node::NodeView;
use std::collections::HashMap;

/// The host with its agent.
pub(crate) fn shown(node: NodeView) -> wire::Node {
    let mut vm_counts = HashMap::new();
    for state in node.vms.iter().filter_map(|view| vm::state(view)) {
        let name = state.as_str_name().trim_start_matches("VM_STATE_");
        *vm_counts.entry(name.to_owned()).or_insert(0) += 1;
    }
    wire::Node {
        machine_id: node
            .host
            .machine_id
            .map(|id| id.to_string())
            .unwrap_or_default(),
        boot_id: node.host.boot_id.clone(),
        ceph_version: node.host.ceph_version.clone(),
        processor: Some(host::processor(&node.host)),
        numa_nodes: host::numa_nodes(&node.host),
        available_memory_bytes: node.host.available_memory.map(|memory| memory.get()),
        huge_pages: host::huge_pages(&node.host.huge_pages),
        capabilities: Some(host::capabilities(&node.host)),
        capacity: host::capacity(&node),
        maintenance: Some(host::maintenance(node.maintenance.as_ref())),
        vm_counts,
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
        promised_vcpus: host::number(node.promised.vcpus),
        promised_memory_bytes: node.promised.memory.get(),
        pools: node.pools.iter().map(volume::shown_pool).collect(),
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
