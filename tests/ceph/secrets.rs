//! The key of the Ceph user is in its file, and in nothing that kvmlet writes, says
//! or starts.

use crate::lab::*;
use crate::spill::{self, Secret};
use crate::support::ceph::{Cluster, USER};
use crate::support::daemon::Daemon;
use crate::support::libvirtd::Libvirtd;
use crate::support::{PATIENCE, until};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kvmlet::proto::v1::*;
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The key, as the keyring has it and decoded.
fn key(cluster: &Cluster) -> Secret {
    let text = fs::read_to_string(cluster.keyring()).unwrap();
    let line = text.lines().find(|line| line.trim().starts_with("key"));
    let (_, key) = line.unwrap().split_once('=').unwrap();
    let key = key.trim();
    assert!(key.len() > 30, "a key");
    let whole = BASE64_STANDARD.decode(key).unwrap();
    // What is before the secret itself is a header, and alike in many keys.
    Secret::new("the key", &whole[12..]).or(key)
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

/// The command lines and environments of all processes, as long as it is wanted.
fn watch_processes(stop: Arc<AtomicBool>) -> std::thread::JoinHandle<BTreeSet<Vec<u8>>> {
    std::thread::spawn(move || {
        let mut seen = BTreeSet::new();
        while !stop.load(Ordering::Relaxed) {
            for entry in fs::read_dir("/proc").unwrap().flatten() {
                for part in ["cmdline", "environ"] {
                    if let Ok(text) = fs::read(entry.path().join(part)) {
                        seen.insert(text);
                    }
                }
            }
        }
        seen
    })
}

/// Files of the daemon's directory, without the images.
fn files(daemon: &Daemon) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(daemon.home()).unwrap().flatten() {
        if entry.file_type().unwrap().is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            files.push((name, fs::read(entry.path()).unwrap()));
        }
    }
    files
}

fn pool_list(daemon: &Daemon) -> Vec<u8> {
    #[allow(clippy::disallowed_methods)] // a test runs the administrator's client
    let output = Command::new(env!("CARGO_BIN_EXE_kvmlet"))
        .args(["pool", "list", "--output", "json", "--server"])
        .arg(format!("unix://{}", daemon.socket().display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(holds(&output.stdout, "vms-fast"), "{output:?}");
    [output.stdout, output.stderr].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_nowhere_but_in_its_file() {
    let cluster = &*breakable().await;
    let libvirtd = Libvirtd::start();
    let connection = libvirtd.connect();
    let key = key(cluster);
    let stop = Arc::new(AtomicBool::new(false));
    let processes = watch_processes(stop.clone());
    let mut setup = setup(cluster);
    setup.uri = libvirtd.uri();
    setup.launcher = spill::at_trace();
    let mut daemon = started(setup).await;
    let api = daemon.api();
    let image = image_on_ceph(&daemon).await;
    let request = CreateVmRequest {
        start: true,
        data_volumes: vec![data(2)],
        ..on_ceph(&image)
    };
    let vm = api.made(request).await;
    let replace = |pool| ReplaceRootVolumeRequest {
        vm_id: vm.id.clone(),
        image_id: image.clone(),
        system_tags: tag(pool),
        stop_policy: Some(crate::support::api::force()),
        ..Default::default()
    };
    api.replaced(replace("vms-fast")).await;
    let mut said = vec![format!("{:?}", api.not_replaced(replace("data")).await)];
    let domain = Libvirtd::domain(&connection, &vm.id).expect("a domain");
    // VIR_DOMAIN_XML_SECURE
    said.push(domain.xml_desc(1).unwrap());
    assert!(said[1].contains("protocol='rbd'"));
    let listed = pool_list(&daemon);
    cluster.revoke_key(USER);
    said.push(format!(
        "{:?}",
        api.start(&vm.id).await.expect_err("it is revoked")
    ));
    said.push(format!("{:?}", api.not_made(on_ceph(&image)).await));
    said.push(format!("{:?}", api.node().await));
    said.push(format!("{:?}", api.all_operations().await));
    cluster.restore_key(USER);
    until("the pool to be ready", PATIENCE, async || {
        api.condition("ceph").await.status.then_some(())
    })
    .await;
    api.remove(&vm.id).await;
    daemon.stop().await;
    stop.store(true, Ordering::Relaxed);
    let processes = processes.join().unwrap();

    assert!(!key.is_in(&listed), "pool list");
    for said in said {
        assert!(!key.is_in(said.as_bytes()), "{said}");
    }
    let files = files(&daemon);
    assert!(files.iter().any(|(name, _)| name == "journal.db"));
    let (_, log) = files.iter().find(|(name, _)| name == "log").unwrap();
    assert!(holds(log, " TRACE h2::"), "the log says all that it can");
    for (name, content) in &files {
        assert!(!key.is_in(content), "{name} has the key");
    }
    let ours = |text: &&Vec<u8>| holds(text, cluster.folder().to_str().unwrap());
    let ours: Vec<_> = processes.iter().filter(ours).collect();
    assert!(
        ours.iter().any(|text| holds(text, "rbd")),
        "tools were seen"
    );
    for text in &processes {
        assert!(!key.is_in(text), "{}", String::from_utf8_lossy(text));
    }
}
