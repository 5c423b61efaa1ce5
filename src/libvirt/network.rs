//! libvirt's own networks, as far as a guest needs them.

use super::connection::Host;
use super::error::{ErrorKind, LibvirtError};

impl Host {
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
