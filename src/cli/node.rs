//! `kvmlet node`.

use crate::cli::connect::Session;
use crate::cli::fault::Fault;
use crate::cli::output::{self, Output};
use crate::cli::table::{Sheet, Table};
use crate::cli::volume::{pool_table, yes};
use crate::proto::v1::{GetNodeRequest, Node, network};

/// Shows this host.
pub(crate) async fn show(session: &Session) -> Result<(), Fault> {
    let node = session
        .node()
        .get_node(GetNodeRequest {})
        .await?
        .into_inner();
    session
        .out
        .one(&node, || sheet(&session.out, &node).to_string())
}

fn sheet(out: &Output, node: &Node) -> Sheet {
    let mut sheet = Sheet::default();
    sheet.add("id", &node.id);
    sheet.add("host", &node.hostname);
    sheet.add("labels", output::pairs(&node.labels, "\n"));
    sheet.add("kvmlet", &node.kvmlet_version);
    sheet.add("libvirt", &node.libvirt_version);
    sheet.add("hypervisor", &node.hypervisor_version);
    sheet.add("kernel", &node.kernel_version);
    sheet.add("URI", &node.hypervisor_uri);
    sheet.add("accelerator", &node.accelerator);
    sheet.add("architecture", &node.architecture);
    sheet.add(
        "vCPUs",
        format!("{} promised, {} threads", node.promised_vcpus, node.cpus),
    );
    sheet.add(
        "memory",
        format!(
            "{} promised of {}",
            crate::model::bytes::Bytes(node.promised_memory_bytes),
            output::size(node.memory_bytes)
        ),
    );
    let mut counts: Vec<_> = node
        .vm_counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(state, count)| format!("{count} {}", output::name(state, "VM_STATE_")))
        .collect();
    counts.sort();
    sheet.add("VMs", counts.join(", "));
    sheet.add("foreign domains", node.foreign_domains);
    sheet.add("libvirt calls", node.libvirt_calls);
    sheet.add("journal commits", node.journal_commits);
    sheet.add("started", out.local(node.start_time));

    let mut conditions = Table::new(&["TYPE", "WELL", "REASON", "SINCE", "MESSAGE"]);
    for condition in &node.conditions {
        conditions.row([
            condition.r#type.clone(),
            yes(condition.status).to_owned(),
            condition.reason.clone(),
            out.relative(condition.last_transition_time),
            condition.message.clone(),
        ]);
    }
    sheet.table("conditions", conditions);
    sheet.table("pools", pool_table(&node.pools));

    let mut profiles = Table::new(&[
        "ID",
        "VCPUS",
        "MEMORY",
        "CPU",
        "MACHINE",
        "FIRMWARE",
        "ACCELERATOR",
    ]);
    for profile in &node.hardware_profiles {
        let hardware = profile.hardware.clone().unwrap_or_default();
        profiles.row([
            profile.id.clone(),
            hardware.vcpus.to_string(),
            output::size(hardware.memory_bytes),
            output::word(hardware.cpu_mode().as_str_name(), "CPU_MODE_"),
            hardware.machine.clone(),
            output::word(hardware.firmware().as_str_name(), "FIRMWARE_"),
            output::word(hardware.accelerator().as_str_name(), "ACCELERATOR_"),
        ]);
    }
    sheet.table("hardware profiles", profiles);

    let mut networks = Table::new(&["ID", "PLUGS INTO"]);
    for network in &node.networks {
        let into = match &network.attachment {
            Some(network::Attachment::Bridge(bridge)) if bridge.vlan > 0 => {
                format!("bridge {}, VLAN {}", bridge.name, bridge.vlan)
            }
            Some(network::Attachment::Bridge(bridge)) => format!("bridge {}", bridge.name),
            Some(network::Attachment::LibvirtNetwork(other)) => {
                format!("libvirt network {}", other.name)
            }
            Some(network::Attachment::User(_)) => "user".to_owned(),
            None => String::new(),
        };
        networks.row([network.id.clone(), into]);
    }
    sheet.table("networks", networks);
    sheet
}
