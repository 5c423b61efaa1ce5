//! Receivers that the daemon proves itself to: a NATS server, by a password, and a
//! control plane, by a certificate. The latter takes no reports.

use super::spill::{Place, Secret, files};
use crate::support::api::{Api, id};
use crate::support::{PATIENCE, until};
use async_nats::ConnectOptions;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

/// Where NATS's binary may be; not everyone's PATH has the first.
const NATS: [&str; 3] = [
    "/usr/sbin/nats-server",
    "/usr/bin/nats-server",
    "/usr/local/bin/nats-server",
];

/// Both; they end with the test.
pub struct Receivers {
    nats: Child,
    address: String,
    password: String,
    key: KeyPair,
    section: String,
    folder: TempDir,
}

impl Receivers {
    pub async fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("kvmlet-r")
            .tempdir_in("/tmp")
            .unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let password = id();
        let password_file = file("password", &format!("{password}\n"));
        let (nats, address) = start_nats(folder.path(), &password);

        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = KeyPair::generate().unwrap();
        let authority = CertifiedIssuer::self_signed(params, authority).unwrap();
        let issue = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new([name.to_owned()]).unwrap();
            (params.signed_by(&key, &authority).unwrap().pem(), key)
        };
        let (server, server_key) = issue("localhost");
        let port = serve(
            Identity::from_pem(server, server_key.serialize_pem()),
            Certificate::from_pem(authority.pem()),
        );
        let (cert, key) = issue("node");
        let section = format!(
            "\n[[nats]]\nname = \"bus\"\nservers = [\"{address}\"]\ncreate_stream = true\n\
             user = \"kvmlet\"\npassword_file = \"{password_file}\"\n\
             \n[[report]]\nname = \"cp\"\nendpoints = [\"https://localhost:{port}\"]\n\
             tls = {{ ca_file = \"{}\", cert_file = \"{}\", key_file = \"{}\" }}\n",
            file("ca.pem", &authority.pem()),
            file("cert.pem", &cert),
            file("key.pem", &key.serialize_pem()),
        );
        let receivers = Self {
            nats,
            address,
            password,
            key,
            section,
            folder,
        };
        until("nats-server to serve", PATIENCE, async || {
            receivers.client().await
        })
        .await;
        receivers
    }

    /// What the configuration has of them.
    pub fn section(&self) -> &str {
        &self.section
    }

    /// What the daemon shows them, or proves that it has.
    pub fn secrets(&self) -> Vec<Secret> {
        // PKCS#8 begins alike in all keys; what is in common with the certificate,
        // the public key, comes last.
        let pem = self.key.serialize_pem();
        let line = pem.lines().nth(1).unwrap();
        vec![
            Secret::new("the password for NATS", &self.password),
            Secret::new(
                "the key of the certificate",
                &self.key.serialized_der()[36..68],
            )
            .or(&line[48..]),
        ]
    }

    /// Waits until the daemon has shown both of them who it is.
    pub async fn are_reached(&self, api: &Api) {
        until("the receivers to be reached", PATIENCE, async || {
            let conditions = api.node().await.conditions;
            let of = |name: &str| {
                let kind = format!("SinkReady/{name}");
                conditions.iter().find(|c| c.r#type == kind).unwrap()
            };
            let refused = of("cp").message.contains("not implemented");
            (of("bus").status && refused).then_some(())
        })
        .await;
    }

    /// Waits until NATS has something that is told of a VM.
    pub async fn have_heard_of(&self, vm_id: &str) {
        until("NATS to hear of the VM", PATIENCE, async || {
            let context = async_nats::jetstream::new(self.client().await?);
            let stream = context.get_stream("KVMLET").await.ok()?;
            let subjects = format!("kvmlet.*.vm.{vm_id}.>");
            stream.get_last_raw_message_by_subject(&subjects).await.ok()
        })
        .await;
    }

    /// What NATS has stored of what it was told.
    pub fn stored(&self) -> Vec<Place> {
        files(&self.folder.path().join("store"))
    }

    async fn client(&self) -> Option<async_nats::Client> {
        ConnectOptions::new()
            .user_and_password("kvmlet".to_owned(), self.password.clone())
            .connect(&self.address)
            .await
            .ok()
    }
}

impl Drop for Receivers {
    fn drop(&mut self) {
        let _ = self.nats.kill();
        let _ = self.nats.wait();
    }
}

/// A NATS server with one user. Its password is in its file, not on its command line.
fn start_nats(folder: &Path, password: &str) -> (Child, String) {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let settings: PathBuf = folder.join("nats.conf");
    fs::write(
        &settings,
        format!(
            "listen: \"{address}\"\njetstream {{ store_dir: \"{}\" }}\n\
             authorization {{ user: kvmlet, password: \"{password}\" }}\n",
            folder.join("store").display()
        ),
    )
    .unwrap();
    let program = NATS.iter().find(|program| Path::new(program).exists());
    let program = program.expect("nats-server is installed (scripts/setup)");
    #[allow(clippy::disallowed_methods)] // a test starts its own server
    let nats = Command::new(program)
        .arg("--config")
        .arg(settings)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    (nats, format!("nats://{address}"))
}

/// Serves nothing but health to those that show a certificate of this authority, on
/// the port that is returned.
fn serve(identity: Identity, authority: Certificate) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = ServerTlsConfig::new()
        .identity(identity)
        .client_ca_root(authority);
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder()
        .tls_config(tls)
        .unwrap()
        .add_service(health);
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    port
}
