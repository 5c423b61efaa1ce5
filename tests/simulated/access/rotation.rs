//! Certificates that change under load.

use crate::access::stand::{OPERATOR, Stand, VIEWER};
use crate::support::daemon::Daemon;
use crate::support::pki::{Authority, Wish};
use crate::support::{PATIENCE, thorough, until};
use kvmlet::proto::v1::{GetNodeRequest, ListVmsRequest};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// What grants the role of viewers.
const VIEWER_URIS: &str = "uris = [\"spiffe://test.example/viewer/*\"]";
const CALLERS: usize = 10;
/// Between two calls of one caller: 100 a second in all.
const PACE: Duration = Duration::from_millis(100);
const HOUR: Duration = Duration::from_secs(3600);

/// When the certificate in use expires, as the metrics tell.
async fn expiry(daemon: &Daemon) -> f64 {
    let mut stream = UnixStream::connect(daemon.metrics_socket()).await.unwrap();
    let ask = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    let name = "kvmlet_certificate_expiry_timestamp_seconds{certificate=\"own\"} ";
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    line.expect("the metric is there").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_under_100_calls_a_second_and_none_fails() {
    let stand = Arc::new(Stand::start().await);
    let (made, stop) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let mut callers = Vec::new();
    for number in 0..CALLERS {
        let (stand, made, stop) = (stand.clone(), made.clone(), stop.clone());
        callers.push(tokio::spawn(async move {
            // Half of them keep one connection, the others make one for each call,
            // with a certificate that is new.
            let kept = stand.viewer();
            let mut failed = Vec::new();
            let mut ticks = tokio::time::interval(PACE);
            while !stop.load(Ordering::Relaxed) {
                ticks.tick().await;
                let api = if number % 2 == 0 {
                    kept.clone()
                } else {
                    stand.viewer()
                };
                let answer = if number % 3 == 0 {
                    let all = api.vms().list_vms(ListVmsRequest::default()).await;
                    all.map(drop)
                } else {
                    api.nodes().get_node(GetNodeRequest {}).await.map(drop)
                };
                made.fetch_add(1, Ordering::Relaxed);
                failed.extend(answer.err());
            }
            failed
        }));
    }
    let rounds = if thorough() { 30_u32 } else { 6 };
    for round in 1..=rounds {
        // Each expires at another time, by which it is known.
        let own = stand.server_ca.issue(&Wish {
            dns: vec!["localhost".to_owned()],
            lasts: Some(HOUR * round),
            ..Wish::default()
        });
        let begun = made.load(Ordering::Relaxed);
        stand.files.put("cert.pem", &own.cert);
        // For a moment the two don't fit each other.
        if round.is_multiple_of(2) {
            stand.hang_up();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stand.files.put("key.pem", &own.key);
        // The authorities of callers change, too: one more, and another one.
        let more = Authority::new("more").pem();
        stand
            .files
            .put("client-ca.pem", &(stand.client_ca.pem() + &more));
        stand.hang_up();
        until(
            "the certificate to be in use, and calls",
            PATIENCE,
            async || {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                let expires = (now + HOUR * round).as_secs_f64();
                let used = (expiry(&stand.daemon).await - expires).abs() < HOUR.as_secs_f64() / 2.0;
                let calls = made.load(Ordering::Relaxed) - begun;
                (used && calls >= 5 * CALLERS).then_some(())
            },
        )
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut failed = Vec::new();
    for caller in callers {
        failed.extend(caller.await.unwrap());
    }
    let made = made.load(Ordering::Relaxed);
    println!("{made} calls, {rounds} changes, {} failed", failed.len());
    assert!(failed.is_empty(), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_changes_is_used_without_being_asked_to() {
    let stand = Stand::start().await;
    let first = expiry(&stand.daemon).await;
    let own = stand.server_ca.issue(&Wish {
        dns: vec!["localhost".to_owned()],
        lasts: Some(Duration::from_secs(3600)),
        ..Wish::default()
    });
    stand.files.put("cert.pem", &own.cert);
    stand.files.put("key.pem", &own.key);
    until("the certificate to be in use", PATIENCE, async || {
        (expiry(&stand.daemon).await < first).then_some(())
    })
    .await;
    // By a name that callers know.
    stand
        .operator()
        .nodes()
        .get_node(GetNodeRequest {})
        .await
        .unwrap_or_else(|status| panic!("{OPERATOR} and {VIEWER} still may: {status}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_whose_certificates_can_not_be_used_changes_no_role_either() {
    let stand = Stand::start().await;
    let viewer = stand.viewer();
    viewer.nodes().get_node(GetNodeRequest {}).await.unwrap();
    let without = |text: String| text.replace(VIEWER_URIS, "uris = []");
    stand.reconfigure(|text| {
        let named = text.replace("cert_file = \"", "cert_file = \"/nowhere");
        assert_ne!(named, text);
        without(named)
    });
    until("the refusal", PATIENCE, async || {
        let log = stand.daemon.log();
        let line = log
            .lines()
            .find(|line| line.contains("was not read again"))?;
        assert!(line.contains("api.tls: /nowhere"), "{line}");
        Some(())
    })
    .await;
    viewer.nodes().get_node(GetNodeRequest {}).await.unwrap();
    // The same without the fault takes the role away.
    stand.reconfigure(|text| text.replace("cert_file = \"/nowhere", "cert_file = \""));
    until("the role to go", PATIENCE, async || {
        viewer.nodes().get_node(GetNodeRequest {}).await.err()
    })
    .await;
}
