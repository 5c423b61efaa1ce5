//! Receivers that prove who they are, or can't.

use crate::report::ask::{condition, settled, vm};
use crate::report::receiver::{Book, Place, Sockets, serve, sink};
use crate::support::daemon::{Daemon, Setup};
use crate::support::{PATIENCE, until};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

/// An authority for one test.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// A certificate and its key.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap();
        (cert.pem(), key.serialize_pem())
    }
}

/// A place on a port that was free just now, with a certificate for localhost, which
/// wants one from its callers.
fn place(authority: &Authority) -> Place {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let (cert, key) = authority.issue("localhost");
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(cert, key))
        .client_ca_root(Certificate::from_pem(authority.0.pem()));
    Place::Tcp(free.local_addr().unwrap(), Box::new(tls))
}

/// A sink that believes `ca` and shows a certificate by `issuer`.
fn trusting(folder: &Path, place: &Place, ca: &Authority, issuer: &Authority) -> String {
    let (cert, key) = issuer.issue("node");
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let ca = file("ca.pem", &ca.0.pem());
    let (cert, key) = (file("cert.pem", &cert), file("key.pem", &key));
    format!(
        "{}tls = {{ ca_file = \"{ca}\", cert_file = \"{cert}\", key_file = \"{key}\" }}\n",
        sink(&[place], Duration::from_secs(30))
    )
}

async fn start(more: String) -> Daemon {
    let setup = Setup {
        more,
        ..Setup::default()
    };
    Daemon::start(setup).await
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_prove_who_they_are() {
    let (folder, authority) = (Sockets::new(), Authority::new());
    let (book, place) = (Arc::new(Book::default()), place(&authority));
    let _server = serve(&book, &place);
    let daemon = start(trusting(folder.path(), &place, &authority, &authority)).await;
    vm(&daemon).await;
    settled(&daemon).await;
    assert_eq!(book.known().hellos.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_nobody_vouches_for_is_told_nothing() {
    let (folder, authority, other) = (Sockets::new(), Authority::new(), Authority::new());
    let (book, place) = (Arc::new(Book::default()), place(&authority));
    let _server = serve(&book, &place);
    let daemon = start(trusting(folder.path(), &place, &other, &authority)).await;
    problem(&daemon, "certificate").await;
    assert!(book.known().hellos.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_nobody_vouches_for_is_refused() {
    let (folder, authority, other) = (Sockets::new(), Authority::new(), Authority::new());
    let (book, place) = (Arc::new(Book::default()), place(&authority));
    let _server = serve(&book, &place);
    let daemon = start(trusting(folder.path(), &place, &authority, &other)).await;
    problem(&daemon, "").await;
    assert!(book.known().hellos.is_empty());
}

/// Waits until the sink has a problem with this word in it.
async fn problem(daemon: &Daemon, word: &str) {
    let api = daemon.api();
    until("the problem to be told", PATIENCE, async || {
        let condition = condition(&api, "cp").await;
        let told = !condition.status && !condition.message.is_empty();
        (told && condition.message.contains(word)).then_some(())
    })
    .await;
}
