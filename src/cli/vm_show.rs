//! `kvmlet vm list|show`.

use crate::cli::connect::Session;
use crate::cli::fault::Fault;
use crate::cli::output::{self, Output};
use crate::cli::parse;
use crate::cli::resolve::{self, Gone, PAGE};
use crate::cli::table::{Sheet, Table};
use crate::cli::volume;
use crate::proto::v1::{GetVmRequest, ListVmsRequest, Vm, VmConditionType, VmState, nic};
use clap::Args;

/// Which VMs to list.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Also those that are DELETED
    #[arg(short, long)]
    all: bool,
    /// Only with this label (may be repeated: with all of them)
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = parse::pair)]
    labels: Vec<(String, String)>,
    /// Only in this state, such as running (may be repeated)
    #[arg(long = "state", value_parser = state_filter)]
    states: Vec<VmState>,
}

fn state_filter(text: &str) -> Result<VmState, String> {
    let name = text.to_ascii_uppercase().replace('-', "_");
    VmState::from_str_name(&format!("VM_STATE_{name}"))
        .filter(|state| *state != VmState::Unspecified)
        .ok_or_else(|| "expected a state such as running, stopped or paused".into())
}

/// ListVms, all pages.
pub(crate) async fn list(session: &Session, args: ListArgs) -> Result<(), Fault> {
    let filter = ListVmsRequest {
        page_size: PAGE,
        page_token: String::new(),
        labels: parse::map(&args.labels),
        states: args.states.iter().map(|&state| state.into()).collect(),
        show_deleted: args.all,
    };
    let vms = resolve::pages(|page_token| {
        let mut client = session.vms();
        let request = ListVmsRequest {
            page_token,
            ..filter.clone()
        };
        async move {
            let page = client.list_vms(request).await?.into_inner();
            Ok((page.vms, page.next_page_token))
        }
    })
    .await?;
    session.out.many(&vms, || {
        let mut table = Table::new(&["ID", "NAME", "STATE", "VCPUS", "MEMORY", "VNC", "CREATED"]);
        for vm in &vms {
            let hardware = vm.hardware.clone().unwrap_or_default();
            table.row([
                vm.id.clone(),
                vm.name.clone(),
                state(vm).to_owned(),
                hardware.vcpus.to_string(),
                output::size(hardware.memory_bytes),
                display(vm),
                session.out.relative(vm.create_time),
            ]);
        }
        table
    })
}

/// GetVm.
pub(crate) async fn show(session: &Session, vm: &str) -> Result<(), Fault> {
    let vm_id = resolve::vm(session, vm, Gone::Yields).await?;
    let vm = session
        .vms()
        .get_vm(GetVmRequest { vm_id })
        .await?
        .into_inner();
    session
        .out
        .one(&vm, || sheet(&session.out, &vm).to_string())
}

