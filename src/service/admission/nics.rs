//! Network interfaces: where they plug in, and addresses that nobody else has.

use super::{Core, Offered};
use crate::libvirt::ErrorKind;
use crate::model::fault::Fault;
use crate::model::ids::{NicId, VmId};
use crate::model::nic::{Attachment, MacAddress, Nic};
use crate::model::reason::Reason;
use crate::model::request::NewNic;
use crate::model::vm::Vm;
use crate::service::fault::from_libvirt;
use crate::service::gate::Lane;
use std::collections::HashSet;

/// The first libvirt that tags the traffic of a plain Linux bridge; before it,
/// only Open vSwitch could.
const VLAN_SINCE: u32 = 11;

pub(super) fn nics(
    core: &Core,
    offered: &Offered,
    vm: VmId,
    wishes: &[NewNic],
) -> Result<Vec<Nic>, Fault> {
    let mut nics = Vec::new();
    for (index, wish) in (0u32..).zip(wishes) {
        let path = |name: &str| format!("nics[{index}].{name}");
        let (attachment, network_mtu) = match (&wish.attachment, &wish.network_id) {
            (Some(_), Some(_)) => {
                return Err(Fault::field(
                    Reason::FieldInvalid,
                    path("network_id"),
                    "can't be given together with an attachment",
                ));
            }
            (Some(attachment), None) => (attachment.clone(), None),
            (None, Some(network)) => {
                let found = offered.network(network).ok_or_else(|| {
                    Fault::field(
                        Reason::NetworkNotFound,
                        path("network_id"),
                        "is not configured",
                    )
                    .with("network_id", network)
                })?;
                (found.attachment.clone(), found.mtu)
            }
            (None, None) => {
                return Err(Fault::field(
                    Reason::FieldRequired,
                    path("network_id"),
                    "or an attachment is needed",
                ));
            }
        };
        check_vlan(core, &attachment, &path("bridge.vlan"))?;
        let mtu = wish.mtu.or(network_mtu);
        if mtu.is_some() && attachment == Attachment::User {
            return Err(Fault::field(
                Reason::FieldInvalid,
                path("mtu"),
                "can't be set on a user network",
            ));
        }
        let id = wish.nic_id.unwrap_or_else(NicId::random);
        let mac = wish.mac.unwrap_or_else(|| MacAddress::derived(id, vm));
        check_mac(core, vm, mac, &nics, &path("mac"))?;
        if nics.iter().any(|nic: &Nic| nic.id == id) {
            return Err(Fault::field(
                Reason::FieldInvalid,
                path("nic_id"),
                "is given twice",
            ));
        }
        nics.push(Nic {
            id,
            network_id: wish.network_id.clone(),
            mac,
            device_index: index,
            model: wish.model,
            mtu,
            ip_addresses: wish.ip_addresses.clone(),
            metadata: wish.metadata.clone(),
            attachment,
        });
    }
    Ok(nics)
}

/// Refuses addresses that another VM has.
pub(super) fn check_addresses(core: &Core, vm: &Vm) -> Result<(), Fault> {
    for nic in &vm.nics {
        let field = format!("nics[{}].mac", nic.device_index);
        check_mac(core, vm.id, nic.mac, &[], &field)?;
    }
    Ok(())
}

/// Refuses addresses that a domain has which is not kvmlet's.
///
/// # Errors
/// `MAC_IN_USE`, naming the domain; as any call.
pub(super) async fn check_foreign_addresses(core: &Core, nics: &[Nic]) -> Result<(), Fault> {
    if nics.is_empty() {
        return Ok(());
    }
    let known: HashSet<VmId> = core.vms.cells().iter().map(|cell| cell.id).collect();
    let domains = core
        .hypervisor
        .call(Lane::Read, move |host| host.addresses_but(&known))
        .await?;
    for (name, macs) in domains {
        if let Some(nic) = nics.iter().find(|nic| macs.contains(&nic.mac)) {
            let field = format!("nics[{}].mac", nic.device_index);
            let problem = format!("is used by the domain {name}, which is none of kvmlet's VMs");
            return Err(Fault::field(Reason::MacInUse, field, problem)
                .with("mac", nic.mac)
                .with("domain", name));
        }
    }
    Ok(())
}

/// Refuses to plug into a network of libvirt's that is not on the host. Where libvirt has
/// no networks, as in its embedded driver, the start says so. `of_request` says whether
/// the interfaces are those of the request, whose fields are named then.
///
/// # Errors
/// `NETWORK_NOT_FOUND`, naming the network; as any call.
pub async fn check_networks(core: &Core, nics: &[Nic], of_request: bool) -> Result<(), Fault> {
    for nic in nics {
        let Attachment::LibvirtNetwork { name } = &nic.attachment else {
            continue;
        };
        let network = name.clone();
        let found = core
            .hypervisor
            .try_call(Lane::Read, move |host| host.network(&network))
            .await?;
        match found {
            Ok(Some(_)) => {}
            Ok(None) => {
                let part = match nic.network_id {
                    Some(_) => "network_id",
                    None => "libvirt_network",
                };
                let field = format!("nics[{}].{part}", nic.device_index);
                let problem = format!("is libvirt's network {name}, which this host does not have");
                let fault = if of_request {
                    Fault::field(Reason::NetworkNotFound, field, problem)
                } else {
                    Fault::new(Reason::NetworkNotFound, format!("{field} {problem}"))
                };
                return Err(fault.with("network", name));
            }
            Err(error) if error.kind == ErrorKind::Unsupported => {}
            Err(error) => return Err(from_libvirt(&error)),
        }
    }
    Ok(())
}

/// Refuses a VLAN that this host's libvirt can't set on a Linux bridge.
fn check_vlan(core: &Core, attachment: &Attachment, field: &str) -> Result<(), Fault> {
    let Attachment::Bridge { vlan: Some(_), .. } = attachment else {
        return Ok(());
    };
    let facts = core.hypervisor.facts()?;
    if core.hypervisor.is_simulated() || facts.libvirt_version.major >= VLAN_SINCE {
        return Ok(());
    }
    Err(Fault::field(
        Reason::FieldInvalid,
        field,
        format!(
            "needs libvirt {VLAN_SINCE}, and this host has {}",
            facts.libvirt_version
        ),
    ))
}

fn check_mac(
    core: &Core,
    vm: VmId,
    mac: MacAddress,
    own: &[Nic],
    field: &str,
) -> Result<(), Fault> {
    if own.iter().any(|nic| nic.mac == mac) {
        return Err(Fault::field(Reason::MacInUse, field, "is given twice").with("mac", mac));
    }
    for view in core.vms.list() {
        if let Some(other) = &view.vm
            && other.id != vm
            && other.nics.iter().any(|nic| nic.mac == mac)
        {
            return Err(Fault::field(
                Reason::MacInUse,
                field,
                format!("is used by VM {}", other.id),
            )
            .with("mac", mac)
            .with("vm_id", other.id));
        }
    }
    Ok(())
}
