//! What is believed changes while callers are connected.

use crate::access::stand::{ADMIN, OPERATOR, STRANGER, Stand, VIEWER};
use crate::support::api::Api;
use crate::support::pki::{Authority, Wish};
use crate::support::refusal::Refusal;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::{Condition, GetNodeRequest, StopVmRequest, WatchEventsRequest};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, version};
use tonic::{Code, Status};

async fn look(api: &Api) -> Result<(), Status> {
    api.nodes().get_node(GetNodeRequest {}).await.map(drop)
}

/// Waits until a call is refused, and returns why.
async fn refused(api: &Api) -> (Code, String) {
    until("the caller to be refused", PATIENCE, async || {
        let status = look(api).await.err()?;
        // Without details the connection itself was refused.
        if status.details().is_empty() {
            return Some((status.code(), String::new()));
        }
        let refusal = Refusal::from(&status);
        Some((refusal.code, refusal.reason))
    })
    .await
}

async fn valid(stand: &Stand) -> Condition {
    let node = stand.daemon.api().node().await;
    let found = node
        .conditions
        .into_iter()
        .find(|condition| condition.r#type == "CertificatesValid");
    found.expect("there is TLS")
}

fn unknown() -> (Code, String) {
    (Code::Unauthenticated, "NOT_AUTHENTICATED".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expires_is_not_believed_on_an_open_connection() {
    let stand = Stand::start().await;
    let short = stand.issue(&Wish {
        lasts: Some(Duration::from_secs(5)),
        ..Wish::uri(VIEWER)
    });
    let api = stand.api(&short);
    look(&api).await.unwrap();
    assert_eq!(refused(&api).await, unknown());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_revoked_is_not_believed_on_an_open_connection() {
    let stand = Stand::with(|setup, folder| {
        let text = Authority::new("nobody").revoke(&[]);
        std::fs::write(folder.join("crl.pem"), text).unwrap();
        let mut setup = setup;
        for (section, line) in &mut setup.lines {
            if *section == "api" {
                let crl = format!(", client_crl_file = \"{}/crl.pem\" }}", folder.display());
                *line = line.replace(" }", &crl);
            }
        }
        setup
    })
    .await;
    let (bad, good) = (
        stand.issue(&Wish::uri(VIEWER)),
        stand.issue(&Wish::uri(VIEWER)),
    );
    let (one, other) = (stand.api(&bad), stand.api(&good));
    look(&one).await.unwrap();
    look(&other).await.unwrap();
    stand
        .files
        .put("crl.pem", &stand.client_ca.revoke(&[bad.serial]));
    stand.hang_up();
    assert_eq!(refused(&one).await, unknown());
    look(&other).await.unwrap();
    // A new connection is not even made.
    let (code, reason) = refused(&stand.api(&bad)).await;
    assert_ne!(code, Code::Unauthenticated);
    assert_eq!(reason, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_gone_vouches_for_no_open_connection() {
    let stand = Stand::start().await;
    let api = stand.viewer();
    look(&api).await.unwrap();
    stand.files.put("client-ca.pem", &stand.other_ca.pem());
    stand.hang_up();
    assert_eq!(refused(&api).await, unknown());
    // And it may come back.
    let both = stand.other_ca.pem() + &stand.client_ca.pem();
    stand.files.put("client-ca.pem", &both);
    stand.hang_up();
    until("the caller to be believed again", PATIENCE, async || {
        look(&api).await.ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_taken_away_counts_at_the_next_call() {
    let stand = Stand::start().await;
    let api = stand.operator();
    let stop = async || {
        let answer = api.vms().stop_vm(StopVmRequest::default()).await;
        answer.map(drop).unwrap_err().code()
    };
    assert_eq!(stop().await, Code::InvalidArgument);
    stand.reconfigure(|text| text.replace(OPERATOR, "spiffe://test.example/other"));
    until("the role to be gone", PATIENCE, async || {
        (stop().await == Code::PermissionDenied).then_some(())
    })
    .await;
    // A file with a fault changes nothing.
    stand.reconfigure(|text| {
        text.replace("spiffe://test.example/other", OPERATOR) + "\n[access.admin]\nnobody = 1\n"
    });
    until("the fault to be told", PATIENCE, async || {
        stand
            .daemon
            .log()
            .contains("was not read again")
            .then_some(())
    })
    .await;
    assert_eq!(stop().await, Code::PermissionDenied);
    stand.reconfigure(|text| text.replace("\n[access.admin]\nnobody = 1\n", ""));
    until("the role to be back", PATIENCE, async || {
        (stop().await == Code::InvalidArgument).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_do_not_fit_leave_the_former_ones_in_use() {
    let stand = Stand::start().await;
    let at_first = valid(&stand).await;
    // Of a certificate for a day, an administrator is told.
    assert_eq!(
        (at_first.status, at_first.reason.as_str()),
        (false, "ExpiresSoon")
    );
    let good = std::fs::read_to_string(stand.folder().join("key.pem")).unwrap();
    for bad in [
        stand.server_ca.server().key,
        "no key".to_owned(),
        String::new(),
        good.replace('M', "N"),
    ] {
        stand.files.put("key.pem", &bad);
        stand.hang_up();
        until("the fault to be told", PATIENCE, async || {
            (valid(&stand).await.reason == "NotUsable").then_some(())
        })
        .await;
        look(&stand.viewer()).await.unwrap();
        assert!(!bad.contains("PRIVATE") || !stand.daemon.log().contains(&bad[40..80]));
        stand.files.put("key.pem", &good);
        stand.hang_up();
        until("the fault to be over", PATIENCE, async || {
            (valid(&stand).await.reason == "ExpiresSoon").then_some(())
        })
        .await;
    }
    std::fs::remove_file(stand.folder().join("cert.pem")).unwrap();
    stand.hang_up();
    until("the fault to be told", PATIENCE, async || {
        (valid(&stand).await.reason == "NotUsable").then_some(())
    })
    .await;
    look(&stand.viewer()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_the_agent_serves_its_host_until_there_is_one() {
    let mut stand = Stand::start().await;
    let (path, aside) = (
        stand.folder().join("cert.pem"),
        stand.folder().join("aside"),
    );
    stand.daemon.stop().await;
    std::fs::rename(&path, &aside).unwrap();
    stand.daemon.restart().await;
    let condition = valid(&stand).await;
    assert_eq!(
        (condition.status, condition.reason.as_str()),
        (false, "NotUsable")
    );
    assert!(
        condition.message.contains("cert.pem"),
        "{}",
        condition.message
    );
    assert!(look(&stand.viewer()).await.is_err());
    std::fs::rename(&aside, &path).unwrap();
    until("the certificate to be in use", PATIENCE, async || {
        look(&stand.viewer()).await.ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_older_than_tls_1_3_is_spoken() {
    let stand = Stand::start().await;
    let own = stand.issue(&Wish::dns(ADMIN));
    let shake_hands = async |newest: bool| {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(stand.server_ca.pem().as_bytes()).unwrap();
        roots.add(ca).unwrap();
        let cert = CertificateDer::from_pem_slice(own.cert.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
        let version = if newest {
            &version::TLS13
        } else {
            &version::TLS12
        };
        let config = ClientConfig::builder_with_protocol_versions(&[version])
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![cert], key)
            .unwrap();
        let stream = TcpStream::connect(("127.0.0.1", stand.port)).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    };
    assert!(shake_hands(true).await.is_ok());
    let refused = shake_hands(false).await.unwrap_err().to_string();
    assert!(refused.contains("ProtocolVersion"), "{refused}");
    // And nothing that is not encrypted.
    let plain = tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{}", stand.port));
    let api = Api {
        channel: plain.unwrap().connect_lazy(),
    };
    assert!(look(&api).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_may_be_credentials_of_the_service() {
    let stand = Stand::with(|mut setup, folder| {
        // As systemd passes them, under names of the administrator's choice.
        let credentials = folder.join("credentials");
        std::fs::create_dir(&credentials).unwrap();
        for name in ["cert", "key", "client-ca"] {
            let given = credentials.join(format!("api-{name}"));
            std::fs::rename(folder.join(format!("{name}.pem")), given).unwrap();
        }
        for (section, line) in &mut setup.lines {
            if let ("api", Some((listen, _))) = (*section, line.split_once("tls = ")) {
                *line = format!(
                    "{listen}tls = {{ cert_credential = \"api-cert\", key_credential = \
                     \"api-key\", client_ca_credential = \"api-client-ca\" }}"
                );
            }
        }
        let folder = credentials.display().to_string();
        setup
            .environment
            .push(("CREDENTIALS_DIRECTORY".to_owned(), folder));
        setup
    })
    .await;
    assert!(!stand.folder().join("key.pem").exists());
    look(&stand.viewer()).await.unwrap();
}

fn kvmlet(stand: &Stand, arguments: &[&str]) -> Output {
    #[allow(clippy::disallowed_methods)] // a test calls the program that it tests
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvmlet"));
    command
        .env("KVMLET_SERVER", format!("https://localhost:{}", stand.port))
        .args(arguments)
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_shows_a_certificate_and_tells_what_it_may_not() {
    let stand = Stand::start().await;
    let own = stand.issue(&Wish::uri(VIEWER));
    let file = |name: &str, text: &str| {
        let path = stand.folder().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (ca, cert) = (file("ca", &stand.server_ca.pem()), file("own", &own.cert));
    let key = file("own-key", &own.key);
    let tls = ["--ca", &ca, "--cert", &cert, "--key", &key];
    let done = kvmlet(&stand, &[&["node"], &tls[..]].concat());
    assert!(done.status.success(), "{done:?}");
    let vm = STRANGER.to_string();
    let id = format!("00000000-0000-4000-8000-00{vm}");
    let refused = kvmlet(&stand, &[&["vm", "stop", &id], &tls[..]].concat());
    assert!(!refused.status.success());
    let words = String::from_utf8(refused.stderr).unwrap();
    assert!(words.contains("operator"), "{words}");
    let without = kvmlet(&stand, &["node", "--ca", &ca]);
    assert_eq!(without.status.code(), Some(2), "{without:?}");
    assert!(
        String::from_utf8(without.stderr)
            .unwrap()
            .contains("--cert")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_reader_may_not_read_it_any_more() {
    let stand = Stand::start().await;
    let watch = async |api: &Api| {
        let asked = WatchEventsRequest::default();
        let answer = api.nodes().watch_events(asked).await;
        answer.unwrap().into_inner()
    };
    let (viewer, admin) = (stand.viewer(), stand.admin());
    let (mut refused, mut goes_on) = (watch(&viewer).await, watch(&admin).await);
    stand.reconfigure(|text| text.replace("viewer/*", "nobody/*"));
    let end = async {
        loop {
            // Bookmarks come meanwhile.
            match refused.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ends without a reason"),
                Err(status) => return Refusal::from(&status),
            }
        }
    };
    let end = tokio::time::timeout(PATIENCE, end).await.unwrap();
    assert_eq!(end.brief(), (Code::PermissionDenied, "NOT_ALLOWED", vec![]));
    for _ in 0..2 {
        goes_on.message().await.unwrap().expect("a bookmark");
    }
}