fn sheet(out: &Output, vm: &Vm) -> Sheet {
    let mut sheet = Sheet::default();
    sheet.add("id", &vm.id);
    sheet.add("name", &vm.name);
    sheet.add("description", &vm.description);
    let reason = output::word(vm.state_reason().as_str_name(), "STATE_REASON_");
    match reason.as_str() {
        "" => sheet.add("state", state(vm)),
        reason => sheet.add("state", format!("{} ({reason})", state(vm))),
    }
    sheet.add("operation", &vm.current_operation_id);
    sheet.add("generation", vm.generation);
    sheet.add("labels", output::pairs(&vm.labels, "\n"));
    sheet.add("annotations", output::pairs(&vm.annotations, "\n"));
    sheet.add("system tags", vm.system_tags.join("\n"));
    sheet.add("user tags", vm.user_tags.join("\n"));
    sheet.add("profile", &vm.hardware_profile_id);
    if let Some(hardware) = &vm.hardware {
        sheet.add("vCPUs", hardware.vcpus);
        sheet.add("memory", output::size(hardware.memory_bytes));
        let mode = output::word(hardware.cpu_mode().as_str_name(), "CPU_MODE_");
        sheet.add("CPU", format!("{mode} {}", hardware.cpu_model).trim());
        sheet.add("machine", &hardware.machine);
        sheet.add(
            "firmware",
            output::word(hardware.firmware().as_str_name(), "FIRMWARE_"),
        );
        let accelerator = output::word(hardware.accelerator().as_str_name(), "ACCELERATOR_");
        let auto = if accelerator.is_empty() { "auto" } else { "" };
        sheet.add("accelerator", format_args!("{accelerator}{auto}"));
    }
    sheet.add("hypervisor", &vm.hypervisor_type);
    sheet.add("VNC", display(vm));
    for condition in &vm.conditions {
        let name = match condition.r#type() {
            VmConditionType::Unspecified => "condition",
            VmConditionType::Drifted => "drifted",
            VmConditionType::DomainForeign => "domain foreign",
            VmConditionType::SavedMemoryUnreadable => "memory unreadable",
            VmConditionType::RunsDeleted => "runs deleted",
        };
        sheet.add(name, condition.details.join("; "));
    }
    sheet.add("image", &vm.image_id);
    sheet.add("root volume", &vm.root_volume_id);
    sheet.add("package", &vm.package);
    sheet.add("os", &vm.os);
    sheet.add("platform", &vm.platform);
    sheet.add("host", &vm.host_id);
    sheet.add("last host", &vm.last_host_id);
    sheet.add("created", out.local(vm.create_time));
    sheet.add("updated", out.local(vm.update_time));
    sheet.add("deleted", out.local(vm.delete_time));
    sheet.add("expunged", out.local(vm.expunge_time));

    let mut volumes = Table::new(&[
        "#", "ID", "NAME", "KIND", "STATE", "POOL", "SIZE", "USED", "UNTIL",
    ]);
    for volume in &vm.volumes {
        volumes.row([
            volume.device_index.to_string(),
            volume.id.clone(),
            volume.name.clone(),
            volume::kind(volume),
            volume::state(volume),
            volume::place(volume),
            output::size(volume.size_bytes),
            output::size(volume.actual_size_bytes),
            out.relative(volume.expire_time),
        ]);
    }
    sheet.table("volumes", volumes);

    let mut nics = Table::new(&[
        "#",
        "MAC",
        "MODEL",
        "PLUGS INTO",
        "NETWORK",
        "ADDRESSES",
        "GUEST HAS",
        "ID",
    ]);
    for nic in &vm.nics {
        let into = match &nic.attachment {
            Some(nic::Attachment::Bridge(bridge)) if bridge.vlan > 0 => {
                format!("bridge {}, VLAN {}", bridge.name, bridge.vlan)
            }
            Some(nic::Attachment::Bridge(bridge)) => format!("bridge {}", bridge.name),
            Some(nic::Attachment::LibvirtNetwork(network)) => {
                format!("libvirt network {}", network.name)
            }
            Some(nic::Attachment::User(_)) => "user".to_owned(),
            None => String::new(),
        };
        nics.row([
            nic.device_index.to_string(),
            nic.mac.clone(),
            output::word(nic.model().as_str_name(), "NIC_MODEL_"),
            into,
            nic.network_id.clone(),
            nic.ip_addresses.join(" "),
            nic.guest_ip_addresses.join(" "),
            nic.id.clone(),
        ]);
    }
    sheet.table("network interfaces", nics);
    sheet
}

fn state(vm: &Vm) -> &'static str {
    output::name(vm.state().as_str_name(), "VM_STATE_")
}

/// Where the display listens, while it does.
fn display(vm: &Vm) -> String {
    match &vm.vnc {
        Some(vnc) if vnc.enabled && vnc.port > 0 => format!("{}:{}", vnc.address, vnc.port),
        Some(vnc) if !vnc.enabled => "none".to_owned(),
        Some(_) | None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_named_in_any_case() {
        assert_eq!(state_filter("Running"), Ok(VmState::Running));
        assert_eq!(state_filter("replacing-root"), Ok(VmState::ReplacingRoot));
        assert!(state_filter("unspecified").is_err());
        assert!(state_filter("on").is_err());
    }

    #[test]
    fn a_vm_is_shown_with_what_is_known_of_it() {
        let out = Output::new(output::Format::Table, false);
        let vm = Vm {
            id: "v".into(),
            name: "web1".into(),
            state: VmState::Paused.into(),
            state_reason: crate::proto::v1::StateReason::IoError.into(),
            description: "one\ntwo\x1b[2J".into(),
            ..Vm::default()
        };
        assert_eq!(
            sheet(&out, &vm).to_string(),
            "id           v\nname         web1\ndescription  one\n             two[2J\n\
             state        PAUSED (io error)\ngeneration   0\n"
        );
    }
}
