//! Network interfaces and where they plug in.

use super::{invalid, required, text, unknown_value};
use crate::model::fault::Fault;
use crate::model::ids::VmId;
use crate::model::nic::{Attachment, MacAddress, MacError, Nic, NicModel};
use crate::model::reason::Reason;
use crate::model::request::NewNic;
use crate::proto::v1 as wire;
use wire::new_nic::Attachment as NewAttachment;

/// Reads a network interface to make.
pub(super) fn new_nic(field: &str, given: wire::NewNic) -> Result<NewNic, Fault> {
    let path = |name: &str| format!("{field}.{name}");
    let network_id = text::optional_line(&path("network_id"), given.network_id)?;
    let attachment = match given.attachment {
        None => None,
        Some(NewAttachment::Bridge(bridge)) => Some(self::bridge(&path("bridge"), bridge)?),
        Some(NewAttachment::LibvirtNetwork(network)) => {
            Some(libvirt_network(&path("libvirt_network"), network)?)
        }
        Some(NewAttachment::User(wire::UserAttachment {})) => Some(Attachment::User),
    };
    match (&network_id, &attachment) {
        (None, None) => return Err(required(&path("network_id"))),
        (Some(_), Some(_)) => {
            return Err(invalid(
                &path("network_id"),
                "can't be given with an attachment",
            ));
        }
        (Some(_), None) | (None, Some(_)) => {}
    }
    Ok(NewNic {
        nic_id: text::id(&path("nic_id"), &given.nic_id)?,
        network_id,
        mac: mac(&path("mac"), &given.mac)?,
        model: model(&path("model"), given.model)?,
        mtu: match given.mtu {
            0 => None,
            mtu @ 68..=65_535 => Some(mtu),
            _ => return Err(invalid(&path("mtu"), "must be 68 to 65535, or 0")),
        },
        ip_addresses: text::list(&path("ip_addresses"), given.ip_addresses)?,
        metadata: text::carried(&path("metadata"), given.metadata, text::NIC_METADATA)?,
        attachment,
    })
}

fn mac(field: &str, given: &str) -> Result<Option<MacAddress>, Fault> {
    if given.is_empty() {
        return Ok(None);
    }
    given
        .parse()
        .map(Some)
        .map_err(|error: MacError| Fault::field(Reason::MacInvalid, field, error.to_string()))
}

fn model(field: &str, value: i32) -> Result<NicModel, Fault> {
    match wire::NicModel::try_from(value).map_err(|_| unknown_value(field, value))? {
        wire::NicModel::Unspecified | wire::NicModel::Virtio => Ok(NicModel::Virtio),
        wire::NicModel::E1000 => Ok(NicModel::E1000),
        wire::NicModel::E1000e => Ok(NicModel::E1000e),
        wire::NicModel::Rtl8139 => Ok(NicModel::Rtl8139),
    }
}

fn bridge(field: &str, given: wire::BridgeAttachment) -> Result<Attachment, Fault> {
    let path = format!("{field}.name");
    let name = text::required_line(&path, given.name, text::LINE)?;
    // Linux: IFNAMSIZ is 16 with the final NUL; no slash, no white space, no
    // colon, and neither of the two names that a directory always has.
    if name.len() > 15
        || name.contains(|c: char| c.is_whitespace() || matches!(c, '/' | ':'))
        || matches!(name.as_str(), "." | "..")
    {
        return Err(invalid(
            &path,
            "is not the name of a network interface (1 to 15 bytes)",
        ));
    }
    let vlan = match u16::try_from(given.vlan) {
        Ok(0) => None,
        Ok(tag @ 1..=4094) => Some(tag),
        Ok(_) | Err(_) => {
            return Err(invalid(&format!("{field}.vlan"), "must be 1 to 4094, or 0"));
        }
    };
    Ok(Attachment::Bridge { name, vlan })
}

fn libvirt_network(
    field: &str,
    given: wire::LibvirtNetworkAttachment,
) -> Result<Attachment, Fault> {
    let path = format!("{field}.name");
    let name = text::required_line(&path, given.name, text::LINE)?;
    if name.contains('/') {
        return Err(invalid(&path, "must not have a '/'"));
    }
    Ok(Attachment::LibvirtNetwork { name })
}

/// A network interface of a VM.
pub(super) fn shown(vm: VmId, nic: &Nic) -> wire::Nic {
    use wire::nic::Attachment as Shown;
    wire::Nic {
        id: nic.id.to_string(),
        vm_id: vm.to_string(),
        network_id: nic.network_id.clone().unwrap_or_default(),
        mac: nic.mac.to_string(),
        device_index: nic.device_index,
        model: match nic.model {
            NicModel::Virtio => wire::NicModel::Virtio,
            NicModel::E1000 => wire::NicModel::E1000,
            NicModel::E1000e => wire::NicModel::E1000e,
            NicModel::Rtl8139 => wire::NicModel::Rtl8139,
        }
        .into(),
        mtu: nic.mtu.unwrap_or_default(),
        ip_addresses: nic.ip_addresses.clone(),
        guest_ip_addresses: Vec::new(),
        metadata: nic.metadata.clone().into_iter().collect(),
        attachment: Some(match &nic.attachment {
            Attachment::Bridge { name, vlan } => Shown::Bridge(shown_bridge(name, *vlan)),
            Attachment::LibvirtNetwork { name } => {
                Shown::LibvirtNetwork(wire::LibvirtNetworkAttachment { name: name.clone() })
            }
            Attachment::User => Shown::User(wire::UserAttachment {}),
        }),
    }
}

/// A network of the configuration.
pub(super) fn shown_network(id: &str, attachment: &Attachment) -> wire::Network {
    use wire::network::Attachment as Shown;
    wire::Network {
        id: id.to_owned(),
        attachment: Some(match attachment {
            Attachment::Bridge { name, vlan } => Shown::Bridge(shown_bridge(name, *vlan)),
            Attachment::LibvirtNetwork { name } => {
                Shown::LibvirtNetwork(wire::LibvirtNetworkAttachment { name: name.clone() })
            }
            Attachment::User => Shown::User(wire::UserAttachment {}),
        }),
    }
}

fn shown_bridge(name: &str, vlan: Option<u16>) -> wire::BridgeAttachment {
    wire::BridgeAttachment {
        name: name.to_owned(),
        vlan: vlan.map_or(0, u32::from),
    }
}
