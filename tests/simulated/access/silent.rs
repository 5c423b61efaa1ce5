//! No key of TLS is in what the daemon writes, however much it logs.

use crate::access::stand::Stand;
use crate::support::pki::Wish;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::{GetNodeRequest, ListVmsRequest};
use std::fs;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Every plain file in a folder and those in it, with what it holds.
fn files(folder: &Path, into: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files(&entry.path(), into);
        } else if kind.is_file() {
            let name = entry.path().display().to_string();
            into.push((name, fs::read(entry.path()).unwrap()));
        }
    }
}

async fn metrics(stand: &Stand) -> String {
    let mut stream = UnixStream::connect(stand.daemon.metrics_socket())
        .await
        .unwrap();
    let ask = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    page
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_in_what_the_daemon_writes_at_trace_level() {
    let stand = Stand::with(|mut setup, _| {
        setup.log_level = "trace";
        setup
    })
    .await;
    let mut keys = vec![fs::read_to_string(stand.folder().join("key.pem")).unwrap()];
    let look = async || {
        let api = stand.viewer();
        api.nodes().get_node(GetNodeRequest {}).await.unwrap();
        api.vms().list_vms(ListVmsRequest::default()).await.unwrap();
    };
    look().await;
    // One that fits its certificate, one that does not, and one that is broken.
    let next = stand.server_ca.server();
    let stray = stand.server_ca.issue(&Wish::dns("localhost"));
    let broken = stray.key.replace("M", "N");
    stand.files.put("cert.pem", &next.cert);
    for (key, says) in [
        (&stray.key, "certificates can't be used"),
        (&broken, "certificates can't be used"),
        (&next.key, "new certificates are in use"),
    ] {
        let before = stand.daemon.log().matches(says).count();
        stand.files.put("key.pem", key);
        keys.push(key.clone());
        stand.hang_up();
        until("the key to be read", PATIENCE, async || {
            (stand.daemon.log().matches(says).count() > before).then_some(())
        })
        .await;
        look().await;
    }
    let mut written = Vec::new();
    files(stand.daemon.home(), &mut written);
    written.push(("metrics".to_owned(), metrics(&stand).await.into_bytes()));
    let log = stand.daemon.log();
    assert!(
        log.contains("TRACE rustls") || log.contains("TRACE h2"),
        "it logs at trace"
    );
    assert!(written.iter().any(|(name, _)| name.ends_with("journal.db")));
    let mut lines = 0;
    for key in &keys {
        // The lines of base64 that are not the same in every key.
        for line in key
            .lines()
            .filter(|line| !line.contains("PRIVATE KEY"))
            .skip(1)
        {
            lines += 1;
            for (name, content) in &written {
                let found = content
                    .windows(line.len())
                    .any(|part| part == line.as_bytes());
                assert!(!found, "{name} has a line of a key");
            }
        }
    }
    assert!(lines >= 4, "{keys:?}");
}
