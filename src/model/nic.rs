//! Network interfaces: identity, MAC address, and where they plug in.

use super::ids::{NicId, VmId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A network interface of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Its id.
    pub id: NicId,
    /// The network it was asked for by, if by name; resolved through `[[networks]]`.
    pub network_id: Option<String>,
    /// Its hardware address.
    pub mac: MacAddress,
    /// Its place among the VM's interfaces, from 0.
    pub device_index: u32,
    /// What the guest sees.
    pub model: NicModel,
    /// Largest frame payload in bytes; `None` is the network's own.
    pub mtu: Option<u32>,
    /// Addresses that the control plane gave it (kvmlet only carries them).
    pub ip_addresses: Vec<String>,
    /// Values that only the control plane understands, returned as given.
    pub metadata: BTreeMap<String, String>,
    /// Where it plugs in.
    pub attachment: Attachment,
}

/// Where a network interface plugs in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attachment {
    /// A Linux bridge on the host.
    Bridge {
        /// The bridge's interface name.
        name: String,
        /// 802.1Q tag on a VLAN-aware bridge, 1 to 4094.
        vlan: Option<u16>,
    },
    /// A network that libvirt runs.
    LibvirtNetwork {
        /// The libvirt network's name.
        name: String,
    },
    /// QEMU's own NAT: needs no privilege, reaches out, is not reached.
    User,
}

/// The device that the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NicModel {
    /// virtio-net.
    #[default]
    Virtio,
    /// Intel 82540EM, for guests without virtio drivers.
    E1000,
    /// Intel 82574L.
    E1000e,
    /// Realtek 8139.
    Rtl8139,
}

impl NicModel {
    /// QEMU's and libvirt's name of the device.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::E1000 => "e1000",
            Self::E1000e => "e1000e",
            Self::Rtl8139 => "rtl8139",
        }
    }
}

/// A unicast Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress([u8; 6]);

/// Why a text is not a usable MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six octets.
    #[error("is not a MAC address (six hexadecimal octets with colons)")]
    Malformed,
    /// The group bit is set.
    #[error("is a multicast address; an interface needs a unicast one")]
    Multicast,
    /// All octets are zero.
    #[error("is all zeros")]
    Zero,
}

impl MacAddress {
    /// Checks that `octets` can be an interface's own address.
    ///
    /// # Errors
    /// Multicast and all-zero addresses are refused.
    pub const fn new(octets: [u8; 6]) -> Result<Self, MacError> {
        if octets[0] & 1 != 0 {
            return Err(MacError::Multicast);
        }
        if let [0, 0, 0, 0, 0, 0] = octets {
            return Err(MacError::Zero);
        }
        Ok(Self(octets))
    }

    /// Derives the address of an interface from its id: QEMU's prefix
    /// 52:54:00 and three octets of the id, so that a repeat gives the same.
    pub fn derived(nic: NicId, vm: VmId) -> Self {
        let (n, v) = (nic.0.as_bytes(), vm.0.as_bytes());
        let octet = |i: usize| n[i] ^ n[i + 8] ^ v[i] ^ v[i + 8];
        Self([0x52, 0x54, 0x00, octet(0), octet(1), octet(2)])
    }

    /// The octets in order.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or(MacError::Malformed)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(MacError::Malformed);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| MacError::Malformed)?;
        }
        if parts.next().is_some() {
            return Err(MacError::Malformed);
        }
        Self::new(octets)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for MacAddress {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = String::deserialize(input)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unicast_addresses_are_taken() {
        assert_eq!(
            "52:54:00:aB:cd:ef"
                .parse::<MacAddress>()
                .unwrap()
                .to_string(),
            "52:54:00:ab:cd:ef"
        );
        assert_eq!(
            "01:00:5e:00:00:01".parse::<MacAddress>(),
            Err(MacError::Multicast)
        );
        assert_eq!(
            "00:00:00:00:00:00".parse::<MacAddress>(),
            Err(MacError::Zero)
        );
        for bad in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:ef:01",
            "52-54-00-ab-cd-ef",
            "52:54:00:ab:cd:+f",
        ] {
            assert_eq!(bad.parse::<MacAddress>(), Err(MacError::Malformed), "{bad}");
        }
    }

    #[test]
    fn a_derived_address_is_the_same_each_time_and_unicast() {
        let (nic, vm) = (NicId::random(), VmId::random());
        let mac = MacAddress::derived(nic, vm);
        assert_eq!(mac, MacAddress::derived(nic, vm));
        assert_eq!(MacAddress::new(mac.octets()), Ok(mac));
    }
}
