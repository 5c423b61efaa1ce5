//! The networks that libvirt runs: only looked at, never changed.

use super::connection::Host;
use super::error::LibvirtError;
use virt::enumutil::RawEnum;
use virt::error::ErrorNumber;

/// A network of libvirt's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkState {
    /// Guests can be plugged into it.
    pub active: bool,
    /// It is started with libvirt.
    pub autostart: bool,
}

impl Host {
    /// Looks at a network by its name; `None` if there is none.
    ///
    /// # Errors
    /// As any call; `Unsupported` where the driver has no networks.
    pub fn network(&self, name: &str) -> Result<Option<NetworkState>, LibvirtError> {
        let found = self.call("look at a network", |connection| {
            let network = connection.lookup_network_by_name(name)?;
            Ok(NetworkState {
                active: network.is_active()?,
                autostart: network.autostart()?,
            })
        });
        match found {
            Err(error) if error.code == ErrorNumber::NoNetwork.to_raw() => Ok(None),
            found => found.map(Some),
        }
    }
}
