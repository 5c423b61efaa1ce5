//! The IP addresses that a guest has now, as far as anyone tells.

use super::connection::Host;
use super::error::{ErrorKind, LibvirtError};
use super::ffi;
use crate::model::ids::VmId;
use std::net::IpAddr;
use virt_sys as sys;

/// One address of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestAddress {
    /// The hardware address of its interface, in lower case.
    pub mac: String,
    /// The address.
    pub ip: IpAddr,
}

/// What is known of a guest's addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestAddresses {
    /// In the order in which they were told.
    pub addresses: Vec<GuestAddress>,
    /// Who told them.
    pub source: AddressSource,
}

/// Who told a guest's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressSource {
    /// The agent in the guest.
    Agent,
    /// The DHCP servers of libvirt's networks: there is no agent.
    Leases,
    /// As before, because the agent is there and does not answer.
    LeasesForAgent,
}

/// An interface as libvirt tells it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) mac: String,
    pub(super) addresses: Vec<String>,
}

impl Host {
    /// Asks a guest's agent for the guest's addresses; the DHCP servers of libvirt's
    /// networks, if there is no agent or it does not answer within 5 s.
    ///
    /// Two or three calls. From the first on, libvirt waits 5 s at most for any
    /// answer of this agent, as long as the guest has power.
    ///
    /// # Errors
    /// `NotFound`, `InvalidState` without power, and those of any call.
    pub fn addresses(&self, id: VmId) -> Result<GuestAddresses, LibvirtError> {
        let source = if self.agent_connected(id)? {
            match self.ask_agent(id) {
                Ok(addresses) => {
                    return Ok(GuestAddresses {
                        addresses,
                        source: AddressSource::Agent,
                    });
                }
                Err(error) => match error.kind {
                    // Busy: another question to the agent has no answer yet.
                    ErrorKind::AgentUnavailable | ErrorKind::Busy => AddressSource::LeasesForAgent,
                    // An agent that does not know the question.
                    ErrorKind::Unsupported => AddressSource::Leases,
                    _ => return Err(error),
                },
            }
        } else {
            AddressSource::Leases
        };
        let leases = self.ask(id, sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE);
        let addresses = match leases {
            // A driver without networks of its own, such as an embedded one.
            Err(error) if error.kind == ErrorKind::Unsupported => Vec::new(),
            leases => leases?,
        };
        Ok(GuestAddresses { addresses, source })
    }

    fn ask_agent(&self, id: VmId) -> Result<Vec<GuestAddress>, LibvirtError> {
        self.bound_answers(id)?;
        self.ask(id, sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT)
    }

    fn ask(
        &self,
        id: VmId,
        source: sys::virDomainInterfaceAddressesSource,
    ) -> Result<Vec<GuestAddress>, LibvirtError> {
        let seen = self.on_domain("read addresses", id, |d| {
            ffi::interface_addresses(d, source)
        })?;
        Ok(seen.iter().flat_map(Seen::addresses).collect())
    }
}

impl Seen {
    fn addresses(&self) -> impl Iterator<Item = GuestAddress> {
        let mac = self.mac.to_ascii_lowercase();
        // What is no address, the guest has made up.
        let addresses = self.addresses.iter().filter_map(|ip| ip.parse().ok());
        addresses.map(move |ip| GuestAddress {
            mac: mac.clone(),
            ip,
        })
    }
}
