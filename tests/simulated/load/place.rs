//! A daemon behind mutual TLS, and who calls it.

use crate::load::figures::Page;
use crate::load::raw::Raw;
use crate::support::api::Api;
use crate::support::daemon::{Daemon, Setup};
use crate::support::pki::{Authority, Issued, ServerFiles, Wish};
use crate::support::{PATIENCE, until};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, version};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// Roles of callers, by the names in their certificates.
const ACCESS: &str = r#"
[access.viewer]
uris = ["spiffe://load/viewer/*"]

[access.operator]
uris = ["spiffe://load/operator/*"]
"#;

/// A daemon, and those who vouch for its callers.
pub(crate) struct Place {
    pub(crate) daemon: Daemon,
    pub(crate) port: u16,
    server_ca: String,
    clients: Authority,
    /// The files of the daemon's certificates.
    _files: TempDir,
}

/// A caller with a certificate; has as many connections as it likes.
#[derive(Clone)]
pub(crate) struct Caller {
    port: u16,
    server_ca: String,
    issued: Issued,
    config: Arc<ClientConfig>,
}

impl Place {
    /// Starts a daemon with these lines in `[limits]`.
    pub(crate) async fn with(limits: &str) -> Self {
        Self::start(Setup::default(), limits).await
    }

    pub(crate) async fn start(setup: Setup, limits: &str) -> Self {
        let (server, clients) = (Authority::new("servers"), Authority::new("clients"));
        let folder = tempfile::tempdir().unwrap();
        let files = ServerFiles::write(folder.path(), &server.server(), &clients.pem());
        // A port that was free a moment ago; if another takes it, the daemon ends.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut setup = setup.with("api", files.lines(port));
        setup
            .more
            .push_str(&format!("{ACCESS}\n[limits]\n{limits}\n"));
        Self {
            daemon: Daemon::start(setup).await,
            port,
            server_ca: server.pem(),
            clients,
            _files: folder,
        }
    }

    /// A caller with this role, or with none that is known.
    pub(crate) fn caller(&self, role: &str, name: &str) -> Caller {
        let wish = Wish::uri(&format!("spiffe://load/{role}/{name}"));
        let issued = self.clients.issue(&wish);
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(self.server_ca.as_bytes()).unwrap();
        roots.add(ca).unwrap();
        let own = CertificateDer::from_pem_slice(issued.cert.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![own], key)
            .unwrap();
        Caller {
            port: self.port,
            server_ca: self.server_ca.clone(),
            issued,
            config: Arc::new(config),
        }
    }

    pub(crate) fn viewer(&self, name: &str) -> Caller {
        self.caller("viewer", name)
    }

    pub(crate) fn operator(&self, name: &str) -> Caller {
        self.caller("operator", name)
    }

    /// Its metrics.
    pub(crate) async fn page(&self) -> Page {
        Page::of(&self.daemon).await
    }

    /// Waits until the metrics are as wished.
    pub(crate) async fn page_with(&self, what: &str, wished: impl Fn(&Page) -> bool) -> Page {
        until(what, PATIENCE, async || {
            let page = self.page().await;
            wished(&page).then_some(page)
        })
        .await
    }

    /// Somebody new is served at once.
    pub(crate) async fn serves(&self) {
        let api = self.operator("somebody-new").api().await.unwrap();
        api.nodes()
            .get_node(kvmlet::proto::v1::GetNodeRequest {})
            .await
            .unwrap();
    }
}

impl Caller {
    /// Where it calls.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A connection of its own.
    pub(crate) async fn api(&self) -> Result<Api, tonic::transport::Error> {
        Ok(Api {
            channel: self.endpoint().connect().await?,
        })
    }

    /// One that is made when it is needed, and again.
    pub(crate) fn lazily(&self) -> Api {
        Api {
            channel: self.endpoint().connect_lazy(),
        }
    }

    fn endpoint(&self) -> Endpoint {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.server_ca))
            .identity(Identity::from_pem(&self.issued.cert, &self.issued.key))
            .domain_name("localhost");
        Endpoint::from_shared(format!("https://127.0.0.1:{}", self.port))
            .unwrap()
            .tls_config(tls)
            .unwrap()
            .connect_timeout(Duration::from_secs(30))
    }

    /// Bytes under TLS, which speak this protocol, or none.
    pub(crate) async fn tls(&self, protocol: Option<&[u8]>) -> io::Result<TlsStream<TcpStream>> {
        let mut config = (*self.config).clone();
        config.alpn_protocols = protocol.map(<[u8]>::to_vec).into_iter().collect();
        let socket = TcpSocket::new_v4()?;
        // What is not read shall soon be felt on the other side.
        socket.set_recv_buffer_size(16 << 10)?;
        let stream = socket.connect(([127, 0, 0, 1], self.port).into()).await?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }

    /// HTTP/2, frame by frame.
    pub(crate) async fn raw(&self) -> io::Result<Raw> {
        Ok(Raw::over(self.tls(Some(b"h2")).await?))
    }
}
