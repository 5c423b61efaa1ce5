//! `[metrics]`: where the host's figures can be read.

use super::check::{check_group, check_socket_path};
use super::section::Section;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where metrics are served; nowhere unless configured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MetricsSettings {
    /// A TCP listener, on a loopback address.
    pub listen: Option<SocketAddr>,
    /// A Unix socket, for its owner and group.
    pub socket: Option<PathBuf>,
    /// The group that owns the socket, by name; `None` leaves the daemon's own.
    pub socket_group: Option<String>,
}

impl MetricsSettings {
    /// Whether they are served at all.
    pub const fn is_on(&self) -> bool {
        self.listen.is_some() || self.socket.is_some()
    }
}

pub(super) fn metrics(section: Section<'_>) -> MetricsSettings {
    let settings = MetricsSettings {
        listen: section.parsed("listen", |text| {
            let address: SocketAddr = text
                .parse()
                .map_err(|_| "is not an address and port such as \"127.0.0.1:9177\"")?;
            if !address.ip().is_loopback() {
                return Err(
                    "must be a loopback address: metrics name all VMs, and are neither \
                     encrypted nor guarded; let a proxy with TLS pass them on",
                );
            }
            Ok(address)
        }),
        socket: section.parsed("socket", check_socket_path),
        socket_group: section.parsed("socket_group", check_group),
    };
    if section.has("socket_group") && !section.has("socket") {
        section.fault("socket_group", "needs a socket");
    }
    section.finish();
    settings
}
