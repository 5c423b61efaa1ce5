//! Where guests' interfaces plug in: bridges of this host, and libvirt's networks.

use super::{Check, Host, Notes, kernel, packages};
use crate::libvirt::{Host as Libvirt, NetworkState};
use crate::model::nic::Attachment;
use std::path::Path;

const DEFAULT: &str = "default";

/// Looks at the bridges. libvirt's networks are looked at with libvirt.
pub(super) fn look(host: &Host, notes: &Notes) {
    let check = Check::NetworkConfigured;
    for network in &host.config.networks {
        let id = network.id.as_str();
        match &network.attachment {
            Attachment::User => notes.ok(check, id, "QEMU's own NAT: needs nothing"),
            Attachment::LibvirtNetwork { .. } => {}
            Attachment::Bridge { .. } if host.is_simulated() => {
                let found = "guests are simulated: a bridge is never used";
                notes.ok(check, id, found);
            }
            Attachment::Bridge { name, vlan } => bridge(id, name, vlan.is_some(), notes),
        }
    }
}

fn bridge(id: &str, name: &str, tagged: bool, notes: &Notes) {
    let check = Check::NetworkConfigured;
    let interface = Path::new("/sys/class/net").join(name);
    let advice = format!(
        "ip link add {name} type bridge && ip link set {name} up; keep it in the host's network configuration"
    );
    if !interface.exists() {
        let meaning = "Guests with an interface in this network can't start.";
        notes.error(
            check,
            id,
            format!("there is no bridge {name}"),
            meaning,
            advice,
        );
    } else if !interface.join("bridge").exists() {
        notes.error(
            check,
            id,
            format!("{name} is an interface and no Linux bridge"),
            "Guests with an interface in this network can't start.",
            format!("Name a bridge; {name} may be put into one: ip link set {name} master BRIDGE"),
        );
    } else if !is_up(&kernel::line(interface.join("flags"))) {
        notes.warning(
            check,
            id,
            format!("the bridge {name} is down"),
            "Guests start, and reach nobody.",
            format!("ip link set {name} up"),
        );
    } else if tagged && kernel::line(interface.join("bridge/vlan_filtering")) != "1" {
        notes.warning(
            check,
            id,
            format!("the bridge {name} does not look at VLAN tags"),
            "The network's vlan has no effect: guests are in the same network as all others.",
            format!("ip link set {name} type bridge vlan_filtering 1"),
        );
    } else {
        notes.ok(check, id, format!("the bridge {name} is there"));
    }
}

/// Whether the flags of an interface, as the kernel writes them, have `IFF_UP`.
fn is_up(flags: &str) -> bool {
    let number = u32::from_str_radix(flags.trim_start_matches("0x"), 16);
    number.is_ok_and(|flags| flags & 1 != 0)
}

/// libvirt can't be asked for its networks.
pub(super) fn skip_libvirt_networks(host: &Host, notes: &Notes) {
    for network in &host.config.networks {
        if let Attachment::LibvirtNetwork { name } = &network.attachment {
            let found = format!("libvirt's network {name} can't be looked at without libvirt");
            let advice = "See libvirt.reach above.";
            notes.skipped(Check::NetworkConfigured, &network.id, found, advice);
        }
    }
}

/// Looks at libvirt's network `default`, and at those that are configured.
pub(super) fn tell_libvirt_networks(host: &Host, libvirt: &Libvirt, notes: &Notes) {
    let mut uses_default = false;
    for network in &host.config.networks {
        if let Attachment::LibvirtNetwork { name } = &network.attachment {
            uses_default |= name == DEFAULT;
            tell(
                Check::NetworkConfigured,
                &network.id,
                name,
                true,
                libvirt,
                notes,
            );
        }
    }
    if !uses_default {
        // Where no network is configured, it is what guests are likely to ask for.
        let needed = host.config.networks.is_empty();
        tell(Check::NetworkDefault, "", DEFAULT, needed, libvirt, notes);
    }
}

fn tell(check: Check, about: &str, name: &str, needed: bool, libvirt: &Libvirt, notes: &Notes) {
    let found = match libvirt.network(name) {
        Ok(found) => found,
        Err(error) => {
            let advice = format!(
                "virsh net-info {name}; systemctl enable --now virtnetworkd.socket (where libvirt is in parts)"
            );
            let found = format!("libvirt can't tell of the network {name}: {error}");
            notes.warning(
                check,
                about,
                found,
                "Its networks may not be usable.",
                advice,
            );
            return;
        }
    };
    let start = format!("virsh net-start {name} && virsh net-autostart {name}");
    match found {
        Some(NetworkState { active: true, .. }) => {
            notes.ok(check, about, format!("libvirt's network {name} is active"));
        }
        _ if !needed => {
            let found =
                format!("libvirt's network {name} is not active, and none of [[networks]] uses it");
            notes.ok(check, about, found);
        }
        Some(_) => {
            let found = format!(
                "libvirt's network {name} is not active; kvmlet starts it for the first guest"
            );
            notes.ok(check, about, found);
        }
        None => {
            let define = if name == DEFAULT {
                format!(
                    "{}; virsh net-define /usr/share/libvirt/networks/default.xml; {start}",
                    packages::install(
                        "libvirt-daemon-config-network dnsmasq-base",
                        "libvirt-daemon-config-network"
                    )
                )
            } else {
                format!("virsh net-define FILE.xml && {start}")
            };
            let found = format!("libvirt has no network {name}");
            let meaning = "Guests with an interface in it can't start.";
            if check == Check::NetworkDefault {
                notes.warning(check, about, found, meaning, define);
            } else {
                notes.error(check, about, found, meaning, define);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_up_by_its_first_flag() {
        assert!(is_up("0x1003"));
        assert!(!is_up("0x1002"));
        assert!(!is_up(""));
    }
}
