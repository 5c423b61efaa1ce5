//! The networks that libvirt runs: looked at, and started for a guest that needs one.

use super::connection::Host;
use super::error::{ErrorKind, LibvirtError};
use virt::enumutil::RawEnum;
use virt::error::ErrorNumber;

/// A network of libvirt's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkState {
    /// Guests can be plugged into it.
    pub active: bool,
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
            })
        });
        match found {
            Err(error) if error.code == ErrorNumber::NoNetwork.to_raw() => Ok(None),
            found => found.map(Some),
        }
    }

    /// Starts a network of libvirt's that is defined and does not run; whether it was
    /// this call that started it. One that runs stays as it is.
    ///
    /// # Errors
    /// `NotFound` when there is none of this name; `Unsupported` where libvirt has no
    /// networks, as in the embedded driver; `Other` when it can't be started.
    pub fn start_network(&self, name: &str) -> Result<bool, LibvirtError> {
        let started = self.call("start network", |connection| {
            let network = connection.lookup_network_by_name(name)?;
            if network.is_active()? {
                return Ok(false);
            }
            network.create().map(|()| true)
        });
        match started {
            // Another was quicker.
            Err(error) if error.kind == ErrorKind::InvalidState => Ok(false),
            started => started,
        }
    }
}
