//! A daemon with TLS, its authorities, and callers of every kind.

#![allow(unreachable_pub)] // for the tests beside it

use crate::support::api::Api;
use crate::support::daemon::{Daemon, Setup};
use crate::support::pki::{Authority, Issued, ServerFiles, Wish};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::geteuid;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;
use tokio::net::unix::pipe;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};

pub const VIEWER: &str = "spiffe://test.example/viewer/1";
pub const OPERATOR: &str = "spiffe://test.example/operator";
pub const ADMIN: &str = "ops.test.example";
/// A user and group that this host need not know.
pub const STRANGER: u32 = 3_000_000_017;

/// What a process of another user does: it connects, and passes bytes on.
const RELAY: &str = r"
import os, socket, sys, threading
user, path = int(sys.argv[1]), sys.argv[2]
os.setgroups([]); os.setgid(user); os.setuid(user)
peer = socket.socket(socket.AF_UNIX)
peer.connect(path)
def up():
    while block := os.read(0, 65536):
        peer.sendall(block)
    peer.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while block := peer.recv(65536):
    while block:
        block = block[os.write(1, block):]
";

/// A daemon with TLS, and its authorities.
pub struct Stand {
    pub daemon: Daemon,
    pub port: u16,
    /// Vouches for the daemon.
    pub server_ca: Authority,
    /// Vouches for callers.
    pub client_ca: Authority,
    /// Vouches for nobody here.
    pub other_ca: Authority,
    pub files: ServerFiles,
    folder: TempDir,
}

impl Stand {
    pub async fn start() -> Self {
        Self::with(|setup, _| setup).await
    }

    /// One whose configuration is changed before; `change` is told the folder.
    pub async fn with(change: impl FnOnce(Setup, &Path) -> Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (server_ca, client_ca) = (Authority::new("servers"), Authority::new("clients"));
        let files = ServerFiles::write(folder.path(), &server_ca.server(), &client_ca.pem());
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut setup = Setup::default()
            .with("api", files.lines(port))
            .with("api", "socket_mode = \"0666\"");
        setup.more = format!(
            "[access.viewer]\nuris = [\"spiffe://test.example/viewer/*\"]\n\
             [access.operator]\nuris = [\"{OPERATOR}\"]\n\
             [access.admin]\ndns = [\"{ADMIN}\"]\n"
        );
        let daemon = Daemon::start(change(setup, folder.path())).await;
        // Others may pass through to the socket.
        fs::set_permissions(daemon.home(), fs::Permissions::from_mode(0o711)).unwrap();
        Self {
            daemon,
            port,
            server_ca,
            client_ca,
            other_ca: Authority::new("others"),
            files,
            folder,
        }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A certificate that the daemon's authority vouches for.
    pub fn issue(&self, wish: &Wish) -> Issued {
        self.client_ca.issue(wish)
    }

    /// A connection over TLS, made at the first call and again whenever needed.
    pub fn channel(&self, own: Option<&Issued>) -> Channel {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.server_ca.pem()))
            .domain_name("localhost");
        if let Some(own) = own {
            tls = tls.identity(Identity::from_pem(&own.cert, &own.key));
        }
        Endpoint::from_shared(format!("https://localhost:{}", self.port))
            .unwrap()
            .tls_config(tls)
            .unwrap()
            .connect_lazy()
    }

    /// The API for who has this certificate.
    pub fn api(&self, own: &Issued) -> Api {
        Api {
            channel: self.channel(Some(own)),
        }
    }

    /// The API for callers with these names.
    pub fn viewer(&self) -> Api {
        self.api(&self.issue(&Wish::uri(VIEWER)))
    }

    pub fn operator(&self) -> Api {
        self.api(&self.issue(&Wish::uri(OPERATOR)))
    }

    pub fn admin(&self) -> Api {
        self.api(&self.issue(&Wish::dns(ADMIN)))
    }

    /// A connection to the Unix socket by another user of this host.
    pub fn as_user(&self, user: u32) -> Channel {
        assert!(
            geteuid().is_root(),
            "only root can call as another user; run this test as root"
        );
        let socket = self.daemon.socket();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move {
                #[allow(clippy::disallowed_methods)] // a caller of another user
                let mut relay = Command::new("python3")
                    .args(["-c", RELAY, &user.to_string()])
                    .arg(&socket)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    // It complains about the daemon's end.
                    .stderr(Stdio::null())
                    .spawn()?;
                let from = OwnedFd::from(relay.stdout.take().expect("piped"));
                let to = OwnedFd::from(relay.stdin.take().expect("piped"));
                // It ends when its input does.
                std::thread::spawn(move || relay.wait());
                let both = tokio::io::join(
                    pipe::Receiver::from_owned_fd(from)?,
                    pipe::Sender::from_owned_fd(to)?,
                );
                Ok::<_, std::io::Error>(TokioIo::new(both))
            }
        });
        Endpoint::from_static("http://relay").connect_with_connector_lazy(connector)
    }

    /// Changes the configuration and asks the daemon to read it again.
    pub fn reconfigure(&self, change: impl FnOnce(String) -> String) {
        let path = self.daemon.config();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, change(text)).unwrap();
        self.hang_up();
    }

    pub fn hang_up(&self) {
        kill(self.daemon.pid(), Signal::SIGHUP).unwrap();
    }
}
