//! The machine, its capacity, and its maintenance.

use super::time::timestamp;
use super::{envelope, invalid, power, text};
use crate::model::fault::Fault;
use crate::model::hardware::Firmware;
use crate::model::maintenance::Maintenance;
use crate::model::request::{Caller, Envelope, SetMaintenance};
use crate::proto::v1 as wire;
use crate::service::host::{CpuChoice, CpuSupport, HostView, HugePages};
use crate::service::node::NodeView;

/// Reads a SetMaintenance request.
pub(in super::super) fn set_maintenance(
    given: wire::SetMaintenanceRequest,
    caller: Caller,
) -> Result<(Envelope, SetMaintenance), Fault> {
    let envelope = envelope(&given.request_id, None, false, caller)?;
    let message = text::line("message", given.message, text::LINE)?;
    let stop_policy = power::stop_policy(given.stop_policy)?;
    let only = "is only for the beginning of a maintenance";
    if !given.enabled && !message.is_empty() {
        return Err(invalid("message", only));
    }
    if !given.enabled && stop_policy.is_some() {
        return Err(invalid("stop_policy", only));
    }
    let wish = SetMaintenance {
        message: given.enabled.then_some(message),
        stop_policy,
    };
    Ok((envelope, wish))
}

/// Whether the host takes new guests.
pub(super) fn maintenance(maintenance: Option<&Maintenance>) -> wire::Maintenance {
    wire::Maintenance {
        enabled: maintenance.is_some(),
        message: maintenance.map_or(String::new(), |it| it.message.clone()),
        start_time: maintenance.map(|it| timestamp(it.since)),
    }
}

/// What VMs may take of the host.
pub(super) fn capacity(node: &NodeView) -> Option<wire::Capacity> {
    let total = node.capacity?;
    let free = total.less(node.promised);
    Some(wire::Capacity {
        vcpus: number(total.vcpus),
        promised_vcpus: number(node.promised.vcpus),
        free_vcpus: number(free.vcpus),
        memory_bytes: total.memory.get(),
        promised_memory_bytes: node.promised.memory.get(),
        free_memory_bytes: free.memory.get(),
        vcpu_overcommit: node.vcpu_overcommit,
        memory_overcommit: node.memory_overcommit,
        reserved_memory_bytes: node.reserved_memory.get(),
    })
}

/// The processors.
pub(super) fn processor(host: &HostView) -> wire::Processor {
    wire::Processor {
        name: host.processor_name.clone(),
        vendor: host.processor.vendor.clone(),
        model: host.processor.model.clone(),
        sockets: host.processor.sockets,
        cores: host.processor.cores,
        threads: host.processor.threads,
    }
}

/// The NUMA nodes.
pub(super) fn numa_nodes(host: &HostView) -> Vec<wire::NumaNode> {
    let nodes = host.numa.iter();
    nodes
        .map(|(node, pages)| wire::NumaNode {
            id: node.id,
            cpus: node.cpus.clone(),
            memory_bytes: node.memory.get(),
            huge_pages: huge_pages(pages),
        })
        .collect()
}

/// Huge pages, by size.
pub(super) fn huge_pages(pages: &[HugePages]) -> Vec<wire::HugePages> {
    let pages = pages.iter();
    pages
        .map(|pages| wire::HugePages {
            page_bytes: pages.size.get(),
            total: pages.total,
            free: pages.free,
        })
        .collect()
}

/// What guests can have.
pub(super) fn capabilities(host: &HostView) -> wire::HostCapabilities {
    wire::HostCapabilities {
        machine_types: host.machine_types.clone(),
        firmware: host
            .firmware
            .iter()
            .map(|firmware| match firmware {
                Firmware::Bios => wire::Firmware::Bios.into(),
                Firmware::Uefi => wire::Firmware::Uefi.into(),
            })
            .collect(),
        cpu_modes: host.cpu_modes.iter().map(cpu_mode).collect(),
    }
}

fn cpu_mode(support: &CpuSupport) -> wire::CpuModeSupport {
    wire::CpuModeSupport {
        mode: match support.choice {
            CpuChoice::HostPassthrough => wire::CpuMode::HostPassthrough,
            CpuChoice::HostModel => wire::CpuMode::HostModel,
            CpuChoice::Maximum => wire::CpuMode::Maximum,
            CpuChoice::Custom => wire::CpuMode::Custom,
        }
        .into(),
        usable: support.usable,
        models: support.models.clone(),
    }
}

/// A count of vCPUs on the wire; nobody has more.
pub(super) fn number(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::reason::Reason;

    fn read(given: wire::SetMaintenanceRequest) -> Result<SetMaintenance, Fault> {
        set_maintenance(given, Caller::own("test")).map(|(_, wish)| wish)
    }

    #[test]
    fn what_ends_a_maintenance_has_neither_message_nor_policy() {
        let with_message = wire::SetMaintenanceRequest {
            message: "new disks".to_owned(),
            ..Default::default()
        };
        let with_policy = wire::SetMaintenanceRequest {
            stop_policy: Some(wire::StopPolicy {
                mode: wire::StopMode::Force.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        for (given, field) in [(with_message, "message"), (with_policy, "stop_policy")] {
            let fault = read(given.clone()).unwrap_err();
            assert_eq!(fault.reason, Reason::FieldInvalid);
            assert_eq!(fault.fields[0].field, field);
            let begins = wire::SetMaintenanceRequest {
                enabled: true,
                ..given
            };
            assert!(read(begins).is_ok());
        }
        let two_lines = wire::SetMaintenanceRequest {
            enabled: true,
            message: "a\nb".to_owned(),
            ..Default::default()
        };
        assert_eq!(read(two_lines).unwrap_err().fields[0].field, "message");
    }
}
