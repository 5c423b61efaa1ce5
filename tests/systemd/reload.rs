//! What `systemctl reload` takes over, and what it refuses.

use crate::host::Host;
use crate::remote::{ADDRESS, AUDITOR, Remote, config, put};
use crate::support::pki::Wish;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::{GetNodeRequest, ListVmsRequest};
use nix::sys::signal::{Signal, kill};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::Code;

const FILE: &str = "/etc/kvmlet/kvmlet.toml";
const TLS: &str = "cert_file = \"/etc/kvmlet/tls/cert.pem\", key_file = \
    \"/etc/kvmlet/tls/key.pem\", client_ca_file = \"/etc/kvmlet/tls/client-ca.pem\"";
/// How often certificates change under calls.
const ROTATIONS: u32 = 4;

/// The configuration in use from here on: a further viewer, a network and a profile.
fn good() -> String {
    config(
        TLS,
        &format!(
            "[access.viewer]\nuris = [\"{AUDITOR}\"]\n\
             [log]\nlevel = \"info,kvmlet::door=debug\"\n\
             [[networks]]\nid = \"nat\"\nlibvirt_network = \"default\"\n\
             [[hardware_profiles]]\nid = \"small\"\nvcpus = 1\nmemory = \"192 MiB\"\n"
        ),
    )
}

/// When `systemctl reload` returns, what it read holds; nothing was restarted.
pub async fn a_good_file_is_in_use_at_once(host: &Host, remote: &Remote) {
    let agent = host.agent();
    let auditor = remote.client_ca.issue(&Wish::uri(AUDITOR));
    let api = remote.api_for(host, &auditor);
    let refused = api.vms().list_vms(ListVmsRequest::default()).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);

    // From now on the key is a file, so that it can change without a restart.
    host.run("install -m 600 /etc/kvmlet/credentials/tls.key /etc/kvmlet/tls/key.pem");
    put(host, FILE, &good());
    host.run("systemctl reload kvmlet");
    api.vms()
        .list_vms(ListVmsRequest::default())
        .await
        .expect("a viewer, on the connection that was there");
    assert_eq!(host.agent(), agent);
    // The network and the profile can be asked for.
    let plan = host
        .run("kvmlet vm create web3 --image debian --profile small --nic network=nat --dry-run");
    println!("{plan}");
}

/// Neither with systemctl nor with the bare signal does a bad file change anything.
pub async fn a_bad_file_is_refused_and_the_old_one_stays(host: &Host, remote: &Remote) {
    let agent = host.agent();
    put(host, FILE, "[api]\nlisten = \"nowhere\"\nspeed = 9\n");
    let reload = host.try_run("systemctl reload kvmlet");
    assert_ne!(
        reload.code,
        Some(0),
        "a bad file was taken over: {reload:?}"
    );
    assert_eq!(host.property("kvmlet", "ActiveState"), "active");
    let journal = host.journal();
    assert!(journal.contains("api.listen"), "{journal}");
    kill(agent.unwrap(), Signal::SIGHUP).unwrap();
    until("the refusal in the status", PATIENCE, async || {
        let text = host.property("kvmlet", "StatusText");
        text.contains("configuration").then_some(())
    })
    .await;
    println!("status: {}", host.property("kvmlet", "StatusText"));
    let auditor = remote.client_ca.issue(&Wish::uri(AUDITOR));
    let api = remote.api_for(host, &auditor);
    api.vms()
        .list_vms(ListVmsRequest::default())
        .await
        .expect("the old roles hold");
    assert_eq!(host.agent(), agent);
    put(host, FILE, &good());
    host.run("systemctl reload kvmlet");
    let text = host.property("kvmlet", "StatusText");
    assert!(!text.contains("configuration"), "{text}");
}

/// New certificates, of a new authority, under calls that each make a connection: no
/// call fails that trusts both, and the new one is in use at the end.
pub async fn certificates_change_under_calls(host: &Host, remote: &Remote) {
    let stop = Arc::new(AtomicBool::new(false));
    let own = remote.client_ca.issue(&Wish::uri(AUDITOR));
    let calling = {
        let stop = stop.clone();
        let first = remote.api_for(host, &own);
        async move {
            let mut made = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                let fresh = remote.api_for(host, &own);
                for api in [&first, &fresh] {
                    let answer = api.nodes().get_node(GetNodeRequest {}).await;
                    answer.unwrap_or_else(|status| panic!("after {made} calls: {status}"));
                    made += 1;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            made
        }
    };
    let rotating = async {
        let mut first = true;
        for _ in 0..ROTATIONS {
            let issued = remote.server_ca.server();
            put(host, "/etc/kvmlet/tls/key.pem", &issued.key);
            put(host, "/etc/kvmlet/tls/cert.pem", &issued.cert);
            // Once by the signal, otherwise they are seen by themselves.
            if std::mem::take(&mut first) {
                host.run("systemctl reload kvmlet");
            }
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let (made, ()) = tokio::join!(calling, rotating);
    println!("{made} calls over {ROTATIONS} changes of the certificate at {ADDRESS}, none failed");
    // What is shown in the end is what was written last.
    let written = host.run("openssl x509 -in /etc/kvmlet/tls/cert.pem -noout -serial");
    let shown = until("the last certificate", PATIENCE, async || {
        let shown = host.run(&format!(
            "openssl s_client -connect {ADDRESS} </dev/null 2>/dev/null | \
             openssl x509 -noout -serial"
        ));
        (shown == written).then_some(shown)
    })
    .await;
    assert_eq!(shown, written);
}

/// With a bad file it does not start, says why, and is not started again and again,
/// also not by those who call its socket; with a good one it is back.
pub async fn a_bad_file_at_the_start_does_not_loop(host: &Host) {
    put(host, FILE, "[hypervisor]\nuri = 7\n");
    let started = host.try_run("systemctl restart kvmlet");
    assert_ne!(started.code, Some(0));
    assert_eq!(host.property("kvmlet", "ExecMainStatus"), "78");
    assert_eq!(host.property("kvmlet", "ActiveState"), "failed");
    let starts = || {
        let lines = host.run("journalctl -u kvmlet -b --no-pager -o cat");
        lines.matches("status=78").count()
    };
    let before = starts();
    // One call may try it once more, and is sent away.
    let socket = host.socket();
    let stream = UnixStream::connect(&socket).await.unwrap();
    tokio::time::sleep(Duration::from_secs(8)).await;
    drop(stream);
    let after = starts();
    assert!(
        after <= before + 2,
        "{} starts for one call",
        after - before
    );
    assert_eq!(host.property("kvmlet", "ActiveState"), "failed");
    assert_eq!(host.property("kvmlet.socket", "ActiveState"), "active");
    assert!(
        host.journal().contains("hypervisor.uri"),
        "{}",
        host.journal()
    );
    put(host, FILE, &good());
    host.run("systemctl restart kvmlet");
    assert!(host.api().serving("").await.unwrap());
}
