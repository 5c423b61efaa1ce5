//! The way to the daemon: its address, the channel, a client per service.
//!
//! The channel reconnects by itself at the next call; what may be repeated is
//! not decided here but in [`wait`](super::wait).

use crate::cli::fault::{Exit, Fault};
use crate::cli::output::Output;
use crate::proto::v1::console_service_client::ConsoleServiceClient;
use crate::proto::v1::image_service_client::ImageServiceClient;
use crate::proto::v1::node_service_client::NodeServiceClient;
use crate::proto::v1::operation_service_client::OperationServiceClient;
use crate::proto::v1::vm_service_client::VmServiceClient;
use crate::proto::v1::volume_service_client::VolumeServiceClient;
use clap::Args;
use std::error::Error;
use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use zeroize::Zeroizing;

/// Where the daemon listens unless it is configured otherwise.
pub(crate) const DEFAULT_SERVER: &str = "unix:///run/kvmlet/kvmlet.sock";

/// A page of VMs with full annotations, or a screenshot, is larger than tonic's
/// 4 MiB.
const LARGEST_ANSWER: usize = 64 << 20;

/// The address of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Server {
    /// A Unix socket by its absolute path.
    Unix(String),
    /// A TCP listener as `http://host:port`.
    Http(String),
    /// A TCP listener with TLS as `https://host:port`.
    Https(String),
}

/// Files in PEM form, for https.
#[derive(Debug, Default, Args)]
pub(crate) struct TlsArgs {
    /// Certificates of those who may vouch for the daemon
    #[arg(long, global = true, env = "KVMLET_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The caller's certificate
    #[arg(long, global = true, env = "KVMLET_CERT", value_name = "FILE")]
    cert: Option<PathBuf>,
    /// The key of the caller's certificate
    #[arg(long, global = true, env = "KVMLET_KEY", value_name = "FILE")]
    key: Option<PathBuf>,
}

impl TlsArgs {
    fn config(&self) -> Result<ClientTlsConfig, Fault> {
        let needed = |file: &Option<PathBuf>, option: &str| match file {
            Some(path) => std::fs::read(path)
                .map(Zeroizing::new)
                .map_err(|error| Fault::usage(format!("{option} {}: {error}", path.display()))),
            None => Err(Fault::usage(format!("https needs {option}"))),
        };
        let ca = needed(&self.ca, "--ca")?;
        let cert = needed(&self.cert, "--cert")?;
        let key = needed(&self.key, "--key")?;
        Ok(ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(ca.as_slice()))
            .identity(Identity::from_pem(cert.as_slice(), key.as_slice())))
    }
}

impl Server {
    /// Reads `unix:///path`, a bare absolute path, `https://` or `http://host:port`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let path = text
            .strip_prefix("unix://")
            .or_else(|| text.strip_prefix("unix:"))
            .or_else(|| text.starts_with('/').then_some(text));
        if let Some(path) = path {
            return if path.starts_with('/') {
                Ok(Self::Unix(path.to_owned()))
            } else {
                Err("the path of a Unix socket must be absolute: unix:///path".into())
            };
        }
        let is_host = |host: &str| !host.trim_end_matches('/').is_empty();
        match text.split_once("://") {
            Some(("http", host)) if is_host(host) => Ok(Self::Http(text.to_owned())),
            Some(("https", host)) if is_host(host) => Ok(Self::Https(text.to_owned())),
            _ => Err("expected unix:///path, https://host:port or http://host:port".into()),
        }
    }

    fn endpoint(&self, tls: &TlsArgs, version: &str) -> Result<Endpoint, Fault> {
        let endpoint = match self {
            Self::Unix(path) => Endpoint::from_shared(format!("unix://{path}")),
            Self::Http(url) | Self::Https(url) => Endpoint::from_shared(url.clone()),
        };
        let wrong = |error: tonic::transport::Error| Fault::usage(format!("{self}: {error}"));
        let mut endpoint = endpoint.map_err(wrong)?;
        if let Self::Https(_) = self {
            endpoint = endpoint.tls_config(tls.config()?).map_err(|error| {
                Fault::usage(format!("--ca, --cert and --key can't be used: {error}"))
            })?;
        }
        Ok(endpoint
            .connect_timeout(Duration::from_secs(5))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(20))
            .user_agent(format!("kvmlet-cli/{version}"))
            .expect("a version has no control characters"))
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{path}"),
            Self::Http(url) | Self::Https(url) => f.write_str(url),
        }
    }
}

/// A daemon that answers, and how to print what it says.
#[derive(Debug)]
pub(crate) struct Session {
    channel: Channel,
    /// How to print.
    pub(crate) out: Output,
}

/// Connects once, as the client of this version; a daemon that is not there is a fault at once, so that
/// nobody waits for a service that was never started.
pub(crate) async fn open(
    server: Server,
    tls: &TlsArgs,
    out: Output,
    version: &str,
) -> Result<Session, Fault> {
    match server.endpoint(tls, version)?.connect().await {
        Ok(channel) => Ok(Session { channel, out }),
        Err(error) => Err(unreachable(&server, &error)),
    }
}

fn unreachable(server: &Server, error: &(dyn Error + 'static)) -> Fault {
    let (mut deepest, mut kind) = (error, None);
    let mut next = Some(error);
    while let Some(error) = next {
        deepest = error;
        kind = error
            .downcast_ref::<std::io::Error>()
            .map(std::io::Error::kind)
            .or(kind);
        next = error.source();
    }
    let fault = Fault::new(
        Exit::Unavailable,
        format!("can't reach kvmlet at {server}: {deepest}"),
    );
    match (server, kind) {
        (Server::Unix(_), Some(ErrorKind::PermissionDenied)) => {
            fault.with("hint: who may open the socket, its mode and group say ([api])")
        }
        _ => fault.with("hint: is it running? systemctl status kvmlet; --server says where it is"),
    }
}

macro_rules! clients {
    ($($(#[$doc:meta])* $name:ident: $client:ident;)*) => {
        impl Session {
            $($(#[$doc])*
            pub(crate) fn $name(&self) -> $client<Channel> {
                $client::new(self.channel.clone()).max_decoding_message_size(LARGEST_ANSWER)
            })*
        }
    };
}

clients! {
    /// VMs.
    vms: VmServiceClient;
    /// Images.
    images: ImageServiceClient;
    /// Volumes and pools.
    volumes: VolumeServiceClient;
    /// Displays.
    consoles: ConsoleServiceClient;
    /// Operations.
    operations: OperationServiceClient;
    /// The host.
    node: NodeServiceClient;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_socket_or_a_url() {
        let socket = Server::Unix("/run/x.sock".into());
        assert_eq!(Server::parse("unix:///run/x.sock"), Ok(socket.clone()));
        assert_eq!(Server::parse("unix:/run/x.sock"), Ok(socket.clone()));
        assert_eq!(Server::parse("/run/x.sock"), Ok(socket));
        assert_eq!(
            Server::parse("http://127.0.0.1:7070"),
            Ok(Server::Http("http://127.0.0.1:7070".into()))
        );
        assert_eq!(
            Server::parse("https://h:1"),
            Ok(Server::Https("https://h:1".into()))
        );
        for bad in ["", "unix://x.sock", "https://", "http://", "h:1", "x.sock"] {
            assert!(Server::parse(bad).is_err(), "{bad}");
        }
    }
}
