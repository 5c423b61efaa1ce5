//! `kvmlet node`.

use crate::cli::connect::Session;
use crate::cli::fault::Fault;
use crate::cli::maintenance::{self, MaintenanceCommand};
use crate::cli::output::{self, Output};
use crate::cli::table::{Sheet, Table};
use crate::cli::volume::{pool_table, yes};
use crate::model::bytes::Bytes;
use crate::proto::v1::{GetNodeRequest, HugePages, Node, network};
use clap::Subcommand;

/// Commands on the host.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Begin or end a time in which the host takes no new guests
    #[command(subcommand)]
    Maintenance(MaintenanceCommand),
}

/// Carries out a command; without one, shows this host.
pub(crate) async fn run(session: &Session, command: Option<NodeCommand>) -> Result<(), Fault> {
    match command {
        None => show(session).await,
        Some(NodeCommand::Maintenance(command)) => maintenance::run(session, command).await,
    }
}

async fn show(session: &Session) -> Result<(), Fault> {
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
    sheet.add("machine", &node.machine_id);
    sheet.add("boot", &node.boot_id);
    sheet.add("host", &node.hostname);
    sheet.add("labels", output::pairs(&node.labels, "\n"));
    sheet.add("kvmlet", &node.kvmlet_version);
    sheet.add("libvirt", &node.libvirt_version);
    sheet.add("hypervisor", &node.hypervisor_version);
    sheet.add("kernel", &node.kernel_version);
    sheet.add("Ceph", &node.ceph_version);
    sheet.add("URI", &node.hypervisor_uri);
    sheet.add("accelerator", &node.accelerator);
    sheet.add("architecture", &node.architecture);
    machine(&mut sheet, node);
    room(&mut sheet, node);
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
    if let Some(maintenance) = node.maintenance.as_ref().filter(|it| it.enabled) {
        let since = out.local(maintenance.start_time);
        let why = match maintenance.message.as_str() {
            "" => String::new(),
            message => format!(": {message}"),
        };
        sheet.add("maintenance", format!("since {since}{why}"));
    }

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
    sheet.table("NUMA nodes", numa_nodes(node));
    sheet.table("guest processors", cpu_modes(node));

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

/// What the machine is.
fn machine(sheet: &mut Sheet, node: &Node) {
    let processor = node.processor.clone().unwrap_or_default();
    let named = [&processor.name, &processor.vendor, &processor.model];
    let names: Vec<&str> = named
        .into_iter()
        .map(String::as_str)
        .filter(|name| !name.is_empty())
        .collect();
    sheet.add("processor", names.join(", "));
    if processor.threads > 0 {
        sheet.add(
            "topology",
            format!(
                "{} sockets, {} cores, {} threads",
                processor.sockets, processor.cores, processor.threads
            ),
        );
    }
    sheet.add("huge pages", huge_pages(&node.huge_pages));
    let capabilities = node.capabilities.clone().unwrap_or_default();
    let firmware: Vec<String> = capabilities
        .firmware()
        .map(|firmware| output::word(firmware.as_str_name(), "FIRMWARE_"))
        .collect();
    sheet.add("firmware", firmware.join(", "));
    // There are a hundred; those that stay are the short names.
    let mut machines: Vec<&str> = capabilities
        .machine_types
        .iter()
        .map(String::as_str)
        .filter(|name| !name.contains('.'))
        .collect();
    machines.sort_unstable();
    sheet.add("machine types", machines.join(", "));
}

/// What VMs may take, have taken and can still take.
fn room(sheet: &mut Sheet, node: &Node) {
    let available = match node.available_memory_bytes {
        Some(bytes) => format!(", {} available", Bytes(bytes)),
        None => String::new(),
    };
    let memory = output::size(node.memory_bytes);
    let Some(capacity) = &node.capacity else {
        sheet.add("vCPUs", format!("{} promised", node.promised_vcpus));
        let promised = Bytes(node.promised_memory_bytes);
        sheet.add("memory", format!("{promised} promised"));
        return;
    };
    sheet.add(
        "vCPUs",
        format!(
            "{} promised, {} free of {} ({} threads x {})",
            capacity.promised_vcpus,
            capacity.free_vcpus,
            capacity.vcpus,
            node.cpus,
            capacity.vcpu_overcommit
        ),
    );
    sheet.add(
        "memory",
        format!(
            "{} promised, {} free of {} ({memory} x {} - {} reserved){available}",
            Bytes(capacity.promised_memory_bytes),
            Bytes(capacity.free_memory_bytes),
            Bytes(capacity.memory_bytes),
            capacity.memory_overcommit,
            Bytes(capacity.reserved_memory_bytes),
        ),
    );
}

/// Huge pages of each size, if there are any.
fn huge_pages(pages: &[HugePages]) -> String {
    let pages = pages.iter().filter(|pages| pages.total > 0);
    let words: Vec<String> = pages
        .map(|pages| {
            let free = match pages.free {
                Some(free) => format!(", {free} free"),
                None => String::new(),
            };
            format!("{} of {}{free}", pages.total, Bytes(pages.page_bytes))
        })
        .collect();
    words.join("; ")
}

fn numa_nodes(node: &Node) -> Table {
    let mut nodes = Table::new(&["ID", "CPUS", "MEMORY", "HUGE PAGES"]);
    for node in &node.numa_nodes {
        nodes.row([
            node.id.to_string(),
            ranges(&node.cpus),
            output::size(node.memory_bytes),
            huge_pages(&node.huge_pages),
        ]);
    }
    nodes
}

fn cpu_modes(node: &Node) -> Table {
    let mut modes = Table::new(&["MODE", "USABLE", "MODELS"]);
    for support in node.capabilities.iter().flat_map(|it| &it.cpu_modes) {
        modes.row([
            output::word(support.mode().as_str_name(), "CPU_MODE_"),
            yes(support.usable).to_owned(),
            support.models.join(" "),
        ]);
    }
    modes
}

/// Numbers as the kernel lists them: `0-3,8`.
fn ranges(numbers: &[u32]) -> String {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    let mut found: Vec<(u32, u32)> = Vec::new();
    for number in sorted {
        match found.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => found.push((number, number)),
        }
    }
    let words: Vec<String> = found
        .into_iter()
        .map(|(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            }
        })
        .collect();
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_listed_as_ranges() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[3, 0, 1, 2, 8]), "0-3,8");
    }

    #[test]
    fn sizes_without_pages_are_left_out() {
        let pages = |total, free| HugePages {
            page_bytes: 2 << 20,
            total,
            free,
        };
        let all = [pages(0, Some(0)), pages(4, Some(1)), pages(2, None)];
        assert_eq!(huge_pages(&all), "4 of 2 MiB, 1 free; 2 of 2 MiB");
    }
}
